"""How long does it take to find what belongs together in a model, and to choose what stays?

    python benchmarks/channels_decision.py [MODEL ...] [--size 224]

Both on the CPU, one thread, five times after one that is not counted; medians. The choice is of all
groups, to half of the multiply-accumulates, by random importance.
"""

import argparse
import time

import numpy as np
import torch

from compress.channels.choice import Choice
from compress.channels.cost import macs
from compress.channels.importance import random_scores
from compress.channels.layout import Layout
from compress.channels.stage import PruneChannels
from trainers.models.make import make_arch

_TIMES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["resnet50"])
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models:
        arch = make_arch(name, num_classes=1000, image_size=options.size)
        seconds: list[list[float]] = [[], []]
        for _ in range(1 + _TIMES):
            begin = time.perf_counter()
            layout = Layout.of(arch, options.size)
            seconds[0].append(time.perf_counter() - begin)
            cost = macs(layout)
            rules = PruneChannels().rules(layout)
            scores = random_scores(layout, 0)
            half = 0.5 * float(cost.of(np.ones((1, len(layout.groups))))[0])
            begin = time.perf_counter()
            Choice(layout.groups, rules, scores, cost).to(half)
            seconds[1].append(time.perf_counter() - begin)
        follow, choose = (float(np.median(each[1:])) for each in seconds)
        print(
            f"{name}: {len(layout.groups)} groups of {layout.num_units} units;"
            f" followed in {follow:.2f} s, chosen in {1000 * choose:.1f} ms"
        )


if __name__ == "__main__":
    main()
