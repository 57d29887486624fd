"""Of any number of deciders one acts; when it dies the next one does, after the expiry and not before."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from rayfold.serving.lease import Lease


class Memory:
    """A store in memory, with the operations of the GCS and no others."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def put(self, key: str, value: str, *, overwrite: bool) -> bool:
        """See ``Store``."""
        if key in self.values and not overwrite:
            return False
        self.values[key] = value
        return True

    def get(self, key: str) -> str | None:
        """See ``Store``."""
        return self.values.get(key)

    def keys(self, prefix: str) -> list[str]:
        """See ``Store``."""
        return [key for key in self.values if key.startswith(prefix)]

    def delete(self, key: str) -> None:
        """See ``Store``."""
        self.values.pop(key, None)


class Clock:
    """Told the time."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now_s


def test_one_of_two_holds_it() -> None:
    """The second is told by whom it is held, for as long as the first renews."""
    store, clock = Memory(), Clock()
    a, b = Lease(store, "a", 10.0, clock), Lease(store, "b", 10.0, clock)
    assert a.hold() == ""
    for _ in range(10):
        clock.now_s += 5.0
        assert a.hold() == ""
        assert b.hold() == f"{a.name} holds the lease"
    assert (a.term, b.term) == (1, 0)


def test_death_hands_over_after_the_expiry_and_not_before() -> None:
    """The contender waits the holder's time to live on its own clock, whatever its own is."""
    store, clock = Memory(), Clock()
    a, b = Lease(store, "a", 30.0, clock), Lease(store, "b", 1.0, clock)
    assert a.hold() == ""
    clock.now_s = 100.0
    assert b.hold() != ""
    clock.now_s = 129.0
    assert b.hold() != ""
    clock.now_s = 130.0
    assert b.hold() == ""
    assert b.term == 2
    assert "b-" in a.hold(), "the one that slept finds out"
    assert a.term == 0


def test_released_lease_is_taken_at_once() -> None:
    """A decider that ends in order keeps nobody waiting, and its release does not touch a later term."""
    store, clock = Memory(), Clock()
    a, b = Lease(store, "a", 10.0, clock), Lease(store, "b", 10.0, clock)
    a.hold()
    a.release()
    assert b.hold() == ""
    a.term = 1  # as if it had not heard
    a.release()
    assert b.hold() == ""
    assert list(store.values) == ["lease/term/2"]


def test_stale_contender_does_not_take_a_forgotten_term() -> None:
    """One that read term 1 before terms 2 and 3 came and 2 was removed puts term 2, and sees that it is not newest."""
    store, clock = Memory(), Clock()
    a, b, c = (Lease(store, name, 10.0, clock) for name in "abc")
    a.hold()
    a.release()
    stale = c._newest()
    b.hold()
    b.release()
    assert a.hold() == ""
    c._newest = iter([stale, b._newest()]).__next__  # type: ignore[method-assign]
    assert c.hold() != ""
    assert (a.term, c.term) == (3, 0)
    assert a.hold() == ""


def test_successor_of_the_same_owner_does_not_wait() -> None:
    """And the one it succeeds, should it live, never takes the lease again."""
    store, clock = Memory(), Clock()
    old, new = (Lease(store, "a", 10.0, clock, owner="one deployment") for _ in range(2))
    other = Lease(store, "b", 10.0, clock)
    assert old.hold() == ""
    assert new.hold() == ""
    assert "successor" in old.hold()
    new.release()
    assert "successor" in old.hold()
    assert other.hold() == ""
    assert new.hold() == f"{other.name} holds the lease"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["hold", "release"]), st.floats(0.0, 8.0)),
        min_size=1,
        max_size=40,
    )
)
def test_never_two_holders(steps: list[tuple[int, str, float]]) -> None:
    """Whoever asks whenever: the last to be told yes is the only one that the store has as holder, terms only grow."""
    store, clock = Memory(), Clock()
    leases = [Lease(store, str(i), 10.0, clock) for i in range(3)]
    highest, yes_s = 0, {i: -1e9 for i in range(3)}
    for i, what, passed_s in steps:
        clock.now_s += passed_s
        if what == "release":
            leases[i].release()
            yes_s[i] = -1e9
        elif leases[i].hold() == "":
            assert leases[i].term >= highest
            highest, yes_s[i] = leases[i].term, clock.now_s
            for j, k in itertools.permutations(range(3), 2):
                fresh = [clock.now_s - yes_s[m] < 10.0 for m in (j, k)]
                assert not all(fresh), "two were told yes within one time to live"
