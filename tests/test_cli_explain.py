"""``explain``: what policies would do, in a table and as JSON, and one line for what the user gives wrong."""

import json
from pathlib import Path

import pytest

from rayfold.envs.state import ClusterState
from rayfold.policies.by_name import HEURISTICS
from tests.test_cli import check_refused
from tests.test_cli_simulate import Run, run, smoke_state  # noqa: F401  # a fixture


@pytest.fixture
def state(tmp_path: Path) -> ClusterState:
    """``state.npz`` holds it."""
    made = smoke_state()
    made.save(tmp_path / "state.npz")
    return made


def test_every_policy_is_asked_the_same_state(run: Run, state: ClusterState, tmp_path: Path) -> None:  # noqa: F811
    """Each with its reason in the terminal and its moves by name in the JSON, the exact planner beside them."""
    done = run("explain", "--state", "state.npz", "--policy", "best_fit,learned,network", "--json", "o.json")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "o.json").read_text())
    beside = {"exact"} & set(HEURISTICS)
    assert set(content["policies"]) == {"best_fit", "learned", "network"} | beside
    assert content["state_digest"] == state.digest()
    for name, answer in content["policies"].items():
        assert f"{name}: {answer['reason']}" in done.stdout
        assert all(move["verdict"] == "ALLOWED" for move in answer["moves"])


def test_what_is_given_wrong(run: Run, state: ClusterState) -> None:  # noqa: F811
    """A file that is not there, a policy that is not, no policy at all."""
    for arguments, flag in (
        (("--state", "absent.npz"), "absent.npz"),
        (("--state", "state.npz", "--policy", "worst"), "--policy"),
        (("--state", "state.npz", "--policy", ","), "--policy"),
        (("--state", "state.npz", "--scenario", "nowhere"), "nowhere"),
    ):
        check_refused(run("explain", *arguments), flag)
