"""A name gives the policy it stands for; what stands for none is told with the flag it came from."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from rayfold.envs.safety import Limits
from rayfold.errors import InputError
from rayfold.policies.best_fit import BestFit
from rayfold.policies.bundle import load_bundle, save_bundle
from rayfold.policies.by_name import BUNDLED, HEURISTICS, LEARNED, NETWORK, make_policy, shipped_bundle
from rayfold.policies.dearest_first import DearestFirst
from rayfold.policies.descheduler import Descheduler
from rayfold.policies.exact import Exact
from rayfold.policies.first_fit_decreasing import FirstFitDecreasing
from rayfold.policies.fragmentation import Fragmentation
from rayfold.policies.karpenter import Karpenter, KarpenterBalanced
from rayfold.policies.learned import LearnedPolicy
from rayfold.policies.least_moves import LeastMoves
from rayfold.policies.led import Led
from rayfold.policies.none import NoMoves
from rayfold.policies.patient import Patient
from rayfold.policies.protocol import Policy
from rayfold.policies.ray_serve import RayServe

CLASSES = {
    "none": NoMoves,
    "best_fit": BestFit,
    "dearest_first": DearestFirst,
    "exact": Exact,
    "first_fit_decreasing": FirstFitDecreasing,
    "least_moves": LeastMoves,
    "patient": Patient,
    "ray_serve": RayServe,
    "karpenter": Karpenter,
    "karpenter_balanced": KarpenterBalanced,
    "descheduler": Descheduler,
    "fragmentation": Fragmentation,
}


@pytest.fixture
def other_bundle(tmp_path: Path) -> Path:
    """The shipped bundle with one weight changed: it loads, and can be told from the shipped one."""
    shipped = load_bundle(shipped_bundle())
    with torch.no_grad():
        next(shipped.net.parameters()).add_(1.0)
    save_bundle(tmp_path / "other", shipped.net, shipped.card)
    return tmp_path / "other"


def has_weights_of(policy: Policy, bundle: Path) -> bool:
    """Whether a learned policy decides with the weights of a bundle."""
    assert isinstance(policy, LearnedPolicy)
    ours, theirs = policy.net.state_dict(), load_bundle(bundle).net.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", CLASSES)
def test_heuristic_by_its_name(name: str) -> None:
    """The class of that name, which carries the name itself; a new one for each call, for it may have a memory."""
    policy = make_policy(name, Limits())
    assert type(policy) is CLASSES[name]
    assert policy.name == name
    assert make_policy(name, Limits()) is not policy


def test_every_heuristic_is_listed_here() -> None:
    """One that is added has to be tested above."""
    assert set(HEURISTICS) == set(CLASSES)
    assert not set(BUNDLED) & set(HEURISTICS)


def test_the_shipped_bundle_unless_another_is_given(other_bundle: Path) -> None:
    """``--bundle`` decides; without it the weights that come with rayfold."""
    shipped, other = make_policy(NETWORK, Limits()), make_policy(LEARNED, Limits(), bundle=other_bundle)
    assert has_weights_of(shipped, shipped_bundle())
    assert has_weights_of(other, other_bundle)
    assert not has_weights_of(shipped, other_bundle)


def test_parts_of_a_bundle_lead_alone(other_bundle: Path, tmp_path: Path) -> None:
    """``learned`` is the leader if there is one, else the network."""
    shipped = load_bundle(shipped_bundle())
    assert isinstance(make_policy(LEARNED, Limits()), Led)
    alone, greedy = make_policy(NETWORK, Limits()), make_policy("network_greedy", Limits())
    assert isinstance(alone, LearnedPolicy)
    assert isinstance(greedy, LearnedPolicy)
    assert (alone.greedy, greedy.greedy) == (False, True)
    save_bundle(tmp_path / "b", shipped.net, shipped.card)
    assert isinstance(make_policy(LEARNED, Limits(), bundle=tmp_path / "b"), LearnedPolicy)
    assert isinstance(make_policy(LEARNED, Limits(), bundle=other_bundle), LearnedPolicy)


def test_a_leader_of_another_version_is_told(other_bundle: Path) -> None:
    """Its bundle names a policy that there is no more."""
    shipped = load_bundle(shipped_bundle())
    assert shipped.leader is not None
    card = dataclasses.replace(shipped.leader.card, reference="gone")
    save_bundle(other_bundle, shipped.net, shipped.card, dataclasses.replace(shipped.leader, card=card))
    with pytest.raises(InputError, match=r"--policy: learned: expected one of none, .* got gone"):
        make_policy(LEARNED, Limits(), bundle=other_bundle)


def test_directory_of_a_bundle_is_a_name(other_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path, and a bare name of a folder that is there."""
    assert has_weights_of(make_policy(str(other_bundle), Limits()), other_bundle)
    monkeypatch.chdir(other_bundle.parent)
    assert os.sep not in other_bundle.name
    assert has_weights_of(make_policy(other_bundle.name, Limits()), other_bundle)


def test_heuristic_goes_before_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in the working directory does not change what ``none`` means."""
    (tmp_path / "none").mkdir()
    monkeypatch.chdir(tmp_path)
    assert type(make_policy("none", Limits())) is NoMoves


@pytest.mark.parametrize("name", ["worst_fit", "", "Learned", "best-fit"])
def test_unknown_name_is_told_with_its_flag(name: str) -> None:
    """Every name that would have been right is listed."""
    with pytest.raises(InputError) as caught:
        make_policy(name, Limits(), where="--policies")
    assert caught.value.where == "--policies"
    assert caught.value.got == name
    assert all(known in caught.value.expected for known in (*HEURISTICS, *BUNDLED))


def test_path_without_a_bundle_names_the_path(tmp_path: Path) -> None:
    """What looks like a path is told as a missing bundle, not as a misspelt heuristic."""
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match=path.name) as caught:
            make_policy(str(path), Limits())
        assert "best_fit" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "got"), [("none(wait_s=1)", "1"), ("best_fit(wait_s)", "wait_s"), ("ray_serve(a=1", "ray_serve(a=1")]
)
def test_settings_that_cannot_be(name: str, got: str) -> None:
    """A rule without settings takes none; text that is no setting is told as such."""
    with pytest.raises(InputError) as caught:
        make_policy(name, Limits(), where="--policies")
    assert caught.value.got == got
    assert caught.value.where.startswith("--policies")
