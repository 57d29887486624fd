"""The network's symmetries, its masks, and its log-probabilities."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayfold.envs.layout import DEPLOYMENT_FEATURES, GLOBAL_FEATURES, NODE_FEATURES, NODE_TYPE_FEATURES, NOOP, ObsLayout
from rayfold.policies.network import MASKED, CompactionNet, NetworkConfig, action_logp, source_mask

LAYOUT = ObsLayout(6, 4, 3)
BATCH = 16


def random_obs(layout: ObsLayout = LAYOUT, batch: int = BATCH, seed: int = 0) -> dict[str, Tensor]:
    """Observations with random features, some absent rows, and masks that agree with occupancy."""
    rng = np.random.default_rng(seed)
    n, d, t = layout
    obs: dict[str, NDArray[Any]] = {
        "global": rng.normal(size=(batch, len(GLOBAL_FEATURES))),
        "nodes": rng.normal(size=(batch, n, len(NODE_FEATURES))),
        "deployments": rng.normal(size=(batch, d, len(DEPLOYMENT_FEATURES))),
        "node_types": rng.normal(size=(batch, t, len(NODE_TYPE_FEATURES))),
    }
    node_present = rng.random((batch, n)) < 0.8
    deployment_present = rng.random((batch, d)) < 0.8
    obs["nodes"] *= node_present[..., None]
    obs["deployments"] *= deployment_present[..., None]
    type_present = rng.random((batch, t)) < 0.8
    obs["node_types"] *= type_present[..., None]
    obs["nodes"][..., 0], obs["deployments"][..., 0] = node_present, deployment_present
    obs["node_types"][..., 0] = type_present
    cell = node_present[:, :, None] & deployment_present[:, None, :]
    obs["occupancy"] = rng.integers(0, 4, (batch, n, d)) * cell
    obs["source_mask"] = (obs["occupancy"] > 0) & (rng.random((batch, n, d)) < 0.7)
    obs["destination_mask"] = cell & (rng.random((batch, n, d)) < 0.5)
    type_cell = type_present[:, :, None] & deployment_present[:, None, :]
    obs["new_node_mask"] = type_cell & (rng.random((batch, t, d)) < 0.3)
    obs["evacuate_mask"] = node_present & (rng.random((batch, n)) < 0.3)
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
    """Source logits of the cells, ``(B, N, D)``."""
    return source_logits[:, 1 : 1 + layout.num_cells].reshape(-1, layout.num_nodes, layout.num_deployments)


def evacuate(source_logits: Tensor, layout: ObsLayout = LAYOUT) -> Tensor:
    """Source logits of the evacuations, ``(B, N)``."""
    return source_logits[:, 1 + layout.num_cells :]


def test_permuting_nodes_and_deployments_permutes_the_logits() -> None:
    """Nothing depends on the order of nodes, deployments or node types."""
    net, obs = trained_net(), random_obs()
    nodes, deployments, types = torch.randperm(6), torch.randperm(4), torch.tensor([2, 0, 1])
    permuted = dict(obs, nodes=obs["nodes"][:, nodes], deployments=obs["deployments"][:, deployments])
    permuted["node_types"] = obs["node_types"][:, types]
    permuted["new_node_mask"] = obs["new_node_mask"][:, types][:, :, deployments]
    permuted["evacuate_mask"] = obs["evacuate_mask"][:, nodes]
    for name in ("occupancy", "source_mask", "destination_mask"):
        permuted[name] = obs[name][:, nodes][:, :, deployments]
    enc, enc_permuted = net.encode(obs), net.encode(permuted)
    logits, logits_permuted = net.source_logits(obs, enc), net.source_logits(permuted, enc_permuted)
    torch.testing.assert_close(logits_permuted[:, 0], logits[:, 0])
    torch.testing.assert_close(cells(logits_permuted), cells(logits)[:, nodes][:, :, deployments])
    torch.testing.assert_close(evacuate(logits_permuted), evacuate(logits)[:, nodes])
    torch.testing.assert_close(net.value(enc_permuted.pooled), net.value(enc.pooled))
    source = torch.full((BATCH,), 1 + 2 * 4 + 1)  # cell (2, 1) of the permuted obs
    original = torch.full((BATCH,), int(1 + nodes[2] * 4 + deployments[1]))
    torch.testing.assert_close(
        net.destination_logits(permuted, enc_permuted, source),
        net.destination_logits(obs, enc, original)[:, torch.cat([nodes, 6 + types])],
    )


def test_absent_rows_change_nothing() -> None:
    """Padding to a larger layout leaves every logit and the value as they were."""
    net, obs = trained_net(), random_obs()
    larger = {"global": obs["global"]}
    larger["nodes"] = torch.nn.functional.pad(obs["nodes"], (0, 0, 0, 3))
    larger["deployments"] = torch.nn.functional.pad(obs["deployments"], (0, 0, 0, 2))
    for name in ("occupancy", "source_mask", "destination_mask"):
        larger[name] = torch.nn.functional.pad(obs[name], (0, 2, 0, 3))
    larger["node_types"] = torch.nn.functional.pad(obs["node_types"], (0, 0, 0, 1))
    larger["new_node_mask"] = torch.nn.functional.pad(obs["new_node_mask"], (0, 2, 0, 1))
    larger["evacuate_mask"] = torch.nn.functional.pad(obs["evacuate_mask"], (0, 3))
    enc, enc_larger = net.encode(obs), net.encode(larger)
    logits, logits_larger = net.source_logits(obs, enc), net.source_logits(larger, enc_larger)
    torch.testing.assert_close(logits_larger[:, 0], logits[:, 0])
    torch.testing.assert_close(cells(logits_larger, ObsLayout(9, 6, 4))[:, :6, :4], cells(logits))
    assert (cells(logits_larger, ObsLayout(9, 6, 4))[:, 6:] == MASKED).all()
    torch.testing.assert_close(evacuate(logits_larger, ObsLayout(9, 6, 4))[:, :6], evacuate(logits))
    assert (evacuate(logits_larger, ObsLayout(9, 6, 4))[:, 6:] == MASKED).all()
    torch.testing.assert_close(net.value(enc_larger.pooled), net.value(enc.pooled))
    source = torch.full((BATCH,), 1 + 2 * 4 + 1)
    source_larger = torch.full((BATCH,), 1 + 2 * 6 + 1)
    destinations = net.destination_logits(larger, enc_larger, source_larger)
    assert (destinations[:, [6, 7, 8, 12]] == MASKED).all()
    torch.testing.assert_close(destinations[:, [0, 1, 2, 3, 4, 5, 9, 10, 11]], net.destination_logits(obs, enc, source))


def test_the_order_matters_where_it_should() -> None:
    """The symmetry tests can fail: swapping two nodes' features alone does change the logits."""
    net, obs = trained_net(), random_obs()
    swapped = dict(obs, nodes=obs["nodes"].flip(1))
    assert not torch.allclose(
        net.source_logits(swapped, net.encode(swapped)), net.source_logits(obs, net.encode(obs)), atol=1e-3
    )


def test_source_mask_by_brute_force() -> None:
    """A cell is a source exactly if its own mask says so and another node, or a new one, may take the replica."""
    obs = random_obs()
    got = source_mask(obs)
    for b, n, d in itertools.product(range(BATCH), range(6), range(4)):
        others = any(obs["destination_mask"][b, m, d] > 0 for m in range(6) if m != n)
        others = others or any(obs["new_node_mask"][b, t, d] > 0 for t in range(3))
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
    num_moves = num_new = num_evacuations = 0
    for _ in range(200):
        for b, (source, destination) in enumerate(net.act(obs, greedy=greedy, generator=generator).actions.tolist()):
            if source == NOOP:
                assert destination == 0
                continue
            if source > LAYOUT.num_cells:
                num_evacuations += 1
                assert obs["evacuate_mask"][b, source - 1 - LAYOUT.num_cells] == 1
                assert destination == 0
                continue
            num_moves += 1
            n, d = divmod(source - 1, 4)
            assert obs["source_mask"][b, n, d] == 1
            if destination >= 6:
                num_new += 1
                assert obs["new_node_mask"][b, destination - 6, d] == 1
                continue
            assert obs["destination_mask"][b, destination, d] == 1
            assert destination != n
    assert num_moves > 1000
    assert min(num_new, num_evacuations) > 100


def test_noop_is_the_only_choice_where_nothing_may_move() -> None:
    """With all masks empty NOOP has probability one, and the gradient is finite."""
    net, obs = trained_net(), random_obs()
    for name in ("source_mask", "destination_mask", "new_node_mask", "evacuate_mask"):
        obs[name] = torch.zeros_like(obs[name])
    choice = net.act(obs)
    assert (choice.actions == 0).all()
    torch.testing.assert_close(choice.logp, torch.zeros(BATCH))
    choice.logp.sum().backward()  # type: ignore[no-untyped-call]
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_log_probabilities_of_all_actions_sum_to_one() -> None:
    """NOOP, every evacuation and every allowed (source, destination) pair together have probability one."""
    net, obs = trained_net(), {name: array[:3] for name, array in random_obs().items()}
    enc = net.encode(obs)
    source_logits = net.source_logits(obs, enc)
    total = torch.zeros(3)
    for source in range(LAYOUT.num_sources):
        stage = torch.full((3,), source)
        destination_logits = net.destination_logits(obs, enc, stage)
        for destination in range(LAYOUT.num_destinations if 0 < source <= LAYOUT.num_cells else 1):
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


@pytest.mark.parametrize("min_p", [0.0, 0.5])
def test_min_p_drops_improbable_moves_only(min_p: float) -> None:
    """Waiting stays as likely as it is; with it no move below the share is made, without it some are."""
    net, obs = trained_net(), random_obs(batch=1)
    many = {name: part.expand(4000, *part.shape[1:]) for name, part in obs.items()}
    with torch.inference_mode():
        encoding = net.encode(many)
        source_logits = net.source_logits(many, encoding)
        choice = net.act(many, min_p=min_p, generator=torch.Generator().manual_seed(3))
        source, destination = choice.actions.T
        destination_logits = net.destination_logits(many, encoding, source)
    torch.testing.assert_close(choice.logp, action_logp(source_logits, destination_logits, choice.actions))
    p_noop = float(choice.noop_logp[0].exp())
    waits = source == NOOP
    assert float(waits.float().mean()) == pytest.approx(p_noop, abs=4.0 * math.sqrt(p_noop * (1.0 - p_noop) / 4000))
    assert 0.05 < p_noop < 0.95
    acts, to = source_logits[:, NOOP + 1 :], destination_logits
    share_of_source = (acts.gather(1, (source - 1).clamp(min=0)[:, None])[:, 0] - acts.amax(1)).exp()[~waits]
    share_of_destination = (to.gather(1, destination[:, None])[:, 0] - to.amax(1)).exp()[~waits]
    assert (float(share_of_source.min()) < 0.5) == (min_p == 0.0)
    assert (float(share_of_destination.min()) < 0.5) == (min_p == 0.0)


def test_it_waits_where_acting_is_improbable() -> None:
    """Rows that act with less than the given probability wait for certain, others act as often as without it."""
    net, obs = trained_net(), random_obs()
    many = {name: part.repeat(400, *[1] * (part.ndim - 1)) for name, part in obs.items()}
    with torch.inference_mode():
        plain = net.act(many, generator=torch.Generator().manual_seed(3))
        p_act = -torch.expm1(plain.noop_logp)
        least = float(p_act.median())
        choice = net.act(many, min_act_p=least, generator=torch.Generator().manual_seed(3))
    rare = p_act < least
    assert 0 < int(rare.sum()) < len(rare)
    assert (choice.actions[rare, 0] == NOOP).all()
    assert (plain.actions[rare, 0] != NOOP).any()
    assert torch.equal(choice.actions[~rare, 0], plain.actions[~rare, 0])


def test_same_generator_seed_same_actions() -> None:
    """Sampling depends on the generator only."""
    net, obs = trained_net(), random_obs()
    first, again, other = (net.act(obs, generator=torch.Generator().manual_seed(s)).actions for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("layout", [ObsLayout(3, 2, 1), ObsLayout(24, 24, 4)])
def test_an_untrained_net_mostly_waits_in_a_cluster_of_any_size(layout: ObsLayout) -> None:
    """The NOOP bias is relative to the number of allowed cells."""
    torch.manual_seed(0)
    net = CompactionNet()
    obs = random_obs(layout, batch=64)
    p_noop = net.source_logits(obs, net.encode(obs)).softmax(-1)[:, 0].mean()
    assert 0.75 < p_noop < 0.97


def test_without_evacuations_it_is_as_if_none_were_allowed() -> None:
    """NOOP is measured against the cells alone, too."""
    net, obs = trained_net(), random_obs()
    without = CompactionNet(NetworkConfig(dim=16, heads=2, evacuates=False))
    without.load_state_dict(net.state_dict())
    forbidden = dict(obs, evacuate_mask=torch.zeros_like(obs["evacuate_mask"]))
    logits = without.source_logits(obs, without.encode(obs))
    assert (evacuate(logits) == MASKED).all()
    torch.testing.assert_close(logits, net.source_logits(forbidden, net.encode(forbidden)))
    assert not torch.equal(logits, net.source_logits(obs, net.encode(obs)))


def test_features_that_are_unseen_change_nothing() -> None:
    """They are read as 0, and the others are read as before; the observation is left as it is."""
    net, obs = trained_net(), random_obs()
    blind = CompactionNet(NetworkConfig(dim=16, heads=2, unseen=("load", "calm")))
    blind.load_state_dict(net.state_dict())
    zeroed = dict(obs, deployments=obs["deployments"].clone())
    for name in ("load", "calm"):
        zeroed["deployments"][..., DEPLOYMENT_FEATURES.index(name)] = 0.0
    before = obs["deployments"].clone()
    for read, expected in zip(blind.encode(obs), net.encode(zeroed), strict=True):
        torch.testing.assert_close(read, expected)
    assert torch.equal(before, obs["deployments"])
    assert not torch.allclose(blind.encode(obs).pooled, net.encode(obs).pooled)
