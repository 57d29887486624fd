"""An HTTP client that calls an ASGI application in this process. Starlette's own asks for a package of its own."""

import asyncio
from typing import Any

import httpx

__all__ = ["AsgiClient"]


class AsgiClient:
    """Blocking; an error that the application does not answer for is a 500, as a server would make it.

    Args:
        app: An ASGI application.
    """

    def __init__(self, app: Any) -> None:
        self._runner = asyncio.Runner()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://test")

    def request(self, method: str, url: str, **keywords: Any) -> httpx.Response:
        """One request."""
        return self._runner.run(self._client.request(method, url, **keywords))

    def get(self, url: str, **keywords: Any) -> httpx.Response:
        """One GET."""
        return self.request("GET", url, **keywords)

    def post(self, url: str, **keywords: Any) -> httpx.Response:
        """One POST."""
        return self.request("POST", url, **keywords)

    def close(self) -> None:
        """No use after this."""
        self._runner.run(self._client.aclose())
        self._runner.close()
