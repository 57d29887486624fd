"""A bundle comes back as it was saved, and a wrong one is refused by name."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rayfold.errors import InputError
from rayfold.policies.bundle import HEADER, WEIGHTS, TrainingCard, load_bundle, save_bundle
from rayfold.policies.network import CompactionNet, NetworkConfig

CARD = TrainingCard(
    scenarios=("smoke", "two_node"),
    seed=7,
    steps=1234,
    minutes=1.5,
    warm_start="best_fit",
    created_utc="2025-01-01T00:00:00+00:00",
    git_commit="abc",
    versions={"torch": "2.13.0"},
    metrics={"evaluation/total_usd": 12.5},
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A saved bundle of a small net."""
    torch.manual_seed(0)
    path = tmp_path / "runs" / "policy"
    save_bundle(path, CompactionNet(NetworkConfig(dim=16, heads=2, layers=2)), CARD)
    return path


def edit_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Applies ``change`` to the parsed ``bundle.json``."""
    header = json.loads((path / HEADER).read_text())
    change(header)
    (path / HEADER).write_text(json.dumps(header))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Applies ``change`` to the tensors and keeps the checksum right."""
    tensors = load_file(path / WEIGHTS)
    change(tensors)
    save_file(tensors, path / WEIGHTS)
    digest = hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()
    edit_header(path, lambda h: h.update(weights_sha256=digest))


def test_round_trip(bundle: Path) -> None:
    """Weights, configuration and card are equal after loading; only the two files are there."""
    loaded = load_bundle(bundle)
    torch.manual_seed(0)
    original = CompactionNet(NetworkConfig(dim=16, heads=2, layers=2))
    assert loaded.card == CARD
    assert loaded.net.config == original.config
    assert not loaded.net.training
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.net.state_dict()[name], tensor)
    assert sorted(p.name for p in bundle.iterdir()) == [HEADER, WEIGHTS]
    assert [p.name for p in bundle.parent.iterdir()] == ["policy"]


def test_saving_again_replaces_the_bundle(bundle: Path) -> None:
    """The second save wins, whole."""
    net = CompactionNet(NetworkConfig(dim=8, heads=1))
    save_bundle(bundle, net, CARD)
    assert load_bundle(bundle).net.config.dim == 8
    assert [p.name for p in bundle.parent.iterdir()] == ["policy"]


def test_saving_over_something_else_is_refused(tmp_path: Path) -> None:
    """A folder that is no bundle is left alone."""
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(InputError, match="a bundle to replace"):
        save_bundle(tmp_path, CompactionNet(NetworkConfig(dim=8, heads=1)), CARD)
    assert (tmp_path / "precious.txt").read_text() == "keep me"


def _truncate(path: Path) -> None:
    data = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(data[: len(data) // 2])


def _flip_bit(path: Path) -> None:
    data = bytearray((path / WEIGHTS).read_bytes())
    data[-3] ^= 1
    (path / WEIGHTS).write_bytes(bytes(data))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no header": (lambda p: (p / HEADER).unlink(), r"bundle\.json: expected a file of a policy bundle"),
    "no weights": (lambda p: (p / WEIGHTS).unlink(), r"weights\.safetensors: expected a file"),
    "truncated weights": (_truncate, r"weights\.safetensors: expected complete safetensors"),
    "empty weights": (lambda p: (p / WEIGHTS).write_bytes(b""), "expected complete safetensors"),
    "flipped bit": (_flip_bit, "expected SHA-256 .*other contents"),
    "no JSON": (lambda p: (p / HEADER).write_text("{"), "expected JSON"),
    "not text": (lambda p: (p / HEADER).write_bytes(b"\xff\xfe\x00"), "expected JSON"),
    "JSON list": (lambda p: (p / HEADER).write_text("[]"), "expected bundle format 1, got list"),
    "other format": (lambda p: edit_header(p, lambda h: h.update(format=99)), "bundle format 1, got 99"),
    "other schema": (
        lambda p: edit_header(p, lambda h: h["schema"].update(hash="0123456789abcdef")),
        r"schema\.hash: expected .* got 0123456789ab",
    ),
    "no schema": (lambda p: edit_header(p, lambda h: h.pop("schema")), r"schema\.hash"),
    "no network": (lambda p: edit_header(p, lambda h: h.pop("network")), "network"),
    "bad network": (lambda p: edit_header(p, lambda h: h["network"].update(dim="wide")), "dim: Input should be"),
    "heads": (lambda p: edit_header(p, lambda h: h["network"].update(heads=3)), "dim a multiple of heads"),
    "dim": (lambda p: edit_header(p, lambda h: h["network"].update(dim=1 << 30)), "the network of the weights"),
    "layers": (lambda p: edit_header(p, lambda h: h["network"].update(layers=10**9)), "the network of the weights"),
    "bad card": (lambda p: edit_header(p, lambda h: h["training"].pop("steps")), "steps"),
    "other width": (
        lambda p: edit_header(p, lambda h: h["network"].update(dim=32)),
        r"expected \(.*32.* got \(.*16",
    ),
    "other depth": (lambda p: edit_header(p, lambda h: h["network"].update(layers=3)), "expected a tensor, got none"),
    "extra tensor": (
        lambda p: edit_weights(p, lambda t: t.update(extra=torch.zeros(1))),
        "extra: expected none, got a tensor",
    ),
    "other dtype": (
        lambda p: edit_weights(p, lambda t: t.update(same_deployment=torch.zeros((), dtype=torch.float64))),
        "same_deployment: expected .*float32, got .*float64",
    ),
    "NaN": (
        lambda p: edit_weights(p, lambda t: t.update(same_deployment=torch.tensor(float("nan")))),
        "same_deployment: expected finite weights",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_bundle_is_refused(bundle: Path, fault: str) -> None:
    """Each planted fault is named in one line, with the file it is in."""
    load_bundle(bundle)
    plant, message = FAULTS[fault]
    plant(bundle)
    with pytest.raises(InputError, match=message) as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)
    assert str(bundle) in str(caught.value)
