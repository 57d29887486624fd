"""The rates writer: what it writes reads back equal, or nothing is written."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st_

from rayfold.envs.trace_file import Trace, read_trace
from rayfold.envs.trace_writer import write_trace
from rayfold.errors import InputError


def _trace(path: Path, requests: list[list[float]], tokens: list[list[float]], names: tuple[str, ...]) -> Trace:
    arrays = [np.array(a, np.float64) for a in (requests, tokens, tokens)]
    return Trace(
        path=path, bin_s=60.0, series_ids=names, requests=arrays[0], input_tokens=arrays[1], output_tokens=arrays[2]
    )


def _assert_equal(one: Trace, other: Trace) -> None:
    assert one.series_ids == other.series_ids
    for name in ("requests", "input_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_rows_by_hand(tmp_path: Path) -> None:
    """Busy bins, one row for the quiet series, and one for the quiet end."""
    trace = _trace(
        tmp_path / "x_60s.csv",
        [[0, 2.5, 0, 0], [0, 0, 0, 0]],
        [[0, math.nan, 0, 0], [0, 0, 0, 0]],
        ("a", 'say "b", twice'),
    )
    write_trace(trace)
    assert trace.path.read_text() == (
        't_s,series_id,requests,input_tokens,output_tokens\n60,a,2.5,,\n180,a,0,0,0\n0,"say ""b"", twice",0,0,0\n'
    )
    _assert_equal(read_trace(trace.path), trace)


cells = st_.integers(0, 10**6) | st_.floats(0, 1e12, allow_subnormal=False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st_.data(), st_.integers(1, 4), st_.integers(1, 9), st_.sampled_from(["x_60s.csv", "x_60s.csv.gz"]))
def test_reads_back_equal(tmp_path: Path, data: st_.DataObject, num_series: int, num_bins: int, name: str) -> None:
    """Any series, bit for bit, plain and packed; equal traces give equal files."""
    rows = st_.lists(st_.lists(cells, min_size=num_bins, max_size=num_bins), min_size=num_series, max_size=num_series)
    requests, tokens = np.array(data.draw(rows), np.float64), np.array(data.draw(rows), np.float64)
    tokens = np.where(requests > 0, np.where(tokens < 9, np.nan, tokens), 0.0)  # tokens only where there are requests
    trace = _trace(tmp_path / name, requests.tolist(), tokens.tolist(), tuple("abcd"[:num_series]))
    write_trace(trace)
    first = trace.path.read_bytes()
    _assert_equal(read_trace(trace.path), trace)
    write_trace(trace)
    assert trace.path.read_bytes() == first


def test_a_wrong_name_and_an_impossible_place(tmp_path: Path) -> None:
    """One error each."""
    trace = _trace(tmp_path / "x_600s.csv", [[1]], [[1]], ("a",))
    with pytest.raises(InputError, match=r"ends in _60s\.csv"):
        write_trace(trace)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can be written"):
        write_trace(replace(trace, path=tmp_path / "file" / "x_60s.csv"))
    (tmp_path / "x_60s.csv").mkdir()
    with pytest.raises(InputError, match="can be written"):
        write_trace(replace(trace, path=tmp_path / "x_60s.csv"))


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    """Half a file never takes its place, and no temporary one stays."""
    path = tmp_path / "x_60s.csv"
    trace = _trace(path, [[1, 2]], [[1, 2]], ("a",))
    write_trace(trace)
    before = path.read_bytes()
    broken = replace(trace, requests=np.array([[1.0, 5.0]]), output_tokens=np.array([[1.0]]))
    with pytest.raises(IndexError):
        write_trace(broken)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
