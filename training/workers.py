"""Units of work, here or as Ray tasks: whatever order they end in, they are given back as they do."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from rayfold.errors import InputError

__all__ = ["HERE", "Workers", "run_all"]

_Shared = TypeVar("_Shared")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Workers(NamedTuple):
    """Where units run."""

    jobs: int = 1  # 1 = in this process, without Ray
    address: str = ""  # of a running Ray cluster; rayfold must be installed there


HERE = Workers()


def run_all(
    function: Callable[[_Shared, _Item], _Result], shared: _Shared, items: Sequence[_Item], workers: Workers
) -> Iterator[tuple[_Item, _Result]]:
    """Every item with what came of it, in the order in which they end; what still runs is cancelled by leaving.

    Args:
        function: Of the shared object and one item.
        shared: Sent to the workers once.
        items: One unit each.
        workers: Where to run.

    Raises:
        InputError: There is no cluster at the address.
    """
    if not items:
        return
    if workers.jobs == 1 and not workers.address:
        for item in items:
            yield item, function(shared, item)
        return
    import ray

    with _connected(workers):
        task: Any = ray.remote(num_cpus=1)(function)
        sent = ray.put(shared)
        waiting, running = list(reversed(items)), dict[Any, _Item]()
        limit = workers.jobs if not workers.address else _num_cpus()
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    item = waiting.pop()
                    running[task.remote(sent, item)] = item
                [ended], _ = ray.wait(list(running), num_returns=1)
                yield running.pop(ended), ray.get(ended)
        finally:
            for reference in running:
                ray.cancel(reference)


def _num_cpus() -> int:
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    return max(1, int(resources.get("CPU", 1)))


@contextlib.contextmanager
def _connected(workers: Workers) -> Iterator[None]:
    """A Ray of this process's own, or the one at the address, which is left running."""
    import ray

    from rayfold.training.ray_session import ray_session

    if not workers.address:
        with ray_session(workers.jobs):
            yield
        return
    try:
        ray.init(workers.address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as err:
        raise InputError("--address", "a running Ray cluster", f"{workers.address}: {err}") from None
    try:
        yield
    finally:
        ray.shutdown()
