"""Fuzzed files: every reader gives the whole of a file or an ``InputError``, nothing else, and in time."""

import gzip
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st_

from rayfold.envs.importers.importing import TraceFormat, import_trace
from rayfold.envs.trace_file import Trace, read_trace
from rayfold.envs.trace_writer import write_trace
from rayfold.errors import InputError
from tests.envs.importers.samples import write_sample

RATES = "t_s,series_id,requests,input_tokens,output_tokens\n0,a,3,60,12\n600,b,2.5,,\n1800,a,1,8,9\n"
KINDS = (*TraceFormat, "rates")
BIN_S = 600
LONGEST_S = 5.0  # for one file of a few kilobytes, on a busy machine
_NASTY = (
    *(b"nan", b"NaN", b"inf", b"-1", b"1e300", b"1e999", b"9" * 400, b"9" * 5000, b"1_0", b"0x10", b"-0", b"\xd9\xa1"),
    *(b"", b",", b"\n", b"\r", b'"', b"\x00", b"\xff", b"{", b"}", b"[", b"]", b"null", b"true", b"[" * 2000, b": "),
    *(b"99999999999999999999", b"1e15", b"0.1", b"9999-12-31 23:59:59", b"0001-01-01 00:00:00+23:59", b"\xef\xbb\xbf"),
)


class Source(NamedTuple):
    """A valid file of a kind, how to read it, and a folder to write mutants to."""

    path: Path
    data: bytes
    read: Callable[[Path], Trace]


def _source(kind: str, folder: Path) -> Source:
    if kind == "rates":
        path = folder / "x_600s.csv"
        path.write_text(RATES)
        return Source(path, path.read_bytes(), read_trace)
    fmt = TraceFormat(kind)
    path = write_sample(fmt, folder)
    return Source(
        path, path.read_bytes(), lambda p: import_trace(fmt, [p], bin_s=BIN_S, out=folder / f"x_{BIN_S}s.csv")
    )


def _read(source: Source, data: bytes) -> Trace | None:
    """The trace of a mutant, None if it is refused; anything else that happens is a failure of the test."""
    source.path.write_bytes(data)
    begun, message = time.perf_counter(), ""
    trace = None
    try:
        trace = source.read(source.path)
    except InputError as err:
        message = str(err).replace(str(source.path), "")
    assert time.perf_counter() - begun < LONGEST_S
    assert len(message) < 800
    if trace is not None and trace.requests.size < 1_000_000:
        for array in (trace.requests, trace.input_tokens, trace.output_tokens):
            assert array.shape == (len(trace.series_ids), trace.num_bins)
            assert (np.isnan(array) | ((array >= 0) & (array < math.inf))).all()
        assert np.isfinite(trace.requests).all()
    return trace


@st_.composite
def mutations(draw: st_.DrawFn) -> Callable[[bytes], bytes]:
    """A few edits: bytes flipped, pieces cut, doubled or replaced by something nasty, a cell or line dropped."""
    edits = draw(
        st_.lists(
            st_.tuples(
                st_.sampled_from(("flip", "cut", "end", "nasty", "double", "line", "cell")),
                st_.floats(0, 1),
                st_.integers(1, 255),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def mutate(data: bytes) -> bytes:
        for edit, where, amount in edits:
            data = _edit(data, edit, int(where * len(data)), amount)
        return data

    return mutate


def _edit(data: bytes, edit: str, at: int, amount: int) -> bytes:
    if edit == "flip":
        return data[:at] + bytes(b ^ amount for b in data[at : at + 1]) + data[at + 1 :]
    if edit == "cut":
        return data[:at] + data[at + amount :]
    if edit == "end":
        return data[:at]
    if edit == "double":
        return data[:at] + data[at : at + amount] * 2 + data[at + amount :]
    nasty = _NASTY[amount % len(_NASTY)]
    if edit == "nasty":
        return data[:at] + nasty + data[at:]
    separator = b"\n" if edit == "line" else b","
    pieces = data.split(separator)
    i = at * len(pieces) // max(1, len(data) + 1)
    pieces[i : i + 1] = [] if amount < 80 else [nasty]
    return separator.join(pieces)


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    """Whatever happened to a file: a well-formed trace or one error, soon."""
    source = _source(kind, tmp_path)
    seen = set()

    @settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(mutations())
    def check(mutate: Callable[[bytes], bytes]) -> None:
        seen.add(_read(source, mutate(source.data)) is None)

    check()
    assert True in seen  # the mutants are not all harmless


@pytest.mark.parametrize("kind", KINDS)
def test_random_bytes_are_refused(tmp_path: Path, kind: str) -> None:
    """Nothing that is no file of the format passes for one."""
    source = _source(kind, tmp_path)

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st_.binary(max_size=300))
    @example(b"")
    @example(b"\n")
    @example(b"null")
    def check(data: bytes) -> None:
        assert _read(source, data) is None

    check()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != TraceFormat.AZURE_LLM])
def test_a_file_cut_within_a_line_is_refused(tmp_path: Path, kind: str) -> None:
    """At any byte but the ends of lines, where a cut cannot be seen; Azure LLM's files have no last line end."""
    source = _source(kind, tmp_path)
    size = len(source.data)
    for end in sorted({*range(0, size, max(1, size // 150)), *range(size - 60, size)}):
        if kind == TraceFormat.PROMETHEUS or not source.data[:end].endswith(b"\n"):
            assert _read(source, source.data[:end]) is None, end


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_or_damaged_gzip_file_is_refused(tmp_path: Path, kind: str) -> None:
    """Cut anywhere, or one bit of its contents or check sum flipped: the check at its end tells."""
    plain = _source(kind, tmp_path)
    packed = plain._replace(path=plain.path.with_name(plain.path.name + ".gz"), data=gzip.compress(plain.data, mtime=0))
    assert _read(packed, packed.data) is not None
    size = len(packed.data)
    for end in sorted({*range(0, size, max(1, size // 80)), *range(size - 10, size)}):
        assert _read(packed, packed.data[:end]) is None, end
    for at in sorted({*range(10, size, max(1, size // 80)), *range(size - 8, size)}):
        flipped = packed.data[:at] + bytes([packed.data[at] ^ 4]) + packed.data[at + 1 :]
        trace = _read(packed, flipped)
        assert trace is None or _same(trace, plain.read(plain.path)), at  # unused bits of the last block may flip


def _same(one: Trace, other: Trace) -> bool:
    pairs = zip((one.requests, one.output_tokens), (other.requests, other.output_tokens), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_accepted_reads_back_equal(tmp_path: Path, kind: str) -> None:
    """A mutant that passes gives a rates file with the same series and numbers."""
    source, out = _source(kind, tmp_path), tmp_path / "out_600s.csv"
    num_accepted = 0

    @settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st_.floats(0, 1), st_.sampled_from(b"0123456789.,-"))
    def check(where: float, byte: int) -> None:
        nonlocal num_accepted
        at = int(where * (len(source.data) - 1))
        trace = _read(source, source.data[:at] + bytes([byte]) + source.data[at + 1 :])
        if trace is None or trace.requests.size > 1_000_000:
            return
        num_accepted += 1
        trace = _renamed(trace, out)
        write_trace(trace)
        back = read_trace(out)
        assert sorted(back.series_ids) == sorted(trace.series_ids)
        order = [back.series_ids.index(name) for name in trace.series_ids]
        np.testing.assert_array_equal(back.requests[order], trace.requests)
        np.testing.assert_array_equal(back.output_tokens[order], np.where(trace.requests > 0, trace.output_tokens, 0))

    check()
    assert num_accepted > 0


def _renamed(trace: Trace, path: Path) -> Trace:
    return Trace(
        path=path,
        bin_s=trace.bin_s,
        series_ids=trace.series_ids,
        requests=trace.requests,
        input_tokens=trace.input_tokens,
        output_tokens=trace.output_tokens,
    )
