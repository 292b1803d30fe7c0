"""`prune_channels` beside other ways to a model of the same latency, all tuned alike.

    python benchmarks/prune_channels.py MODEL DATA.yaml --out results/prune_channels.jsonl
        [--targets 0.5 0.35] [--seeds 0 1 2] [--images 2560] [--epochs 1] [--test 2000]
        [--fit '{optimizer: adamw, lr: 3.0e-4, batch_size: 32}']
    python benchmarks/prune_channels.py MODEL DATA.yaml --out results/prune_channels.jsonl --measure

MODEL is a folder that `ModelState.save` wrote, DATA.yaml the `data` part of its spec. Each way
leads to a model whose processor time in OpenVINO (one image a pass, one thread), measured in turns
with MODEL's, is as near to the target's share of it as the way comes. All are tuned on the same
images with the same loss, half of it the logits of MODEL. Finished runs in the file are left out,
so that it can be stopped at any time. Their models are kept in a folder beside it: `--measure`
times all of them in turns, for when the machine is quiet, and prints the means over seeds.
`--tables` only measures the layers, which decide what ours removes, and prints what is estimated of
a model beside what it takes, for a quiet machine too.

Ways: ours (Hessian importance, compensated), with-blocks (blocks go where the walk finds that worth
more), ours-blocks (of these two what says more nearly what MODEL says, which is the stage with
`blocks`), ours-plain (not compensated), tp-magnitude, tp-taylor, tp-isomorphic (torch-pruning's
pruners, one ratio), uniform (each group loses the same share, by magnitude), random-weights (the
shape of ours-blocks, trained from nothing). Cuts are the same for all seeds, which draw the order
and augmentation of the tuning.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import nn

from compress.channels.decide import Decider, layout_of, share_between
from compress.channels.importance import magnitude, normalised
from compress.channels.stage import PruneChannels
from compress.channels.surgery import cut_arch, cut_state, divergences
from compress.measure.latency import times_in_turns
from compress.measure.model import static_cost
from compress.measure.options import RuntimeOptions
from compress.runtimes.registry import session
from compress.stage import Context
from trainers.config import DataConfig
from trainers.data.splits import Data, load_data
from trainers.models.arch import ModelState
from trainers.models.cut_model import Cut
from trainers.training.evaluate import evaluate
from trainers.training.losses import TaskObjective

CPU = torch.device("cpu")
Make = Callable[..., ModelState]
"""(share that stays, compensate=False) → a cut model."""
OPENVINO = RuntimeOptions(runtime="openvino", batch_size=1, threads=1)


class Judged(NamedTuple):
    """What a model does on the test part, percent."""

    accuracy: float
    auroc: float


class Bench:
    """One model, its data, and how all ways are tuned."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model = ModelState.load(options.model)
        written = yaml.safe_load(options.data.read_text())
        config = DataConfig.model_validate({**written, "limit_test": options.test})
        self.data: Data = load_data(config, options.cache)
        self.size = self.data.info.image_size
        self.images = np.zeros((1, 3, self.size, self.size), np.float32)
        self.folder = options.out.with_suffix("")
        self.before: dict[tuple[str, float], Judged] = {}
        self.better: dict[float, int] = {}
        self.scores: np.ndarray | None = None

    def pass_of(self, state: ModelState) -> Callable[[], float]:
        return session(state, self.size, OPENVINO).timed_pass(self.images)

    def ratio(self, state: ModelState) -> float:
        """Processor time over the whole model's, passes in turns: the share is looked for while
        other processes run, and latencies are measured at the end.
        """

        def pass_of(state: ModelState) -> Callable[[], float]:
            run = self.pass_of(state)

            def timed() -> float:
                begin = time.process_time()
                for _ in range(5):
                    run()
                return time.process_time() - begin

            return timed

        passes = [pass_of(self.model), pass_of(state)]
        times = times_in_turns(passes, warmup=3, rounds=40, max_seconds=30)
        whole, small = np.percentile(times, 25, axis=1)
        return float(small / whole)

    def decider(self, stage: PruneChannels) -> Decider:
        layout = layout_of(self.model.arch, self.size)
        return Decider(self.model, layout, stage, self.context(0, self.folder))

    def at_latency(self, make: Callable[[float], ModelState], target: float) -> float:
        """What makes the model whose time is nearest to the target, above it by 2 % at most where
        there is such a one.

        Args:
            make: a number between 0 and 1 → a model; more costs more.
        """
        seen: dict[float, float] = {}
        number = target
        for _ in range(6):
            seen[number] = self.ratio(make(number))
            print("  ", round(number, 3), round(seen[number], 3), flush=True)
            if abs(seen[number] / target - 1) < 0.03:
                break
            number = share_between(seen, target)
        fitting = {x: ratio for x, ratio in seen.items() if ratio <= 1.02 * target}
        return min(fitting or seen, key=lambda x: abs(seen[x] - target))

    def context(self, seed: int, folder: str | Path) -> Context:
        return Context(
            self.data, CPU, seed, Path(folder), lambda name, checkpoint: self.model
        )

    def stage(self, target: float, **changes: Any) -> PruneChannels:
        options = self.options
        fit = {
            "batch_size": 128,
            "optimizer": "sgd",
            "lr": 0.04,
            "weight_decay": 5e-4,
            "augment": "flip",
            "warmup": 0,
            "epochs": options.epochs,
        }
        return PruneChannels(
            target={"latency": target},
            latency=OPENVINO,
            images_per_epoch=options.images,
            channels_last=True,
            multiple=options.multiple,
            **fit | yaml.safe_load(options.fit) | changes,
        )

    def tuned(self, state: ModelState, seed: int) -> ModelState:
        stage = self.stage(0.5)
        with tempfile.TemporaryDirectory() as folder:
            return stage._tuned(state, self.model, self.context(seed, folder))

    def judged(self, state: ModelState) -> Judged:
        """On the test part, percent."""
        found = evaluate(state.build(), self.data, "test", CPU)
        auroc = found.get("auroc", float("nan"))
        return Judged(100 * found["accuracy"], 100 * auroc)


def ours(bench: Bench, with_blocks: bool = False, **changes: Any) -> Make:
    stage = bench.stage(0.5, epochs=0, blocks=with_blocks, **changes)
    decider = bench.decider(stage)
    layout, ctx = decider.layout, decider.ctx
    if bench.scores is None:
        bench.scores = stage._scores(bench.model.build(), layout, ctx)
    scores = normalised(bench.scores, layout, stage.normalisation)

    def make(share: float, compensate: bool = False) -> ModelState:
        decision = decider.choose(scores, share, with_blocks=with_blocks)
        found = stage if compensate else stage.model_copy(update={"compensate": False})
        return found._cut(bench.model, layout, decision, ctx)

    return make


def uniform(bench: Bench) -> Make:
    layout = layout_of(bench.model.arch, bench.size)
    scores = magnitude(bench.model.build(), layout)

    def make(share: float, compensate: bool = False) -> ModelState:
        keep = np.ones(layout.num_units, bool)
        for group in layout.groups:
            order = group.units[np.argsort(scores[group.units], kind="stable")]
            least = max(1, round(share * len(order)))
            keep[order[: len(order) - least]] = False
        return cut_state(bench.model, layout, keep)

    return make


def whole_layers(model: ModelState, module: nn.Module) -> list[nn.Module]:
    """What torch-pruning must leave alone: the classifier. Its graph does not follow the padded
    shortcuts of the ResNets of CIFAR-10, so that their residual stream stays whole, too.
    """
    classifiers = ("classifier", "linear")
    padded = model.arch.builder == "resnet_cifar"
    return [
        layer
        for path, layer in module.named_modules()
        if path in classifiers or (padded and (path == "conv1" or "conv2" in path))
    ]


def torch_pruning(kind: str) -> Callable[[Bench], Make]:
    """torch-pruning's pruners."""

    def way(bench: Bench) -> Make:
        import torch_pruning

        whole = bench.model.build()
        classes = {
            "magnitude": torch_pruning.importance.GroupMagnitudeImportance(p=2),
            "taylor": torch_pruning.importance.GroupTaylorImportance(),
            "isomorphic": torch_pruning.importance.GroupTaylorImportance(),
        }

        if kind != "magnitude":
            for images, labels in bench.context(0, bench.folder).batches(4, 128):
                TaskObjective(0.0)(whole, images, labels).backward()

        def make(share: float, compensate: bool = False) -> ModelState:
            module = bench.model.build()
            for mine, theirs in zip(
                module.parameters(), whole.parameters(), strict=True
            ):
                mine.grad = None if theirs.grad is None else theirs.grad.clone()
            pruner = torch_pruning.pruner.BasePruner(
                module,
                torch.zeros(1, 3, bench.size, bench.size),
                importance=classes[kind],
                pruning_ratio=min(1 - share, 0.9),
                max_pruning_ratio=0.9,
                ignored_layers=whole_layers(bench.model, module),
                global_pruning=kind != "magnitude",
                isomorphic=kind == "isomorphic",
            )
            pruner.step()
            return as_cut(bench.model, whole, module)

        return make

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
    groups = {
        path: {"groups": layer.groups}
        for path, layer in small.named_modules()
        if isinstance(layer, nn.Conv2d)
        and layer.groups != whole.get_submodule(path).groups
    }
    return ModelState.from_module(cut_arch(model.arch, Cut(shapes, groups)), small)


WAYS: dict[str, Callable[[Bench], Make]] = {
    "ours": ours,
    "tp-magnitude": torch_pruning("magnitude"),
    "tp-taylor": torch_pruning("taylor"),
    "tp-isomorphic": torch_pruning("isomorphic"),
    "uniform": uniform,
    "ours-plain": lambda bench: ours(bench, compensate=False),
    "with-blocks": lambda bench: ours(bench, with_blocks=True),
    "ours-isomorphic": lambda bench: ours(bench, normalisation="isomorphic"),
}


BETTER_OF = ("ours", "with-blocks")
ALL_WAYS = [*WAYS, "ours-blocks", "random-weights"]


def better_cut(bench: Bench, target: float) -> ModelState:
    """What the stage with `blocks` takes: of two cuts the one that changed less."""
    cuts = [cut_model(bench, way, target) for way in BETTER_OF]
    if target not in bench.better:
        ctx = bench.context(0, bench.folder)
        images = ctx.images(bench.stage(0.5).importance_images)
        changed = divergences(bench.model, cuts, images, CPU)
        print(f"ours-blocks-{target}", dict(zip(BETTER_OF, changed, strict=True)))
        bench.better[target] = changed.index(min(changed))
    return cuts[bench.better[target]]


def cut_model(bench: Bench, way: str, target: float) -> ModelState:
    """What a way cuts, made once: no draw has a part in it."""
    if way in ("random-weights", "ours-blocks"):
        return better_cut(bench, target)
    folder = bench.folder / f"{way}-{target}"
    if not folder.exists():
        begin = time.process_time()
        make = WAYS[way](bench)
        print(folder.name, flush=True)
        state = make(bench.at_latency(make, target), compensate=True)
        print("  cut in", round(time.process_time() - begin, 1), "s", flush=True)
        state.save(folder)
    return ModelState.load(folder)


def tuned_row(bench: Bench, way: str, target: float, seed: int) -> dict[str, Any]:
    """Accuracy of one way's model before and after it is tuned."""
    state = cut_model(bench, way, target)
    if way == "random-weights":
        state = ModelState.initialised(state.arch, seed)
    elif (way, target) not in bench.before:
        bench.before[way, target] = bench.judged(state)
    chance = Judged(100 / bench.data.info.num_classes, 50.0)
    before = bench.before.get((way, target), chance)
    begin = time.perf_counter()
    tuned = bench.tuned(state, seed)
    seconds = round(time.perf_counter() - begin, 1)
    after = bench.judged(tuned)
    return {
        **static_cost(state.arch, bench.size),
        "before": before.accuracy,
        "before_auroc": before.auroc,
        "after": after.accuracy,
        "after_auroc": after.auroc,
        "seconds": seconds,
    }


def measure(bench: Bench, rows: list[dict[str, Any]]) -> None:
    """Time what was cut, in turns, and print a line for each way and target."""
    found = sorted({(row["target"], row["way"]) for row in rows}, reverse=True)
    cuts = [cut_model(bench, way, target) for target, way in found]
    passes = [bench.pass_of(state) for state in (bench.model, *cuts)]
    times = np.array(times_in_turns(passes, warmup=3, rounds=100, max_seconds=60))
    print(f"whole model: {np.median(times[0]):.3f} ms")
    for (target, way), column in zip(found, times[1:], strict=True):
        mine = [row for row in rows if (row["target"], row["way"]) == (target, way)]
        after = [row["after"] for row in mine]
        low, ratio, high = np.percentile(column / times[0], (25, 50, 75))
        spread = np.std(after, ddof=1) if len(after) > 1 else 0.0
        print(
            f"{target} {way}: before {np.mean([row['before'] for row in mine]):.2f} %,"
            f" after {np.mean(after):.2f} ± {spread:.2f} % (n = {len(mine)}),"
            f" AUROC {np.mean([row['after_auroc'] for row in mine]):.2f} %,"
            f" latency {ratio:.3f} ({low:.3f} to {high:.3f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--out", type=Path, default=Path("results/prune_channels.jsonl")
    )
    parser.add_argument("--cache", type=Path, default=Path("data-cache"))
    parser.add_argument("--ways", nargs="+", default=ALL_WAYS, choices=ALL_WAYS)
    parser.add_argument("--targets", nargs="+", type=float, default=[0.5, 0.35])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--multiple", type=int, default=None)
    parser.add_argument("--fit", default="{}", help="options of the tuning, as YAML")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options)
    settings = {
        "images": options.images,
        "epochs": options.epochs,
        "test": options.test,
        "multiple": options.multiple,
        "fit": options.fit,
    }
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    rows = [json.loads(line) for line in lines]
    if options.tables:
        make = WAYS["with-blocks"](bench)
        for share in (0.8, 0.65, 0.5, 0.35):
            print(f"estimated {share}: {bench.ratio(make(share)):.2f}", flush=True)
        return
    if options.measure:
        measure(bench, [row for row in rows if settings.items() <= row.items()])
        return
    names = ("way", "target", "seed", *settings)
    done = {tuple(row[name] for name in names) for row in rows}
    for seed, target, way in product(options.seeds, options.targets, options.ways):
        key = (way, target, seed, *settings.values())
        if key in done:
            continue
        row = dict(zip(names, key, strict=True)) | tuned_row(bench, way, target, seed)
        print(row, flush=True)
        with options.out.open("a") as out:
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
