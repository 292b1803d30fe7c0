"""The parts of `benchmarks/gpu_check.py`, in order of worth; each measures one thing and sends
lines of plain values.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_bench import Bench, matmul_tflops
from gpu_hooks import syncs
from gpu_inference import clustering, latency, precision, sparse
from gpu_training import compile_224, methods, train_224, vit_32

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
            "driver": subprocess.run(
                asked, capture_output=True, text=True, check=True
            ).stdout.strip(),
        }
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
    """A part, and the seconds after which it is killed."""

    run: Callable[[Bench], None]
    limit_s: float


PARTS = {
    "card": Part(card, 30),
    "tests": Part(tests, 75),
    "syncs": Part(syncs, 40),
    "train_224": Part(train_224, 110),
    "vit_32": Part(vit_32, 60),
    "methods": Part(methods, 80),
    "latency": Part(latency, 90),
    "sparse": Part(sparse, 40),
    "clustering": Part(clustering, 50),
    "compile_224": Part(compile_224, 130),
    "precision": Part(precision, 40),
}
"""Name → part, in order of worth."""
