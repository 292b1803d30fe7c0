"""The parts of `benchmarks/gpu_check.py`, in order of worth; each measures one thing and sends
lines of plain values.
"""

import importlib
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_bench import Bench, matmul_tflops

ROOT = Path(__file__).parents[1]


def card(bench: Bench) -> None:
    """What the device is, and two ceilings: a matrix product and a copy."""
    line: dict[str, Any] = {
        "torch": torch.__version__,
        "device": bench.device.type,
        "tiny": bench.tiny,
    }
    if bench.cuda:
        props = torch.cuda.get_device_properties(0)
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        line |= {
            "name": props.name,
            "memory_gib": round(props.total_memory / 2**30, 1),
            "multiprocessors": props.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
        if shutil.which(asked[0]):
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
            line["driver"] = done.stdout.strip()
    count = bench.size(2**30, 2**20)
    source, target = (
        torch.ones(count, dtype=torch.uint8, device=bench.device) for _ in range(2)
    )
    seconds = []
    for _ in range(10):
        begin = bench.now()
        target.copy_(source)
        seconds.append(bench.now() - begin)
    copied = 2 * count / statistics.median(seconds[3:])
    bench.emit(
        line
        | {
            "bf16_matmul_tflops": round(matmul_tflops(bench, bench.size(8192, 128)), 3),
            "copy_gb_per_s": round(copied / 1e9),
        }
    )


def tests(bench: Bench) -> None:
    """The tests that need a CUDA device."""
    if not bench.cuda:
        bench.emit({"skipped": "no CUDA device"})
        return
    files = [
        str(f)
        for f in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.gpu" in f.read_text()
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-o",  # the project's own options need plugins that may not be there
            "addopts=--import-mode=importlib -q",
            "--continue-on-collection-errors",  # files that need other libraries
            "-m",
            "gpu",
            "-p",
            "no:cacheprovider",
            "--tb=short",
            *files,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-6000:], done.stderr[-2000:], sep="\n", flush=True)
    bench.emit(
        {
            "returncode": done.returncode,
            "files": len(files),
            "last_line": done.stdout.strip().splitlines()[-1],
        }
    )


@dataclass(frozen=True)
class Part:
    """A part: its module and function there, and the seconds after which it is killed."""

    module: str
    function: str
    limit_s: float

    def run(self, bench: Bench) -> None:
        """Imported here: a part whose libraries are not there fails alone."""
        function: Callable[[Bench], None] = getattr(
            importlib.import_module(self.module), self.function
        )
        function(bench)


_HERE = __name__
PARTS = {
    "card": Part(_HERE, "card", 30),
    "tests": Part(_HERE, "tests", 75),
    "syncs": Part("gpu_hooks", "syncs", 40),
    "train_224": Part("gpu_training", "train_224", 110),
    "vit_32": Part("gpu_training", "vit_32", 60),
    "methods": Part("gpu_training", "methods", 80),
    "latency": Part("gpu_inference", "latency", 90),
    "sparse": Part("gpu_inference", "sparse", 40),
    "clustering": Part("gpu_inference", "clustering", 50),
    "sharded": Part("gpu_sharded", "sharded", 40),
    "compile_224": Part("gpu_training", "compile_224", 130),
    "precision": Part("gpu_inference", "precision", 40),
}
"""Name → part, in order of worth."""
