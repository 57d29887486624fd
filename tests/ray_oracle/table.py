"""All comparisons, and the row of ``docs/simulator.md`` that each of them makes."""

from tests.ray_oracle import autoscaling, compaction, draining, gangs, launches, placement
from tests.ray_oracle.tally import Comparison, Tally

__all__ = ["COMPARISONS", "row_of"]

_SCHEDULER = "`DeploymentScheduler"

COMPARISONS = (
    Comparison(
        "Pack placement of batches: order of pending replicas, nodes, ties, labels, `max_replicas_per_node`",
        f"{_SCHEDULER}.schedule`",
        placement.pack,
    ),
    Comparison(
        "The same with shares of GPUs",
        f"{_SCHEDULER}.schedule`",
        placement.pack_shares,
        "no single device has room for the share; Ray adds up shares of several devices",
    ),
    Comparison(
        "Replicas that a downscale stops, ties included",
        f"{_SCHEDULER}._get_replicas_to_stop`",
        placement.replicas_to_stop,
    ),
    Comparison(
        "Node to compact, shares of GPUs included",
        f"{_SCHEDULER}._find_best_node_to_compact`",
        compaction.find_nodes,
    ),
    Comparison(
        "Quiet time, start, cancellation, time-out, back-off, scan interval and end of a compaction, over time",
        "`DeploymentStateManager.update`, `DeploymentScheduler.get_node_to_compact`",
        compaction.sequences,
    ),
    Comparison(
        "Where a compaction's replacements go",
        f"{_SCHEDULER}.schedule` under `get_node_to_compact`",
        compaction.destinations,
    ),
    Comparison(
        "Target of the default policy: delays, to zero and from zero, factors (deprecated ones too), bounds, "
        "`initial_replicas`",
        "`DeploymentAutoscalingState.get_decision_num_replicas`, `ray.serve.autoscaling_policy`",
        autoscaling.decisions,
    ),
    Comparison(
        "Mean over `look_back_period_s`, from what several routers report of several replicas",
        "`DeploymentAutoscalingState.get_total_num_requests`, `InMemoryMetricsStore`",
        autoscaling.look_back,
    ),
    Comparison(
        "The same with idle stretches",
        "`DeploymentAutoscalingState.get_total_num_requests`",
        autoscaling.look_back_from_idle,
        "the period begins without a request; Ray takes the mean from the first request on",
    ),
    Comparison(
        "Gangs: targets in whole gangs, to zero and from zero",
        "`GangSchedulingAutoscalingPolicy` in `DeploymentAutoscalingState`",
        autoscaling.gang_decisions,
    ),
    Comparison(
        "Gangs: the placement groups that are asked for",
        f"{_SCHEDULER}.schedule_gang_placement_groups`",
        gangs.gang_groups,
    ),
    Comparison(
        "Gangs, on several nodes too: which ones a downscale stops, and which replicas beside them",
        f"{_SCHEDULER}._get_replicas_to_stop`",
        gangs.gangs_to_stop,
    ),
    Comparison(
        "Pack placement of other replicas beside gangs",
        f"{_SCHEDULER}.schedule`",
        gangs.beside_gangs,
    ),
    Comparison(
        "Node to compact beside gangs",
        f"{_SCHEDULER}._find_best_node_to_compact`",
        gangs.node_without_gang,
    ),
    Comparison(
        "Pack placement where nodes drain",
        f"{_SCHEDULER}.schedule`",
        draining.placement,
    ),
    Comparison(
        "Nodes with an interruption notice: what moves off, what stops when a replacement serves, when a target falls, "
        "and before the deadline; gangs included",
        f"`DeploymentState.migrate_replicas_on_draining_nodes`, `.scale_deployment_replicas`, {_SCHEDULER}.schedule`",
        draining.migrations,
    ),
    Comparison(
        "Nodes launched for pending replicas: labels, packing, scores, ties, limits",
        "`ray.autoscaler.v2.scheduler.ResourceDemandScheduler.schedule`",
        launches.launches,
    ),
)


def row_of(comparison: Comparison, tally: Tally) -> str:
    """One row, as Markdown."""
    found = str(len(tally.mismatches))
    if tally.num_explained:
        found += f" (and {tally.num_explained:,}, all because {comparison.explained_by})"
    return f"| {comparison.rule} | {comparison.ray_class} | {tally.num_states:,} | {tally.num_decisions:,} | {found} |"
