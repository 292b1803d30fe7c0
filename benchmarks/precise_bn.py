"""What `finetune.precise_bn_images` does to a model that was cut and tuned for a few steps.

    python benchmarks/precise_bn.py PAIRS.yaml PAIR --macs 0.5 --images 800 --lr 1e-4 --seeds 4

PAIRS.yaml is that of `benchmarks/shrink.py`. The model of the pair is cut as `sweeps shrink` cuts
it, tuned with the original as its teacher, and evaluated with the means and variances that its
BatchNorms kept in training, and with those that they take anew from training images: the same
weights both times. A line for each seed: accuracy in percent on validation and test part. Then what
is gained on both parts together, with a 95 % interval over the seeds. All cores are used.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import yaml
from shrink_ways import CPU, Task

from analysis.differences import interval
from compress.channels.stage import PruneChannels
from compress.compensation import recalibrate
from compress.finetune import Finetune
from trainers.config import DistillConfig
from trainers.models.arch import ModelState
from trainers.training.evaluate import evaluate

LOOKED_AT = 256
"""Training images by which the cut is decided and mended."""
PARTS = ("val", "test")


def main() -> None:
    given = arguments()
    pair = yaml.safe_load(given.pairs_file.read_text())[given.pair]
    paths = given.pairs_file.parent
    folder, data = paths / pair["model"], paths / pair["data"]
    tasks = [Task(folder, data, {}, seed, "1%", 0.0) for seed in range(given.seeds)]
    cut = PruneChannels(
        epochs=0,
        importance_images=LOOKED_AT,
        compensate_images=LOOKED_AT,
        blocks=True,
        target={"macs": given.macs},
    )
    first = tasks[0]
    with tempfile.TemporaryDirectory() as scratch:
        start = cut.run(first.state, first.context(Path(scratch)))
    print("source", *accuracies(first, first.state), "cut", *accuracies(first, start))
    gains = np.array([gained(task, start, given) for task in tasks])
    mean, low, high = interval(gains)
    print(
        f"gained {mean:+.2f} points ({low:+.2f} to {high:+.2f}), {given.seeds} seeds, on"
        f" {sum(first.data.size(part) for part in PARTS)} images"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs_file", type=Path)
    parser.add_argument("pair")
    parser.add_argument("--macs", type=float, default=0.5, help="share that is left")
    parser.add_argument("--images", type=int, default=800, help="of the tuning")
    parser.add_argument("--lr", type=float, default=1e-4, help="of the tuning")
    parser.add_argument("--norms", type=int, default=512, help="images of BatchNorms")
    parser.add_argument("--seeds", type=int, default=4)
    return parser.parse_args()


def gained(task: Task, start: ModelState, given: argparse.Namespace) -> float:
    """Points of accuracy on both parts that the norms' own images gain."""
    options = task.training.model_dump(exclude_unset=True) | {
        "epochs": 1,
        "images_per_epoch": given.images,
        "lr": given.lr,
        "distill": DistillConfig(teacher="source", kind="soft", alpha=0.5, tau=2.0),
    }
    with tempfile.TemporaryDirectory() as scratch:
        context = task.context(Path(scratch))
        tuned = Finetune(**options).run(start, context)
        before = accuracies(task, tuned)
        module = tuned.build()
        recalibrate(module, context.images(given.norms))
    after = accuracies(task, ModelState.from_module(tuned.arch, module, tuned.meta))
    print("seed", task.seed, "kept", *before, "anew", *after, flush=True)
    images = [task.data.size(part) for part in PARTS]
    return float(np.average(np.subtract(after, before), weights=images))


def accuracies(task: Task, state: ModelState) -> list[float]:
    """Percent on validation and test part."""
    module = state.build()
    found = [evaluate(module, task.data, part, CPU) for part in PARTS]
    return [round(100 * each["accuracy"], 2) for each in found]


if __name__ == "__main__":
    main()
