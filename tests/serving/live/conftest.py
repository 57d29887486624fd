"""What several modules of these tests share."""

from collections.abc import Iterator

import pytest

from tests.serving.live_cluster import Live, start_cluster


@pytest.fixture(scope="package")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One cluster for all live tests: starting it takes half a minute."""
    yield from start_cluster(tmp_path_factory.mktemp("live"))
