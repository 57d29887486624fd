"""Recipes: the verbs that make a bundle, one after the other, with the options of a file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from rayfold.errors import InputError
from rayfold.training.checkpoints import has_checkpoint

__all__ = ["STAGES", "load_recipe", "run_recipe"]

STAGES = ("train", "train-leader")  # in this order; the first makes the bundle, the other adds to it
_OURS = {"run-dir", "bundle", "out", "traces", "synthetic", "resume"}

Options = Mapping[str, bool | str | int | float]  # option without dashes -> value
Recipe = Mapping[str, Sequence[Options]]  # stage -> its lessons; each goes on from the bundle of the one before


def load_recipe(name: str) -> Recipe:
    """A shipped recipe, or one from a file.

    Args:
        name: ``shipped``, or the path of a YAML file.

    Raises:
        InputError: There is none, or it is none.
    """
    folder = Path(__file__).parent / "recipes"
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text())
        given = TypeAdapter(dict[str, Options | list[Options]]).validate_python(content)
    except OSError:
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise InputError("--recipe", f"one of {known}, or a YAML file", name) from None
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as err:
        raise InputError(str(path), "stages with their options", str(err).splitlines()[0]) from None
    recipe = {stage: lessons if isinstance(lessons, list) else [lessons] for stage, lessons in given.items()}
    unknown = set(recipe) - set(STAGES)
    if unknown or STAGES[0] not in recipe:
        told = ", ".join(sorted(unknown)) or f"no {STAGES[0]}"
        raise InputError(str(path), f"the stages {', '.join(STAGES)}, the first in any case", told)
    for stage, lessons in recipe.items():
        if not lessons or (stage != STAGES[0] and len(lessons) > 1):
            raise InputError(f"{path}: {stage}", f"one lesson, of {STAGES[0]} one or more", len(lessons))
        if taken := _OURS & {name for options in lessons for name in options}:
            raise InputError(f"{path}: {stage}", "options without those of the caller", ", ".join(sorted(taken)))
    return recipe


def run_recipe(
    recipe: Recipe, run_dir: Path, bundle: Path, common: list[str], invoke: Callable[[list[str]], int]
) -> int:
    """Runs what is not done yet; the same call goes on where it was interrupted.

    Args:
        recipe: See ``load_recipe``.
        run_dir: Each stage has a folder in it, and a file ``STAGE.done`` once it is.
        bundle: Is made, and then added to.
        common: Options of every stage.
        invoke: One verb of the command line with its options; gives the exit code.

    Returns:
        Exit code of the first stage that failed; 0 if none did.
    """
    for stage, k, lesson in [(s, k, lesson) for s in STAGES for k, lesson in enumerate(recipe.get(s, ()))]:
        folder = run_dir / (f"{stage}-{k + 1}" if k else stage)
        done = folder.with_suffix(".done")
        if done.exists():
            continue
        options = [part for name, value in lesson.items() for part in _option(name, value)]
        where = ["--run-dir", str(folder), "--bundle", str(bundle)]
        if stage != STAGES[0]:
            where += ["--out", str(bundle)]
        elif has_checkpoint(folder):
            where.append("--resume")  # steps count on, minutes anew
        elif k:
            where += ["--warm-start", str(bundle)]
        code = invoke([stage, *options, *where, *common])
        if code:
            return code
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()
    return 0


def _option(name: str, value: bool | str | int | float) -> list[str]:
    """A switch is given by its name, or not at all."""
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    return [f"--{name}", str(value)]
