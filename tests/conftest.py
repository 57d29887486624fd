"""What holds for every test: no picture needs a screen, and no test starts Ray by accident."""

from collections import Counter

import matplotlib
import pytest
import ray

from rayfold.process_exit import end_process

matplotlib.use("Agg")
_statuses: list[int] = []


def pytest_itemcollected(item: pytest.Item) -> None:
    """Schemathesis 4.32 and pytest 9.2 give all operations of a schema one id, and pytest-xdist runs one of them."""
    if not item.nodeid.endswith(item.name):
        item._id = type(item.id).parse(f"{item.nodeid.rpartition('::')[0]}::{item.name}")


def pytest_collection_finish(session: pytest.Session) -> None:
    """No two tests of one id, of which pytest-xdist would run one."""
    twice = [nodeid for nodeid, count in Counter(item.nodeid for item in session.items).items() if count > 1]
    if twice:
        raise pytest.UsageError(f"tests: {len(twice)} ids are of several tests, the first one {twice[0]}")


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
