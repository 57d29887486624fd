"""Who may act: a lease with expiry in the key-value store of the GCS, so that of two deciders one acts.

The store can put a key only if it is absent, atomically, but can neither compare-and-swap a value nor expire a key.
So each change of holder is a key of its own: ``term/<n>``, and taking the lease is putting ``term/<n + 1>``, which
succeeds for one contender. The holder renews by overwriting its own term, which nobody else writes. Expiry is seen,
not told: a term is over when its value has not changed for its time to live on the contender's own clock, so clocks
need not agree. A holder that slept through its expiry may still have a call under way; the Serve controller therefore
remembers the highest term that moved anything and refuses lower ones (``controller_patch.start_move``).

A successor of the same owner, as the replica that Serve starts for one that died, does not wait. Should the one it
succeeds live after all, that one stands back for good.
"""

import json
import logging
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

__all__ = ["GcsStore", "Lease", "Store"]

log = logging.getLogger(__name__)

_NAMESPACE = b"rayfold"
_PREFIX = "lease/term/"


class Store(Protocol):
    """What is asked of the key-value store."""

    def put(self, key: str, value: str, *, overwrite: bool) -> bool:
        """Puts a value; False where the key is there already and may not be overwritten. Atomic."""
        ...

    def get(self, key: str) -> str | None:
        """The value, None where the key is absent."""
        ...

    def keys(self, prefix: str) -> list[str]:
        """Keys that begin so."""
        ...

    def delete(self, key: str) -> None:
        """Removes a key; no effect on an absent one."""
        ...


class GcsStore:
    """The key-value store of the Ray cluster this process is connected to; it lives as long as the GCS."""

    def put(self, key: str, value: str, *, overwrite: bool) -> bool:
        """See ``Store``."""
        from ray.experimental.internal_kv import _internal_kv_put

        there_before = _internal_kv_put(key, value, overwrite=overwrite, namespace=_NAMESPACE)
        return overwrite or not there_before

    def get(self, key: str) -> str | None:
        """See ``Store``."""
        from ray.experimental.internal_kv import _internal_kv_get

        value: bytes | None = _internal_kv_get(key, namespace=_NAMESPACE)
        return None if value is None else value.decode()

    def keys(self, prefix: str) -> list[str]:
        """See ``Store``."""
        from ray.experimental.internal_kv import _internal_kv_list

        return [key.decode() for key in _internal_kv_list(prefix, namespace=_NAMESPACE)]

    def delete(self, key: str) -> None:
        """See ``Store``."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(key, namespace=_NAMESPACE)


class _Term(NamedTuple):
    """The newest term in the store."""

    number: int  # 0 = nobody has ever held the lease
    value: str | None

    @property
    def holder(self) -> str:
        return str(json.loads(self.value)["holder"]) if self.value else ""

    @property
    def owner(self) -> str:
        return str(json.loads(self.value)["owner"]) if self.value else ""

    @property
    def is_released(self) -> bool:
        return self.value is None or bool(json.loads(self.value)["released"])

    @property
    def ttl_s(self) -> float:
        return float(json.loads(self.value)["ttl_s"]) if self.value else 0.0


class Lease:
    """One contender.

    Args:
        store: Shared by the contenders.
        name: Told to the others; made unique by a random end.
        ttl_s: Others may take over when this one has not renewed for so long.
        clock: Monotonic seconds.
        owner: Of which there is one at a time by other means; empty = nobody's successor.

    Attributes:
        term: Number of the term held, 0 where none is.
    """

    def __init__(
        self, store: Store, name: str, ttl_s: float, clock: Callable[[], float] = time.monotonic, owner: str = ""
    ) -> None:
        self.name, self.ttl_s, self.term = f"{name}-{secrets.token_hex(4)}", ttl_s, 0
        self._store, self._clock, self._owner = store, clock, owner or self.name
        self._is_succeeded = False
        self._count = 0
        self._watched: tuple[_Term, float] | None = None  # a term of another's, and since when its value stands

    def hold(self) -> str:
        """Takes or renews the lease.

        Returns:
            Empty where it is held now, else who holds it.
        """
        newest = self._newest()
        if self.term and newest.number == self.term:
            self._write(self.term, overwrite=True)
            return ""
        if self.term:
            log.warning("the lease was taken over by %s", newest.holder)
            self.term, self._is_succeeded = 0, newest.owner == self._owner
        if self._is_succeeded:
            return "a successor of this decider has taken over"
        if not self._is_over(newest):
            return f"{newest.holder} holds the lease"
        if not self._write(newest.number + 1, overwrite=False) or self._newest().number != newest.number + 1:
            return "another decider has just taken the lease"
        self.term, self._watched = newest.number + 1, None
        self._forget(newest.number)
        log.info("%s holds the lease, term %d", self.name, self.term)
        return ""

    def release(self) -> None:
        """Gives the lease back, so that the next one need not wait."""
        if self.term and self._newest().number == self.term:
            self._write(self.term, overwrite=True, released=True)
        self.term = 0

    def _newest(self) -> _Term:
        numbers = [int(key.removeprefix(_PREFIX)) for key in self._store.keys(_PREFIX)]
        number = max(numbers, default=0)
        return _Term(number, self._store.get(f"{_PREFIX}{number}") if number else None)

    def _is_over(self, newest: _Term) -> bool:
        if newest.is_released or newest.owner == self._owner:
            return True
        now_s = self._clock()
        if self._watched is None or self._watched[0] != newest:
            self._watched = (newest, now_s)
        return now_s - self._watched[1] >= newest.ttl_s

    def _write(self, number: int, *, overwrite: bool, released: bool = False) -> bool:
        self._count += 1
        value = {
            "holder": self.name,
            "owner": self._owner,
            "ttl_s": self.ttl_s,
            "renewal": self._count,
            "released": released,
        }
        return self._store.put(f"{_PREFIX}{number}", json.dumps(value), overwrite=overwrite)

    def _forget(self, last: int) -> None:
        """Removes the terms before the last one. A contender that still believes in one finds itself not newest."""
        for key in self._store.keys(_PREFIX):
            if int(key.removeprefix(_PREFIX)) <= last:
                self._store.delete(key)
