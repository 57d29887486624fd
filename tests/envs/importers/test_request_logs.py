"""Azure LLM, BurstGPT and Mooncake: a row per request, bins computed by hand."""

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from rayfold.envs.importers.azure_llm import read_azure_llm
from rayfold.envs.importers.burstgpt import read_burstgpt
from rayfold.envs.importers.counts import Count
from rayfold.envs.importers.importing import TraceFormat, import_trace
from rayfold.envs.importers.mooncake import read_mooncake
from rayfold.errors import InputError
from tests.envs.importers.samples import AZURE_2023, AZURE_2024, BURSTGPT, MOONCAKE

OUT = Path("x_60s.csv")


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["AzureLLMInferenceTrace_code.csv", "AzureLLMInferenceTrace_code.csv.gz"])
def test_azure_2023(tmp_path: Path, name: str) -> None:
    """Seven digits of a second, CRLF, no end of the last line: three requests in the minutes 18:17 and 18:18."""
    trace = import_trace(TraceFormat.AZURE_LLM, [_write(tmp_path, name, AZURE_2023)], bin_s=60, out=OUT)
    assert trace.series_ids == ("AzureLLMInferenceTrace_code",)
    np.testing.assert_array_equal(trace.requests, [[2, 1]])
    np.testing.assert_array_equal(trace.input_tokens, [[4808 + 3180, 110]])
    np.testing.assert_array_equal(trace.output_tokens, [[18, 27]])


def test_azure_2024(tmp_path: Path) -> None:
    """Offsets, and times with and without a fraction: two requests in the first minute, one two days later."""
    path = _write(tmp_path, "conv.csv", AZURE_2024)
    counts = list(read_azure_llm(path))
    assert counts[2].start_s - counts[0].start_s == pytest.approx(2 * 86400 - 0.00993, abs=1e-6)
    trace = import_trace(TraceFormat.AZURE_LLM, [path], bin_s=60, out=OUT)
    assert trace.num_bins == 2 * 1440 + 1
    assert np.flatnonzero(trace.requests[0]).tolist() == [0, 2880]
    assert trace.requests[0, [0, 2880]].tolist() == [2, 1]


def test_azure_services_share_the_clock(tmp_path: Path) -> None:
    """Two files are two series whose bins begin at the earlier one's first request."""
    a = _write(tmp_path, "code.csv", AZURE_2023)
    b = _write(tmp_path, "conv.csv", AZURE_2023.replace("18:17", "18:15"))
    trace = import_trace(TraceFormat.AZURE_LLM, [a, b], bin_s=60, out=OUT)
    assert trace.series_ids == ("code", "conv")
    np.testing.assert_array_equal(trace.requests, [[0, 0, 2, 1], [2, 0, 0, 1]])


def test_burstgpt(tmp_path: Path) -> None:
    """Series by model and kind; a failed request counts, with no output tokens."""
    trace = import_trace(TraceFormat.BURSTGPT, [_write(tmp_path, "b.csv", BURSTGPT)], bin_s=60, out=OUT)
    assert trace.series_ids == ("ChatGPT_conversation", "GPT-4_api")
    np.testing.assert_array_equal(trace.requests, [[2, 1], [0, 1]])
    np.testing.assert_array_equal(trace.input_tokens, [[472 + 1087, 300], [0, 417]])
    np.testing.assert_array_equal(trace.output_tokens, [[18 + 230, 0], [0, 276]])


def test_burstgpt_with_sessions(tmp_path: Path) -> None:
    """The third part's two more columns are read over; API calls have no session."""
    text = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "3,5f2c,1.75,ChatGPT,10,20,30,Conversation log\n"
        "4,,0.5,ChatGPT,1,2,3,API log\n"
    )
    counts = list(read_burstgpt(_write(tmp_path, "b.csv", text)))
    assert counts == [
        Count("ChatGPT_conversation", 3.0, 0.0, 1.0, 10.0, 20.0),
        Count("ChatGPT_api", 4.0, 0.0, 1.0, 1.0, 2.0),
    ]


def test_mooncake(tmp_path: Path) -> None:
    """Milliseconds: the third request is in the first minute, the fourth begins the second."""
    trace = import_trace(TraceFormat.MOONCAKE, [_write(tmp_path, "conv.jsonl", MOONCAKE)], bin_s=60, out=OUT)
    assert trace.series_ids == ("conv",)
    np.testing.assert_array_equal(trace.requests, [[3, 1]])
    np.testing.assert_array_equal(trace.input_tokens, [[6758 + 7322 + 1, 915]])
    np.testing.assert_array_equal(trace.output_tokens, [[992, 355]])


@pytest.mark.parametrize(
    ("read", "text", "where", "expected", "got"),
    [
        (read_azure_llm, "", ":1", "columns TIMESTAMP", "nothing"),
        (read_azure_llm, BURSTGPT, ":1", "columns TIMESTAMP", "Timestamp"),
        (read_azure_llm, AZURE_2023.replace("18:17:04", "18:61:04"), ":3", "TIMESTAMP like", "18:61:04"),
        (read_azure_llm, AZURE_2023.replace("2023-11-16 18:17:04.0319600", "1700158624"), ":3", "TIMESTAMP", "17001"),
        (read_azure_llm, AZURE_2023.replace(",8\r", ",8,1\r"), ":3", "3 fields", "4"),
        (read_azure_llm, AZURE_2023.replace(",3180,", ",nan,"), ":3", "ContextTokens as a number", "'nan'"),
        (read_azure_llm, AZURE_2023.replace(",3180,", ",-1,"), ":3", "ContextTokens as a number", "'-1'"),
        (read_azure_llm, AZURE_2023.replace(",3180,", ',"3180\n",'), ":3", "one row per line", "line break"),
        (read_azure_llm, AZURE_2023.replace(",3180,", ',"31"80,'), ":3", "comma-separated", "expected after"),
        (read_burstgpt, BURSTGPT.replace("Log Type", "Kind"), ":1", "columns Timestamp, Model", "Kind"),
        (read_burstgpt, BURSTGPT.replace("API log", "api"), ":4", "Log Type API log or", "'api'"),
        (read_burstgpt, BURSTGPT.replace("118,GPT-4", "118,"), ":4", "a Model", "''"),
        (read_burstgpt, BURSTGPT.replace("118,", "1e300,"), ":4", "Timestamp as a number", "'1e300'"),
        (read_burstgpt, BURSTGPT.replace(",276,", ",,"), ":4", "Response tokens as a number", "''"),
        (read_burstgpt, BURSTGPT[:-1], ":5", "an end of the last line", "Conversation log"),
        (read_mooncake, MOONCAKE[:-20], ":4", "JSON", "Error"),
        (read_mooncake, MOONCAKE.replace("3000", '"3000"'), ":2: timestamp", "a number", "'3000'"),
        (read_mooncake, MOONCAKE.replace("3000", "NaN"), ":2: timestamp", "a number", "nan"),
        (read_mooncake, MOONCAKE.replace("3000", "9" * 5000), ":2", "JSON", "limit"),
        (read_mooncake, MOONCAKE.replace("3000", "true"), ":2: timestamp", "a number", "True"),
        (read_mooncake, MOONCAKE.replace('"hash_ids": [0, 14]', '"type": "text"'), ":2", "an object with", "text"),
        (read_mooncake, MOONCAKE.replace("[0, 14]", "7"), ":2: hash_ids", "a list", "7"),
        (read_mooncake, MOONCAKE.replace("[0, 14]", "[" * 100_000), ":2", "JSON", "Error"),
        (read_mooncake, "\n", ":1", "JSON", "Error"),
        (read_mooncake, "[]\n", ":1", "an object with", "[]"),
    ],
)
def test_what_breaks_a_format_is_named(
    tmp_path: Path, read: Callable[[Path], Iterator[Count]], text: str, where: str, expected: str, got: str
) -> None:
    """The message has the line, what was expected and what is there, in one line of bounded length."""
    path = _write(tmp_path, "file.csv", text)
    with pytest.raises(InputError) as err:
        list(read(path))
    assert err.value.where == f"{path}{where}"
    assert expected in err.value.expected
    assert got in str(err.value.got)
    assert "\n" not in str(err.value)
    assert len(str(err.value)) < len(str(path)) + 400


@pytest.mark.parametrize("read", [read_azure_llm, read_burstgpt, read_mooncake])
def test_unreadable_files(tmp_path: Path, read: Callable[[Path], Iterator[Count]]) -> None:
    """Missing, a folder, a truncated gzip file, an endless line, no UTF-8."""
    cut = _write(tmp_path, "cut.csv.gz", MOONCAKE * 9)
    cut.write_bytes(cut.read_bytes()[:-9])
    long = _write(tmp_path, "long.csv", "x" * 3_000_000)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    for path in (tmp_path / "absent.csv", tmp_path, cut, long, binary):
        with pytest.raises(InputError):
            list(read(path))
