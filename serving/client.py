"""Questions to a running decider, over its HTTP interface; what goes wrong becomes one line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from rayfold.errors import ClusterError, InputError

__all__ = ["DeciderClient"]

_TIMEOUT_S = 30.0  # a change of mode waits for the Serve controller


class DeciderClient:
    """One decider.

    Args:
        url: Of its interface, without a path of it: ``http://127.0.0.1:8000/rayfold``.
        token: Bearer token; empty = none is sent.
        timeout_s: A decider that takes longer does not answer.

    Raises:
        InputError: The address is none of HTTP.
    """

    def __init__(self, url: str, token: str = "", *, timeout_s: float = _TIMEOUT_S) -> None:
        self.url, self._timeout_s = url.rstrip("/"), timeout_s
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            parsed = httpx.URL(self.url)
        except httpx.InvalidURL as err:
            raise InputError("--url", "http://HOST:PORT/rayfold", url) from err
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InputError("--url", "http://HOST:PORT/rayfold", url)

    def get(self, path: str, **params: int) -> Any:
        """The JSON at a path, which begins with a slash.

        Raises:
            InputError: The decider asks for another token, or there is no such thing.
            ClusterError: Nobody answers, or not as a decider does.
        """
        return self._ask("GET", path, params=params)

    def post(self, path: str, content: Mapping[str, Any] | None = None) -> Any:
        """Sends JSON, or no body, and gives the JSON of the answer.

        Raises:
            InputError: The decider asks for another token, or refuses what it was sent.
            ClusterError: Nobody answers, not as a decider does, or the cluster may not be touched.
        """
        return self._ask("POST", path, json=content)

    def _ask(self, method: str, path: str, **keywords: Any) -> Any:
        try:
            # A proxy of the environment is not where a decider is.
            with httpx.Client(timeout=self._timeout_s, trust_env=False, headers=self._headers) as client:
                answer = client.request(method, f"{self.url}{path}", **keywords)
        except httpx.HTTPError as err:
            why = str(err) or type(err).__name__
            raise ClusterError(f"--url: expected a decider at {self.url}, got no answer ({why})") from err
        if answer.status_code == 200:
            with self.expecting():
                return answer.json()
        raise self._refusal(answer)

    def _refusal(self, answer: httpx.Response) -> InputError | ClusterError:
        try:
            told = str(answer.json()["error"])
        except (ValueError, TypeError, KeyError):
            return ClusterError(f"--url: expected a decider at {self.url}, got status {answer.status_code}")
        if answer.status_code == 401:
            return InputError("--token-file", "the token of this decider", told)
        if answer.status_code in (404, 422):
            return InputError(self.url, "something that it knows", told)
        return ClusterError(f"{self.url}: {told}")

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Whoever reads an answer reads it in here: one of another shape is another's.

        Raises:
            ClusterError: In place of what misses a field.
        """
        try:
            yield
        except (ValueError, TypeError, KeyError, AttributeError) as err:
            told = f"an answer of another shape ({type(err).__name__}: {err})"
            raise ClusterError(f"--url: expected a decider at {self.url}, got {told}") from err
