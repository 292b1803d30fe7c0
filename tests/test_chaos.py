"""`benchmarks/chaos.py` at its smallest: a round of two faults."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


DRAWN = """
import os
from benchmarks.nursery import without_drawn_ids
with without_drawn_ids():
    import ray.dag
import ray
for _ in range(2):
    if os.fork() == 0:
        print(ray.ObjectRef.from_random().hex(), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are not forked")
def test_forks_of_a_process_that_has_imported_ray_draw_ids_of_their_own() -> None:
    """Two processes that draw the same id cannot share an object store."""
    done = subprocess.run(
        [sys.executable, "-c", DRAWN],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.split()
    assert first != second


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
