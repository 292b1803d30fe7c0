"""The tutorials' specs hold; and, in the slow tests, their commands run as they stand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import notebooks
from sweeps.check import check_spec
from sweeps.spec.load import read_spec, spec_from
from tests.optional import needs

DOCS = Path(__file__).parent.parent / "docs"
NEEDED = {"photos": ("nncf", "onnxruntime"), "compare": ()}


def cells(name: str) -> list[str]:
    """The code of a tutorial's notebook, cell by cell."""
    notebook = json.loads((DOCS / f"tutorial_{name}.ipynb").read_text("utf-8"))
    return [c["source"] for c in notebook["cells"] if c["cell_type"] == "code"]


def run_cell(text: str, folder: Path) -> None:
    """What a notebook does with a cell; each of Python stands alone."""
    magic, _, body = text.partition("\n")
    if magic.startswith("%%writefile "):
        (folder / magic.split()[1]).write_text(body + "\n", "utf-8")
        return
    command = [sys.executable, "-c", text]
    if magic == "%%bash":
        command = ["bash", "-ec", body]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"


def prepare(name: str, folder: Path) -> None:
    """What comes before a tutorial's first command: the data, where it makes some, and its spec."""
    for text in cells(name):
        if text.startswith("%%bash"):
            return
        run_cell(text, folder)


@pytest.mark.parametrize("name", NEEDED)
def test_the_notebooks_are_those_of_the_pages(name: str) -> None:
    page = DOCS / f"tutorial_{name}.md"
    wanted = notebooks.text_of(page.read_text("utf-8"))
    assert page.with_suffix(".ipynb").read_text("utf-8") == wanted, (
        "run python scripts/notebooks.py"
    )
    blocks = re.findall(r"```(?:python|yaml|bash)\n", page.read_text("utf-8"))
    assert len(cells(name)) == len(blocks) > 2


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs(*used)) for name, used in NEEDED.items()]
)
def test_the_specs_hold(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(name, tmp_path)
    (spec,) = tmp_path.glob("*.yaml")
    checked = check_spec(spec_from(read_spec(str(spec))[0]))
    assert checked.num_configurations == {"photos": 4, "compare": 6}[name]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs(*used)) for name, used in NEEDED.items()]
)
def test_all_of_it_runs(name: str, tmp_path: Path) -> None:
    for text in cells(name):
        run_cell(text, tmp_path)
