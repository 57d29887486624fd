"""What holds for every test: no picture needs a screen, and no test starts Ray by accident."""

import matplotlib
import pytest
import ray

from rayfold.process_exit import end_process

matplotlib.use("Agg")
_statuses: list[int] = []


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
