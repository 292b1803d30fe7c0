"""Promises of the design: layers, file sizes, no pickle, nothing heavy before it is needed."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "sweeps": {"sweeps", "compress", "trainers", "analysis"},
    "compress": {"compress", "trainers"},
    "trainers": {"trainers"},
    "analysis": {"analysis"},
}
# all of them serve the driver, or run inside of Ray
RAY_FILES = {
    "sweeps/drive/cluster.py",
    "sweeps/drive/driver.py",
    "sweeps/drive/nodes.py",
    "sweeps/drive/tune_adapter.py",
    "sweeps/trial/in_tune.py",
    "sweeps/trial/worker_group.py",
}
SOURCES = [p for top in ALLOWED for p in sorted((ROOT / top).rglob("*.py"))]


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_every_test_file_is_run() -> None:
    paths = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"][
        "ini_options"
    ]["testpaths"]
    places = [ROOT / path for path in paths]
    left = [
        p
        for p in (ROOT / "tests").rglob("test_*.py")
        if not any(p.is_relative_to(place) for place in places)
    ]
    assert left == [], "testpaths in pyproject.toml lack them"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layers_and_size(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    top = place.split("/")[0]
    text = path.read_text()
    names = imported(ast.parse(text))
    assert names & set(ALLOWED) <= ALLOWED[top]
    if place not in RAY_FILES:
        assert "ray" not in names
    if top == "analysis":
        assert not names & {"torch", "timm"}
    assert (
        not names & {"pickle"}
        or place == "trainers/training/checkpoint.py"
        or place == "trainers/models/source.py"
    )
    assert text.count("\n") <= 530, "split the file"


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import sweeps.cli.main", {"torch", "timm", "ray", "pandas", "plotly"}),
        ("import compress.pipeline", {"ray", "optuna", "pandas"}),
        ("import analysis", {"torch", "ray", "plotly"}),
        ("import sweeps.check", {"ray"}),
    ],
)
def test_imports_stay_light(code: str, absent: set[str]) -> None:
    check = f"{code}\nimport sys\nprint(sorted(set(sys.modules) & {absent!r}))"
    done = subprocess.run(
        [sys.executable, "-c", check],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.strip() == "[]"
