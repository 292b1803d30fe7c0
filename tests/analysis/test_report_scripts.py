"""The report's scripts without a browser: their pure functions in node, and ESLint over all.
Both are skipped where they are not installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from analysis.report.page import page_script

HERE = Path(__file__).parent


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """All scripts as one, as the live page has them."""
    path = tmp_path / "all.js"
    text = page_script(is_live=True)
    path.write_text('"use strict";\n' + text.replace('"use strict";\n', ""))
    return path


def run(*command: str | Path, **given: str) -> None:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | given,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pure_functions(scripts: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    run(node, "--test", HERE / "report_scripts.test.cjs", SCRIPTS=str(scripts))


def test_eslint_finds_nothing(scripts: Path) -> None:
    named = [Path(os.environ["ESLINT"])] if "ESLINT" in os.environ else []
    places = [p / "node_modules/.bin/eslint" for p in HERE.parents]
    found = [path for path in (*named, *places) if path.is_file()]
    if not found:
        pytest.skip("ESLint is not installed: npm install --no-save eslint")
    config = HERE / "eslint.config.mjs"
    run(found[0], "--no-ignore", "--config", config, scripts)
