"""What holds for every test: no picture needs a screen, and no test starts Ray by accident."""

import matplotlib
import pytest
import ray

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def disallow_ray_init(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the mark ``cluster`` or ``learning``, ``ray.init`` raises (as in Ray's own ``serve/tests/unit``)."""
    if not any(request.node.get_closest_marker(name) for name in ("cluster", "learning")):

        def refuse(*args: object, **kwargs: object) -> None:
            raise RuntimeError("this test starts Ray: mark it `cluster`")

        monkeypatch.setattr(ray, "init", refuse)
