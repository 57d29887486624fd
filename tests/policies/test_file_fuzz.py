"""Any file as tuned settings or as a policy bundle: it is read as a whole, or refused in one line, soon."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st_

from rayfold.policies.bundle import HEADER, WEIGHTS, load_bundle, save_bundle
from rayfold.policies.network import CompactionNet, NetworkConfig
from rayfold.policies.tuned import read_tuned, shipped_tuned
from tests.envs.importers.test_fuzz import mutations
from tests.mutants import FUZZ, changed, is_read, odd_values, places
from tests.policies.test_bundle import CARD


def test_tuned_settings(tmp_path: Path) -> None:
    """Bytes and values of a shipped file."""
    path, data, read = tmp_path / "tuned.yaml", shipped_tuned("llm_api").read_bytes(), set()
    value = yaml.safe_load(data)

    @FUZZ
    @given(mutations(), st_.sampled_from(places(value)), odd_values())
    def check(mutate: Callable[[bytes], bytes], place: tuple[Any, ...], new: Any) -> None:
        path.write_bytes(mutate(data))
        read.add(is_read(lambda: read_tuned(path)))
        path.write_text(yaml.safe_dump(changed(value, place, new)), encoding="utf-8")
        read.add(is_read(lambda: read_tuned(path)))

    path.write_bytes(data)
    assert is_read(lambda: read_tuned(path))
    check()
    assert False in read


def test_bundles(tmp_path: Path) -> None:
    """Bytes and values of the header, and bytes of the weights: not one that differs is taken for the bundle."""
    bundle, read = tmp_path / "bundle", set()
    save_bundle(bundle, CompactionNet(NetworkConfig(dim=8, heads=2, layers=1)), CARD)
    header, weights = (bundle / HEADER).read_bytes(), (bundle / WEIGHTS).read_bytes()
    value = json.loads(header)

    @FUZZ
    @given(mutations(), st_.sampled_from(places(value)), odd_values())
    def check(mutate: Callable[[bytes], bytes], place: tuple[Any, ...], new: Any) -> None:
        (bundle / HEADER).write_bytes(mutate(header))
        read.add(is_read(lambda: load_bundle(bundle)))
        (bundle / HEADER).write_text(json.dumps(changed(value, place, new)))
        read.add(is_read(lambda: load_bundle(bundle)))
        (bundle / HEADER).write_bytes(header)
        (bundle / WEIGHTS).write_bytes(mutate(weights))
        assert is_read(lambda: load_bundle(bundle)) == (mutate(weights) == weights)
        (bundle / WEIGHTS).write_bytes(weights)

    assert is_read(lambda: load_bundle(bundle))
    check()
    assert False in read
