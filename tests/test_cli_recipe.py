"""``rayfold train --recipe``: stages in order, done once, gone on with; and what is wrong is told at once."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayfold.cli import app
from rayfold.errors import InputError
from rayfold.policies.bundle import load_bundle
from rayfold.training.recipe import STAGES, load_recipe, run_recipe

SMALL = """
train:
  - {scenario: smoke, stop-steps: 256, batch-steps: 128, num-envs: 4, evaluation-episodes: 1, warm-start: ""}
  - {scenario: smoke, stop-steps: 128, batch-steps: 128, num-envs: 4, evaluation-episodes: 1, vary-worlds: true}
train-leader: {scenario: smoke, episodes: 5, horizon-h: 1}
"""


def test_shipped_recipe_makes_every_part() -> None:
    """It can be loaded, and has all stages."""
    assert tuple(load_recipe("shipped")) == STAGES


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("train: {scenario: smoke}\nbake: {}", "bake"),
        ("train-leader: {}", "no train"),
        ("train: {run-dir: x}", "run-dir"),
        ("train: [1]", "stages with their options"),
        ("train: []", "one or more, got 0"),
        ("train: [{seed: 1}, {resume: true}]", "resume"),
        ("train: {seed: 1}\ntrain-leader: [{episodes: 5}, {episodes: 5}]", "expected one lesson"),
        ("train: {", "stages with their options"),
        ("", "stages with their options"),
    ],
)
def test_what_is_no_recipe_is_told(tmp_path: Path, content: str, told: str) -> None:
    """In one line, with the file."""
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(InputError, match=told) as caught:
        load_recipe(str(tmp_path / "r.yaml"))
    assert "r.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--recipe", "no_such", "--bundle", "b"], "no_such"),
        (["--recipe", "shipped"], "--bundle"),
        (["--recipe", "shipped", "--bundle", "b", "--lr", "0.1"], "--lr"),
    ],
)
def test_mistakes_are_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    """Nothing is trained then."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["train", *arguments])
    assert isinstance(result.exception, InputError)
    assert told in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_switch_is_given_by_its_name(tmp_path: Path) -> None:
    """Or not at all."""
    ran: list[list[str]] = []
    (tmp_path / "r.yaml").write_text("train: {vary-worlds: true, seed: 1}\ntrain-leader: {synthetic-too: false}")
    recipe = load_recipe(str(tmp_path / "r.yaml"))
    assert run_recipe(recipe, tmp_path / "r", tmp_path / "b", [], lambda call: ran.append(call) or 0) == 0  # type: ignore[func-returns-value]
    assert ran[0][:4] == ["train", "--vary-worlds", "--seed", "1"]
    assert ran[1][1] == "--run-dir"


def leave_checkpoint(run_dir: Path) -> None:
    """What an interrupted training leaves behind, as far as a recipe looks at it."""
    folder = run_dir / "checkpoints" / "000000000512"
    folder.mkdir(parents=True)
    (folder / "position.json").write_text("{}")


def test_stages_go_on_where_they_stopped(tmp_path: Path) -> None:
    """What is done is not done again; a training with a checkpoint is resumed; the first failure ends it."""
    ran: list[list[str]] = []
    codes = [130, 0, 3, 0]

    def invoke(arguments: list[str]) -> int:
        ran.append(arguments)
        return codes[len(ran) - 1]

    recipe = {"train-leader": [{"episodes": 5}], "train": [{"seed": 1}]}
    leave_checkpoint(tmp_path / "r" / "train")
    results = [run_recipe(recipe, tmp_path / "r", tmp_path / "b", ["--synthetic"], invoke) for _ in range(4)]
    assert results == [130, 3, 0, 0]
    assert [call[0] for call in ran] == ["train", "train", "train-leader", "train-leader"]
    assert ran[1][1:] == [
        *("--seed", "1", "--run-dir", str(tmp_path / "r" / "train"), "--bundle", str(tmp_path / "b")),
        *("--resume", "--synthetic"),
    ]
    assert ran[3][1:] == [
        *("--episodes", "5", "--run-dir", str(tmp_path / "r" / "train-leader"), "--bundle", str(tmp_path / "b")),
        *("--out", str(tmp_path / "b"), "--synthetic"),
    ]


def test_each_lesson_goes_on_from_the_one_before(tmp_path: Path) -> None:
    """In a folder of its own; where it was interrupted it is resumed, not begun again."""
    ran: list[list[str]] = []
    codes = [0, 130, 0]

    def invoke(arguments: list[str]) -> int:
        ran.append(arguments)
        if code := codes[len(ran) - 1]:
            leave_checkpoint(tmp_path / "r" / "train-2")
        return code

    recipe = {"train": [{"seed": 1}, {"seed": 2}]}
    assert [run_recipe(recipe, tmp_path / "r", tmp_path / "b", [], invoke) for _ in range(2)] == [130, 0]
    first, second = tmp_path / "r" / "train", tmp_path / "r" / "train-2"
    shared = ["--bundle", str(tmp_path / "b")]
    assert ran == [
        ["train", "--seed", "1", "--run-dir", str(first), *shared],
        ["train", "--seed", "2", "--run-dir", str(second), *shared, "--warm-start", str(tmp_path / "b")],
        ["train", "--seed", "2", "--run-dir", str(second), *shared, "--resume"],
    ]


@pytest.mark.learning
def test_a_small_recipe_makes_a_bundle(tmp_path: Path) -> None:
    """Network and leader, each trained here."""
    (tmp_path / "r.yaml").write_text(SMALL)
    out = tmp_path / "b"
    command = ["train", "--recipe", str(tmp_path / "r.yaml"), "--synthetic", "--bundle", str(out)]
    result = CliRunner().invoke(app, [*command, "--run-dir", str(tmp_path / "runs")])
    assert result.exit_code == 0, result.output
    made = load_bundle(out)
    assert made.card.scenarios == ("smoke",)
    assert made.card.warm_start.startswith("b (smoke; ")
    assert made.leader is not None
    assert made.leader.card.episodes == 5
