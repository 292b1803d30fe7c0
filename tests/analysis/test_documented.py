"""The Python of docs/analysis.md and docs/run_folder.md, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("document", ["analysis.md", "run_folder.md"])
def test_the_python_in_the_documentation_runs(
    make_run, document, tmp_path, monkeypatch
):
    pytest.importorskip("duckdb")
    pytest.importorskip("matplotlib")
    make_run("runs/demo", trials=16)
    make_run("runs/other", trials=12, seed=1)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"```python\n(.*?)```", (DOCS / document).read_text(), re.DOTALL
    )
    ours = [block for block in blocks if "import analysis" in block]
    assert len(ours) == 1
    exec(compile(ours[0], document, "exec"), {})
    if document == "analysis.md":
        assert {"both.html", "summary.md"} <= {path.name for path in tmp_path.iterdir()}
