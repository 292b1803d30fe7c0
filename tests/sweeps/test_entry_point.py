"""The command starts by a module of its own name, and says where another package hides ours."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
START = "from compression_sweeps import main; main()"


def started(
    *path: Path, code: str = START, installed: bool = True
) -> subprocess.CompletedProcess[str]:
    """`sweeps presets` in a process of its own, with these folders first on the path.

    Args:
        installed: whether the process sees what is installed in this environment.
    """
    search = f"import sys; sys.path[:0] = {[str(p) for p in path]!r}; sys.argv[1:] = ['presets']"
    return subprocess.run(
        [sys.executable, *([] if installed else ["-S"]), "-c", f"{search}\n{code}"],
        capture_output=True,
        text=True,
        cwd=path[0] if path else ROOT,
    )


def make_package(folder: Path, text: str = "") -> None:
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(text)


def test_the_console_script_starts_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"sweeps": "compression_sweeps:main"}
    assert project["tool"]["setuptools"]["py-modules"] == ["compression_sweeps"]


@pytest.mark.parametrize(
    "code", [START, "import runpy; runpy.run_module('sweeps', run_name='__main__')"]
)
def test_it_runs_the_command(code: str) -> None:
    done = started(ROOT, code=code)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


def test_a_package_earlier_on_the_path(tmp_path: Path) -> None:
    make_package(tmp_path / "sweeps")
    done = started(tmp_path, ROOT)
    assert done.returncode == 1
    line = done.stderr.strip()
    assert len(line.splitlines()) == 1, line
    assert f"the package 'sweeps' in {tmp_path / 'sweeps'} belongs to" in line
    assert "hides that of compression-sweeps" in line


def test_a_package_in_our_place(tmp_path: Path) -> None:
    """Another distribution that was installed later has replaced our files."""
    shutil.copy(ROOT / "compression_sweeps.py", tmp_path)
    for name in ("analysis", "compress", "trainers", "sweeps"):
        make_package(tmp_path / name, "VERSION = 1")
    info = tmp_path / "wandb_sweeps-0.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: wandb-sweeps\nVersion: 0.2\n"
    )
    (info / "top_level.txt").write_text("sweeps\n")
    done = started(tmp_path)
    assert done.returncode == 1
    assert "belongs to the distribution wandb-sweeps" in done.stderr
    assert "pip uninstall wandb-sweeps, then pip install --force-rein" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_package_that_is_gone(tmp_path: Path) -> None:
    shutil.copy(ROOT / "compression_sweeps.py", tmp_path)
    make_package(tmp_path / "analysis")
    done = started(tmp_path, installed=False)
    assert done.returncode == 1
    assert (
        "the package 'compress' of compression-sweeps is not installed" in done.stderr
    )
