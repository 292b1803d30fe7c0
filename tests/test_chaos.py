"""`benchmarks/chaos.py` at its smallest: a round of two faults."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_faults_lose_nothing(tmp_path: Path) -> None:
    out = tmp_path / "chaos.jsonl"
    command = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--rounds", "1"]
    done = subprocess.run(
        [*command, "--only", "trial,cache", "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["fault"] for line in lines] == ["trial", "cache"]
    assert all(line["hits"] > 0 for line in lines)
    assert "front as undisturbed" in done.stdout
