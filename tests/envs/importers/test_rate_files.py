"""ServeGen and Azure Functions: counts per window, bins computed by hand."""

from pathlib import Path

import numpy as np
import pytest

from rayfold.envs.importers.importing import TraceFormat, import_trace
from rayfold.envs.importers.servegen import read_servegen
from rayfold.errors import InputError
from tests.envs.importers.samples import (
    FUNCTIONS_HEADER,
    SERVEGEN_DATASET,
    SERVEGEN_TRACE,
    function_row,
    write_sample,
)

NAN = float("nan")
DAY = "invocations_per_function_md.anon.d%02d.csv"


def _import(fmt: TraceFormat, *paths: Path, bin_s: int) -> tuple[tuple[str, ...], list[list[list[float]]]]:
    trace = import_trace(fmt, paths, bin_s=bin_s, out=Path(f"x_{bin_s}s.csv"))
    arrays = (trace.requests, trace.input_tokens, trace.output_tokens)
    return trace.series_ids, [a.tolist() for a in arrays]


def test_servegen(tmp_path: Path) -> None:
    """0.5 requests/s over 600 s are 300, of 15 and 4 tokens on average; then 46 of 100 and unknown."""
    path = write_sample(TraceFormat.SERVEGEN, tmp_path)
    for given in (path, path.parent):
        names, (requests, inputs, outputs) = _import(TraceFormat.SERVEGEN, given, bin_s=600)
        assert names == ("m-small_c007",)
        assert requests == [[0, 300, 46]]
        assert inputs == [[0, 300 * 15, 4600]]
        np.testing.assert_array_equal(outputs, [[0, 300 * 4, NAN]])


def test_servegen_wider_bins_and_no_dataset(tmp_path: Path) -> None:
    """Bins of 1200 s add two windows; without the JSON file tokens are unknown."""
    path = write_sample(TraceFormat.SERVEGEN, tmp_path)
    path.with_name("chunk-7-dataset.json").unlink()
    _, (requests, inputs, _) = _import(TraceFormat.SERVEGEN, path, bin_s=1200)
    assert requests == [[300, 46]]
    assert np.isnan(inputs).all()


def test_servegen_media_tokens_are_unknown(tmp_path: Path) -> None:
    """Models with images count text and media apart: only the output is known."""
    path = write_sample(TraceFormat.SERVEGEN, tmp_path)
    text = '{"0": {"text_tokens": "{41: 1.0}", "image_tokens": "{10: 1.0}", "output_tokens": "{3: 1.0}"}}'
    path.with_name("chunk-7-dataset.json").write_text(text)
    counts = list(read_servegen(path))
    assert np.isnan(counts[1].input_tokens)
    assert counts[1].output_tokens == 900


def test_functions(tmp_path: Path) -> None:
    """Minutes 1 and 2 share a bin of 120 s; one function is listed twice; the second day follows the first."""
    first, third = tmp_path / (DAY % 3), tmp_path / (DAY % 5)
    first.write_text(
        FUNCTIONS_HEADER
        + function_row("a", "http", {1: 3, 2: 1, 1440: 2})
        + function_row("b", "timer", {3: 7})
        + function_row("a", "queue", {2: 10})
    )
    third.write_text(FUNCTIONS_HEADER + function_row("b", "timer", {1: 9}) + function_row("c", "others", {}))
    names, (requests, inputs, _) = _import(TraceFormat.AZURE_FUNCTIONS, third, first, bin_s=120)
    assert names == ("a" * 12 + "_" + "a" * 12, "b" * 12 + "_" + "b" * 12, "c" * 12 + "_" + "c" * 12)
    expected = np.zeros((3, 3 * 720))
    expected[0, [0, 719]] = [14, 2]
    expected[1, [1, 2 * 720]] = [7, 9]
    np.testing.assert_array_equal(requests, expected)
    np.testing.assert_array_equal(np.isnan(inputs), expected > 0)


@pytest.mark.parametrize(("fmt", "bin_s"), [(TraceFormat.SERVEGEN, 300), (TraceFormat.AZURE_FUNCTIONS, 30)])
def test_bins_are_not_finer_than_the_data(tmp_path: Path, fmt: TraceFormat, bin_s: int) -> None:
    """Minutes do not tell seconds."""
    with pytest.raises(InputError, match="bin width: expected at least"):
        _import(fmt, write_sample(fmt, tmp_path), bin_s=bin_s)


def test_a_file_given_twice_is_refused(tmp_path: Path) -> None:
    """It would count double; so would the same day under another name."""
    path = write_sample(TraceFormat.SERVEGEN, tmp_path)
    with pytest.raises(InputError, match="each file once"):
        _import(TraceFormat.SERVEGEN, path, path.parent / "." / path.name, bin_s=600)
    day = write_sample(TraceFormat.AZURE_FUNCTIONS, tmp_path)
    other = tmp_path / "copy.d01.csv"
    other.write_text(day.read_text())
    with pytest.raises(InputError, match="each day once"):
        _import(TraceFormat.AZURE_FUNCTIONS, day, other, bin_s=60)


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("600,0.5", "601,0.5", 2, "a window's start, a multiple of 600"),
        ("1200,0.07", "600,0.07", 3, "a window's start, a multiple of 600 above 600"),
        ("0.5,1.2,Gamma", "0.5,1.2,", 2, "Gamma or Weibull where there are requests"),
        ("0,0,0,,0,0", "0,0,0,Gamma,0,0", 1, "Gamma or Weibull where there are requests"),
        ("Gamma", "Pareto", 2, "Gamma or Weibull"),
        ("0.5,1.2", "inf,1.2", 2, "the rate as a number"),
        ("0.5,1.2", "0.5,-1", 2, "the coefficient of variation as a number"),
        (",0.7,", ",,", 2, "the pattern's argument as a number"),
        (",0.7,", ",", 2, "6 fields"),
        ("0,0,0,,0,0", "", 1, "6 fields"),
        ("2669\n", "2669", 3, "an end of the last line"),
    ],
)
def test_broken_servegen_trace(tmp_path: Path, old: str, new: str, line: int, expected: str) -> None:
    """A planted fault is named by file and line."""
    path = write_sample(TraceFormat.SERVEGEN, tmp_path)
    assert old in SERVEGEN_TRACE
    path.write_text(SERVEGEN_TRACE.replace(old, new, 1))
    with pytest.raises(InputError) as err:
        list(read_servegen(path))
    assert err.value.where == f"{path}:{line}"
    assert expected in err.value.expected


@pytest.mark.parametrize(
    ("old", "new", "where", "expected"),
    [
        (SERVEGEN_DATASET, "[]", "", "an object by start"),
        (SERVEGEN_DATASET, SERVEGEN_DATASET[:-5], "", "JSON"),
        ('"1200"', '"-5"', ": -5", "a start in seconds"),
        ('"output_tokens": "{}"', '"outputs": "{}"', ": 1200", "an object with output_tokens"),
        ('"{}"', "{}", ": 1200.output_tokens", "a text like"),
        ("{1: 0.25, 5: 0.75}", "{1: 0.25, 5: 0.7}", ": 0.output_tokens", "sum to 1"),
        ("{1: 0.25, 5: 0.75}", "{1: 0.25, 5}", ": 0.output_tokens", "a text like"),
        ("{1: 0.25, 5: 0.75}", "{1: 0.25, -5: 0.75}", ": 0.output_tokens", "a text like"),
        ("{1: 0.25, 5: 0.75}", "{1: 0.25, 5: nan}", ": 0.output_tokens", "a text like"),
        ("{100: 1.0}", "__import__('os')", ": 1200.input_tokens", "a text like"),
    ],
)
def test_broken_servegen_dataset(tmp_path: Path, old: str, new: str, where: str, expected: str) -> None:
    """A planted fault is named by file and JSON path; text is never executed."""
    path = write_sample(TraceFormat.SERVEGEN, tmp_path)
    dataset = path.with_name("chunk-7-dataset.json")
    assert old in SERVEGEN_DATASET
    dataset.write_text(SERVEGEN_DATASET.replace(old, new, 1))
    with pytest.raises(InputError) as err:
        list(read_servegen(path))
    assert err.value.where == f"{dataset}{where}"
    assert expected in err.value.expected


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("HashApp", "App", 1, "columns HashOwner, HashApp"),
        (",1440\n", "\n", 1, "columns HashOwner, HashApp"),
        ("http", "HTTP", 2, "a Trigger of http"),
        (",3,1,", ",3.x,1,", 2, "invocations in minute 1 as a number"),
        (",3,1,", ",,1,", 2, "invocations in minute 1 as a number"),
        (",3,1,", ",3,", 2, "1444 fields"),
        ("a" * 64, "A" * 64, 2, "HashOwner of 64 hexadecimal digits"),
    ],
)
def test_broken_functions(tmp_path: Path, old: str, new: str, line: int, expected: str) -> None:
    """A planted fault is named by file and line."""
    path = write_sample(TraceFormat.AZURE_FUNCTIONS, tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError) as err:
        _import(TraceFormat.AZURE_FUNCTIONS, path, bin_s=60)
    assert err.value.where == f"{path}:{line}"
    assert expected in err.value.expected


def test_names_that_tell_nothing(tmp_path: Path) -> None:
    """A day, a client and a model's folder are known by their names."""
    for fmt, path in ((TraceFormat.AZURE_FUNCTIONS, tmp_path / "day.csv"), (TraceFormat.SERVEGEN, tmp_path / "t.csv")):
        with pytest.raises(InputError, match="expected a"):
            _import(fmt, path, bin_s=600)
    with pytest.raises(InputError, match="a folder with chunk-"):
        _import(TraceFormat.SERVEGEN, tmp_path, bin_s=600)
