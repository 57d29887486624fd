"""Tuned settings: read back as written, checked like any other settings, and refused in one line otherwise."""

import dataclasses
from pathlib import Path

import pytest

from rayfold.envs.safety import Limits
from rayfold.envs.scenario_file import shipped_scenarios
from rayfold.errors import InputError
from rayfold.policies.by_name import Heuristic, make_policy
from rayfold.policies.none import NoMoves
from rayfold.policies.patient import Patient
from rayfold.policies.settings import between
from rayfold.policies.tuned import read_tuned, shipped_tuned, tuned_settings


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToySettings:
    """Of a heuristic for these tests."""

    wait_s: float = between(60.0, 0.0, 600.0)
    num_nodes: int = between(1, 1, 4)


TOY = {"toy": Heuristic(lambda limits, _: NoMoves(), ToySettings)}
GOOD = """
scenario: smoke
traffic: generated
policies:
  toy:
    settings: {wait_s: 120.5, num_nodes: 2}
    total_usd: 9.5
    default_total_usd: 10.0
    num_samples: 8
    num_seeds: 2
    horizon_s: 3600.0
    search_seed: 0
    command: rayfold tune --policies toy
    git_commit: ''
    date: '2026-01-31'
"""


def written(folder: Path, text: str) -> Path:
    """A file with this content."""
    path = folder / "tuned.yaml"
    path.write_text(text)
    return path


def test_settings_by_heuristic(tmp_path: Path) -> None:
    """What ``make_policy`` takes; nothing where no tuning is wanted, or none is shipped."""
    path = written(tmp_path, GOOD)
    assert tuned_settings("smoke", str(path), TOY) == {"toy": {"wait_s": 120.5, "num_nodes": 2}}
    assert tuned_settings("smoke", "none", TOY) == tuned_settings("no such scenario", "shipped", TOY) == {}


def test_policies_are_made_of_them(tmp_path: Path) -> None:
    """Tuned settings are the ones of a policy that is given without any."""
    text = GOOD.replace("toy:", "patient:").replace("{wait_s: 120.5, num_nodes: 2}", "{wait_s: 120.5}")
    tuned = tuned_settings("smoke", str(written(tmp_path, text)))
    limits = Limits()
    by_file, by_hand = make_policy("patient", limits, tuned=tuned), make_policy("patient(wait_s=120.5)", limits)
    assert isinstance(by_file, Patient)
    assert isinstance(by_hand, Patient)
    assert by_file.settings == by_hand.settings


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("wait_s: 120.5", "wait_s: 601", "policies.toy.settings: wait_s"),
        ("wait_s: 120.5", "wait_m: 2", "policies.toy.settings: wait_m"),
        ("num_nodes: 2", "num_nodes: two", "policies.toy.settings: num_nodes"),
        ("toy:", "unknown:", "policies"),
        ("total_usd: 9.5", "total_usd: .nan", "policies.toy.total_usd"),
        ("num_samples: 8", "num_samples: 0", "policies.toy.num_samples"),
        ("traffic: generated", "", "traffic"),
        ("scenario: smoke", "scenario: smoke\nscenario: smoke", "tuned.yaml"),
        ("scenario: smoke", "scenario: llm_api", "scenario"),
        (GOOD, "[]", "the document"),
        (GOOD, "", "the document"),
        (GOOD, "{", "tuned.yaml"),
    ],
)
def test_what_is_malformed_is_refused_in_one_line(tmp_path: Path, old: str, new: str, where: str) -> None:
    """With the file and the place."""
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        tuned_settings("smoke", str(path), TOY)
    assert str(path) in str(caught.value)
    assert where in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """As is one that is not text."""
    with pytest.raises(InputError, match="No such file"):
        tuned_settings("smoke", str(tmp_path / "none.yaml"), TOY)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        tuned_settings("smoke", str(tmp_path / "bytes.yaml"), TOY)


def test_shipped_files_can_be_read() -> None:
    """Every file belongs to a shipped scenario, at its own price or another; tuning was no loss on its days."""
    files = sorted(shipped_tuned("any").parent.glob("*.yaml"))
    for path in files:
        scenario, _, factor = path.stem.partition("_prices_x")
        assert scenario in shipped_scenarios()
        assert path.stem in (scenario, f"{scenario}_prices_x{float(factor or 1):g}")
        file = read_tuned(path)
        assert file.scenario == path.stem
        assert file.policies
        for found in file.policies.values():
            assert found.total_usd <= found.default_total_usd
