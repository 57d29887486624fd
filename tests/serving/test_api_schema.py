"""The HTTP interface and its OpenAPI document tell the same: schemathesis sends what the document allows, and what not.

Its checks are the oracle: no 5xx, only statuses, content types, headers and bodies that the document names, wrong input
refused, right input taken, and nothing without the token.
"""

from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI, HTTPException
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from rayfold.envs.moves import Move, Plan
from rayfold.serving.api import make_api
from rayfold.serving.decision import Mode
from tests.serving.deciders import FakeCluster, make_decider
from tests.serving.test_api import BEARER, TOKEN, FakeControls


def _make_api() -> FastAPI:
    """An interface behind which one decision has been made."""
    decider = make_decider(lambda: Plan(moves=(Move(0, 1),)), FakeCluster())
    decider.tick()
    return make_api(FakeControls(decider), TOKEN)


schema = schemathesis.openapi.from_asgi("/openapi.json", _make_api())


# Some settings are wrong in ways that a JSON schema cannot tell: a time zone that is none, an interval that ends before
# it begins. That right settings are taken is tested in ``test_api.py``.
_BEYOND_SCHEMA = [positive_data_acceptance]


@schema.parametrize()
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_as_the_document_says(case: Any) -> None:
    """With the token; where one is asked for, the checks try without it and with a wrong one too."""
    excluded = _BEYOND_SCHEMA if case.operation.label == "POST /settings" else []
    case.call_and_validate(headers=BEARER, excluded_checks=excluded)


class _Teapot(FakeControls):
    """Answers in a way that the document does not tell."""

    def set_mode(self, mode: Mode) -> None:
        """A fault."""
        raise HTTPException(418)


@pytest.mark.parametrize(("is_open", "told"), [(False, "Received: 418"), (True, "without authentication")])
def test_checks_find_what_is_planted(is_open: bool, told: str) -> None:
    """A status that nobody told of, and a route that forgets to ask for the token."""
    controls = FakeControls if is_open else _Teapot
    api = make_api(controls(make_decider(Plan, FakeCluster())), TOKEN)
    if is_open:
        (route,) = (r for r in api.routes if isinstance(r, APIRoute) and r.path == "/mode")
        guard: Any = route.dependant.dependencies[0].call
        api.dependency_overrides[guard] = lambda: None
    planted: Any = schemathesis.openapi.from_asgi("/openapi.json", api)
    case = planted["/mode"]["POST"].Case(body={"mode": "observe"})
    with pytest.raises(schemathesis.errors.FailureGroup) as caught:
        case.call_and_validate(headers=BEARER)
    assert told in str(caught.value.exceptions[0])
