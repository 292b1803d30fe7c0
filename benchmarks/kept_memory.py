"""What it gives a trial on a CPU that its process keeps the memory that it frees (see
`sweeps.drive.cluster.keeping_freed_memory`): milliseconds of an image, in evaluation and in a
training step, with and without, in processes that take turns.

    python benchmarks/kept_memory.py tf_efficientnet_lite0 resnet18 --turns 5
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

_CHILD = "KEPT_MEMORY_CHILD"
_IMAGES = 32
_ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="names of timm's")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    if os.environ.get(_CHILD):
        # as Tune runs a trial: not in the first thread
        thread = threading.Thread(target=_measure, args=(options,))
        thread.start()
        thread.join()
        return
    for model in options.models:
        _compare(model, options.image_size, options.turns)


def _compare(model: str, image_size: int, turns: int) -> None:
    from sweeps.drive.cluster import keeping_freed_memory

    found: dict[str, list[dict[str, float]]] = {"given back": [], "kept": []}
    for _ in range(turns):
        found["given back"].append(_in_process(model, image_size))
        with keeping_freed_memory():
            found["kept"].append(_in_process(model, image_size))
    for name in found["kept"][0]:
        sides = {side: [row[name] for row in rows] for side, rows in found.items()}
        ratios = [a / b for a, b in zip(*sides.values(), strict=True)]
        said = "; ".join(
            f"{side} {statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"
            for side, values in sides.items()
        )
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(
            f"{model} {name}: {said}; ratio {statistics.median(ratios):.2f} ({spread})"
        )


def _in_process(model: str, image_size: int) -> dict[str, float]:
    command = [sys.executable, __file__, model, "--image-size", str(image_size)]
    done = subprocess.run(
        command, env=os.environ | {_CHILD: "1"}, capture_output=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(options: argparse.Namespace) -> None:
    import torch

    from trainers.timm_library import timm

    torch.set_num_threads(1)
    layout = torch.channels_last
    model = timm.create_model(options.models[0], num_classes=10).to(
        memory_format=layout
    )
    size = options.image_size
    images = torch.randn(_IMAGES, 3, size, size).contiguous(memory_format=layout)

    def evaluate() -> None:
        with torch.no_grad():
            model(images)

    def train() -> None:
        model(images).square().mean().backward()

    model.eval()
    evaluated = _milliseconds(evaluate)
    model.train()
    found = {
        "evaluation, ms an image": evaluated,
        "training, ms an image": _milliseconds(train),
        "most memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }
    print(json.dumps(found))


def _milliseconds(work: Callable[[], None]) -> float:
    """Of the thread's own time, an image's share of the fastest pass after a first one."""
    work()
    times = []
    for _ in range(_ROUNDS):
        begun = time.thread_time()
        work()
        times.append(time.thread_time() - begun)
    return 1e3 * min(times) / _IMAGES


if __name__ == "__main__":
    main()
