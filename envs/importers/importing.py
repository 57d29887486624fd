"""From files in a published format to a ``Trace``."""

import enum
from collections.abc import Iterator, Sequence
from pathlib import Path

from rayfold.envs.importers.azure_functions import read_azure_functions
from rayfold.envs.importers.azure_llm import read_azure_llm
from rayfold.envs.importers.burstgpt import read_burstgpt
from rayfold.envs.importers.counts import Count, bin_counts, busiest
from rayfold.envs.importers.mooncake import read_mooncake
from rayfold.envs.importers.prometheus import read_prometheus
from rayfold.envs.importers.servegen import read_servegen
from rayfold.envs.trace_file import Trace
from rayfold.errors import InputError

__all__ = ["TraceFormat", "import_trace", "read_counts"]


class TraceFormat(enum.StrEnum):
    """Where files come from."""

    SERVEGEN = "servegen"
    AZURE_LLM = "azure-llm"
    AZURE_FUNCTIONS = "azure-functions"
    BURSTGPT = "burstgpt"
    MOONCAKE = "mooncake"
    PROMETHEUS = "prometheus"


_ABSOLUTE = {TraceFormat.AZURE_LLM, TraceFormat.PROMETHEUS}  # times since 1970; the others count from their start
_RESOLUTION_S = {TraceFormat.SERVEGEN: 600, TraceFormat.AZURE_FUNCTIONS: 60}


def read_counts(fmt: TraceFormat, paths: Sequence[Path]) -> Iterator[Count]:
    """Reads files one after the other, row by row.

    Raises:
        InputError: A file is missing or breaks the format.
    """
    match fmt:
        case TraceFormat.AZURE_FUNCTIONS:
            yield from read_azure_functions(paths)
            return
        case TraceFormat.SERVEGEN:
            read = read_servegen
        case TraceFormat.AZURE_LLM:
            read = read_azure_llm
        case TraceFormat.BURSTGPT:
            read = read_burstgpt
        case TraceFormat.MOONCAKE:
            read = read_mooncake
        case TraceFormat.PROMETHEUS:
            read = read_prometheus
    for path in paths:
        yield from read(path)


def import_trace(
    fmt: TraceFormat, paths: Sequence[Path], *, bin_s: int, out: Path, num_series: int | None = None
) -> Trace:
    """Reads files of one format into bins. Nothing is written.

    Args:
        fmt: Format of all of them.
        paths: The files, or a model's folder of ServeGen.
        bin_s: Bin width.
        out: Name of the trace.
        num_series: Keep the busiest only; the files are read twice then.

    Raises:
        InputError: A file is missing, given twice or breaks the format; or bins are finer than the data.
    """
    for i, path in enumerate(paths):
        if path.resolve() in [p.resolve() for p in paths[:i]]:
            raise InputError(str(path), "each file once", "it again")
    finest_s = _RESOLUTION_S.get(fmt, 1)
    if bin_s < finest_s:
        raise InputError("bin width", f"at least {finest_s} s for {fmt}", bin_s)
    counts = read_counts(fmt, paths)
    if num_series is not None:
        kept = busiest(counts, num_series)
        counts = (count for count in read_counts(fmt, paths) if count.series_id in kept)
    where = ", ".join(str(p) for p in paths)
    return bin_counts(counts, bin_s=bin_s, path=out, is_absolute=fmt in _ABSOLUTE, where=where)
