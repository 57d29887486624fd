"""The policy network: entity attention over nodes and deployments, pointer heads, a value head.

Dims: B batch, N nodes, D deployments, T node types, E embedding width (``NetworkConfig.dim``). No parameter holds
N, D or T, so one set of weights serves any cluster; permuting nodes or deployments permutes the logits with them, and
absent (padding) rows change nothing. An observation is the dict of ``ObsLayout.split`` as float32 tensors. The two
stages of an action are those of ``layout.py``.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayfold.envs.layout import DEPLOYMENT_FEATURES, GLOBAL_FEATURES, NODE_FEATURES, NODE_TYPE_FEATURES, NOOP

__all__ = ["MASKED", "Choice", "CompactionNet", "Encoding", "NetworkConfig", "Obs", "action_logp", "source_mask"]

Obs = dict[str, Tensor]

MASKED = -1e9  # finite: RLlib's bootstrap rows may have every choice masked, and -inf makes their gradient NaN
PRESENT = 0  # index of "present" in the feature lists


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Size of a ``CompactionNet``."""

    dim: int = 64  # E
    heads: int = 4  # divides dim
    layers: int = 1  # attention blocks
    noop_bias: float = 2.0  # log-odds of NOOP against all that is allowed, before training
    evacuates: bool = True  # may choose to evacuate a node, beside single moves
    unseen: tuple[str, ...] = ()  # deployment features that it reads as 0


class Encoding(NamedTuple):
    """What the trunk computes once per observation."""

    nodes: Tensor  # (B, N, E)
    deployments: Tensor  # (B, D, E)
    node_types: Tensor  # (B, T, E)
    pooled: Tensor  # (B, 2E) the global token and the mean of the present nodes


class Choice(NamedTuple):
    """Actions and how likely they were."""

    actions: Tensor  # (B, 2) int64: source, destination; the destination is 0 unless the source is a cell
    logp: Tensor  # (B,) log-probability of the whole action
    noop_logp: Tensor  # (B,) log-probability of NOOP


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_ff = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.ff = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Mixes ``tokens (B, T, E)``; only ``present (B, T) bool`` ones are attended to."""
        batch, length, dim = tokens.shape
        qkv = self.qkv(self.norm_attention(tokens)).view(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=present[:, None, None, :])
        tokens = tokens + self.out(mixed.transpose(1, 2).reshape(batch, length, dim))
        out: Tensor = tokens + self.ff(self.norm_ff(tokens))
        return out


def _mlp(inputs: int, dim: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, dim), nn.GELU(), nn.Linear(dim, outputs))


def source_mask(obs: Obs) -> Tensor:
    """``(B, N, D) bool``: cells a replica may leave because some *other* node, or a new one, may take it."""
    destinations = obs["destination_mask"]
    elsewhere = destinations.sum(1, keepdim=True) - destinations + obs["new_node_mask"].sum(1, keepdim=True)
    return (obs["source_mask"] > 0) & (elsewhere > 0.5)


def action_logp(source_logits: Tensor, destination_logits: Tensor, actions: Tensor) -> Tensor:
    """Log-probability of two-stage actions.

    Args:
        source_logits: ``(B, 1 + N * D + N)``.
        destination_logits: ``(B, N + T)``, given the source in ``actions``.
        actions: ``(B, 2)`` int64.

    Returns:
        ``(B,)``; without a cell as source the destination is certain, which its logits say.
    """
    source = source_logits.log_softmax(-1).gather(-1, actions[:, :1]).squeeze(-1)
    destination = destination_logits.log_softmax(-1).gather(-1, actions[:, 1:]).squeeze(-1)
    return source + destination


def _without_improbable(logits: Tensor, min_p: float) -> Tensor:
    """Masks choices with less than ``min_p`` of the likeliest one's probability; all together stay as likely."""
    if min_p == 0.0:
        return logits
    kept = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(min_p), MASKED)
    # The likeliest one tells how much likelier each has become; torch's logsumexp takes several times as long.
    return kept + (kept.log_softmax(-1).amax(-1, keepdim=True) - logits.log_softmax(-1).amax(-1, keepdim=True))


def _pick(logits: Tensor, greedy: bool, generator: torch.Generator | None) -> Tensor:
    """One index per row; unless greedy sampled by the inverse of the distribution, one random number per row."""
    if greedy:
        return logits.argmax(-1)
    reached = logits.double().softmax(-1).cumsum(-1)
    drawn = torch.rand(len(logits), 1, dtype=torch.float64, device=logits.device, generator=generator)
    return torch.searchsorted(reached, drawn * reached[:, -1:], right=True).squeeze(-1)


class CompactionNet(nn.Module):
    """Policy and value function of any cluster size."""

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or NetworkConfig()
        self._unseen = [DEPLOYMENT_FEATURES.index(name) for name in config.unseen]
        dim = config.dim
        self.node_in = _mlp(len(NODE_FEATURES), dim, dim)
        self.deployment_in = _mlp(len(DEPLOYMENT_FEATURES), dim, dim)
        self.node_type_in = _mlp(len(NODE_TYPE_FEATURES), dim, dim)
        self.global_in = _mlp(len(GLOBAL_FEATURES), dim, dim)
        self.to_node, self.to_deployment = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.blocks = nn.ModuleList(Block(dim, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)
        self.source_node, self.source_deployment = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.source_node_bias, self.source_deployment_bias = nn.Linear(dim, 1), nn.Linear(dim, 1)
        self.evacuate = _mlp(dim, dim, 1)
        self.noop = _mlp(2 * dim, dim, 1)
        self.query_node, self.query_deployment = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.query_out, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.same_deployment = nn.Parameter(torch.zeros(()))
        self.value_out = _mlp(2 * dim, dim, 1)
        last = self.noop[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias, config.noop_bias)
        with torch.no_grad():  # start near uniform over the allowed cells and nodes
            for head in (
                self.source_node,
                self.source_node_bias,
                self.source_deployment_bias,
                self.query_out,
                self.evacuate[-1],
            ):
                assert isinstance(head, nn.Linear)
                head.weight.mul_(0.1)
                head.bias.mul_(0.1)

    def encode(self, obs: Obs) -> Encoding:
        """Runs the trunk.

        Args:
            obs: ``ObsLayout.split`` of ``(B, size)``.
        """
        node_present = obs["nodes"][..., PRESENT] > 0
        deployment_present = obs["deployments"][..., PRESENT] > 0
        nodes, deployments = self.node_in(obs["nodes"]), self.deployment_in(self._seen(obs["deployments"]))
        weight = torch.log1p(obs["occupancy"])  # (B, N, D)
        share = weight / weight.sum(1, keepdim=True).clamp(min=1.0)
        nodes, deployments = (
            nodes + weight @ self.to_node(deployments),
            deployments + share.transpose(1, 2) @ self.to_deployment(nodes),
        )
        node_types, type_present = self.node_type_in(obs["node_types"]), obs["node_types"][..., PRESENT] > 0
        tokens = torch.cat([self.global_in(obs["global"]).unsqueeze(1), nodes, deployments, node_types], 1)
        present = torch.cat([torch.ones_like(node_present[:, :1]), node_present, deployment_present, type_present], 1)
        # Attention takes time as the square of its rows; those that are absent everywhere would change nothing.
        kept = present.any(0).nonzero().squeeze(-1)
        mixed, mixed_present = tokens[:, kept], present[:, kept]
        for block in self.blocks:
            mixed = block(mixed, mixed_present)
        tokens = torch.zeros_like(tokens).index_copy(1, kept, self.norm(mixed))
        sizes = [1, nodes.shape[1], deployments.shape[1], node_types.shape[1]]
        first, nodes, deployments, node_types = torch.split(tokens, sizes, 1)
        counted = node_present.unsqueeze(-1).to(tokens.dtype)
        mean = (nodes * counted).sum(1) / counted.sum(1).clamp(min=1.0)
        return Encoding(nodes, deployments, node_types, torch.cat([first.squeeze(1), mean], -1))

    def _seen(self, deployments: Tensor) -> Tensor:
        if not self._unseen:
            return deployments
        return deployments.index_fill(-1, torch.tensor(self._unseen, device=deployments.device), 0.0)

    def source_logits(self, obs: Obs, encoding: Encoding) -> Tensor:
        """First stage, masked: ``(B, 1 + N * D + N)``, index 0 is NOOP."""
        nodes, deployments, _, pooled = encoding
        scores = self.source_node(nodes) @ self.source_deployment(deployments).transpose(1, 2)
        scores = scores / math.sqrt(self.config.dim)
        scores = scores + self.source_node_bias(nodes)
        scores = scores + self.source_deployment_bias(deployments).transpose(1, 2)
        allowed = source_mask(obs)
        evacuate, may_evacuate = self.evacuate(nodes).squeeze(-1), obs["evacuate_mask"] > 0
        if not self.config.evacuates:
            may_evacuate = torch.zeros_like(may_evacuate)
        # Measured against all choices together: an untrained policy mostly waits in a cluster of any size.
        num_choices = (allowed.sum((1, 2)) + may_evacuate.sum(1)).clamp(min=1).to(scores.dtype)
        noop = self.noop(pooled) + num_choices.log().unsqueeze(-1)
        cells = scores.masked_fill(~allowed, MASKED).flatten(1)
        return torch.cat([noop, cells, evacuate.masked_fill(~may_evacuate, MASKED)], -1)

    def destination_logits(self, obs: Obs, encoding: Encoding, source: Tensor) -> Tensor:
        """Second stage, masked.

        Args:
            obs: As for ``encode``.
            encoding: Of ``obs``.
            source: ``(B,)`` int64, the first stage's choice. Without a cell the destination is 0 for certain.

        Returns:
            ``(B, N + T)``.
        """
        nodes, deployments, node_types, _ = encoding
        num_nodes, num_deployments = nodes.shape[1], deployments.shape[1]
        is_cell = (source != NOOP) & (source <= num_nodes * num_deployments)
        cell = torch.where(is_cell, source - 1, torch.zeros_like(source))
        node = torch.div(cell, num_deployments, rounding_mode="floor")
        deployment = cell - node * num_deployments
        row = torch.arange(len(source), device=source.device)
        query = self.query_node(nodes[row, node]) + self.query_deployment(deployments[row, deployment])
        query = self.query_out(F.gelu(query)).unsqueeze(-1)
        scores = (self.key(torch.cat([nodes, node_types], 1)) @ query).squeeze(-1) / math.sqrt(self.config.dim)
        company = self.same_deployment * torch.log1p(obs["occupancy"][row, :, deployment])
        scores = scores + F.pad(company, (0, node_types.shape[1]))
        is_other = torch.arange(num_nodes, device=source.device)[None] != node[:, None]
        may_take = (obs["destination_mask"][row, :, deployment] > 0) & is_other
        allowed = torch.cat([may_take, obs["new_node_mask"][row, :, deployment] > 0], 1)
        is_first = torch.arange(allowed.shape[1], device=source.device)[None] == 0
        allowed = torch.where(is_cell[:, None], allowed, is_first)
        masked: Tensor = scores.masked_fill(~allowed, MASKED)
        return masked

    def value(self, pooled: Tensor) -> Tensor:
        """Expected discounted return ``(B,)``, in the environment's reward unit, from ``Encoding.pooled``."""
        value: Tensor = self.value_out(pooled)
        return value.squeeze(-1)

    def act(
        self,
        obs: Obs,
        *,
        greedy: bool = False,
        min_p: float = 0.0,
        min_act_p: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Choice:
        """Chooses one action per row.

        Args:
            obs: As for ``encode``.
            greedy: Take the likeliest source, then the likeliest destination, instead of sampling.
            min_p: Of all that may be done, and then of its destinations, only what is at least so likely as this share
                of the likeliest is sampled; whether to wait is sampled as ever. The share is in [0, 1].
            min_act_p: Where all acts together have less than this probability, it waits.
            generator: Source of randomness, torch's global one if None.

        Returns:
            The actions with their probabilities as they were before ``min_p`` and ``min_act_p``.
        """
        encoding = self.encode(obs)
        source_logits = self.source_logits(obs, encoding)
        wait, acts = source_logits[:, : NOOP + 1], source_logits[:, NOOP + 1 :]
        source = _pick(torch.cat([wait, _without_improbable(acts, min_p)], -1), greedy, generator)
        noop_logp = source_logits.log_softmax(-1)[:, NOOP]
        source = torch.where(-torch.expm1(noop_logp) < min_act_p, torch.full_like(source, NOOP), source)
        destination_logits = self.destination_logits(obs, encoding, source)
        destination = _pick(_without_improbable(destination_logits, min_p), greedy, generator)
        actions = torch.stack([source, destination], -1)
        logp = action_logp(source_logits, destination_logits, actions)
        return Choice(actions, logp, noop_logp)
