"""`benchmarks/gpu_check.py` on a CPU: its cheap parts at tiny sizes, so that it is alive when
a GPU is at hand.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--tiny")
CHEAP = ("card", "methods", "vit_32", "clustering", "sharded", "precision")
NEED_A_GPU = ("tests", "syncs", "sparse")


def check(out: Path, *options: str) -> tuple[list[dict[str, Any]], str]:
    """Run it; the JSON lines of its file, and what it printed."""
    done = subprocess.run(
        [*COMMAND, "--out", str(out), *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return [
        json.loads(line) for line in out.read_text().splitlines()
    ], done.stdout + done.stderr


def test_each_part_tells_what_it_measures(tmp_path: Path) -> None:
    parts = CHEAP if torch.cuda.is_available() else (*CHEAP, *NEED_A_GPU)
    lines, printed = check(tmp_path / "gpu.json", "--parts", ",".join(parts))
    ends = {line["part"]: line["status"] for line in lines if "status" in line}
    assert ends == dict.fromkeys(parts, "ok"), printed
    skipped = [line["part"] for line in lines if "skipped" in line]
    assert skipped == [part for part in parts if part in NEED_A_GPU]
    for name in CHEAP:
        assert any(line["part"] == name and "status" not in line for line in lines)
    assert all(json.dumps(line) in printed for line in lines)
    rates = [line for line in lines if line["part"] == "methods" and "what" in line]
    assert {"plain", "EMA", "WFN (Adam, clipped)"} <= {line["what"] for line in rates}
    assert all(line["ms_per_step"] > 0 for line in rates)


def test_a_part_is_cut_off_at_its_limit_and_the_next_one_runs(tmp_path: Path) -> None:
    lines, printed = check(
        tmp_path / "gpu.json", "--parts", "methods,card", "--minutes", "0.005"
    )
    assert [line["status"] for line in lines if "status" in line] == [
        "cut off",
        "no time left",
    ], printed


@pytest.mark.slow
@pytest.mark.parametrize("part", ["train_224", "latency", "compile_224"])
def test_the_long_parts_too(part: str, tmp_path: Path) -> None:
    lines, printed = check(tmp_path / "gpu.json", "--parts", part)
    assert lines[-1]["status"] == "ok", printed
