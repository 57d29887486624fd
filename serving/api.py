"""The decider's HTTP interface, as a plain FastAPI application over anything that answers ``Controls``.

Every POST asks for the bearer token, every GET does where the settings say so, and ``/healthz`` never does. Errors are
``{"error": ...}`` with the status that says whose fault it is.
"""

import hmac
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Annotated, Any, Protocol

from fastapi import Body, Depends, FastAPI, HTTPException, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Match, Route

from rayfold.errors import ClusterError, InputError
from rayfold.serving.decider import Decider
from rayfold.serving.decision import Mode, jsonable
from rayfold.serving.live_settings import LiveSettings, settings_as_json
from rayfold.serving.metrics import CONTENT_TYPE
from rayfold.serving.state_view import describe_state

__all__ = ["Controls", "make_api"]

_MAX_LISTED = 1000
_RECENT_EVENTS = 20
# Of a route that asks for the token only where the settings say so.
_OPTIONAL_TOKEN: dict[str, Any] = {"security": [{}]}
_SETTINGS_BODY: dict[str, Any] = {
    "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/LiveSettings"}}}}
}
_Limit = Annotated[int, Query(ge=1, le=_MAX_LISTED, description="The newest so many, oldest first.", examples=[50])]


class Controls(Protocol):
    """What the interface is an interface to."""

    decider: Decider

    def lease_held(self) -> bool:
        """Whether this decider may act as far as others are concerned."""
        ...

    def set_mode(self, mode: Mode) -> None:
        """Changes the mode.

        Raises:
            ClusterError: It cannot act on this cluster.
        """
        ...

    def apply_settings(self, content: Mapping[str, Any]) -> LiveSettings:
        """Takes settings; see ``merge_settings``.

        Raises:
            InputError: They are wrong; nothing is changed.
        """
        ...


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _ModeRequest(_Strict):
    mode: Mode = Field(examples=["recommend"])


class _PauseRequest(_Strict):
    reason: str = Field(default="by hand", max_length=200, examples=["incident 4711"])


class _Error(BaseModel):
    error: str = Field(examples=["a bearer token is required"])


_Bearer = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(HTTPBearer(auto_error=False, scheme_name="token", description="The text of the file `--token-file`.")),
]


def _guard(controls: Controls, token: str) -> Callable[..., None]:
    def check(request: Request, given: _Bearer) -> None:
        if request.method == "GET" and not controls.decider.settings.token_for_reading:
            return
        if given is None or not hmac.compare_digest(given.credentials.encode("utf-8", "replace"), token.encode()):
            raise HTTPException(401, "a bearer token is required", {"WWW-Authenticate": "Bearer"})

    return check


def make_api(controls: Controls, token: str) -> FastAPI:
    """The application.

    Args:
        controls: What it reads and steers.
        token: Bearer token.
    """
    api = FastAPI(title="rayfold decider")
    guarded = [Depends(_guard(controls, token))]
    _add_error_handlers(api)
    _add_reading(api, controls, guarded)
    _add_steering(api, controls, guarded)
    return api


def _add_error_handlers(api: FastAPI) -> None:
    @api.exception_handler(StarletteHTTPException)
    def http_error(request: Request, err: StarletteHTTPException) -> JSONResponse:
        headers = dict(err.headers or {})
        if err.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = _allowed(api, request)
        return _error(err.status_code, str(err.detail), headers)

    @api.exception_handler(RequestValidationError)
    def validation_error(request: Request, err: RequestValidationError) -> JSONResponse:
        first = err.errors()[0]
        return _error(422, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")

    @api.exception_handler(InputError)
    def input_error(request: Request, err: InputError) -> JSONResponse:
        return _error(422, str(err))

    @api.exception_handler(ClusterError)
    def cluster_error(request: Request, err: ClusterError) -> JSONResponse:
        return _error(409, str(err))


def _allowed(api: FastAPI, request: Request) -> str:
    """Methods of this path. Starlette tells those of its first route only."""
    routes = [r for r in api.routes if isinstance(r, Route) and r.matches(request.scope)[0] != Match.NONE]
    return ", ".join(sorted({method for route in routes for method in route.methods or ()}))


def _told(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Errors that a route can answer with, for the document."""
    return {status: {"model": _Error} for status in sorted(statuses)}


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": text or HTTPStatus(status).phrase}, status, headers)


def _add_reading(api: FastAPI, controls: Controls, guarded: list[Any]) -> None:
    decider = controls.decider

    @api.get("/healthz")
    def healthz() -> dict[str, Any]:
        """Mode, pause, time of the last decision (Unix s) and error of the last tick. Open to everyone."""
        last = decider.last_decision
        return {
            "status": "failing" if decider.last_error else "ok",
            "mode": decider.mode,
            "paused": decider.paused,
            "last_decision_s": last.time_s if last else None,
            "error": decider.last_error,
        }

    @api.get("/state", dependencies=guarded, openapi_extra=_OPTIONAL_TOKEN, responses=_told(401))
    def state() -> dict[str, Any]:
        """The last snapshot, the mode, why it is paused, who holds the lease, and what happened lately."""
        seen = describe_state(decider.last_state, decider.tenants) if decider.last_state else {}
        about = {"mode": decider.mode, "paused": decider.paused, "lease_held": controls.lease_held()}
        return {**seen, **about, "events": decider.journal.events(_RECENT_EVENTS)}

    @api.get("/plan", dependencies=guarded, openapi_extra=_OPTIONAL_TOKEN, responses=_told(401))
    def plan() -> dict[str, Any]:
        """The last decision; empty before the first."""
        last = decider.last_decision
        return last.as_json() if last else {}

    @api.get("/decisions", dependencies=guarded, openapi_extra=_OPTIONAL_TOKEN, responses=_told(401, 422))
    def decisions(limit: _Limit = 50) -> list[dict[str, Any]]:
        """The newest decisions."""
        return decider.journal.decisions(limit)

    @api.get(
        "/decisions/{decision_id}", dependencies=guarded, openapi_extra=_OPTIONAL_TOKEN, responses=_told(401, 404, 422)
    )
    def decision(decision_id: Annotated[int, Path(ge=1, examples=[1])]) -> dict[str, Any]:
        """One decision with the moves made of it."""
        found = decider.journal.decision(decision_id)
        if found is None:
            raise HTTPException(404, f"no decision {decision_id}")
        return found

    @api.get("/moves", dependencies=guarded, openapi_extra=_OPTIONAL_TOKEN, responses=_told(401, 422))
    def moves(limit: _Limit = 1000) -> list[dict[str, Any]]:
        """The newest moves with their phases."""
        return decider.journal.moves(limit)

    @api.get(
        "/metrics",
        dependencies=guarded,
        openapi_extra=_OPTIONAL_TOKEN,
        responses=_told(401),
        response_class=PlainTextResponse,
    )
    def metrics() -> PlainTextResponse:
        """For Prometheus."""
        return PlainTextResponse(decider.metrics.text(decider.gauges(controls.lease_held())), media_type=CONTENT_TYPE)

    @api.get(
        "/settings",
        dependencies=guarded,
        openapi_extra=_OPTIONAL_TOKEN,
        responses={**_told(401), 200: {"model": LiveSettings}},
    )
    def settings() -> dict[str, Any]:
        """The settings in force."""
        return dict(jsonable(settings_as_json(decider.settings)))


def _add_steering(api: FastAPI, controls: Controls, guarded: list[Any]) -> None:
    decider = controls.decider

    @api.post("/mode", dependencies=guarded, responses=_told(400, 401, 409, 422))
    def set_mode(request: _ModeRequest) -> dict[str, str]:
        """Changes the mode. Only ``act`` touches the cluster; leaving it detaches from the controller."""
        controls.set_mode(request.mode)
        return {"mode": request.mode}

    @api.post("/pause", dependencies=guarded, responses=_told(400, 401, 422))
    def pause(request: Annotated[_PauseRequest | None, Body()] = None) -> dict[str, str]:
        """Moves nothing more until it is resumed, also after a restart; what is under way goes on."""
        decider.pause((request or _PauseRequest()).reason or "by hand")
        return {"paused": decider.paused}

    @api.post("/resume", dependencies=guarded, responses=_told(401))
    def resume() -> dict[str, str]:
        """Ends a pause, the churn breaker's too."""
        decider.resume()
        return {"paused": decider.paused}

    @api.post("/moves/{move_id}/cancel", dependencies=guarded, responses=_told(401, 404, 409, 422))
    def cancel(move_id: Annotated[str, Path(max_length=100, examples=["9f2c41d07b5e8a36"])]) -> dict[str, str]:
        """Asks a move that still starts to end; one that drains or has ended goes its way."""
        if not decider.cancel(move_id):
            raise HTTPException(404, f"no move {move_id}")
        return {"cancelling": move_id}

    @api.post(
        "/settings",
        dependencies=guarded,
        responses={**_told(400, 401, 422), 200: {"model": LiveSettings}},
        openapi_extra=_SETTINGS_BODY,
    )
    def change_settings(
        content: Annotated[dict[str, Any], Body(examples=[{"brakes": {"moves_per_h": 10}, "decision_interval_s": 30}])],
    ) -> dict[str, Any]:
        """Replaces the fields that are given: all of them or, where one is wrong, none. In force from the next tick."""
        return dict(jsonable(settings_as_json(controls.apply_settings(content))))
