"""Units of work, here or as Ray tasks: whatever order they end in, they are given back as they do."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from rayfold.errors import InputError

__all__ = ["HERE", "Workers", "run_all", "workers_of"]

_Shared = TypeVar("_Shared")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Workers(NamedTuple):
    """Where units run."""

    jobs: int = 1  # 1 = in this process, without Ray
    address: str = ""  # of a running Ray cluster; rayfold must be installed there


HERE = Workers()


def workers_of(jobs: int, address: str) -> Workers:
    """Where episodes are played.

    Raises:
        InputError: Both are given.
    """
    if jobs > 1 and address:
        raise InputError("--jobs", "no --jobs beside --address: the cluster's CPUs say how many", jobs)
    return Workers(jobs, address)


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

    from rayfold.training.ray_session import ray_session

    with ray_session(workers.jobs, workers.address):
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
