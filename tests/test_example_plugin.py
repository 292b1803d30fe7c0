"""The distribution in examples/plugin: it offers a stage, a metric and a data set from outside."""

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from compress.metrics import measurements, metrics
from compress.pipeline import stages
from compress.testing import check_stage
from trainers import plugins
from trainers.config import DataConfig
from trainers.data.open import open_dataset

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "plugin"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example, as if it were installed: importable, with its entry points."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    points = tuple(
        EntryPoint(name, value, group)
        for group, offers in project["entry-points"].items()
        for name, value in offers.items()
    )
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setattr(plugins, "_entry_points", lambda: points)
    plugins._distribution.cache_clear()
    yield
    plugins._distribution.cache_clear()
    sys.modules.pop("halving", None)


def test_it_is_known_like_ours(installed: None) -> None:
    halve = stages()["halve"]
    assert metrics()["largest_layer_kb"].unit == "kB"
    dataset = open_dataset(DataConfig(dataset="stripes"))
    assert len(dataset.train.labels) == 300
    offered = [halve, measurements()["largest_layer"]]
    assert list(plugins.used_by(offered)) == ["halving"]


def test_it_keeps_what_a_stage_promises(installed: None) -> None:
    check_stage(stages()["halve"]())


def test_it_is_short() -> None:
    lines = (EXAMPLE / "halving" / "__init__.py").read_text().splitlines()
    code = [line for line in lines if line.strip() and not line.startswith('"""')]
    assert len(code) <= 40


CLUSTER = """
import subprocess, sys
from ray.cluster_utils import Cluster
from sweeps.drive.cluster import set_environment

set_environment()
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(num_cpus=1)
done = subprocess.run([*sys.argv[1:], "--address", cluster.address])
cluster.shutdown()
sys.exit(done.returncode)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_swept_on_two_nodes_reproduced_and_refused_once_changed(tmp_path: Path) -> None:
    """Both wheels in a fresh environment outside the checkout; nothing of ours is edited."""
    venv = fresh_environment(tmp_path)
    sweeps = [str(venv / "bin" / "sweeps")]

    def call(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    run = tmp_path / "runs" / "halving"
    spec = [str(EXAMPLE / "sweep.yaml"), f"storage={run.parent}"]
    (tmp_path / "cluster.py").write_text(CLUSTER)
    python = str(venv / "bin" / "python")
    done = call(python, str(tmp_path / "cluster.py"), *sweeps, "run", *spec)
    assert done.returncode == 0, done.stdout + done.stderr
    front = call(*sweeps, "front", str(run))
    assert "largest_layer_kb" in front.stdout, front.stdout + front.stderr
    again = call(*sweeps, "reproduce", str(run), "00000")
    assert again.returncode == 0, again.stdout + again.stderr

    (source,) = venv.rglob("halving/__init__.py")
    source.write_text(source.read_text().replace("<= limit", "< limit"))
    refused = call(*sweeps, "reproduce", str(run), "00000")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    said = " ".join((refused.stdout + refused.stderr).split())
    assert "the plugin halving has changed since the run" in said


def fresh_environment(folder: Path) -> Path:
    """A venv with our wheel and the example's; the libraries are those of this process.

    Args:
        folder: where it is made.
    """

    def run(*command: Any) -> str:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    venv = folder / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    say = "import sysconfig; print(sysconfig.get_path('purelib'))"
    libraries = Path(run(venv / "bin" / "python", "-c", say).strip())
    present = [path for path in sys.path if path.endswith("-packages")]
    (libraries / "present_environment.pth").write_text("\n".join(present) + "\n")
    pip = (sys.executable, "-m", "pip")
    for project in (ROOT, EXAMPLE):
        copy = folder / f"source_{project.name}"  # setuptools writes beside its sources
        shutil.copytree(project, copy, ignore=_not_source)
        run(*pip, "wheel", "--quiet", "--no-deps", "-w", folder / "dist", copy)
    wheels = sorted((folder / "dist").glob("*.whl"))
    assert len(wheels) == 2
    into = ("--python", venv / "bin" / "python", "install", "--quiet", "--no-deps")
    run(*pip, *into, "--force-reinstall", *wheels)
    return venv


def _not_source(folder: str, names: list[str]) -> set[str]:
    """What a wheel is not built from."""
    wanted = {"analysis", "compress", "sweeps", "trainers", "README.md", "LICENSE"}
    wanted |= {"pyproject.toml", "compression_sweeps.py", "halving"}
    return set(names) - wanted if Path(folder) in (ROOT, EXAMPLE) else {"__pycache__"}
