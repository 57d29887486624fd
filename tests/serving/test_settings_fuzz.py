"""Any file as live settings: it is read as a whole, or refused in one line, soon."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st_

from rayfold.serving.live_settings import LiveSettings, load_live_settings, settings_as_json
from tests.envs.importers.test_fuzz import mutations
from tests.mutants import FUZZ, changed, is_read, odd_values, places


def test_live_settings(tmp_path: Path) -> None:
    """Bytes and values of a file with every field in it."""
    path, value, read = tmp_path / "live.yaml", settings_as_json(LiveSettings()), set()
    path.write_text(yaml.safe_dump(value))
    assert is_read(lambda: load_live_settings(path))
    data = path.read_bytes()

    @FUZZ
    @given(mutations(), st_.sampled_from(places(value)), odd_values())
    def check(mutate: Callable[[bytes], bytes], place: tuple[Any, ...], new: Any) -> None:
        path.write_bytes(mutate(data))
        read.add(is_read(lambda: load_live_settings(path)))
        path.write_text(yaml.safe_dump(changed(value, place, new)), encoding="utf-8")
        read.add(is_read(lambda: load_live_settings(path)))

    check()
    assert False in read
