"""The import package is whole, and what is built is what a user gets."""

import os
import subprocess
import sys
import zipfile
from email import message_from_bytes
from importlib import import_module, metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("envs", "policies", "serving", "training")
SCENARIOS = {"llm_api", "low_scale", "smoke", "two_node", "local_demo"}


@pytest.mark.parametrize("part", PARTS)
def test_part_is_importable(part: str) -> None:
    """Every folder is reachable as rayfold.<part>."""
    import_module(f"rayfold.{part}")


@pytest.mark.parametrize("part", PARTS)
def test_no_generic_top_level_name(part: str) -> None:
    """Outside the checkout the bare folder name is not importable."""
    code = f"from importlib.util import find_spec as f; assert f({part!r}) is None"
    subprocess.run([sys.executable, "-c", code], cwd="/", check=True)


def test_distribution_name() -> None:
    """The distribution and the import package carry the same name."""
    assert metadata.version("rayfold")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist, as a user of PyPI gets it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(out.glob("*.whl"))


@pytest.mark.packaging
def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Code, scenarios and the bundle ship once; tests, docs and benchmarks do not."""
    names = zipfile.ZipFile(wheel).namelist()
    assert len(names) == len(set(names))
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rayfold"}
    for part in PARTS:
        on_disk = {f"rayfold/{part}/{p.relative_to(ROOT / part)}" for p in (ROOT / part).rglob("*.py")}
        assert on_disk <= set(names)
    assert {f"rayfold/envs/scenarios/{name}.yaml" for name in SCENARIOS} <= set(names)
    tuned = {f"rayfold/policies/tuned/{path.name}" for path in (ROOT / "policies" / "tuned").glob("*.yaml")}
    assert tuned <= set(names)
    assert {"rayfold/py.typed", "rayfold/policies/bundles/default/weights.safetensors"} <= set(names)
    assert {name.split("/")[1] for name in names if name.startswith("rayfold/") and name.count("/") > 1} == set(PARTS)
    assert {f"rayfold/training/page/page.{kind}" for kind in ("html", "css", "js")} <= set(names)
    kinds = {Path(name).suffix for name in names if name.startswith("rayfold/")} - {
        ".py",
        ".yaml",
        ".html",
        ".css",
        ".js",
    }
    assert kinds == {".typed", ".json", ".safetensors"}  # no kernels that Numba has cached, no test data
    with zipfile.ZipFile(wheel) as archive:
        for name in names:
            if name.startswith("rayfold/"):
                assert archive.read(name) == (ROOT / "src" / name).read_bytes(), name


@pytest.mark.packaging
def test_wheel_says_what_it_needs(wheel: Path) -> None:
    """Entry point, Python and licence are declared, and Ray is held to the release whose rules were ported."""
    with zipfile.ZipFile(wheel) as archive:
        info = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
        assert "rayfold = rayfold.cli:entry" in archive.read(f"{info}/entry_points.txt").decode()
        about = message_from_bytes(archive.read(f"{info}/METADATA"))
    assert about["Name"] == "rayfold"
    assert about["Requires-Python"] == ">=3.11"
    assert about["License-Expression"] == "Apache-2.0"
    needed = {need.split(";")[0].strip() for need in about.get_all("Requires-Dist", []) if "extra ==" not in need}
    assert {"ray[rllib,serve]==2.60.*", "gymnasium==1.2.2", "torch==2.13.0"} <= needed
    assert not any(need.startswith(("pytest", "mypy", "ruff")) for need in needed)


@pytest.mark.packaging
def test_installed_wheel_works_without_the_sources(wheel: Path, tmp_path: Path) -> None:
    """Installed elsewhere, with the checkout off the path: version, scenarios, bundle, a short evaluation."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    subprocess.run([*command, str(wheel)], check=True)
    code = f"""
import json, pathlib, rayfold
from rayfold.envs.scenario import load_scenario
from rayfold.policies.bundle import load_bundle
from rayfold.policies.by_name import shipped_bundle
assert pathlib.Path(rayfold.__file__).is_relative_to({str(tmp_path)!r}), rayfold.__file__
print(json.dumps([load_scenario(name, synthetic=True).name for name in {sorted(SCENARIOS)!r}]))
assert load_bundle(shipped_bundle()).card.steps > 0
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd="/", env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout

    assert run("-c", code).strip() == str(sorted(SCENARIOS)).replace("'", '"')
    assert run("-m", "rayfold", "--version").strip() == f"rayfold {metadata.version('rayfold')}"
    listing = run("-m", "rayfold", "scenarios")
    assert all(name in listing for name in SCENARIOS)
    evaluated = run(
        "-m", "rayfold", "evaluate", "--scenario", "smoke", "--policies", "none,learned", "--seeds", "1",
        "--horizon-h", "0.25", "--json", str(tmp_path / "out.json"), "--html", str(tmp_path / "page"),
    )  # fmt: skip
    assert "learned" in evaluated
    assert (tmp_path / "out.png").stat().st_size > 0
    assert (tmp_path / "page" / "index.html").stat().st_size > 10_000
