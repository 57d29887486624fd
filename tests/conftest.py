"""What holds for every test: no picture needs a screen, none starts Ray by accident; and how two workers share them."""

from pathlib import Path

import matplotlib
import pytest
import ray

from rayfold.process_exit import end_process

matplotlib.use("Agg")
_statuses: list[int] = []
_TESTS = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups for ``pytest -n 2 --dist loadgroup``: a file each, and one for all that serve from a cluster.

    The first files compile what the decider of a cluster must not wait for; then that group begins, as it is longest.
    """
    turns = {item: _turn(item) for item in items}
    for item, turn in turns.items():
        item.add_marker(pytest.mark.xdist_group("live" if turn == _LIVE else item.nodeid.partition("::")[0]))
    items.sort(key=turns.__getitem__)


_FIRST, _LIVE, _REST = range(3)


def _turn(item: pytest.Item) -> int:
    if item.path.is_relative_to(_TESTS / "envs"):
        return _FIRST
    serves = item.path.is_relative_to(_TESTS / "serving") or item.path.name == "test_demo.py"
    return _LIVE if serves and item.get_closest_marker("cluster") else _REST


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(exitstatus: int) -> None:
    """The last word on the exit code."""
    _statuses.append(int(exitstatus))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Ends the run as our own commands end: tests that passed must not end with a crash of Ray's threads."""
    if _statuses:
        end_process(_statuses[-1])


@pytest.fixture(autouse=True)
def disallow_ray_init(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the mark ``cluster`` or ``learning``, ``ray.init`` raises (as in Ray's own ``serve/tests/unit``)."""
    if not any(request.node.get_closest_marker(name) for name in ("cluster", "learning")):

        def refuse(*args: object, **kwargs: object) -> None:
            raise RuntimeError("this test starts Ray: mark it `cluster`")

        monkeypatch.setattr(ray, "init", refuse)
