"""The tutorials' specs hold; and, in the slow tests, their commands run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.check import check_spec
from sweeps.spec.load import read_spec, spec_from
from tests.optional import needs

DOCS = Path(__file__).parent.parent / "docs"
NEEDED = {"photos": ("nncf", "onnxruntime"), "compare": ()}


def parts(name: str) -> list[tuple[str, str]]:
    """The blocks of code that a tutorial wants run or saved: (language, text), in order."""
    text = (DOCS / f"tutorial_{name}.md").read_text("utf-8")
    return re.findall(r"```(python|yaml|bash)\n(.*?)```", text, re.DOTALL)


def prepare(name: str, folder: Path) -> None:
    """What comes before a tutorial's first command: the data, where it makes some, and its spec."""
    for language, text in parts(name):
        if language == "bash":
            return
        if language == "yaml":
            spec = re.findall(r"^name: (\S+)", text)[0]
            (folder / f"{spec}.yaml").write_text(text, "utf-8")
        else:
            subprocess.run([sys.executable, "-c", text], cwd=folder, check=True)


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
    prepare(name, tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    begun = False
    for language, text in parts(name):
        begun = begun or language == "bash"
        if not begun:
            continue
        command = ["bash", "-ec"] if language == "bash" else [sys.executable, "-c"]
        done = subprocess.run(
            [*command, text],
            cwd=tmp_path,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
