"""One deployment's traffic made of trace series: scaled, shifted in time, added. Dims: B bins."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.trace_file import Trace
from rayfold.envs.traffic_source import BinRange, Split
from rayfold.errors import InputError

__all__ = ["MixedTraffic", "TracePart", "mix_parts", "shift_within_splits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TracePart:
    """A series as a part of a deployment's traffic."""

    series_id: str
    scale: float = 1.0  # times the requests; tokens per request stay
    shift_s: float = 0.0  # later by so much, a whole number of bins; what leaves a split's end enters at its beginning


class MixedTraffic(NamedTuple):
    """The sum of parts."""

    rates_rps: NDArray[np.float64]  # (B,)
    tokens_per_request: float  # mean output tokens of the requests whose tokens are known, nan if there are none


def mix_parts(
    traces: Sequence[Trace], parts: Sequence[TracePart], splits: Mapping[Split, BinRange], where: str
) -> MixedTraffic:
    """Adds scaled and shifted series.

    Args:
        traces: Where the series are; a name stands for the first trace that has it. All with one bin width.
        parts: What to add; a series may come several times.
        splits: Parts of the traces that must not leak into each other. Mean tokens are taken over the train split.
        where: For messages; the part's number is added.

    Raises:
        InputError: A series is nowhere, a scale is negative, or a shift is no whole number of bins.
    """
    num_bins = max(trace.num_bins for trace in traces)
    rates, requests, tokens = np.zeros(num_bins), 0.0, 0.0
    for i, part in enumerate(parts):
        trace = next((t for t in traces if part.series_id in t.series_ids), None)
        if trace is None:
            names = ", ".join(t.path.name for t in traces)
            raise InputError(f"{where}.{i}.series", f"a series_id of {names}", repr(part.series_id))
        if not 0 <= part.scale < math.inf:
            raise InputError(f"{where}.{i}.scale", "a number >= 0", part.scale)
        row, shift = trace.series_ids.index(part.series_id), _whole_bins(part.shift_s, trace.bin_s, f"{where}.{i}")
        own = np.zeros(num_bins)
        own[: trace.num_bins] = trace.requests[row] / trace.bin_s * part.scale
        rates += shift_within_splits(own, shift, splits)
        train = slice(*splits[Split.TRAIN])
        known = ~np.isnan(trace.output_tokens[row, train])
        requests += part.scale * float(trace.requests[row, train][known].sum())
        tokens += part.scale * float(trace.output_tokens[row, train][known].sum())
    return MixedTraffic(rates, tokens / requests if requests > 0 else math.nan)


def shift_within_splits(
    rates: NDArray[np.float64], num_bins: int, splits: Mapping[Split, BinRange]
) -> NDArray[np.float64]:
    """Moves rates to later bins, round and round within each split.

    Args:
        rates: ``(B, ...)``; bins in no split stay.
        num_bins: By how many bins; negative = earlier.
        splits: Bins beyond B are left out.
    """
    out = rates.copy()
    for first, end in splits.values():
        out[first:end] = np.roll(rates[first:end], num_bins, axis=0)
    return out


def _whole_bins(shift_s: float, bin_s: float, where: str) -> int:
    bins = shift_s / bin_s
    if not math.isfinite(bins) or abs(bins - round(bins)) > 1e-9:
        raise InputError(f"{where}.shift_s", f"a whole number of bins of {bin_s:g} s", f"{shift_s:g}")
    return round(bins)
