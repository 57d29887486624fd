"""The page of an evaluation: one HTML file that asks nothing of the network.

``page/`` holds its frame, style and script; the figures go into it as a JSON island. Names come from users: they are
escaped in the island and only ever shown as text. A content security policy in the page forbids it any request.
"""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from rayfold.training.evaluation import Evaluation
from rayfold.training.provenance import command_line, git_commit, package_versions
from rayfold.training.replay_record import FLAGS
from rayfold.training.report import COLUMNS, write_atomically

__all__ = ["MAX_RECORDED_BYTES", "halved", "page_data", "page_text", "write_html"]

MAX_RECORDED_BYTES = 2_400_000  # of the page, which is to stay below 3 MB
_PAGE = Path(__file__).parent / "page"


def write_html(path: Path, evaluation: Evaluation, content: Mapping[str, Any]) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: The file.
        evaluation: What was evaluated.
        content: What ``--json`` writes of it, with ``published`` and, if there is one, ``sweep``.
    """
    write_atomically(path, page_text(page_data(evaluation, content)).encode())


def page_data(evaluation: Evaluation, content: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows."""
    scenario = evaluation.scenario
    shown = [metric for metric, *_ in COLUMNS] + ["refused_moves"]
    return {
        "scenario": scenario.name,
        "description": scenario.description,
        "days": content["days"],
        "traffic": content["traffic"],
        "horizon_h": scenario.horizon_s / 3600.0,
        "seeds": content["seeds"],
        "node_types": [
            {"name": t.name, "usd_per_h": t.price_usd_per_h, "gpus": int(t.resources.get("GPU", 0))}
            for t in scenario.spec.node_types
        ],
        "deployment_names": [deployment.key for deployment in scenario.spec.deployments],
        "columns": [list(column) for column in COLUMNS],
        "policies": {name: _only(figures, shown) for name, figures in content["policies"].items()},
        "versus": {
            reference: {name: _only(figures, shown) for name, figures in rows.items()}
            for reference, rows in content["versus"].items()
        },
        "parts_usd": content["parts_usd"],
        "deployments": content["deployments"],
        "published": content.get("published", []),
        "sweep": content.get("sweep", []),
        "audit": content.get("audit", {}),
        "flags": FLAGS,
        "recordings": _recordings(evaluation),
        "made_by": {"command": command_line(), "git_commit": git_commit(), "versions": package_versions()},
    }


def _only(figures: Mapping[str, Any], metrics: list[str]) -> dict[str, Any]:
    return {metric: figures[metric] for metric in metrics if metric in figures}


def _recordings(evaluation: Evaluation) -> dict[str, Any]:
    """Every tick of the first seed, by policy; with fewer frames of the cluster map where the page gets too large."""
    found = {
        name: {
            **episodes[0].recording,
            "time_h": [round(hour, 4) for hour in (episodes[0].time_h - episodes[0].time_h[0]).tolist()],
            "num_nodes": episodes[0].num_nodes.tolist(),
            "bound_nodes": episodes[0].bound_nodes.tolist(),
        }
        for name, episodes in evaluation.results.items()
        if episodes[0].recording is not None and len(episodes[0].time_h)
    }
    while len(json.dumps(found, separators=(",", ":"))) > MAX_RECORDED_BYTES:
        if all(len(recording["frames"]) < 2 for recording in found.values()):
            break
        found = {name: {**recording, **halved(recording)} for name, recording in found.items()}
    return found


def halved(recording: Mapping[str, Any]) -> dict[str, Any]:
    """Every second frame of the cluster map; each has the changes since the one before it that is left."""
    frames, frame_ticks = recording["frames"], recording["frame_ticks"]
    kept = [frames[0]]
    for i in range(2, len(frames), 2):
        changes = {change[0]: change for change in (*frames[i - 1], *frames[i])}
        kept.append([changes[row] for row in sorted(changes)])
    return {"frames": kept, "frame_ticks": frame_ticks[::2]}


def page_text(data: Mapping[str, Any]) -> str:
    """The page around the data."""
    island = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":  # so that nothing in a name ends the island
        island = island.replace(character, f"\\u{ord(character):04x}")
    text = (_PAGE / "page.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": escape(f"{data['scenario']}: evaluation"),
        "STYLE": (_PAGE / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": (_PAGE / "page.js").read_text(encoding="utf-8"),
        "DATA": island,
    }
    before, rest = "", text
    for name in ("TITLE", "STYLE", "DATA", "SCRIPT"):  # in this order in the frame; what is filled in is not searched
        head, _, rest = rest.partition(f"{{{{{name}}}}}")
        before += head + parts[name]
    return before + rest
