"""The rates reader: exact on good files, one precise line on bad ones."""

import gzip
import time
from pathlib import Path

import numpy as np
import pytest

from rayfold.envs.trace_file import GAP_FILE, read_trace
from rayfold.errors import InputError

HEADER = "t_s,series_id,requests,input_tokens,output_tokens\n"


def _write(folder: Path, body: str, name: str = "x_600s.csv", header: str = HEADER) -> Path:
    path = folder / name
    data = (header + body).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["x_600s.csv", "x_600s.csv.gz"])
def test_absent_row_is_zero_and_blank_is_unknown(tmp_path: Path, name: str) -> None:
    """Every cell of a small file, read by hand."""
    trace = read_trace(_write(tmp_path, "600,b,3,,\n0,a,6,60,12\n1800,a,2,10,8\n", name))
    assert trace.bin_s == 600.0
    assert trace.series_ids == ("b", "a")
    np.testing.assert_array_equal(trace.requests, [[0, 3, 0, 0], [6, 0, 0, 2]])
    np.testing.assert_array_equal(trace.input_tokens, [[0, np.nan, 0, 0], [60, 0, 0, 10]])
    np.testing.assert_array_equal(trace.output_tokens, [[0, np.nan, 0, 0], [12, 0, 0, 8]])
    assert trace.output_tokens_per_request(1, slice(0, 4)) == 20 / 8
    assert trace.output_tokens_per_request(1, slice(0, 1)) == 2.0
    assert np.isnan(trace.output_tokens_per_request(0, slice(0, 4)))


def test_columns_may_come_in_any_order(tmp_path: Path) -> None:
    """The header names the columns."""
    header = "requests,output_tokens,series_id,input_tokens,t_s\n"
    trace = read_trace(_write(tmp_path, "6,12,a,60,0\n", header=header))
    assert (trace.requests[0, 0], trace.input_tokens[0, 0], trace.output_tokens[0, 0]) == (6, 60, 12)


@pytest.mark.parametrize(
    ("body", "line", "expected", "got"),
    [
        ("0,a,nan,1,1\n", 2, "requests >= 0", "'nan'"),
        ("0,a,1,1,1\n600,a,-2,1,1\n", 3, "requests >= 0", "'-2'"),
        ("0,a,inf,1,1\n", 2, "requests >= 0", "'inf'"),
        ("0,a,,1,1\n", 2, "requests >= 0", "''"),
        ("0,a,many,1,1\n", 2, "a number as requests", "'many'"),
        ("0,a,1,-1,1\n", 2, "input_tokens >= 0 or blank", "'-1'"),
        ("0,a,1,1,nan\n", 2, "output_tokens >= 0 or blank", "'nan'"),
        ("0,a,1,1,1\n0,b,1,1,1\n0,a,2,1,1\n", 4, "one row per t_s and series_id (first in line 2)", "t_s 0 of a again"),
        ("0,a,1,1,1\n700,a,1,1,1\n", 3, "t_s as a multiple of the bin width 600 s", "700"),
        ("-600,a,1,1,1\n", 2, "t_s >= 0", "'-600'"),
        ("6e18,a,1,1,1\n", 2, "t_s below 3e+10", "6e18"),
        ("0,,1,1,1\n", 2, "a series_id", "''"),
        ("0,a,1_0,1,1\n", 2, "a number as requests", "'1_0'"),
        ("0,a,1e300,1,1\n", 2, "requests >= 0 and <= 1e+15", "'1e300'"),
        ("0,a,1,1\n", 2, "5 fields", "4"),
        ("0,a,1,1,1\n\n600,a,1,1,1\n", 3, "5 fields", "0"),
    ],
)
def test_bad_row_is_named_by_line(tmp_path: Path, body: str, line: int, expected: str, got: str) -> None:
    """The message has the line, what was expected and what is there."""
    path = _write(tmp_path, body)
    with pytest.raises(InputError) as err:
        read_trace(path)
    assert err.value.where == f"{path}:{line}"
    assert err.value.expected == expected
    assert str(err.value.got) == got
    assert "\n" not in str(err.value)


@pytest.mark.parametrize(
    "header", ["", "t_s,series_id,requests\n", HEADER.replace("requests", "reqs"), "extra," + HEADER]
)
def test_wrong_columns_are_refused(tmp_path: Path, header: str) -> None:
    """Missing, misspelt and unknown columns alike."""
    path = _write(tmp_path, "", header=header)
    with pytest.raises(InputError, match="columns t_s, series_id, requests") as err:
        read_trace(path)
    assert err.value.where == f"{path}:1"


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    """Missing, empty of rows, truncated gzip, binary, and a name without a bin width."""
    with pytest.raises(InputError, match="no such file"):
        read_trace(tmp_path / "x_600s.csv")
    with pytest.raises(InputError, match="at least one row"):
        read_trace(_write(tmp_path, ""))
    cut = _write(tmp_path, "0,a,1,1,1\n" * 99, "cut_600s.csv.gz")
    cut.write_bytes(cut.read_bytes()[:-12])
    with pytest.raises(InputError, match="a readable text file"):
        read_trace(cut)
    binary = tmp_path / "bin_600s.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="a readable text file"):
        read_trace(binary)
    for name in ("x.csv", "x_0s.csv", "x_600s.txt"):
        with pytest.raises(InputError, match="bin width"):
            read_trace(_write(tmp_path, "0,a,1,1,1\n", name))


def test_gap_windows_are_bridged(tmp_path: Path) -> None:
    """Within a listed gap every series is interpolated linearly; other models' gaps and files are left alone."""
    (tmp_path / GAP_FILE).write_text("model,t_s\nm-x,600\nm-x,1200\nm-y,1800\nm-x,999999600\n")
    body = "0,a,10,100,5\n1800,a,40,400,20\n2400,a,7,,\n0,b,9,9,9\n"
    trace = read_trace(_write(tmp_path, body, "servegen_m-x_600s.csv"))
    np.testing.assert_allclose(trace.requests, [[10, 20, 30, 40, 7], [9, 6, 3, 0, 0]])
    np.testing.assert_allclose(trace.input_tokens[0], [100, 200, 300, 400, np.nan])
    other = read_trace(_write(tmp_path, body, "servegen_m-x2_600s.csv"))
    np.testing.assert_array_equal(other.requests[0], [10, 0, 0, 40, 7])


def test_bad_gap_file_is_named(tmp_path: Path) -> None:
    """A gap that is no bin start is refused, with the gap file's own line."""
    (tmp_path / GAP_FILE).write_text("model,t_s\nm-x,601\n")
    with pytest.raises(InputError, match=f"{GAP_FILE}:2: expected t_s as a multiple"):
        read_trace(_write(tmp_path, "0,a,10,100,5\n", "servegen_m-x_600s.csv"))


def test_hundred_thousand_rows_in_seconds(tmp_path: Path) -> None:
    """A large file is read in about half a second; the limit leaves room for a busy machine."""
    body = "".join(f"{600 * t},s{s},{t % 7},{s},\n" for s in range(50) for t in range(2000))
    path = _write(tmp_path, body)
    begun = time.perf_counter()
    trace = read_trace(path)
    assert time.perf_counter() - begun < 4.0
    assert trace.requests.sum() == 50 * sum(t % 7 for t in range(2000))
