"""The moves that have not ended: taken over from a dead decider, followed, and their phases recorded."""

import logging
from collections.abc import Callable

from rayfold.serving.journal import Journal
from rayfold.serving.live_moves import LiveExecutor, MoveRecord, RecordedPhase
from rayfold.serving.metrics import Metrics

__all__ = ["MovesUnderWay"]

log = logging.getLogger(__name__)

_BEFORE_SERVING = (RecordedPhase.INTENDED, RecordedPhase.STARTING)
_SERVING = (RecordedPhase.DRAINING, RecordedPhase.DONE)


class MovesUnderWay:
    """What the journal holds of moves, kept true to what the cluster says.

    Args:
        journal: Holds them.
        executor: Knows how they stand.
        metrics: Told of each phase.
        clock: Unix time in seconds.
    """

    def __init__(self, journal: Journal, executor: LiveExecutor, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._journal, self._executor, self._metrics, self._clock = journal, executor, metrics, clock

    def adopt(self) -> None:
        """Takes over what an earlier decider left: followed if it has begun, closed if it has not.

        Raises:
            ClusterError: The cluster does not answer.
        """
        begun = self._journal.open_moves()
        if begun:
            log.warning("%d moves of an earlier decider are under way", len(begun))
            self._executor.adopt(begun)

    def watch(self) -> None:
        """Looks how they stand.

        Raises:
            ClusterError: The cluster does not answer.
        """
        begun = self._journal.open_moves()
        if not begun:
            return
        statuses = self._executor.statuses()
        for record in begun:
            seen = statuses.get(record.move_id)
            if seen is None:
                self.set_phase(record, RecordedPhase.FAILED, "nobody knows of this move")
                continue
            phase, replacement = RecordedPhase(seen.phase.value), seen.replacement_id or ""
            if (phase, replacement) != (record.phase, record.replacement_id):
                self.set_phase(record, phase, seen.detail, replacement, seen.ready_s)

    def set_phase(
        self,
        record: MoveRecord,
        phase: RecordedPhase,
        detail: str = "",
        replacement_id: str = "",
        ready_s: float = 0.0,
    ) -> None:
        """Records the phase of a move.

        Args:
            record: The move as recorded so far.
            phase: Where it is now.
            detail: Why it failed or was cancelled.
            replacement_id: Ray's id, empty where there is none.
            ready_s: The replacement served then (Unix s), 0 where that is not known.
        """
        now_s = self._clock()
        self._journal.set_phase(record.move_id, phase, now_s, detail=detail, replacement_id=replacement_id)
        if phase != record.phase:
            self._metrics.saw_phase(phase, now_s - record.started_s)
        if record.phase in _BEFORE_SERVING and phase in _SERVING:
            self._metrics.saw_cold_start((ready_s or now_s) - record.started_s)
        log.info("move %s of %s: %s %s", record.move_id, record.deployment, phase, detail)

    def cancel(self, move_id: str) -> bool:
        """Asks a move that still starts to end; False where the journal has no such move.

        Raises:
            ClusterError: The cluster does not answer.
        """
        record = self._journal.move(move_id)
        if record is None:
            return False
        if not record.is_final:
            self._executor.cancel(move_id)
        return True
