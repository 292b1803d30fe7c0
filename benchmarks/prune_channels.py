"""`prune_channels` beside other ways to a model of the same latency, all tuned alike.

    python benchmarks/prune_channels.py MODEL DATA.yaml --out results/prune_channels.jsonl
        [--targets 0.5 0.35] [--seeds 0 1 2] [--images 6400] [--epochs 2] [--test 2000]

MODEL is a folder that `ModelState.save` wrote, DATA.yaml the `data` part of its spec. Each way
leads to a model of the same latency by the measured table of layers (OpenVINO, one image a pass,
one thread), chosen so that ours takes the target's share of MODEL's; what each takes is measured,
too. All are tuned on the same images with the same loss, half of it the logits of MODEL. Finished
runs in the file are left out, so that it can be stopped at any time.

Ways: ours (Hessian importance, compensated), ours-blocks (blocks may go), ours-plain (not
compensated), tp-magnitude, tp-taylor, tp-isomorphic (torch-pruning's pruners, one
ratio, as high as the latency asks), uniform (each group loses the same
share, by magnitude), random-weights (the shape of ours, trained from nothing).
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from compress.channels import latency
from compress.channels.decide import Decider, layout_of
from compress.channels.importance import magnitude, normalised
from compress.channels.layout import Layout
from compress.channels.stage import PruneChannels
from compress.channels.surgery import cut_arch, cut_state
from compress.measure.latency import times_in_turns
from compress.measure.model import static_cost
from compress.measure.options import RuntimeOptions
from compress.runtimes.registry import session
from compress.stage import Context
from trainers.config import DataConfig
from trainers.data.splits import Data, eval_batches, load_data
from trainers.models.arch import ModelState
from trainers.models.cut_model import Cut
from trainers.training.losses import TaskObjective

CPU = torch.device("cpu")
OPENVINO = RuntimeOptions(runtime="openvino", batch_size=1, threads=1)


class Bench:
    """One model, its data, and how all ways are tuned."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model = ModelState.load(options.model)
        config = DataConfig.model_validate(yaml.safe_load(options.data.read_text()))
        self.data: Data = load_data(config, options.cache)
        self.size = self.data.info.image_size
        self.images = np.zeros((1, 3, self.size, self.size), np.float32)
        self.tables = options.out.with_suffix(".layers.json")
        latency.read_tables(self.tables)
        self.whole = self._pass(self.model)

    def _pass(self, state: ModelState) -> Callable[[], float]:
        return session(state, self.size, OPENVINO).timed_pass(self.images)

    def ratio(self, state: ModelState, rounds: int = 40) -> float:
        """Latency over the whole model's, passes in turns; the lower quartiles, which other
        processes disturb least.
        """
        times = times_in_turns(
            [self.whole, self._pass(state)], warmup=3, rounds=rounds, max_seconds=20
        )
        whole, small = np.percentile(times, 25, axis=1)
        return float(small / whole)

    def decider(self, stage: PruneChannels, ctx: Context) -> Decider:
        layout = layout_of(self.model.arch, self.size)
        rules = stage.rules(layout)
        found = Decider(
            self.model, layout, stage.target, OPENVINO, rules, ctx, blocks=stage.blocks
        )
        latency.write_tables(self.tables)
        return found

    def share(self, target: float) -> float:
        """The estimated share of the cost at which ours takes the target's share of the time; all
        ways are cut to it.
        """
        file = self.options.out.with_suffix(".shares.json")
        known = json.loads(file.read_text()) if file.exists() else {}
        share = known.get(str(target))
        for _ in range(0 if share else 3):
            share = share or target
            ratio = self.ratio(ours(self, share, 0))
            print("share", target, share, ratio, flush=True)
            if abs(ratio / target - 1) < 0.03:
                break
            share *= target / ratio
        file.write_text(json.dumps(known | {str(target): share}))
        return float(share)

    def at_cost(self, make: Callable[[float], ModelState], share: float) -> ModelState:
        """The model of the pruning ratio at which the estimated cost is at its limit."""
        layout = layout_of(self.model.arch, self.size)
        with tempfile.TemporaryDirectory() as folder:
            decider = self.decider(self.stage(0.5), self.context(0, folder))
        low, high = 0.0, 0.99
        for _ in range(12):
            middle = (low + high) / 2
            cost = decider.cost.of(shares_of(layout, make(middle))[None])[0]
            above = cost > share * decider.full
            low, high = (middle, high) if above else (low, middle)
        return make(high)

    def context(self, seed: int, folder: str) -> Context:
        return Context(
            self.data, CPU, seed, Path(folder), lambda name, checkpoint: self.model
        )

    def stage(self, target: float, **changes: Any) -> PruneChannels:
        options = self.options
        return PruneChannels(
            target={"latency": target},
            latency=OPENVINO,
            batch_size=128,
            images_per_epoch=options.images,
            warmup=0,
            optimizer="sgd",
            lr=0.04,
            weight_decay=5e-4,
            augment="flip",
            multiple=options.multiple,
            **{"epochs": options.epochs} | changes,
        )

    def tuned(self, state: ModelState, seed: int) -> ModelState:
        stage = self.stage(0.5)
        with tempfile.TemporaryDirectory() as folder:
            return stage._tuned(state, self.model, self.context(seed, folder))

    @torch.inference_mode()
    def accuracy(self, state: ModelState) -> float:
        """Of the first test images, %."""
        module = state.build()
        right = count = 0
        for images, labels in eval_batches(self.data, "test", 250, CPU):
            right += int((module(images).argmax(1) == labels).sum())
            count += len(labels)
            if count >= self.options.test:
                break
        return 100 * right / count


def shares_of(layout: Layout, state: ModelState) -> np.ndarray:
    """Shares of each group's units that a cut model has (G,)."""
    return np.array(
        [
            state.weights[group.axes[0][0]].shape[group.axes[0][1]]
            / layout.shapes[group.axes[0][0]][group.axes[0][1]]
            for group in layout.groups
        ]
    )


def ours(bench: Bench, target: float, seed: int, **changes: Any) -> ModelState:
    stage = bench.stage(0.5, epochs=0, **changes)
    with tempfile.TemporaryDirectory() as folder:
        ctx = bench.context(seed, folder)
        decider = bench.decider(stage, ctx)
        module, layout = bench.model.build(), decider.layout
        scores = stage._scores(module, layout, ctx)
        decision = decider.choose(
            normalised(scores, layout, stage.normalisation), target
        )
        return stage._cut(bench.model, layout, decision, ctx)


def uniform(bench: Bench, target: float, seed: int) -> ModelState:
    layout = layout_of(bench.model.arch, bench.size)
    scores = magnitude(bench.model.build(), layout)

    def make(ratio: float) -> ModelState:
        keep = np.ones(layout.num_units, bool)
        for group in layout.groups:
            order = group.units[np.argsort(scores[group.units], kind="stable")]
            keep[order[: min(len(order) - 1, round(ratio * len(order)))]] = False
        return cut_state(bench.model, layout, keep)

    return bench.at_cost(make, target)


def random_weights(bench: Bench, target: float, seed: int) -> ModelState:
    return ModelState.initialised(ours(bench, target, seed).arch, seed)


def torch_pruning(kind: str) -> Callable[[Bench, float, int], ModelState]:
    """torch-pruning's pruners. Its graph does not follow the padded shortcuts of this ResNet, so
    that the residual stream stays whole.
    """

    def way(bench: Bench, target: float, seed: int) -> ModelState:
        import torch_pruning

        whole = bench.model.build()
        classes = {
            "magnitude": torch_pruning.importance.GroupMagnitudeImportance(p=2),
            "taylor": torch_pruning.importance.GroupTaylorImportance(),
            "isomorphic": torch_pruning.importance.GroupTaylorImportance(),
        }

        def make(ratio: float) -> ModelState:
            module = bench.model.build()
            if kind != "magnitude":
                with tempfile.TemporaryDirectory() as folder:
                    for images, labels in bench.context(seed, folder).batches(4):
                        TaskObjective(0.0)(module, images, labels).backward()
            stream = [
                layer
                for path, layer in module.named_modules()
                if path.endswith("conv2") or path in ("conv1", "linear")
            ]
            pruner = torch_pruning.pruner.BasePruner(
                module,
                torch.zeros(1, 3, bench.size, bench.size),
                importance=classes[kind],
                pruning_ratio=ratio,
                ignored_layers=stream,
                global_pruning=kind != "magnitude",
                isomorphic=kind == "isomorphic",
            )
            pruner.step()
            return as_cut(bench.model, whole, module)

        return bench.at_cost(make, target)

    return way


def as_cut(model: ModelState, whole: nn.Module, small: nn.Module) -> ModelState:
    """A smaller module of the same names as a model of ours."""
    before = whole.state_dict()
    after = small.state_dict()
    shapes = {
        name: list(tensor.shape)
        for name, tensor in after.items()
        if tensor.shape != before[name].shape
    }
    return ModelState.from_module(cut_arch(model.arch, Cut(shapes)), small)


WAYS: dict[str, Callable[[Bench, float, int], ModelState]] = {
    "ours": ours,
    "tp-magnitude": torch_pruning("magnitude"),
    "tp-taylor": torch_pruning("taylor"),
    "tp-isomorphic": torch_pruning("isomorphic"),
    "uniform": uniform,
    "random-weights": random_weights,
    "ours-plain": lambda b, t, s: ours(b, t, s, compensate=False),
    "ours-blocks": lambda b, t, s: ours(b, t, s, blocks=True),
    "ours-isomorphic": lambda b, t, s: ours(b, t, s, normalisation="isomorphic"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--out", type=Path, default=Path("results/prune_channels.jsonl")
    )
    parser.add_argument("--cache", type=Path, default=Path("data-cache"))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--targets", nargs="+", type=float, default=[0.5, 0.35])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=6400)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--multiple", type=int, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options)
    settings = {
        "images": options.images,
        "epochs": options.epochs,
        "test": options.test,
        "multiple": options.multiple,
    }
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    names = ("way", "target", "seed", *settings)
    done = {tuple(json.loads(line)[name] for name in names) for line in lines}
    for seed in options.seeds:
        for target in options.targets:
            for way in options.ways:
                key = (way, target, seed, *settings.values())
                if key in done:
                    continue
                bench.share(target)
                begin = time.perf_counter()
                state = WAYS[way](bench, bench.share(target), seed)
                cut_seconds = time.perf_counter() - begin
                row = {
                    "way": way,
                    "target": target,
                    "seed": seed,
                    **settings,
                    "ratio": round(bench.ratio(state), 4),
                    **static_cost(state.arch, bench.size),
                    "before": bench.accuracy(state),
                    "seconds_cut": round(cut_seconds, 1),
                }
                begin = time.perf_counter()
                row["after"] = bench.accuracy(bench.tuned(state, seed))
                row["seconds_tuned"] = round(time.perf_counter() - begin, 1)
                print(row, flush=True)
                with options.out.open("a") as out:
                    out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
