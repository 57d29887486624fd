"""``rayfold trace``: import, inspect and plot as a user calls them."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayfold.cli import app
from rayfold.envs.importers.importing import TraceFormat
from rayfold.envs.trace_file import read_trace
from rayfold.errors import InputError
from tests.envs.importers.samples import AZURE_2023, BURSTGPT, write_sample

PNG = b"\x89PNG\r\n\x1a\n"


def _run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["trace", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("fmt", TraceFormat)
def test_import_inspect_plot(tmp_path: Path, fmt: TraceFormat) -> None:
    """Each format goes the whole way, and the rates file has the totals that were told."""
    out = tmp_path / "made" / "x_600s.csv.gz"
    told = _run("import", "--format", fmt, "--bin-s", "600", "--out", out, write_sample(fmt, tmp_path))
    trace = read_trace(out)
    assert told.split()[-2] == f"{trace.requests.sum():.10g}"
    listing = _run("inspect", out)
    assert "1 series" in listing or len(trace.series_ids) > 1
    assert all(name[:10] in listing for name in trace.series_ids)
    picture = tmp_path / "new" / "x.png"
    _run("plot", out, "--out", picture, "--series", trace.series_ids[0])
    assert picture.read_bytes().startswith(PNG)


def test_inspect_by_hand(tmp_path: Path) -> None:
    """Three ChatGPT requests in two minutes: mean 0.025, peak 2 in a minute."""
    source = tmp_path / "b.csv"
    source.write_text(BURSTGPT)
    out = tmp_path / "x_60s.csv"
    _run("import", "--format", "burstgpt", "--bin-s", "60", "--out", out, source)
    row = next(line for line in _run("inspect", out).splitlines() if "ChatGPT" in line)
    assert row.split() == ["ChatGPT_conversation", "3", "0.025", "0.03333", "1.333", "0.1667", "100.0%", "620", "83"]
    assert "GPT-4" not in _run("inspect", out, "--limit", "1")


def test_top_keeps_the_busiest(tmp_path: Path) -> None:
    """Series with fewer requests are left out."""
    source = tmp_path / "b.csv"
    source.write_text(BURSTGPT)
    out = tmp_path / "x_60s.csv"
    _run("import", "--format", "burstgpt", "--bin-s", "60", "--out", out, "--top", "1", source)
    assert read_trace(out).series_ids == ("ChatGPT_conversation",)


@pytest.mark.parametrize(
    ("arguments", "where", "expected"),
    [
        (("import", "--format", "csv", "--bin-s", "60", "--out", "x_60s.csv", "F"), "--format", "servegen, azure-llm"),
        (("import", "--format", "mooncake", "--bin-s", "60", "--out", "x.csv", "F"), "--out", "_60s.csv"),
        (("import", "--format", "servegen", "--bin-s", "60", "--out", "x_60s.csv", "F"), "bin width", "at least 600"),
        (("import", "--format", "burstgpt", "--bin-s", "60", "--out", "x_60s.csv", "F"), "F:1", "columns Timestamp"),
        (("import", "--format", "azure-llm", "--bin-s", "60", "--out", "x_60s.csv", "G"), "G", "a file"),
        (("import", "--format", "azure-llm", "--bin-s", "60", "--out", "F/x_60s.csv", "F"), "--out", "can be written"),
        (("inspect", "F"), "F", "a file name that ends in the bin width"),
        (("plot", "G_60s.csv", "--out", "x.png"), "G_60s.csv", "a file"),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], where: str, expected: str
) -> None:
    """One error with place and expectation, and no file appears."""
    monkeypatch.chdir(tmp_path)
    Path("F").write_text(AZURE_2023)
    with pytest.raises(InputError) as err:
        CliRunner().invoke(app, ["trace", *arguments], catch_exceptions=False)
    assert err.value.where.startswith(where)
    assert expected in err.value.expected
    assert [p.name for p in tmp_path.iterdir()] == ["F"]


def test_a_broken_file_leaves_the_old_import(tmp_path: Path) -> None:
    """The second import fails in its last line: one line, exit code 2, and the first one's file is untouched."""
    source, out = tmp_path / "AzureLLMInferenceTrace_code.csv", tmp_path / "x_60s.csv"
    source.write_text(AZURE_2023)
    _run("import", "--format", "azure-llm", "--bin-s", "60", "--out", out, source)
    before = out.read_bytes()
    source.write_text(AZURE_2023 + ",1")
    command = [sys.executable, "-m", "rayfold", "trace", "import", "--format", "azure-llm", "--bin-s", "60"]
    done = subprocess.run([*command, "--out", str(out), str(source)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {source}:4: expected 3 fields, got 4\n"
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [source.name, out.name]


def test_plot_needs_a_series_that_is_there(tmp_path: Path) -> None:
    """The message names some that are; no picture appears."""
    out = tmp_path / "x_600s.csv"
    fmt = TraceFormat.MOONCAKE
    _run("import", "--format", fmt, "--bin-s", "600", "--out", out, write_sample(fmt, tmp_path))
    with pytest.raises(InputError, match="a series of conversation_trace, got 'zz'"):
        CliRunner().invoke(
            app, ["trace", "plot", str(out), "--out", str(tmp_path / "x.png"), "--series", "zz"], catch_exceptions=False
        )
    assert not (tmp_path / "x.png").exists()
