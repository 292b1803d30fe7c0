"""Plugins: what a file, a module and a distribution offer, and what is refused."""

import inspect
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from trainers import plugin_source, plugins

HALVE = """
class Halve:
    phase = "prune"
    version = 1

    def run(self, model, ctx):
        return model


def sparsity(model):
    return 0.5


STAGES = {"halve": Halve}
METRICS = {"sparsity": sparsity}
"""


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No plugin from this environment, none left behind."""
    offer(monkeypatch)
    plugins.forget()
    yield
    plugins.forget()


def offer(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    """Let these be the entry points of the installed distributions."""
    monkeypatch.setattr(plugins, "_entry_points", lambda: points)
    monkeypatch.setattr(plugins, "_name_of", lambda point: "a-lab")
    plugins._distribution.cache_clear()
    plugin_source._hash_of_code.cache_clear()


def written(folder: Path, text: str, name: str = "halve.py") -> plugins.PluginFile:
    (folder / name).write_text(text)
    return plugins.read(name, folder)


def test_a_file_offers_dicts_by_name(tmp_path: Path) -> None:
    file = written(tmp_path, HALVE)
    assert plugins.offered(plugins.STAGES) == {}
    plugins.load([file])
    plugins.load([file])
    halve = plugins.offered(plugins.STAGES)["halve"]
    assert list(plugins.offered(plugins.METRICS)) == ["sparsity"]
    assert plugins.offered(plugins.DATASETS) == {}
    assert plugins.plugin_of(halve) == ("halve.py", file.sha256)
    assert plugins.plugin_of(Path) is None
    assert plugins.used_by([halve, Path]) == {"halve.py": file.sha256}
    assert "class Halve" in inspect.getsource(halve)


def test_a_file_travels(tmp_path: Path) -> None:
    """Another process that loads the same file unpickles objects of its classes."""
    file = written(tmp_path, HALVE)
    plugins.load([file])
    halve = plugins.offered(plugins.STAGES)["halve"]
    pickled = pickle.dumps(halve())
    code = (
        "import pickle; from trainers import plugins\n"
        f"plugins.load([plugins.PluginFile.model_validate_json({file.model_dump_json()!r})])\n"
        f"halve = pickle.loads({pickled!r})\n"
        "print(plugins.plugin_of(type(halve)).name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "halve.py"


def test_a_child_process_unpickles_what_a_file_made(tmp_path: Path) -> None:
    """As loader processes do that are spawned: on macOS, on Windows, on Linux from 3.14."""
    plugins.load([written(tmp_path, HALVE)])
    halve = plugins.offered(plugins.STAGES)["halve"]
    child = multiprocessing.get_context("spawn").Process(target=repr, args=(halve(),))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_an_edited_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    first = written(tmp_path, HALVE)
    plugins.load([first])
    recorded = plugins.used_by(plugins.offered(plugins.STAGES).values())
    plugins.require_unchanged(recorded)
    plugins.load([written(tmp_path, HALVE.replace("version = 1", "version = 2"))])
    assert plugins.offered(plugins.STAGES)["halve"].version == 2
    with pytest.raises(ValueError, match=r"halve\.py has changed since the run"):
        plugins.require_unchanged(recorded)
    plugins.forget()
    with pytest.raises(ValueError, match=r"halve\.py, which is not here"):
        plugins.require_unchanged(recorded)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (1,\n", r"halve\.py, line 1: it does not load: '\(' was never closed"),
        ("\n\nraise KeyError('a')\n", r"halve\.py, line 3: .* KeyError: 'a'"),
        ("def f():\n    1 / 0\n\nf()\n", r"line 2: .* ZeroDivisionError"),
        ("import absent_helper", r"line 1: .* install it, or put its code into"),
        ("x = 1", r"halve\.py: it offers nothing; define at least one dict"),
        ("STAGES = []", "STAGES must be a dict .* it is a list"),
        ("STAGES = {'a b': 1}", "'a b' of stages is no name"),
        ("STAGES = {'halve': len}", "'halve' of stages must be a class derived from"),
        ("METRICS = {'size': 3}", "'size' of metrics must be a class, a function"),
    ],
)
def test_a_bad_file_gets_one_message(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        plugins.load([file])
    assert plugins.offered(plugins.STAGES) == {}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("./absent.py", r"there is no file .*absent\.py; paths are relative"),
        ("./stage.txt", r"a plugin is a \.py file or a dotted module"),
        ("absent_lab.stages", "there is no module absent_lab"),
        ("absent_lab", "there is no module absent_lab here"),
    ],
)
def test_what_is_not_there(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plugins.read(entry, tmp_path)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = [written(tmp_path, HALVE), written(tmp_path / "other", HALVE + "\n")]
    with pytest.raises(
        ValueError, match=r"two different files have the name halve\.py"
    ):
        plugins.load(files)


def test_names_are_taken_once(tmp_path: Path) -> None:
    files = [written(tmp_path, HALVE), written(tmp_path, HALVE, "again.py")]
    plugins.load(files[:1])
    with pytest.raises(
        ValueError, match=r"plugin halve\.py: the name 'halve' of stages"
    ):
        plugins.merged(plugins.STAGES, {"halve": object})
    with pytest.raises(ValueError, match=r"'halve' of stages must be a number"):
        plugins.merged(plugins.STAGES, {}, lambda value: False, "a number")
    merged = plugins.merged(plugins.STAGES, {"asp": object})
    assert list(merged) == ["asp", "halve"]
    plugins.load(files)
    with pytest.raises(ValueError, match=r"offered by halve\.py and by again\.py"):
        plugins.offered(plugins.STAGES)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An importable package `a_lab` with a module of stages."""
    folder = tmp_path / "a_lab"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "stages.py").write_text(HALVE)
    (folder / "maths.py").write_text("HALF = 0.5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [n for n in sys.modules if n.split(".")[0] == "a_lab"]:
        del sys.modules[name]


def test_a_module(lab: Path) -> None:
    file = plugins.read("a_lab.stages", lab)
    plugins.load([file])
    halve = plugins.offered(plugins.STAGES)["halve"]
    assert halve.__module__ == "a_lab.stages"
    assert plugins.plugin_of(halve) == ("a_lab.stages", file.sha256)
    plugin_source._hash_of_code.cache_clear()
    (lab / "maths.py").write_text("HALF = 0.4\n")
    changed = plugins.read("a_lab.stages", lab)
    assert changed.sha256 != file.sha256, "what a stage imports decides its result too"
    plugins.forget()
    with pytest.raises(ValueError, match="install the same version on every node"):
        plugins.load([file])


def test_an_installed_distribution(
    lab: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = EntryPoint("halve", "a_lab.stages:Halve", "compression_sweeps.stages")
    metric = EntryPoint("size", "a_lab.absent:size", "compression_sweeps.metrics")
    offer(monkeypatch, stage, metric)
    assert "a_lab.stages" not in sys.modules
    halve = plugins.offered(plugins.STAGES)["halve"]
    assert halve.__module__ == "a_lab.stages"
    with pytest.raises(
        ValueError, match=r"a-lab \(entry point size = a_lab\.absent:size\)"
    ):
        plugins.offered(plugins.METRICS)
    offer(monkeypatch, stage)
    plugin = plugins.plugin_of(halve)
    assert plugin is not None
    assert plugin.name == "a-lab"
    recorded = plugins.used_by([halve])
    plugins.require_unchanged(recorded)
    # the same stage, installed and named by the spec: one and the same thing
    plugins.load([plugins.read("a_lab.stages", tmp_path)])
    assert plugins.offered(plugins.STAGES) == {"halve": halve}
    (lab / "maths.py").write_text("HALF = 0.4\n")
    plugin_source._hash_of_code.cache_clear()
    plugins._distribution.cache_clear()
    with pytest.raises(ValueError, match="a-lab has changed since the run"):
        plugins.require_unchanged(recorded)


def test_nothing_is_imported_unasked() -> None:
    """A process that uses no plugin pays for one look at the installed entry points."""
    code = "import sys; from trainers import plugins; plugins.offered('stages')\n"
    code += "print({'torch', 'timm', 'ray'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
