"""The network's symmetries, its masks, and its log-probabilities."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayfold.envs.layout import DEPLOYMENT_FEATURES, GLOBAL_FEATURES, NODE_FEATURES, NOOP, ObsLayout
from rayfold.policies.network import MASKED, CompactionNet, NetworkConfig, action_logp, source_mask

LAYOUT = ObsLayout(6, 4)
BATCH = 16


def random_obs(layout: ObsLayout = LAYOUT, batch: int = BATCH, seed: int = 0) -> dict[str, Tensor]:
    """Observations with random features, some absent rows, and masks that agree with occupancy."""
    rng = np.random.default_rng(seed)
    n, d = layout
    obs: dict[str, NDArray[Any]] = {
        "global": rng.normal(size=(batch, len(GLOBAL_FEATURES))),
        "nodes": rng.normal(size=(batch, n, len(NODE_FEATURES))),
        "deployments": rng.normal(size=(batch, d, len(DEPLOYMENT_FEATURES))),
    }
    node_present = rng.random((batch, n)) < 0.8
    deployment_present = rng.random((batch, d)) < 0.8
    obs["nodes"] *= node_present[..., None]
    obs["deployments"] *= deployment_present[..., None]
    obs["nodes"][..., 0], obs["deployments"][..., 0] = node_present, deployment_present
    cell = node_present[:, :, None] & deployment_present[:, None, :]
    obs["occupancy"] = rng.integers(0, 4, (batch, n, d)) * cell
    obs["source_mask"] = (obs["occupancy"] > 0) & (rng.random((batch, n, d)) < 0.7)
    obs["destination_mask"] = cell & (rng.random((batch, n, d)) < 0.5)
    return {name: torch.from_numpy(np.asarray(array, np.float32)) for name, array in obs.items()}


def trained_net(seed: int = 0) -> CompactionNet:
    """A net whose every parameter matters, the ones that start at zero too."""
    torch.manual_seed(seed)
    net = CompactionNet(NetworkConfig(dim=16, heads=2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return net


def cells(source_logits: Tensor, layout: ObsLayout = LAYOUT) -> Tensor:
    """Source logits without NOOP, ``(B, N, D)``."""
    return source_logits[:, 1:].reshape(-1, *layout)


def test_permuting_nodes_and_deployments_permutes_the_logits() -> None:
    """Nothing depends on the order of nodes or deployments."""
    net, obs = trained_net(), random_obs()
    nodes, deployments = torch.randperm(6), torch.randperm(4)
    permuted = dict(obs, nodes=obs["nodes"][:, nodes], deployments=obs["deployments"][:, deployments])
    for name in ("occupancy", "source_mask", "destination_mask"):
        permuted[name] = obs[name][:, nodes][:, :, deployments]
    enc, enc_permuted = net.encode(obs), net.encode(permuted)
    logits, logits_permuted = net.source_logits(obs, enc), net.source_logits(permuted, enc_permuted)
    torch.testing.assert_close(logits_permuted[:, 0], logits[:, 0])
    torch.testing.assert_close(cells(logits_permuted), cells(logits)[:, nodes][:, :, deployments])
    torch.testing.assert_close(net.value(enc_permuted.pooled), net.value(enc.pooled))
    source = torch.full((BATCH,), 1 + 2 * 4 + 1)  # cell (2, 1) of the permuted obs
    original = torch.full((BATCH,), int(1 + nodes[2] * 4 + deployments[1]))
    torch.testing.assert_close(
        net.destination_logits(permuted, enc_permuted, source),
        net.destination_logits(obs, enc, original)[:, nodes],
    )


def test_absent_rows_change_nothing() -> None:
    """Padding to a larger layout leaves every logit and the value as they were."""
    net, obs = trained_net(), random_obs()
    larger = {"global": obs["global"]}
    larger["nodes"] = torch.nn.functional.pad(obs["nodes"], (0, 0, 0, 3))
    larger["deployments"] = torch.nn.functional.pad(obs["deployments"], (0, 0, 0, 2))
    for name in ("occupancy", "source_mask", "destination_mask"):
        larger[name] = torch.nn.functional.pad(obs[name], (0, 2, 0, 3))
    enc, enc_larger = net.encode(obs), net.encode(larger)
    logits, logits_larger = net.source_logits(obs, enc), net.source_logits(larger, enc_larger)
    torch.testing.assert_close(logits_larger[:, 0], logits[:, 0])
    torch.testing.assert_close(cells(logits_larger, ObsLayout(9, 6))[:, :6, :4], cells(logits))
    assert (cells(logits_larger, ObsLayout(9, 6))[:, 6:] == MASKED).all()
    torch.testing.assert_close(net.value(enc_larger.pooled), net.value(enc.pooled))
    source = torch.full((BATCH,), 1 + 2 * 4 + 1)
    source_larger = torch.full((BATCH,), 1 + 2 * 6 + 1)
    torch.testing.assert_close(
        net.destination_logits(larger, enc_larger, source_larger)[:, :6],
        net.destination_logits(obs, enc, source),
    )


def test_the_order_matters_where_it_should() -> None:
    """The symmetry tests can fail: swapping two nodes' features alone does change the logits."""
    net, obs = trained_net(), random_obs()
    swapped = dict(obs, nodes=obs["nodes"].flip(1))
    assert not torch.allclose(
        net.source_logits(swapped, net.encode(swapped)), net.source_logits(obs, net.encode(obs)), atol=1e-3
    )


def test_source_mask_by_brute_force() -> None:
    """A cell is a source exactly if its own mask says so and another node may take the replica."""
    obs = random_obs()
    got = source_mask(obs)
    for b, n, d in itertools.product(range(BATCH), range(6), range(4)):
        others = any(obs["destination_mask"][b, m, d] > 0 for m in range(6) if m != n)
        assert bool(got[b, n, d]) == (bool(obs["source_mask"][b, n, d] > 0) and others)


@pytest.mark.parametrize("greedy", [False, True])
def test_a_masked_action_is_never_chosen(greedy: bool) -> None:
    """Over many draws of a net that dislikes NOOP, each move obeys both masks and goes to another node."""
    net, obs = trained_net(), random_obs()
    with torch.no_grad():
        last = net.noop[-1]
        assert isinstance(last, torch.nn.Linear)
        last.bias.fill_(-20.0)
    generator = torch.Generator().manual_seed(1)
    num_moves = 0
    for _ in range(200):
        for b, (source, destination) in enumerate(net.act(obs, greedy=greedy, generator=generator).actions.tolist()):
            if source == NOOP:
                assert destination == 0
                continue
            num_moves += 1
            n, d = divmod(source - 1, 4)
            assert obs["source_mask"][b, n, d] == 1
            assert obs["destination_mask"][b, destination, d] == 1
            assert destination != n
    assert num_moves > 1000


def test_noop_is_the_only_choice_where_nothing_may_move() -> None:
    """With all masks empty NOOP has probability one, and the gradient is finite."""
    net, obs = trained_net(), random_obs()
    obs["source_mask"], obs["destination_mask"] = (torch.zeros_like(obs["source_mask"]) for _ in range(2))
    choice = net.act(obs)
    assert (choice.actions == 0).all()
    torch.testing.assert_close(choice.logp, torch.zeros(BATCH))
    choice.logp.sum().backward()  # type: ignore[no-untyped-call]
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_log_probabilities_of_all_actions_sum_to_one() -> None:
    """NOOP and every allowed (source, destination) pair together have probability one."""
    net, obs = trained_net(), {name: array[:3] for name, array in random_obs().items()}
    enc = net.encode(obs)
    source_logits = net.source_logits(obs, enc)
    total = torch.zeros(3)
    for source in range(LAYOUT.num_sources):
        stage = torch.full((3,), source)
        destination_logits = net.destination_logits(obs, enc, stage)
        for destination in range(6 if source else 1):
            actions = torch.stack([stage, torch.full((3,), destination)], -1)
            total += action_logp(source_logits, destination_logits, actions).exp()
    torch.testing.assert_close(total, torch.ones(3))


def test_sampling_follows_the_log_probabilities() -> None:
    """The share of each action in 20 000 draws is its probability, and ``act`` reports the same number."""
    net = trained_net()
    one = {name: array[1:2] for name, array in random_obs().items()}
    many = {name: array.expand(20_000, *array.shape[1:]) for name, array in one.items()}
    with torch.no_grad():
        choice = net.act(many, generator=torch.Generator().manual_seed(3))
    actions, inverse = torch.unique(choice.actions, dim=0, return_inverse=True)
    assert len(actions) > 3
    for row in range(len(actions)):
        chosen = inverse == row
        p = choice.logp[chosen][0].exp().item()
        share = chosen.float().mean().item()
        assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / 20_000) + 1e-4


def test_same_generator_seed_same_actions() -> None:
    """Sampling depends on the generator only."""
    net, obs = trained_net(), random_obs()
    first, again, other = (net.act(obs, generator=torch.Generator().manual_seed(s)).actions for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("layout", [ObsLayout(3, 2), ObsLayout(24, 24)])
def test_an_untrained_net_mostly_waits_in_a_cluster_of_any_size(layout: ObsLayout) -> None:
    """The NOOP bias is relative to the number of allowed cells."""
    torch.manual_seed(0)
    net = CompactionNet()
    obs = random_obs(layout, batch=64)
    p_noop = net.source_logits(obs, net.encode(obs)).softmax(-1)[:, 0].mean()
    assert 0.75 < p_noop < 0.97
