"""Promises of the design: who may import whom, how dense the code is, what waits until needed."""

import ast
import io
import subprocess
import sys
import tokenize
import tomllib
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
TOPS = ("analysis", "trainers", "compress", "sweeps")


class Room(NamedTuple):
    """Modules that belong together.

    Attributes:
        name: what other rooms call it.
        holds: folders and files; a file that is named is not in its folder's room.
        imports: rooms that it may import, all of them above it in the table.
    """

    name: str
    holds: str
    imports: str


GROUND = (
    "analysis/contract.py analysis/files.py analysis/metrics.py analysis/numbers.py"
    " analysis/text.py"
)
STAGE = (
    "compress/stage.py compress/metrics.py compress/keys.py compress/cache.py"
    " compress/student.py compress/finetune.py compress/asp.py"
    " compress/budget.py compress/compensation.py compress/latest.py"
    " compress/rounding.py compress/token_merging.py"
)
TRAINING = "trainers data models training"
CHECK = (
    "sweeps/check.py sweeps/check_pipelines.py sweeps/check_objectives.py"
    " sweeps/check_runtimes.py sweeps/check_search.py sweeps/describe.py sweeps/resume.py"
)
SEARCH = f"text run spec space trial search contract pipeline {TRAINING}"

ROOMS = (
    # results: nothing else of ours, no torch, no Ray
    Room("contract", GROUND, ""),
    Room("tables", "analysis/tables", "contract"),
    Room("analysis", "analysis", "contract tables"),
    Room("report", "analysis/report", "contract tables analysis"),
    # models, data, one training loop
    Room("trainers", "trainers", ""),
    Room("data", "trainers/data trainers/timm_internals.py", "trainers"),
    Room("models", "trainers/models", "trainers data"),
    Room("training", "trainers/training", "trainers data"),
    # methods
    Room("codec", "compress/codec", "trainers models"),
    Room("options", "compress/measure/options.py", "trainers"),
    Room("runtimes", "compress/runtimes", "options trainers models"),
    Room("measure", "compress/measure", "options runtimes trainers data models"),
    Room("stage", STAGE, f"codec options runtimes measure {TRAINING}"),
    Room("selection", "compress/selection", f"stage {TRAINING}"),
    Room("learngene", "compress/learngene", f"stage {TRAINING}"),
    Room("low_rank", "compress/low_rank", f"stage options runtimes measure {TRAINING}"),
    Room("channels", "compress/channels", f"stage options runtimes measure {TRAINING}"),
    Room("int8", "compress/int8", f"stage {TRAINING}"),
    Room("nvit", "compress/nvit", f"stage options runtimes measure int8 {TRAINING}"),
    Room("wfn", "compress/wfn", f"stage {TRAINING}"),
    Room(
        "pipeline",
        "compress",
        "stage codec options measure selection learngene nvit wfn low_rank int8 channels"
        f" {TRAINING}",
    ),
    # the search
    Room("text", "sweeps/spec/yaml_text.py", "trainers"),
    Room("console", "sweeps/console.py", "contract"),
    Room("run", "sweeps/run", "text contract options trainers"),
    Room(
        "spec",
        "sweeps/spec",
        f"text run contract options measure stage pipeline {TRAINING}",
    ),
    Room("space", "sweeps/space", f"text run spec contract stage pipeline {TRAINING}"),
    Room(
        "trial",
        "sweeps/trial",
        f"text run spec space contract options measure stage pipeline {TRAINING}",
    ),
    Room("search", "sweeps/search", f"analysis stage {SEARCH.replace(' search', '')}"),
    Room("trackers", "sweeps/drive/trackers.py", "text run spec contract trainers"),
    Room("check", f"sweeps {CHECK}", f"console runtimes stage trackers {SEARCH}"),
    Room("reproduce", "sweeps/trial/reproduce.py", f"stage check {SEARCH}"),
    Room(
        "drive",
        "sweeps/drive",
        f"console trackers check analysis tables stage {SEARCH}",
    ),
    Room(
        "export",
        "sweeps/export",
        "text run spec contract tables analysis report codec options runtimes measure stage"
        f" pipeline {TRAINING}",
    ),
    Room(
        "shrink",
        "sweeps/shrink",
        "console check drive export analysis tables options runtimes measure"
        f" stage {SEARCH}",
    ),
    Room(
        "serve",
        "sweeps/serve",
        "drive run contract analysis tables report trainers",
    ),
    Room(
        "cli",
        "sweeps/cli sweeps/__main__.py",
        "console check reproduce drive serve export shrink analysis tables report codec options"
        " runtimes"
        " measure stage int8"
        " trackers"
        f" {SEARCH}",
    ),
)

RAY = (
    "sweeps/drive/cluster.py",
    "sweeps/drive/deaths.py",
    "sweeps/drive/driver.py",
    "sweeps/drive/final_measurement.py",
    "sweeps/drive/node_checks.py",
    "sweeps/drive/ray_internals.py",
    "sweeps/drive/room.py",
    "sweeps/drive/tune_adapter.py",
    "sweeps/drive/tune_run.py",
    "sweeps/trial/in_tune.py",
    "sweeps/trial/worker_group.py",
)
PICKLE = ("trainers/training/checkpoint.py", "trainers/models/checkpoint_file.py")
NOT_EVERYWHERE = {
    "fcntl": (),
    "resource": (),
    "pwd": (),
    "sched_getaffinity": ("trainers/machine.py",),
    "SIGUSR1": (),
    "SIGHUP": ("sweeps/drive/interrupt.py",),
    "fork": (),
    "kill": ("trainers/processes.py",),
}
"""Names of what Windows or macOS lack, or have with another meaning → where they may be."""


class Source(NamedTuple):
    """A module of ours; `place` is its path from the root."""

    name: str
    place: str
    text: str
    tree: ast.Module


@lru_cache(maxsize=1)
def sources() -> tuple[Source, ...]:
    found = []
    for path in (p for top in TOPS for p in sorted((ROOT / top).rglob("*.py"))):
        place = path.relative_to(ROOT)
        name = ".".join(place.with_suffix("").parts).removesuffix(".__init__")
        text = path.read_text(encoding="utf-8")
        found.append(Source(name, place.as_posix(), text, ast.parse(text)))
    return tuple(found)


def is_face(source: Source) -> bool:
    """Whether it is an `__init__.py`, which shows names of its whole package."""
    return source.place.endswith("__init__.py")


@cache
def imports(source: Source) -> frozenset[str]:
    """Dotted names of all that a module imports, wherever it does."""
    found: set[str] = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module}
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


@cache
def room_of(place: str) -> str:
    """The room of a file: the one that names it, else that of its folder or the next above."""
    homes = {held: room.name for room in ROOMS for held in room.holds.split()}
    for candidate in (place, *(p.as_posix() for p in Path(place).parents)):
        if candidate in homes:
            return homes[candidate]
    raise AssertionError(f"{place} is in no room")


def test_rooms_import_only_rooms_below() -> None:
    places = {source.name: source.place for source in sources()}
    above: list[str] = []
    for room in ROOMS:
        assert set(room.imports.split()) <= set(above), f"{room.name}: a circle"
        assert all((ROOT / held).exists() for held in room.holds.split()), room.name
        above.append(room.name)
    allowed = {room.name: {room.name, *room.imports.split()} for room in ROOMS}
    wrong = [
        f"{source.place} ({room_of(source.place)}) imports {name} ({room_of(places[name])})"
        for source in sources()
        for name in sorted(imports(source) & set(places))
        if room_of(places[name]) not in allowed[room_of(source.place)]
        and not (is_face(source) and name.startswith(f"{source.name}."))
    ]
    assert wrong == []


def test_no_two_files_import_each_other() -> None:
    modules = {source.name: source for source in sources() if not is_face(source)}
    needs = {name: imports(source) & set(modules) for name, source in modules.items()}
    mutual = [(a, b) for a in needs for b in needs[a] if a < b and a in needs[b]]
    assert mutual == []


def test_libraries_stay_where_they_belong() -> None:
    wrong = []
    for source in sources():
        tops = {name.split(".")[0] for name in imports(source)}
        if "ray" in tops and source.place not in RAY:
            wrong.append(f"{source.place} imports Ray")
        if "pickle" in tops and source.place not in PICKLE:
            wrong.append(f"{source.place} imports pickle")
        if source.place.startswith("analysis/") and tops & {"torch", "timm"}:
            wrong.append(f"{source.place} imports torch")
    assert wrong == []


def test_systems_are_asked_in_one_place() -> None:
    """`os.kill(pid, 0)` ends a process on Windows; `fcntl` and some signals do not exist there."""
    wrong = []
    for source in sources():
        used = imports(source) | {
            node.attr
            for node in ast.walk(source.tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("os", "signal")
        }
        for name in sorted(used & set(NOT_EVERYWHERE)):
            if source.place not in NOT_EVERYWHERE[name]:
                wrong.append(f"{source.place} uses {name}")
    assert wrong == []


def defined(source: Source) -> set[str]:
    """Names at the top of a module, also those that it imports."""
    names: set[str] = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {
                (alias.asname or alias.name).split(".")[0] for alias in node.names
            }
    return names


def test_benchmarks_import_what_exists() -> None:
    """No test runs them, so a module that moved would be noticed by their users only."""
    modules = {source.name: source for source in sources()}
    lost = []
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            if node.module.split(".")[0] not in TOPS:
                continue
            if node.module not in modules:
                lost.append(f"{path.name}: {node.module}")
                continue
            known = defined(modules[node.module])
            for alias in node.names:
                if (
                    alias.name not in known
                    and f"{node.module}.{alias.name}" not in modules
                ):
                    lost.append(f"{path.name}: {node.module}.{alias.name}")
    assert lost == []


def code_lines(text: str) -> int:
    """Lines that hold more than a comment or a docstring."""
    layout = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        starts = token.line.strip().startswith(('"""', 'r"""'))
        is_docstring = token.type == tokenize.STRING and starts
        if token.type not in layout and not is_docstring:
            lines.add(token.start[0])
    return len(lines)


def test_files_are_short() -> None:
    long = {s.place: s.text.count("\n") for s in sources() if s.text.count("\n") > 500}
    assert long == {}, "split them"


def test_code_is_not_dense() -> None:
    nodes = lines = skips = 0
    too_long = []
    for source in sources():
        lines += code_lines(source.text)
        skips += source.text.count("fmt: skip")
        nodes += sum(
            isinstance(node, ast.expr | ast.stmt) for node in ast.walk(source.tree)
        )
        for number, line in enumerate(source.text.splitlines(), 1):
            if len(line) > 100:
                too_long.append(f"{source.place}:{number}")
    assert nodes / lines <= 5.5, "syntax nodes for each line of code"
    assert skips <= 10, "fmt: skip is for tables of numbers"
    assert too_long == []


def test_what_crosses_borders_is_typed() -> None:
    ours = [source for source in sources() if source.place.startswith("sweeps/")]
    untyped = sum(source.text.count("dict[str, Any]") for source in ours)
    lines = sum(code_lines(source.text) for source in ours)
    assert 1000 * untyped / lines <= 8


def test_every_test_file_is_run() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    places = [ROOT / path for path in settings["ini_options"]["testpaths"]]
    files = (ROOT / "tests").rglob("test_*.py")
    left = [f for f in files if not any(f.is_relative_to(place) for place in places)]
    assert left == [], "testpaths in pyproject.toml lack them"


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import sweeps.cli.main", {"torch", "timm", "ray", "pandas", "plotly"}),
        (
            "import compress.pipeline",
            {"ray", "optuna", "pandas", "timm", "torchvision", "scipy", "sklearn"}
            | {"pyarrow", "constriction", "zstandard", "matplotlib"},
        ),
        ("import compress.metrics", {"torch"}),
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
