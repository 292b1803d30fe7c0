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
CHEAP = ("card", "methods", "vit_32", "clustering", "sharded", "precision")
NEED_A_GPU = ("tests", "syncs", "sparse")
PARTS = CHEAP if torch.cuda.is_available() else (*CHEAP, *NEED_A_GPU)
PROGRAM = """
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""The program, once for each list of arguments: torch is imported once."""

Lines = list[dict[str, Any]]


def check(*runs: tuple[Path, list[str]]) -> tuple[list[Lines], str]:
    """Run it for each file and options; the JSON lines of the files, and what was printed."""
    program = str(ROOT / "benchmarks" / "gpu_check.py")
    lists = [[program, "--tiny", "--out", str(out), *more] for out, more in runs]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(lists)],
        cwd=ROOT,
        env=os.environ
        | {
            "PYTHONPATH": f"{ROOT / 'benchmarks'}{os.pathsep}{ROOT}",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert all(out.exists() for out, _ in runs), said
    return [
        [json.loads(line) for line in out.read_text().splitlines()] for out, _ in runs
    ], said


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Lines], str]:
    """All cheap parts, and one that is cut off."""
    folder = tmp_path_factory.mktemp("gpu-check")
    return check(
        (folder / "all.json", ["--parts", ",".join(PARTS)]),
        (folder / "cut.json", ["--parts", "methods,card", "--minutes", "0.005"]),
    )


def test_each_part_tells_what_it_measures(two_runs: tuple[list[Lines], str]) -> None:
    (lines, _), printed = two_runs
    ends = {line["part"]: line["status"] for line in lines if "status" in line}
    assert ends == dict.fromkeys(PARTS, "ok"), printed
    skipped = [line["part"] for line in lines if "skipped" in line]
    assert skipped == [part for part in PARTS if part in NEED_A_GPU]
    for name in CHEAP:
        assert any(line["part"] == name and "status" not in line for line in lines)
    assert all(json.dumps(line) in printed for line in lines)
    rates = [line for line in lines if line["part"] == "methods" and "what" in line]
    assert {"plain", "EMA", "WFN (Adam, clipped)"} <= {line["what"] for line in rates}
    assert all(line["ms_per_step"] > 0 for line in rates)


def test_a_part_is_cut_off_at_its_limit_and_the_next_one_runs(
    two_runs: tuple[list[Lines], str],
) -> None:
    (_, lines), printed = two_runs
    assert [line["status"] for line in lines if "status" in line] == [
        "cut off",
        "no time left",
    ], printed


@pytest.mark.slow
@pytest.mark.parametrize("part", ["train_224", "latency", "compile_224"])
def test_the_long_parts_too(part: str, tmp_path: Path) -> None:
    (lines,), printed = check((tmp_path / "gpu.json", ["--parts", part]))
    assert lines[-1]["status"] == "ok", printed
