"""The page: one file, no request, names that cannot break out, and a browser that has nothing to complain of."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rayfold.envs.scenario import load_scenario
from rayfold.policies.best_fit import BestFit
from rayfold.policies.none import NoMoves
from rayfold.policies.protocol import Policy
from rayfold.training import html_report
from rayfold.training.evaluation import evaluate
from rayfold.training.html_report import halved, page_data, page_text, write_html
from rayfold.training.published import published

HOSTILE = "</script><img src=x onerror=alert(1)>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    """A page's data; one policy has a name that is no name."""
    scenario = load_scenario("smoke").with_horizon(1800.0)
    policies: dict[str, Policy] = {"none": NoMoves(), "best_fit": BestFit(scenario.limits), HOSTILE: NoMoves()}
    evaluation = evaluate(scenario, policies, [3, 4])
    return page_data(evaluation, {**evaluation.to_json(), "published": published(evaluation)})


def test_page_asks_nothing_of_the_network(data: Mapping[str, Any]) -> None:
    """No address but the one of the SVG namespace, nothing to load, and a policy that forbids it anyway."""
    text = page_text({**data, "made_by": {}})
    assert set(re.findall(r"https?://[^\"' )]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(script|img|iframe|link)[^>]* (src|href)=(?!\"data:)", text)
    assert "default-src 'none'" in text


def test_island_reads_back_and_cannot_be_left(data: Mapping[str, Any]) -> None:
    """What a name holds stays data; the island parses to what went in."""
    text = page_text(data)
    assert HOSTILE not in text
    assert text.count("</script>") == 2
    island = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert island is not None
    assert json.loads(island[1]) == json.loads(json.dumps(data))
    hostile = page_text({**data, "scenario": "{{DATA}}<b>"})
    assert "<b>" not in hostile.split("</title>")[0]
    assert hostile.count('id="data">{"scenario"') == 1


def test_page_is_small(data: Mapping[str, Any]) -> None:
    """Half an hour of three policies: well below what a browser opens at once."""
    assert len(page_text(data)) < 200_000


def replayed(recording: Mapping[str, Any]) -> dict[int, dict[int, Any]]:
    """The cluster map at each frame's tick."""
    shown: dict[int, Any] = {}
    at = {}
    for tick, frame in zip(recording["frame_ticks"], recording["frames"], strict=True):
        for row, *rest in frame:
            shown[row] = rest
        at[tick] = {row: rest for row, rest in shown.items() if rest}
    return at


def test_a_long_recording_has_fewer_frames(data: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second frame, and those that are left show the same cluster as before."""
    recording = data["recordings"]["best_fit"]
    before, after = replayed(recording), replayed({**recording, **halved(recording)})
    assert list(after) == list(range(0, 30, 2))
    assert after == {tick: before[tick] for tick in after}
    scenario = load_scenario("smoke").with_horizon(1800.0)
    evaluation = evaluate(scenario, {"none": NoMoves()}, [3])
    monkeypatch.setattr(html_report, "MAX_RECORDED_BYTES", 100)
    small = page_data(evaluation, evaluation.to_json())["recordings"]["none"]
    assert small["frame_ticks"] == [0]  # so small cannot be reached


def test_page_is_written_whole(tmp_path: Path) -> None:
    """Folder made, one file, readable by others."""
    scenario = load_scenario("smoke").with_horizon(600.0)
    evaluation = evaluate(scenario, {"a": NoMoves()}, [3])
    write_html(tmp_path / "d" / "index.html", evaluation, evaluation.to_json())
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["index.html"]
    assert (tmp_path / "d" / "index.html").stat().st_mode & 0o777 == 0o644


def dump(path: Path, profile: Path) -> tuple[str, list[str]]:
    """The DOM after the scripts have run, and what the console said."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
        "--enable-logging=stderr", "--v=0", "--window-size=1280,900", "--virtual-time-budget=2000",
       
        "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH to open the page with")
def test_browser_shows_it_without_a_word(data: Mapping[str, Any], tmp_path: Path) -> None:
    """Rendered to the end; the console is silent; every chart and table is there; the hostile name is text."""
    path = tmp_path / "index.html"
    path.write_text(page_text(data))
    dom, said = dump(path, tmp_path / "profile")
    assert said == []
    assert 'data-ready="yes"' in dom
    body = dom.partition("<body")[2].partition('<script type="application/json"')[0]
    assert body.count("<svg") == 5
    assert body.count("<canvas") == 3
    assert body.count("<tr") > 3 + len(data["columns"])
    assert "<img" not in body
    assert "&lt;/script&gt;&lt;img" in body
    broken = page_text(data).replace('document.body.dataset.ready = "yes";', "undefined_name();")
    path.write_text(broken)  # a planted fault: the check does see what a console says
    assert any("undefined_name" in line for line in dump(path, tmp_path / "profile")[1])
