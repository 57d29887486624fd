"""The safety filter: every refusal has a case of its own, and mask and verdict are one rule."""

from collections.abc import Callable

import numpy as np
import pytest

from rayfold.envs.moves import Move
from rayfold.envs.safety import Limits, Reason, check_move, movable_replica, move_masks, moves_in_flight
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from tests.envs.clusters import add_node, add_replica, empty_state, random_state, small_spec

ONE, TWO, HALF, SINGLE, GOLDEN, FIXED = range(6)
LIMITS = Limits(max_concurrent_moves=2, deployment_cooldown_s=120.0)
NEW_NODES = LIMITS._replace(allow_new_nodes=True)


def base(d: int = ONE, min_nodes: int = 0) -> tuple[ClusterState, Move]:
    """Three plain nodes; a replica of ``d`` on node 0 that may move to node 1, which holds another one."""
    state = empty_state(small_spec(min_nodes=min_nodes))
    for n in range(3):
        add_node(state, n)
    r = add_replica(state, d, 0)
    add_replica(state, ONE, 1)
    return state, Move(r, 1)


def test_the_base_case_is_allowed() -> None:
    """Each case below changes one thing in a move that is allowed."""
    state, move = base()
    assert check_move(state, move, LIMITS) == (True, Reason.ALLOWED)


def _no_such_replica(state: ClusterState, move: Move) -> Move:
    return Move(23, 1)


def _loading(state: ClusterState, move: Move) -> Move:
    state.arrays.replica_phase[move.replica_idx] = ReplicaPhase.STARTING
    return move


def _already_moving(state: ClusterState, move: Move) -> Move:
    other = add_replica(state, ONE, 2, ReplicaPhase.STARTING)
    state.arrays.replica_peer[move.replica_idx], state.arrays.replica_peer[other] = other, move.replica_idx
    return move


def _cooldown(state: ClusterState, move: Move) -> Move:
    state.arrays.deployment_moved_s[ONE] = state.now_s - 119.0
    return move


def _too_many(state: ClusterState, move: Move) -> Move:
    for _ in range(2):
        source, replacement = add_replica(state, ONE, 2), add_replica(state, ONE, 2, ReplicaPhase.STARTING)
        state.arrays.replica_peer[source], state.arrays.replica_peer[replacement] = replacement, source
    return move


def _source_head(state: ClusterState, move: Move) -> Move:
    state.arrays.node_is_head[0] = True
    return move


def _source_pinned(state: ClusterState, move: Move) -> Move:
    state.arrays.node_releasable[0] = False
    return move


def _no_such_node(state: ClusterState, move: Move) -> Move:
    return Move(move.replica_idx, 7)  # five rows of nodes, two node types


def _new_node(state: ClusterState, move: Move) -> Move:
    return Move(move.replica_idx, 5)


def _spans(state: ClusterState, move: Move) -> Move:
    state.arrays.replica_spans[move.replica_idx] = True
    return move


def _source_opted_out(state: ClusterState, move: Move) -> Move:
    state.arrays.node_is_opted_out[0] = True
    return move


def _source_drains(state: ClusterState, move: Move) -> Move:
    state.arrays.node_phase[0] = NodePhase.DRAINING
    return move


def _same_node(state: ClusterState, move: Move) -> Move:
    return Move(move.replica_idx, 0)


def _booting(state: ClusterState, move: Move) -> Move:
    return Move(move.replica_idx, add_node(state, 3, phase=NodePhase.BOOTING))


def _destination_head(state: ClusterState, move: Move) -> Move:
    state.arrays.node_is_head[1] = True
    return move


def _destination_pinned(state: ClusterState, move: Move) -> Move:
    state.arrays.node_releasable[1] = False
    return move


def _fenced(state: ClusterState, move: Move) -> Move:
    state.arrays.node_fenced_until_s[1] = state.now_s + 1.0
    return move


def _full(state: ClusterState, move: Move) -> Move:
    for _ in range(3):
        add_replica(state, ONE, 1)
    return move


def _halves(state: ClusterState, move: Move) -> Move:
    """1 GPU is free on node 1, as two halves of different devices."""
    for _ in range(2):
        add_replica(state, ONE, 1)
    state.arrays.gpu_free[1] = (0.0, 0.0, 0.5, 0.5)
    return move


CASES: dict[Reason, tuple[int, Callable[[ClusterState, Move], Move]]] = {
    Reason.NO_SUCH_REPLICA: (ONE, _no_such_replica),
    Reason.REPLICA_NOT_RUNNING: (ONE, _loading),
    Reason.ALREADY_MOVING: (ONE, _already_moving),
    Reason.DEPLOYMENT_OPTED_OUT: (FIXED, lambda state, move: move),
    Reason.DEPLOYMENT_COOLDOWN: (ONE, _cooldown),
    Reason.TOO_MANY_MOVES: (ONE, _too_many),
    Reason.SOURCE_IS_HEAD: (ONE, _source_head),
    Reason.SOURCE_NOT_RELEASABLE: (ONE, _source_pinned),
    Reason.REPLICA_SPANS_NODES: (ONE, _spans),
    Reason.SOURCE_OPTED_OUT: (ONE, _source_opted_out),
    Reason.SOURCE_NOT_ALIVE: (ONE, _source_drains),
    Reason.NEW_NODES_NOT_ALLOWED: (ONE, _new_node),
    Reason.NO_SUCH_NODE: (ONE, _no_such_node),
    Reason.SAME_NODE: (ONE, _same_node),
    Reason.DESTINATION_NOT_ALIVE: (ONE, _booting),
    Reason.DESTINATION_IS_HEAD: (ONE, _destination_head),
    Reason.DESTINATION_NOT_RELEASABLE: (ONE, _destination_pinned),
    Reason.DESTINATION_FENCED: (ONE, _fenced),
    Reason.LABELS_DO_NOT_MATCH: (GOLDEN, lambda state, move: move),
    Reason.NO_CAPACITY: (ONE, _full),
    Reason.NO_GPU_DEVICE: (ONE, _halves),
    Reason.MAX_REPLICAS_PER_NODE: (SINGLE, lambda state, move: (add_replica(state, SINGLE, 1), move)[1]),
}


def test_every_reason_has_a_case() -> None:
    """A new reason without a case fails here; the bounds of a node type have tests of their own."""
    bounds = {Reason.SOURCE_AT_MIN_NODES, Reason.TYPE_AT_MAX_NODES}
    assert set(CASES) | {Reason.ALLOWED} | bounds == set(Reason)


@pytest.mark.parametrize("reason", CASES)
def test_forbidden_move_is_refused_with_its_reason(reason: Reason) -> None:
    """Each forbidden move is refused, for the reason that forbids it."""
    d, change = CASES[reason]
    state, move = base(d)
    assert check_move(state, change(state, move), LIMITS) == (False, reason)


def test_nothing_is_moved_off_the_last_nodes_that_must_stay() -> None:
    """With three nodes of a type of which three must stay, none can be released."""
    state, move = base(min_nodes=3)
    assert check_move(state, move, LIMITS).reason is Reason.SOURCE_AT_MIN_NODES
    state, move = base(min_nodes=2)
    assert check_move(state, move, LIMITS).allowed


def test_cooldown_separates_ticks_not_moves_of_one_tick() -> None:
    """A second replica may follow at the same clock reading, not one tick later, and again after the cooldown."""
    state, move = base()
    for ago_s, allowed in ((0.0, True), (1.0, False), (119.9, False), (120.0, True)):
        state.arrays.deployment_moved_s[ONE] = state.now_s - ago_s
        assert check_move(state, move, LIMITS).allowed is allowed


def test_unreleasable_destination_by_setting() -> None:
    """A pinned node may take replicas where the setting says so; it is never emptied."""
    state, move = base()
    state.arrays.node_releasable[1] = False
    assert check_move(state, move, LIMITS._replace(use_unreleasable_nodes=True)).allowed
    state.arrays.node_releasable[:] = (False, True, True, True, True)
    assert not check_move(state, move, LIMITS._replace(use_unreleasable_nodes=True)).allowed


@pytest.mark.parametrize("r", [-1, 24, 23])
def test_rows_that_are_no_replica(r: int) -> None:
    """Beyond either end, however full the last row is, and an empty row."""
    state, _ = base()
    if r == -1:
        st = state.arrays
        st.replica_deployment[-1], st.replica_node[-1], st.replica_phase[-1] = ONE, 0, ReplicaPhase.RUNNING
    assert check_move(state, Move(r, 1), LIMITS) == (False, Reason.NO_SUCH_REPLICA)


def test_new_nodes_by_type() -> None:
    """A plain one while there are fewer than five, booting ones counted; a gold one too; labels still decide."""
    state, move = base()
    plain, gold = Move(move.replica_idx, 5), Move(move.replica_idx, 6)
    assert check_move(state, plain, NEW_NODES).allowed
    assert check_move(state, gold, NEW_NODES).allowed
    add_node(state, 3, phase=NodePhase.BOOTING)
    add_node(state, 4)
    assert check_move(state, plain, NEW_NODES) == (False, Reason.TYPE_AT_MAX_NODES)
    assert check_move(state, gold, NEW_NODES).allowed
    state, move = base(GOLDEN)
    assert check_move(state, Move(move.replica_idx, 5), NEW_NODES).reason is Reason.LABELS_DO_NOT_MATCH
    assert check_move(state, Move(move.replica_idx, 6), NEW_NODES).allowed
    state, move = base(FIXED)
    assert check_move(state, Move(move.replica_idx, 5), NEW_NODES).reason is Reason.DEPLOYMENT_OPTED_OUT


@pytest.mark.parametrize("n", [-1, 7])
def test_rows_that_are_no_node(n: int) -> None:
    """Beyond either end."""
    state, move = base()
    add_node(state, 4)
    assert check_move(state, Move(move.replica_idx, n), LIMITS) == (False, Reason.NO_SUCH_NODE)


def test_replicas_per_node_up_to_the_limit() -> None:
    """Of one allowed none may be there yet, of two allowed one may."""
    for limit, there, allowed in ((1, 0, True), (1, 1, False), (2, 1, True), (2, 2, False), (0, 2, True)):
        state, move = base(SINGLE)
        state.spec.arrays.max_per_node[SINGLE] = limit
        for _ in range(there):
            add_replica(state, SINGLE, 1)
        assert check_move(state, move, LIMITS).allowed is allowed, (limit, there)


def test_moves_up_to_the_limit() -> None:
    """Two at once: a second one may start beside the first, also when its replacement took row 0; a third may not."""
    state, _ = base()
    st = state.arrays
    third = add_replica(state, ONE, 0)
    sources = [1, add_replica(state, ONE, 2)]
    st.replica_phase[0] = ReplicaPhase.STARTING
    for count, (source, replacement) in enumerate(zip(sources, (0, 4), strict=True)):
        assert moves_in_flight(st) == count
        assert check_move(state, Move(third, 1), LIMITS).allowed
        if replacement:
            assert add_replica(state, ONE, 2, ReplicaPhase.STARTING) == replacement
        st.replica_peer[source], st.replica_peer[replacement] = replacement, source
    assert moves_in_flight(st) == 2
    assert check_move(state, Move(third, 1), LIMITS).reason is Reason.TOO_MANY_MOVES
    assert check_move(state, Move(1, 0), LIMITS).reason is Reason.ALREADY_MOVING
    assert movable_replica(state.spec.arrays, st, state.now_s, LIMITS, 0, ONE) == -1


@pytest.mark.parametrize(
    ("d", "free", "reason"),
    [
        (HALF, (0.0, 0.0, 0.5, 0.5), Reason.ALLOWED),
        (TWO, (1.0, 0.0, 0.5, 0.5), Reason.NO_GPU_DEVICE),
        (TWO, (1.0, 0.0, 1.0, 0.0), Reason.ALLOWED),
    ],
)
def test_devices_decide_where_the_sum_would_do(d: int, free: tuple[float, ...], reason: Reason) -> None:
    """By the GPUs that are asked for, not by another resource of which one unit is asked for."""
    state, move = base(d)
    state.arrays.gpu_free[1], state.arrays.node_free[1, 0] = free, sum(free)
    assert check_move(state, move, LIMITS).reason is reason


def test_masks_forget_what_was_there() -> None:
    """Arrays that are used again, larger than the state: all that is not allowed is 0."""
    state, _ = base()
    used = np.ones((7, 9), np.float32), np.ones((7, 9), np.float32), np.ones((3, 9), np.float32)
    move_masks(state.spec.arrays, state.arrays, state.now_s, NEW_NODES, *used)
    for fresh, again in zip(masks_of(state, NEW_NODES), used, strict=True):
        np.testing.assert_array_equal(again[: len(fresh), :6], fresh)
        assert again.sum() == fresh.sum() > 0


Masks = tuple[np.ndarray, np.ndarray, np.ndarray]


def masks_of(state: ClusterState, limits: Limits) -> Masks:
    """The three masks of a state."""
    num_deployments = state.spec.num_deployments
    shape, types = (len(state.arrays.node_type), num_deployments), (len(state.spec.node_types), num_deployments)
    masks = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(types, np.float32)
    move_masks(state.spec.arrays, state.arrays, state.now_s, limits, *masks)
    return masks


def disagreements(state: ClusterState, limits: Limits, masks: Masks) -> int:
    """Moves for which the masks and the verdict differ."""
    source, destination, new_node = masks
    may_take = np.concatenate([destination, new_node])
    st, wrong = state.arrays, 0
    allowed_cells = np.zeros_like(source)
    for r in np.flatnonzero(st.replica_node >= 0):
        n, d = st.replica_node[r], st.replica_deployment[r]
        for m in range(len(may_take)):
            allowed = check_move(state, Move(int(r), m), limits).allowed
            masked = source[n, d] > 0 and may_take[m, d] > 0 and m != n
            first = movable_replica(state.spec.arrays, st, state.now_s, limits, n, d)
            wrong += allowed and not masked
            wrong += bool(masked) and not check_move(state, Move(int(first), m), limits).allowed
            allowed_cells[n, d] = max(allowed_cells[n, d], float(allowed))
    return wrong + int((allowed_cells != source).sum())


@pytest.mark.parametrize("limits", [LIMITS, NEW_NODES])
def test_masks_are_the_verdicts(limits: Limits) -> None:
    """Cell by cell, on 300 random states, new nodes allowed or not."""
    num_allowed = num_new = 0
    for seed in range(300):
        state = random_state(np.random.default_rng(seed))
        masks = masks_of(state, limits)
        assert disagreements(state, limits, masks) == 0, seed
        num_allowed += int(masks[0].sum())
        num_new += int(masks[2].sum())
    assert num_allowed > 200
    assert (num_new > 200) == limits.allow_new_nodes


def test_a_broken_mask_is_found() -> None:
    """The check above can fail: bits turned in any mask are seen on some state."""
    found = [0, 0, 0]
    for seed in range(60):
        state = random_state(np.random.default_rng(seed))
        for i in (0, 1, 2):
            masks = masks_of(state, NEW_NODES)
            cells = np.argwhere(masks[0] > 0)
            if len(cells):
                n, d = cells[0]
                masks[i][(n, d) if i == 0 else (slice(None), d)] = 0.0
                found[i] += disagreements(state, NEW_NODES, masks) > 0
    assert min(found) > 10
