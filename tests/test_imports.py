"""Imports point one way: envs <- policies <- training, and envs, policies <- serving."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "rayfold"
ROOMS = {
    "envs": set[str](),
    "policies": {"envs"},
    "training": {"envs", "policies"},
    "serving": {"envs", "policies"},
}
HEAVY = {"torch", "ray", "ortools", "fastapi"}  # libraries that a lower room must do without
MAY_USE = {
    "envs": set[str](),
    "policies": {"torch", "ortools"},
    "training": {"torch", "ray"},
    "serving": {"torch", "ray", "fastapi"},
}


def imported_modules(code: str) -> set[str]:
    """Full names of all modules that a piece of code imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.ImportFrom):
            names.add("relative import")
    return names


def is_allowed(room: str, name: str) -> bool:
    """Whether a file of ``room`` may import ``name``."""
    parts = name.split(".")
    if name == "relative import" or parts[0] in ROOMS or parts[0] in HEAVY - MAY_USE[room]:
        return False
    return parts[0] != "rayfold" or len(parts) == 1 or parts[1] in {room, "errors"} | ROOMS[room]


def violations(room: str, code: str) -> set[str]:
    """What a file of ``room`` imports and must not."""
    return {name for name in imported_modules(code) if not is_allowed(room, name)}


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_what_it_may(room: str) -> None:
    """No file of the room imports against the arrow, or a library that is not the room's."""
    files = sorted((SOURCE / room).rglob("*.py"))
    assert len(files) > 3
    found = {str(file.relative_to(SOURCE)): violations(room, file.read_text()) for file in files}
    assert {file: bad for file, bad in found.items() if bad} == {}


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("envs", "from rayfold.policies.protocol import Policy"),
        ("policies", "import rayfold.training.ppo"),
        ("policies", "from rayfold import serving"),
        ("serving", "def f():\n    from rayfold.training import ppo"),
        ("training", "import rayfold.serving.attach"),
        ("training", "import rayfold.cli"),
        ("envs", "import torch"),
        ("policies", "from ray import serve"),
        ("envs", "from policies import protocol"),
        ("envs", "from . import state"),
    ],
)
def test_planted_violation_is_found(room: str, code: str) -> None:
    """The check can fail."""
    assert violations(room, code)
