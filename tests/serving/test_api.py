"""The HTTP interface: who may do what, what goes wrong as ``{"error": ...}``, and no input that makes it fail."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from rayfold.envs.moves import Candidate, Move, MovePhase, Plan
from rayfold.serving.api import make_api
from rayfold.serving.decider import Decider
from rayfold.serving.decision import Mode
from rayfold.serving.live_settings import LiveSettings, merge_settings, parse_live_settings, settings_as_json
from rayfold.serving.metrics import NAMES, Gauges
from tests.serving.asgi_client import AsgiClient
from tests.serving.deciders import FakeCluster, make_decider

TOKEN = "s3cret"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
LAUNCH: dict[str, Any] = {"labels": {"size": "g"}, "resources": {"GPU": 4}}


class FakeControls:
    """The decider of the hand-built cluster."""

    def __init__(self, decider: Decider) -> None:
        self.decider = decider

    def lease_held(self) -> bool:
        """Always."""
        return True

    def set_mode(self, mode: Mode) -> None:
        """As the decider does."""
        self.decider.set_mode(mode)

    def apply_settings(self, content: Mapping[str, Any]) -> LiveSettings:
        """As the application does."""
        made = merge_settings(self.decider.settings, content, "settings")
        self.decider.reconfigure(made)
        return made


class Served(NamedTuple):
    """An interface and what is behind it."""

    client: AsgiClient
    decider: Decider
    executor: FakeCluster


def _serve(forbidden: str = "", mode: Mode = Mode.ACT) -> Served:
    candidate = Candidate(moves=(Move(0, 1),), score=float("inf"))
    plan = Plan(moves=(Move(0, 1),), scores=(0.5,), reason="because", candidates=(candidate,))
    executor = FakeCluster(forbidden=forbidden)
    decider = make_decider(lambda: plan, executor, mode=mode)
    return Served(AsgiClient(make_api(FakeControls(decider), TOKEN)), decider, executor)


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., Served]]:
    """Makes interfaces, and closes them."""
    made: list[Served] = []

    def serve(forbidden: str = "", mode: Mode = Mode.ACT) -> Served:
        made.append(_serve(forbidden, mode))
        return made[-1]

    yield serve
    for one in made:
        one.client.close()


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    """One decision has been made, and one move started."""
    made = serve()
    made.decider.tick()
    return made


@pytest.fixture(scope="module")
def fuzzed(serve: Callable[..., Served]) -> Served:
    """One for all inputs."""
    made = serve()
    made.decider.tick()
    return made


def test_reading(served: Served) -> None:
    """State, plan, decisions and moves tell of the one move; scores that are no numbers are null."""
    client, _, executor = served
    (move_id,) = executor.ids
    assert client.get("/healthz").json()["status"] == "ok"
    state = client.get("/state").json()
    assert (len(state["nodes"]), state["mode"], state["paused"], state["lease_held"]) == (2, "act", "", True)
    plan = client.get("/plan").json()
    assert (plan["moves"][0]["move_id"], plan["candidates"][0]["score"]) == (move_id, None)
    (decision,) = client.get("/decisions", params={"limit": 5}).json()
    told = client.get(f"/decisions/{decision['id']}").json()
    assert told["carried_out"][0]["move_id"] == move_id
    assert [m["move_id"] for m in client.get("/moves").json()] == [move_id]
    assert client.get("/settings").json()["decision_interval_s"] == served.decider.settings.decision_interval_s


def test_before_the_first_decision(serve: Callable[..., Served]) -> None:
    """Everything answers."""
    client = serve().client
    for path in ("/healthz", "/state", "/plan", "/decisions", "/moves", "/metrics", "/settings"):
        assert client.get(path).status_code == 200, path


def test_every_post_asks_for_the_token(served: Served) -> None:
    """Without it and with a wrong one: 401, and nothing has changed."""
    client, decider, executor = served
    paths = [p for p, ops in client.get("/openapi.json").json()["paths"].items() if "post" in ops]
    assert len(paths) == 5
    for path in paths:
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": TOKEN}, {"Authorization": "Bearer é"}):
            answer = client.post(
                path.replace("{move_id}", executor.ids[0]), json={"mode": "off"}, headers=_raw(headers)
            )
            assert answer.status_code == 401, path
            assert answer.json() == {"error": "a bearer token is required"}
            assert answer.headers["www-authenticate"] == "Bearer"
    assert (decider.mode, decider.paused, executor.cancelled) == (Mode.ACT, "", [])


def _raw(headers: Mapping[str, str]) -> dict[str, bytes]:
    return {name: value.encode() for name, value in headers.items()}


def test_reading_asks_for_the_token_where_it_is_set(served: Served) -> None:
    """All but the health check, which load balancers ask."""
    client = served.client
    assert client.post("/settings", json={"token_for_reading": True}, headers=BEARER).status_code == 200
    for path in ("/state", "/plan", "/decisions", "/decisions/1", "/moves", "/metrics", "/settings"):
        assert client.get(path).status_code == 401, path
        assert client.get(path, headers=BEARER).status_code == 200, path
    assert client.get("/healthz").status_code == 200


def test_mode_and_pause(served: Served) -> None:
    """Changed at once, recorded, and the next tick obeys."""
    client, decider, executor = served
    assert client.post("/pause", json={"reason": "incident"}, headers=BEARER).json() == {"paused": "incident"}
    assert client.get("/state").json()["paused"] == "incident"
    assert client.post("/resume", headers=BEARER).json() == {"paused": ""}
    assert client.post("/pause", headers=BEARER).json() == {"paused": "by hand"}
    assert client.post("/mode", json={"mode": "observe"}, headers=BEARER).json() == {"mode": "observe"}
    decider.tick()
    assert executor.detached == 1
    kinds = [(e["kind"], e["text"]) for e in client.get("/state").json()["events"]]
    assert kinds == [("paused", "incident"), ("resumed", ""), ("paused", "by hand"), ("mode", "observe")]


def test_cluster_that_may_not_be_touched_is_a_conflict(serve: Callable[..., Served]) -> None:
    """Acting on a Ray that was not tested: 409 with the reason, and the mode stays."""
    client, decider, _ = serve("refused: Ray 9 is not a tested version", mode=Mode.OBSERVE)
    answer = client.post("/mode", json={"mode": "act"}, headers=BEARER)
    assert (answer.status_code, answer.json()) == (409, {"error": "refused: Ray 9 is not a tested version"})
    assert decider.mode == Mode.OBSERVE


def test_cancel(served: Served) -> None:
    """A move that starts is told to end; one that has ended is left alone; one that is not there is 404."""
    client, decider, executor = served
    (move_id,) = executor.ids
    assert client.post("/moves/no/cancel", headers=BEARER).status_code == 404
    assert client.post(f"/moves/{move_id}/cancel", headers=BEARER).json() == {"cancelling": move_id}
    assert executor.cancelled == [move_id]
    executor.set_phase(move_id, MovePhase.CANCELLED)
    decider.watch()
    assert client.post(f"/moves/{move_id}/cancel", headers=BEARER).status_code == 200
    assert executor.cancelled == [move_id]


def test_settings_are_taken_whole_or_not_at_all(served: Served) -> None:
    """Fields of the brakes are merged; one wrong field among right ones changes nothing and is named."""
    client, decider, _ = served
    first = {"brakes": {"moves_per_h": 7, "freeze": ["daily 00:00-24:00"]}, "plan_deadline_s": 2.0}
    assert client.post("/settings", json=first, headers=BEARER).status_code == 200
    second = client.post("/settings", json={"brakes": {"moves_per_h": 8}}, headers=BEARER).json()
    assert second["brakes"]["moves_per_h"] == 8
    assert second["brakes"]["freeze"] == ["daily 00:00-24:00"]
    before = decider.settings
    for wrong, named in (
        ({"plan_deadline_s": 3.0, "brakes": {"moves_per_h": -1}}, "brakes.moves_per_h"),
        ({"plan_deadline_s": 0}, "plan_deadline_s"),
        ({"nonsense": 1}, "nonsense"),
        ({"brakes": {"freeze": ["sometimes"]}}, "brakes.freeze"),
        ({"brakes": None}, "brakes"),
        ({"limits": {"allow_new_nodes": True}}, "allow_new_nodes"),
        ({"limits": {"allow_new_nodes": True}, "node_types": {"g": {"launch": LAUNCH}}}, "allow_new_nodes"),
        ({"node_types": {"g": {"launch": {**LAUNCH, "labels": {}}}}}, "launch.labels"),
        ({"node_types": {"g": {"launch": {**LAUNCH, "labels": {"a": "!in(b)"}}}}}, "launch.labels.a"),
        ({"node_types": {"g": {"launch": {**LAUNCH, "resources": {"GPU": -1}}}}}, "launch.resources.GPU"),
        ({"limits": {"max_concurrent_moves": -1}}, "limits.max_concurrent_moves"),
        ({"prices": {"unserved": "x"}}, "prices"),
        ({"decision_interval_s": "5"}, "decision_interval_s"),
        ({"brakes": [3]}, "brakes"),
    ):
        answer = client.post("/settings", json=wrong, headers=BEARER)
        assert answer.status_code == 422, wrong
        assert named in answer.json()["error"]
    assert decider.settings is before
    decider.tick()
    assert client.get("/plan").json()["moves"][0]["reason"] in (
        "already_moving",
        "deployment_cooldown",
        "freeze_window",
    )


def test_settings_survive_their_own_text() -> None:
    """What is written as JSON is read back as the same settings."""
    full = parse_live_settings(
        {
            "node_types": {
                "g": {
                    "price_usd_per_h": 2.5,
                    "boot_s": [1, 2],
                    "launch": {"labels": {"size": "g"}, "resources": {"GPU": 4}},
                }
            },
            "limits": {"allow_new_nodes": True},
            "deployments": {"a/b": {"is_movable": False}},
            "brakes": {"freeze": ["mon-fri 08:00-18:00"], "freeze_zone": "Europe/Berlin"},
            "opted_out_nodes": ["n1"],
        },
        "test",
    )
    assert parse_live_settings(json.loads(json.dumps(settings_as_json(full))), "test") == full


def test_metrics_are_what_prometheus_reads(served: Served) -> None:
    """Every name is there with its kind, and the figures are those of the one decision and its move."""
    client, decider, executor = served
    executor.set_phase(executor.ids[0], MovePhase.DONE)
    decider.watch()
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {f.name: f for f in text_string_to_metric_families(answer.text)}
    kinds = {f"rayfold_{name.removesuffix('_total')}": kind for name, (kind, _, _) in NAMES.items()}
    assert {name: family.type for name, family in families.items()} == kinds
    samples = {(s.name, tuple(s.labels.values())): s.value for f in families.values() for s in f.samples}
    assert samples["rayfold_decisions_total", ("act", "started")] == 1.0
    assert samples["rayfold_moves_total", ("done",)] == 1.0
    assert samples["rayfold_verdicts_total", ("started",)] == 1.0
    assert samples["rayfold_cluster_usd_per_hour", ()] == 8.0
    assert samples["rayfold_cluster_bound_usd_per_hour", ()] == 2.0, "two of the eight GPUs, by their price"
    assert samples["rayfold_cold_start_seconds_count", ()] == 1.0
    assert samples["rayfold_eligible_nodes", ()] == 1.0
    assert (samples["rayfold_mode", ("act",)], samples["rayfold_mode", ("off",)]) == (1.0, 0.0)
    assert samples["rayfold_decision_evaluation_duration_seconds_count", ()] == 1.0


@pytest.mark.parametrize(
    ("mode", "plan", "freeze", "outcome"),
    [
        (Mode.ACT, Plan(moves=(Move(0, 1),)), False, "started"),
        (Mode.RECOMMEND, Plan(moves=(Move(0, 0), Move(0, 1))), False, "allowed"),
        (Mode.RECOMMEND, Plan(moves=(Move(0, 0),)), False, "same_node"),
        (Mode.ACT, Plan(moves=(Move(0, 1),)), True, "freeze_window"),
        (Mode.ACT, Plan(), False, "no_moves"),
    ],
)
def test_decisions_are_counted_by_what_came_of_them(mode: Mode, plan: Plan, freeze: bool, outcome: str) -> None:
    """The best verdict on its moves, or that there were none."""
    decider = make_decider(lambda: plan, FakeCluster(), mode=mode)
    if freeze:
        decider.reconfigure(merge_settings(decider.settings, {"brakes": {"freeze": ["daily 00:00-24:00"]}}, "test"))
    decider.tick()
    page = decider.metrics.text(Gauges(mode, False, True, 0))
    assert f'rayfold_decisions_total{{mode="{mode}",reason="{outcome}"}} 1.0' in page.splitlines()


def test_wrong_method_is_told_the_right_ones(served: Served) -> None:
    """All methods of the path, whichever route comes first."""
    answer = served.client.request("PUT", "/settings", headers=BEARER)
    assert (answer.status_code, answer.json()) == (405, {"error": "Method Not Allowed"})
    assert answer.headers["allow"] == "GET, POST"
    assert served.client.request("PUT", "/mode").headers["allow"] == "POST"


def test_settings_are_documented_by_their_fields(served: Served) -> None:
    """Each with its type, whether it is sent or answered; limits too, which are a tuple inside."""
    document = served.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert set(schemas["LiveSettings"]["properties"]) == set(settings_as_json(LiveSettings()))
    limits = schemas["LiveSettings"]["properties"]["limits"]
    assert {name: field["type"] for name, field in limits["properties"].items()} == {
        "max_concurrent_moves": "integer",
        "deployment_cooldown_s": "number",
        "fence_s": "number",
        "use_unreleasable_nodes": "boolean",
        "allow_new_nodes": "boolean",
    }
    sent = document["paths"]["/settings"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert sent["$ref"] == "#/components/schemas/LiveSettings"


def test_openapi_has_examples(served: Served) -> None:
    """Every body and every parameter shows one."""
    schema = served.client.get("/openapi.json").json()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], (method, path)
            for parameter in operation.get("parameters", ()):
                assert parameter.get("example") or parameter["schema"].get("examples"), (
                    method,
                    path,
                    parameter["name"],
                )
    for name in ("_ModeRequest", "_PauseRequest", "_Error"):
        assert all(p.get("examples") for p in schema["components"]["schemas"][name]["properties"].values())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = st.sampled_from([*settings_as_json(LiveSettings()), "mode", "reason"])
_NASTY = (b'{"mode": "\\ud800"}', b'{"brakes": {"freeze": ["\\ud800"]}}', b'{"\\ud800": 1}', b"{", b"NaN", b"[" * 5000)
_BODIES = st.one_of(
    _JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(_FIELDS, _JSON, max_size=3).map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(["brakes", "limits", "prices"]), st.dictionaries(_FIELDS, _JSON, max_size=2)).map(
        lambda value: json.dumps(value).encode()
    ),
    st.binary(max_size=20),
    st.sampled_from(_NASTY),
)
_SEGMENTS = st.one_of(
    st.integers().map(str),
    st.text(alphabet="abc019-._~%/\\ é\u0000", max_size=12),
    st.sampled_from(["%ED%A0%80", "%00", "1e400", "9" * 5000, ".."]),
)


@pytest.mark.parametrize("body", _NASTY)
def test_nasty_body_is_the_sender_s_fault(fuzzed: Served, body: bytes) -> None:
    """Half a surrogate pair, no JSON, JSON too deep: a 4xx with its error on every route that reads a body."""
    for path in ("/mode", "/pause", "/settings"):
        answer = fuzzed.client.post(path, content=body, headers={**BEARER, "Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500, (path, body, answer.text)
        assert set(answer.json()) == {"error"}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_input_makes_it_fail(fuzzed: Served, data: st.DataObject) -> None:
    """Any body, path and query on any route, with the right token: never a 5xx, and every 4xx says its error."""
    paths = fuzzed.client.get("/openapi.json").json()["paths"]
    path, method = data.draw(st.sampled_from([(path, method) for path, ops in paths.items() for method in ops]))
    for name in ("decision_id", "move_id"):
        path = path.replace(f"{{{name}}}", data.draw(_SEGMENTS)) if name in path else path
    query = data.draw(st.sampled_from(["", "?limit="]))
    body = data.draw(_BODIES) if method == "post" else None
    url = f"{path}{query}{data.draw(_SEGMENTS) if query else ''}".replace("\u0000", "%00").replace("\\", "%5C")
    headers = {**BEARER, "Content-Type": data.draw(st.sampled_from(["application/json", "text/plain"]))}
    answer = fuzzed.client.request(method, url, content=body, headers=headers, follow_redirects=False)
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert set(answer.json()) == {"error"}, answer.text
        assert answer.json()["error"]
