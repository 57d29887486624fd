"""Imports point one way: envs <- policies <- training, and envs, policies <- serving."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "rayfold"
ROOMS = {
    "envs": set[str](),
    "policies": {"envs"},
    "training": {"envs", "policies", "ray_address"},
    "serving": {"envs", "policies", "ray_address"},
}
# The only modules that may import ``training`` and ``serving``.
ENTRY_POINTS = {
    "cli",
    "cli_evaluate",
    "cli_explain",
    "cli_journal",
    "cli_operate",
    "cli_simulate",
    "cli_leader",
    "cli_tune",
    "demo",
}
LIBRARIES = {
    "envs": {"gymnasium", "numba", "numpy", "pydantic", "scipy", "yaml"},
    "policies": {"highspy", "numpy", "ortools", "pydantic", "safetensors", "scipy", "torch"},
    "training": {
        "gymnasium",
        "matplotlib",
        "numba",
        "numpy",
        "pydantic",
        "ray",
        "rich",
        "scipy",
        "torch",
        "yaml",
    },
    "serving": {"fastapi", "httpx", "numpy", "psutil", "pydantic", "ray", "starlette", "torch"},
    "": {"numpy", "ray", "rich", "typer"},  # the modules of the package itself
}
# Beyond DESIGN §3: pictures are drawn in these files, which must not load the library before they draw.
LAZY = {"envs/render.py": {"matplotlib"}, "envs/trace_plot.py": {"matplotlib"}}
DYNAMIC = {"import_module", "__import__"}


def imported_modules(code: str) -> set[str]:
    """Full names of all modules that a piece of code imports, inside functions too; relative and dynamic ones as such.

    ``from a.b import c`` gives ``a.b`` and ``a.b.c``, since ``c`` may be a module.
    """
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.ImportFrom):
            names.add("relative import")
        elif (isinstance(node, ast.Name) and node.id in DYNAMIC) or (
            isinstance(node, ast.Attribute) and node.attr in DYNAMIC
        ):
            names.add("dynamic import")
    return names


def is_allowed(room: str, name: str, module: str = "") -> bool:
    """Whether a file of ``room`` may import ``name``.

    Args:
        room: A folder, or "" for the modules of the package itself.
        name: Full name of what is imported.
        module: The importing file's name without ending; decides only for the modules of the package itself.
    """
    top, *rest = name.split(".")
    if top != "rayfold":
        return (top in sys.stdlib_module_names and not DYNAMIC & set(rest)) or top in LIBRARIES[room]
    if not rest:
        return True
    if room:
        return rest[0] in {room, "errors"} | ROOMS[room]
    return rest[0] not in {"training", "serving"} or module in ENTRY_POINTS


def violations(room: str, code: str, module: str = "") -> set[str]:
    """What a file of ``room`` imports and must not."""
    return {name for name in imported_modules(code) if not is_allowed(room, name, module)}


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_what_it_may(room: str) -> None:
    """No file of the room imports against the arrow, or a library that is not the room's."""
    files = sorted((SOURCE / room).rglob("*.py"))
    assert len(files) > 3
    found = {str(file.relative_to(SOURCE)): violations(room, file.read_text()) for file in files}
    found = {file: {n for n in bad if n.split(".")[0] not in LAZY.get(file, ())} for file, bad in found.items()}
    assert {file: bad for file, bad in found.items() if bad} == {}


@pytest.mark.parametrize(("file", "library"), [(file, library) for file in LAZY for library in LAZY[file]])
def test_lazy_library_is_loaded_on_use_only(file: str, library: str) -> None:
    """Importing the file in a fresh process does not load the library that it is lent."""
    assert library in {name.split(".")[0] for name in imported_modules((SOURCE / file).read_text())}
    module = "rayfold." + file.removesuffix(".py").replace("/", ".")
    code = f"import sys, {module}; assert {library!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_the_entry_points_import_training_and_serving() -> None:
    """The command line and ``demo`` tie the rooms together, no other module of the package does."""
    files = sorted(SOURCE.glob("*.py"))
    assert {"cli", "cli_checks", "demo", "errors", "__init__"} <= {file.stem for file in files}
    found = {file.name: violations("", file.read_text(), file.stem) for file in files}
    assert {file: bad for file, bad in found.items() if bad} == {}


def test_every_room_is_checked() -> None:
    """A fifth folder would need a line above before it could be shipped."""
    folders = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert folders == set(ROOMS)


def importing(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Which of the modules each one imports, inside functions too.

    Args:
        sources: Full name of a module -> its code.
    """
    return {name: imported_modules(code) & set(sources) - {name} for name, code in sources.items()}


def test_no_modules_import_each_other() -> None:
    """The modules can be put in an order in which each one only needs those before it."""
    found = [*SOURCE.glob("*.py"), *(file for room in ROOMS for file in (SOURCE / room).rglob("*.py"))]
    files = [file for file in found if file.stem != "__init__"]
    sources = {".".join(("rayfold", *f.relative_to(SOURCE).with_suffix("").parts)): f.read_text() for f in files}
    order = list(graphlib.TopologicalSorter(importing(sources)).static_order())
    assert order.index("rayfold.envs.state") < order.index("rayfold.policies.exact") < order.index("rayfold.cli")


def test_planted_circle_is_found() -> None:
    """A circle that is hidden in a function is one."""
    sources = {"rayfold.a": "from rayfold.b import x", "rayfold.b": "def f():\n    from rayfold import a"}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(importing(sources)).prepare()


@pytest.mark.parametrize("room", LIBRARIES)
def test_no_library_is_allowed_in_vain(room: str) -> None:
    """The lists hold what is used: one that nobody needs any more goes."""
    files = (SOURCE / room).rglob("*.py") if room else SOURCE.glob("*.py")
    used = {name.split(".")[0] for file in files for name in imported_modules(file.read_text())}
    assert LIBRARIES[room] - used == set()


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("envs", "from rayfold.policies.protocol import Policy"),
        ("policies", "import rayfold.training.ppo"),
        ("policies", "from rayfold import serving"),
        ("serving", "def f():\n    from rayfold.training import ppo"),
        ("serving", "if TYPE_CHECKING:\n    import rayfold.training.ppo as p"),
        ("training", "import rayfold.serving.attach"),
        ("training", "import rayfold.cli"),
        ("policies", "from rayfold.demo import run_demo"),
        ("envs", "import torch"),
        ("envs", "import pandas"),
        ("policies", "from ray import serve"),
        ("policies", "try:\n    import pandas\nexcept ImportError:\n    pass"),
        ("serving", "import gymnasium"),
        ("envs", "from policies import protocol"),
        ("envs", "from . import state"),
        ("training", "import importlib\nimportlib.import_module('rayfold.serving.attach')"),
        ("training", "from importlib import import_module"),
        ("training", "__import__('rayfold.serving')"),
        ("", "from rayfold.training.ppo import train"),
        ("", "import torch"),
    ],
)
def test_planted_violation_is_found(room: str, code: str) -> None:
    """The check can fail."""
    assert violations(room, code, "errors")


@pytest.mark.parametrize(
    ("room", "code", "module"),
    [
        ("envs", "import importlib.resources\nfrom rayfold.envs.state import ClusterState", "x"),
        ("policies", "import torch.nn\nfrom rayfold.envs import state", "x"),
        ("training", "from ray.rllib import core\nimport rayfold.policies.network", "x"),
        ("serving", "from ray import serve\nfrom rayfold.errors import ClusterError", "x"),
        ("", "from rayfold.training.ppo import train\nfrom rayfold.serving import attach", "cli"),
        ("", "from rayfold.policies.by_name import make_policy\nfrom rayfold import __version__", "cli_checks"),
    ],
)
def test_what_is_allowed_passes(room: str, code: str, module: str) -> None:
    """The check can pass: it does not forbid everything."""
    assert violations(room, code, module) == set()
