"""The divergence of wait or act, by two routes and at its edges; and what its penalty does to an update."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence

from rayfold.envs.episode import scenario_layout
from rayfold.policies.network import MASKED, NetworkConfig
from rayfold.training.ppo_setup import build_ppo
from rayfold.training.ray_session import ray_session
from rayfold.training.train_config import TrainConfig
from rayfold.training.trust_region import WAIT_KL, wait_kl


def test_by_hand() -> None:
    """NOOP from 0.99 to 0.79: 0.99 ln(0.99 / 0.79) + 0.01 ln(0.01 / 0.21) = 0.22342 - 0.03045 nats."""
    logits = torch.tensor([[0.79, 0.14, 0.07]], dtype=torch.float64).log()
    old = torch.tensor([0.99], dtype=torch.float64).log()
    assert wait_kl(old, logits).item() == pytest.approx(0.22342 - 0.03045, abs=1e-5)


def test_it_is_the_divergence_of_two_coins_and_at_most_that_of_the_action() -> None:
    """Those of torch, on random logits, some masked."""
    rng = torch.Generator().manual_seed(0)
    old, new = 3.0 * torch.randn(2, 500, 9, generator=rng, dtype=torch.float64)
    masked = torch.rand(500, 8, generator=rng) < 0.3
    for logits in (old, new):
        logits[:, 1:].masked_fill_(masked, MASKED)
    got = wait_kl(old.log_softmax(-1)[:, 0], new)
    coins = (Bernoulli(probs=logits.softmax(-1)[:, 0]) for logits in (old, new))
    torch.testing.assert_close(got, kl_divergence(*coins))
    assert (got <= kl_divergence(Categorical(logits=old), Categorical(logits=new)) + 1e-12).all()
    assert (got > 0).all()
    torch.testing.assert_close(wait_kl(new.log_softmax(-1)[:, 0], new), torch.zeros(500, dtype=torch.float64))


def test_where_nothing_may_be_begun_it_is_zero() -> None:
    """So are its gradients; RLlib's bootstrap rows are all masked but for NOOP, and one NaN there spoils a batch."""
    logits = torch.full((1, 5), MASKED)
    logits[:, 0] = 2.0
    logits.requires_grad_()
    kl = wait_kl(torch.zeros(1), logits)
    kl.sum().backward()  # type: ignore[no-untyped-call]
    assert kl.item() == 0.0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def _divergence(run_dir: Path, wait_kl_coeff: float) -> float:
    """Of the last minibatch of the first update."""
    config = TrainConfig(
        run_dir=run_dir,
        scenarios=("smoke",),
        network=NetworkConfig(dim=16, heads=2),
        num_envs=8,
        batch_steps=256,
        minibatch=64,
        lr=1e-2,
        epochs=10,
        wait_kl_coeff=wait_kl_coeff,
    )
    scenarios = config.load_scenarios()
    algorithm: Any = build_ppo(config, scenarios, scenario_layout(*scenarios))
    learned = algorithm.train()["learners"]["default_policy"]
    algorithm.stop()
    return float(learned[WAIT_KL])


@pytest.mark.cluster
def test_the_penalty_holds_an_update_back(tmp_path: Path) -> None:
    """The same seed, batch and steps: with a heavy penalty the policy stays ten times nearer."""
    with ray_session(2):
        free, held = (_divergence(tmp_path, coeff) for coeff in (0.0, 100.0))
    assert free > 1e-3
    assert held < 0.1 * free
