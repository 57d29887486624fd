"""What a trace is like: amounts, peaks, burstiness and gaps. Dims: S series, B bins."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rayfold.envs.trace_file import Trace

__all__ = ["Gap", "SeriesStats", "TraceStats", "trace_stats"]


class Gap(NamedTuple):
    """A time in which no series has a request: collection failed, or nobody came."""

    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesStats:
    """One series, or all of them added."""

    series_id: str
    requests: float
    mean_rps: float
    peak_rps: float  # of the busiest bin
    peak_to_mean: float  # nan without requests
    dispersion: float  # variance over mean of the requests per bin; 1 = Poisson, nan without requests
    busy_frac: float  # share of bins with requests
    input_tokens: float  # where known
    input_known_frac: float  # share of requests whose input tokens are known, nan without requests
    output_tokens: float  # where known
    output_known_frac: float  # likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStats:
    """A trace as a whole."""

    bin_s: float
    num_bins: int
    total: SeriesStats
    series: tuple[SeriesStats, ...]  # (S,) busiest first
    gaps: tuple[Gap, ...]

    @property
    def duration_s(self) -> float:
        """From 0 to the end of the last bin."""
        return self.num_bins * self.bin_s


def trace_stats(trace: Trace) -> TraceStats:
    """Computes every figure of a trace."""
    series = [_series_stats(name, trace, slice(i, i + 1)) for i, name in enumerate(trace.series_ids)]
    return TraceStats(
        bin_s=trace.bin_s,
        num_bins=trace.num_bins,
        total=_series_stats("all", trace, slice(None)),
        series=tuple(sorted(series, key=lambda s: (-s.requests, s.series_id))),
        gaps=_gaps(trace),
    )


def _series_stats(name: str, trace: Trace, rows: slice) -> SeriesStats:
    """Figures of the sum of some rows."""
    requests, inputs, outputs = (a[rows] for a in (trace.requests, trace.input_tokens, trace.output_tokens))
    per_bin = requests.sum(axis=0)
    total, mean, peak = float(per_bin.sum()), float(per_bin.mean()), float(per_bin.max())
    return SeriesStats(
        series_id=name,
        requests=total,
        mean_rps=mean / trace.bin_s,
        peak_rps=peak / trace.bin_s,
        peak_to_mean=_ratio(peak, mean),
        dispersion=_ratio(float(per_bin.var()), mean),
        busy_frac=float((per_bin > 0).mean()),
        input_tokens=float(np.nansum(inputs)),
        input_known_frac=_ratio(float(requests[~np.isnan(inputs)].sum()), total),
        output_tokens=float(np.nansum(outputs)),
        output_known_frac=_ratio(float(requests[~np.isnan(outputs)].sum()), total),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float("nan")


def _gaps(trace: Trace) -> tuple[Gap, ...]:
    is_quiet = np.concatenate([[False], trace.requests.sum(axis=0) == 0, [False]])
    edges = np.flatnonzero(np.diff(is_quiet.astype(np.int8)))
    return tuple(Gap(float(a) * trace.bin_s, float(b) * trace.bin_s) for a, b in edges.reshape(-1, 2))
