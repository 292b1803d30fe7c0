"""Learngenes on the bundled digits: which start is best for a descendant, and what five sizes cost.

    python benchmarks/learngene_digits.py [--workdir DIR] [--seeds 3] [--aux-epochs 40]
    [--epochs 2] [--rows FILE]

A teacher ViT is trained once, then for each seed the auxiliary networks of SWS, LeTs, TLEG,
WAVE and SWEET, with soft distillation from it (alpha 1). First tables: descendants of eight sizes
from each start, all trained for the same few epochs on labels alone (of WAVE and SWEET the first
one trains the scalers), test accuracy (360 images) with the learning rate that was best on the
validation part. Then: five descendants of SWS (depths) and of LeTs (widths and depths), each
trained so, against five trainings from scratch, each as long as it needs: the shortest of a
ladder of whole schedules that reaches the descendant's accuracy less one point. Cost is images
that networks were trained on, and seconds of processor time. `--workdir` keeps all that is
finished, so that it goes on where it stopped. Set OMP_NUM_THREADS=1.

`--starts wave sweet` adds these starts to the rows of an earlier run.
`--published-rates` sets the learning rate once an epoch, as the published loops of SWS and LeTs
do, in auxiliary networks and descendants, and lets descendants begin without warm-up;
`--scratch-from FILE` takes the trainings from scratch, which are as before, from an earlier run's
rows; `--costs-only` leaves the first tables out.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from compress.finetune import Finetune
from compress.learngene.lets import LetsAux, LetsExpand
from compress.learngene.sweet import SweetAux, SweetExpand
from compress.learngene.sws import SwsAux, SwsExpand
from compress.learngene.tleg import TlegAux, TlegExpand
from compress.learngene.wave import WaveAux, WaveExpand
from compress.selection.random_init import RandomInit
from compress.selection.stage import WeightSelection
from compress.stage import Context, Stage
from trainers.config import DataConfig
from trainers.data.splits import Data, load_data
from trainers.models.arch import ModelState
from trainers.models.make import make_arch
from trainers.training.evaluate import evaluate

CPU = torch.device("cpu")
SHAPE = {"patch_size": 8, "class_token": False, "global_pool": "avg"}
TEACHER = SHAPE | {"embed_dim": 64, "depth": 4, "num_heads": 4}
TRAIN: dict[str, Any] = {
    "batch_size": 32,
    "lr": 1e-3,
    "lr_scaling": "unscaled",
    "warmup": "10%",
    "augment": "none",
}
AUX: dict[str, Any] = TRAIN | {
    "patch_size": 8,
    "drop_path": None,
    "distill": {"teacher": "teacher", "kind": "soft", "alpha": 1.0},
}
LARGE = {"embed_dim": 64, "num_heads": 4, "depth": 8}
AUXILIARIES: dict[str, tuple[type[Stage], dict[str, Any]]] = {
    "sws": (SwsAux, {"embed_dim": 48, "num_heads": 3, "repeats": (2, 2, 2)}),
    "lets": (LetsAux, LARGE | {"gene_dim": 32}),
    "tleg": (TlegAux, {"embed_dim": 48, "num_heads": 3, "depth": 6}),
    "wave": (WaveAux, LARGE | {"template_dim": 16, "num_templates": 16}),
    "sweet": (SweetAux, LARGE | {"ranks": (32, 40, 40)}),
}
SCALERS: dict[str, Any] = TRAIN | {
    "epochs": 1,
    "eval_every": 1,
    "checkpoint_every": 1,
}
"""Training of the scalers of WAVE and SWEET: it is one of a descendant's epochs."""
WITH_SCALERS: dict[str, tuple[type[WaveExpand | SweetExpand], float]] = {
    "wave": (WaveExpand, 3e-2),
    "sweet": (SweetExpand, 1e-2),
}
"""The expansion, and its learning rate: of 1e-3, 3e-3, 1e-2 and 3e-2 the one with which the
scalers alone were best on the validation part, seed 0, 48 wide and 4 layers. SWEET was first run
with 3e-2, and its test accuracies of seed 0 were seen before the rates were compared.
"""
STARTS = ["random", "weight_selection", "weight_selection_of_lets", *AUXILIARIES]
PUBLISHED_RATES: dict[str, Any] = {"schedule_step": "epoch"}
LRS = (3e-4, 1e-3, 3e-3)
SIZES = {
    "sws": [(48, depth) for depth in (3, 4, 5, 6, 8)],
    "lets": [(32, 3), (48, 3), (48, 4), (64, 4), (64, 6)],
}
ALL_SIZES = sorted({size for sizes in SIZES.values() for size in sizes})
LADDER = (10, 20, 30, 40, 60)
Row = dict[str, Any]


class Bench:
    """What one seed trains, each thing once."""

    def __init__(
        self, data: Data, workdir: Path, seed: int, options: argparse.Namespace
    ) -> None:
        self.data, self.folder, self.seed, self.options = (
            data,
            workdir / f"seed-{seed}",
            seed,
            options,
        )
        self.folder.mkdir(parents=True, exist_ok=True)

    def stage(
        self, stage: Stage, model: ModelState, name: str
    ) -> tuple[ModelState, float]:
        """The stage's model and seconds of processor time."""
        ctx = Context(
            self.data,
            CPU,
            self.seed,
            self.folder / "work" / name,
            lambda *_: self.teacher(),
        )
        torch.manual_seed(self.seed)
        begun = time.process_time()
        return stage.run(model, ctx), time.process_time() - begun

    def kept(
        self, name: str, make: Callable[[], tuple[ModelState, float]]
    ) -> ModelState:
        """A model that takes long, made once; its seconds lie beside it."""
        folder = self.folder / name
        if not (folder / "model.json").exists():
            model, seconds = make()
            folder.mkdir(exist_ok=True)
            (folder / "seconds.json").write_text(json.dumps(seconds))
            model.save(folder)
        return ModelState.load(folder)

    def seconds(self, name: str) -> float:
        return json.loads((self.folder / name / "seconds.json").read_text())

    def row(self, name: str, make: Callable[[], Row]) -> Row:
        file = self.folder / f"{name}.json"
        if not file.exists():
            file.write_text(json.dumps(make()))
            print(f"seed {self.seed} {name}: {file.read_text()}", flush=True)
        return json.loads(file.read_text())

    def teacher(self) -> ModelState:
        """One for all seeds, as published work takes one pretrained network."""

        def make() -> tuple[ModelState, float]:
            fresh = ModelState.initialised(arch_of(self.data, TEACHER), 0)
            epochs = self.options.teacher_epochs
            return self.stage(
                Finetune(
                    **TRAIN
                    | {
                        "epochs": epochs,
                        "eval_every": epochs,
                        "checkpoint_every": epochs,
                    }
                ),
                fresh,
                "teacher",
            )

        return self.kept("../teacher", make)

    def auxiliary(self, method: str) -> ModelState:
        def make() -> tuple[ModelState, float]:
            kind, size = AUXILIARIES[method]
            epochs = self.options.aux_epochs
            stage = kind.model_validate(
                AUX
                | size
                | (PUBLISHED_RATES if self.options.published_rates else {})
                | {
                    "epochs": epochs,
                    "eval_every": epochs,
                    "checkpoint_every": epochs,
                }
            )
            return self.stage(stage, self.teacher(), f"aux-{method}")

        return self.kept(f"aux-{method}", make)

    def trained(self) -> list[str]:
        """Methods whose auxiliary network is there."""
        return [m for m in AUXILIARIES if (self.folder / f"aux-{m}").exists()]

    def start(self, init: str, width: int, depth: int) -> ModelState:
        """A descendant before its fine-tuning."""
        args = SHAPE | {"embed_dim": width, "depth": depth, "num_heads": width // 16}
        expand: dict[str, Stage] = {
            "sws": SwsExpand(depth=depth),
            "lets": LetsExpand(width=width, depth=depth),
            "tleg": TlegExpand(depth=depth),
            "random": RandomInit(args=args),
            "weight_selection": WeightSelection(args=args),
            "weight_selection_of_lets": WeightSelection(args=args, copy_head=True),
        }
        if init in WITH_SCALERS:
            return self.with_scalers(init, width, depth)
        if init == "weight_selection_of_lets":
            whole = self.stage(
                LetsExpand(depth=AUXILIARIES["lets"][1]["depth"]),
                self.auxiliary("lets"),
                init,
            )[0]
            return self.stage(expand[init], whole, init)[0]
        return self.stage(
            expand[init],
            self.auxiliary(init) if init in AUXILIARIES else self.teacher(),
            init,
        )[0]

    def with_scalers(self, method: str, width: int, depth: int) -> ModelState:
        """A descendant of WAVE or SWEET, after the training of its scalers."""
        expand, lr = WITH_SCALERS[method]
        stage = expand(width=width, depth=depth, **SCALERS | {"lr": lr})
        name = f"start-{method}-{width}x{depth}"
        return self.kept(name, lambda: self.stage(stage, self.auxiliary(method), name))

    def tuned(self, init: str, width: int, depth: int, epochs: int, lr: float) -> Row:
        """Accuracies and cost of a descendant that was trained for so long."""
        name = f"{init}-{width}x{depth}-{epochs}-{lr:g}"

        def make() -> Row:
            start = self.start(init, width, depth)
            expanded = init in AUXILIARIES and self.options.published_rates
            left = epochs - (SCALERS["epochs"] if init in WITH_SCALERS else 0)
            stage = Finetune(
                **TRAIN
                | (PUBLISHED_RATES | {"warmup": 0} if expanded else {})
                | {
                    "epochs": left,
                    "eval_every": left,
                    "checkpoint_every": left,
                    "lr": lr,
                }
            )
            model, seconds = self.stage(stage, start, name)
            if init in WITH_SCALERS:
                seconds += self.seconds(f"start-{init}-{width}x{depth}")
            parts = {"val": model, "test": model, "before": start}
            rows = {
                part: evaluate(
                    state.build(), self.data, "val" if part == "val" else "test", CPU
                )["accuracy"]
                for part, state in parts.items()
            }
            return rows | {
                "images": epochs * self.steps() * TRAIN["batch_size"],
                "seconds": seconds,
            }

        return self.row(name, make)

    def best(self, init: str, width: int, depth: int, epochs: int) -> Row:
        """With the learning rate that is best on the validation part."""
        return max(
            (self.tuned(init, width, depth, epochs, lr) for lr in LRS),
            key=lambda row: row["val"],
        )

    def steps(self) -> int:
        return self.data.info.num_train // TRAIN["batch_size"]

    def scratch(self, width: int, depth: int, target: float) -> Row:
        """The shortest training of the ladder that reaches the accuracy (longer ones do
        too), or its longest.
        """

        def trained(step: int) -> Row:
            row = self.tuned("random", width, depth, LADDER[step], TRAIN["lr"])
            return row | {"epochs": LADDER[step], "reached": row["test"] >= target}

        step = LADDER.index(30)
        row = trained(step)
        while row["reached"] and step:
            step -= 1
            shorter = trained(step)
            if not shorter["reached"]:
                return row
            row = shorter
        while not row["reached"] and step + 1 < len(LADDER):
            step += 1
            row = trained(step)
        return row


def take_scratch(benches: list[Bench], rows: pd.DataFrame) -> None:
    """Keep the trainings from scratch of an earlier run as if they were done here."""
    scratch = rows[(rows["start"] == "random") & (rows["epochs"] >= min(LADDER))]
    for bench in benches:
        for row in scratch[scratch["seed"] == bench.seed].to_dict("records"):
            size = f"{row['width']:.0f}x{row['depth']:.0f}-{row['epochs']:.0f}"
            kept = {n: row[n] for n in ("val", "test", "before", "images", "seconds")}
            bench.row(f"random-{size}-{row['lr']:g}", lambda kept=kept: kept)


def arch_of(data: Data, args: dict[str, Any]) -> Any:
    info = data.info
    return make_arch(
        "vit_tiny_patch16_224",
        num_classes=info.num_classes,
        image_size=info.image_size,
        args=args,
    )


def told(values: list[float], digits: int = 3) -> str:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {sd:.{digits}f}"


def starts(width: int, depth: int) -> list[str]:
    """Starts that a descendant of this size can have: selection only shrinks, SWS and TLEG
    keep their width.
    """
    within_teacher = width <= TEACHER["embed_dim"] and depth <= TEACHER["depth"]
    within_sws = width == AUXILIARIES["sws"][1]["embed_dim"]
    selected = ["weight_selection"] if within_teacher else []
    return [
        "random",
        *selected,
        "weight_selection_of_lets",
        "lets",
        "wave",
        "sweet",
        *(["tleg", "sws"] if within_sws else []),
    ]


def compare_starts(benches: list[Bench], epochs: int) -> None:
    for width, depth in ALL_SIZES:
        print(
            f"\ndescendant {width} wide, {depth} layers: test accuracy before and after"
            f" {epochs} epochs"
        )
        for init in starts(width, depth):
            if init not in benches[0].options.starts:
                continue
            rows = [bench.best(init, width, depth, epochs) for bench in benches]
            print(
                f"  {init:25} {told([r['before'] for r in rows]):15} "
                f" {told([r['test'] for r in rows])}",
                flush=True,
            )


def compare_costs(benches: list[Bench], epochs: int) -> None:
    for method, sizes in SIZES.items():
        print(
            f"\n{method}: five descendants, {epochs} epochs each, against training each"
            " from scratch as long as needed"
        )
        # of each seed: (descendant, from scratch) in every size
        pairs: list[list[tuple[Row, Row]]] = [[] for _ in benches]
        for width, depth in sizes:
            for bench, own in zip(benches, pairs, strict=True):
                row = bench.best(method, width, depth, epochs)
                own.append((row, bench.scratch(width, depth, row["test"] - 0.01)))
            print_size(width, depth, [own[-1] for own in pairs])
        images = [
            bench.options.aux_epochs * bench.steps() * TRAIN["batch_size"]
            for bench in benches
        ]
        seconds = [bench.seconds(f"aux-{method}") for bench in benches]
        for what, aux in (("images", images), ("seconds", seconds)):
            mine = [sum(row[what] for row, _ in own) for own in pairs]
            theirs = [sum(scratch[what] for _, scratch in own) for own in pairs]
            ratios = [t / (a + m) for a, m, t in zip(aux, mine, theirs, strict=True)]
            print(
                f"  {what}: auxiliary {told(aux, 0)}, descendants {told(mine, 0)}, from"
                f" scratch {told(theirs, 0)}: {told(ratios, 2)} times",
                flush=True,
            )


def print_size(width: int, depth: int, pairs: list[tuple[Row, Row]]) -> None:
    """A descendant of each seed, and the network that was trained from scratch beside it."""
    reached = sum(scratch["reached"] for _, scratch in pairs)
    needed = ", ".join(str(scratch["epochs"]) for _, scratch in pairs)
    print(
        f"  {width} x {depth}: {told([row['test'] for row, _ in pairs])}; from"
        f" scratch {told([scratch['test'] for _, scratch in pairs])} after"
        f" {needed} epochs ({reached} of {len(pairs)} reach it)"
    )


def all_rows(benches: list[Bench]) -> pd.DataFrame:
    """Every training of the seeds: start, size, epochs and rate, its accuracies and what it
    cost; auxiliary networks and the teacher (seed -1) with their cost alone."""
    rows: list[Row] = []
    for bench in benches:
        for file in sorted(bench.folder.glob("*.json")):
            start, size, epochs, lr = file.stem.split("-", 3)
            width, depth = map(int, size.split("x"))
            row = {
                "seed": bench.seed,
                "start": start,
                "width": width,
                "depth": depth,
                "epochs": int(epochs),
                "lr": float(lr),
            }
            rows.append(row | json.loads(file.read_text()))
        for method in bench.trained():
            images = bench.options.aux_epochs * bench.steps() * TRAIN["batch_size"]
            rows.append(
                {
                    "seed": bench.seed,
                    "start": f"auxiliary {method}",
                    "images": images,
                    "seconds": bench.seconds(f"aux-{method}"),
                }
            )
    images = (
        benches[0].options.teacher_epochs * benches[0].steps() * TRAIN["batch_size"]
    )
    rows.append(
        {
            "seed": -1,
            "start": "teacher",
            "images": images,
            "seconds": benches[0].seconds("../teacher"),
        }
    )
    return pd.DataFrame(rows)


def with_others(rows: pd.DataFrame, file: Path) -> pd.DataFrame:
    """These rows, and those that the file has of other starts."""
    if not file.exists():
        return rows
    older = pd.read_parquet(file)
    others = older[~older["start"].isin(rows["start"])]
    return pd.concat([others, rows], ignore_index=True)


def main() -> None:
    """Run what is missing, print every row and both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, help="default: a temporary folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teacher-epochs", type=int, default=25)
    parser.add_argument("--aux-epochs", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=2, help="of every fine-tuning")
    parser.add_argument(
        "--rows", type=Path, help="write every row to this Parquet file too"
    )
    parser.add_argument("--published-rates", action="store_true")
    parser.add_argument("--costs-only", action="store_true")
    parser.add_argument(
        "--starts",
        nargs="+",
        default=STARTS,
        help="of these alone, into the rows that the file has of the others; no costs",
    )
    parser.add_argument("--scratch-from", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workdir = options.workdir or Path(temporary)
        data = load_data(
            DataConfig(dataset="digits", val_fraction=0.2), workdir / "data"
        )
        benches = [Bench(data, workdir, seed, options) for seed in range(options.seeds)]
        if options.scratch_from:
            take_scratch(benches, pd.read_parquet(options.scratch_from))
        if not options.costs_only:
            compare_starts(benches, options.epochs)
        if options.starts == STARTS:
            compare_costs(benches, options.epochs)
        if options.rows:
            with_others(all_rows(benches), options.rows).to_parquet(
                options.rows, index=False
            )
        for name in ("../teacher", *(f"aux-{m}" for m in benches[0].trained())):
            models = [
                bench.kept(name, lambda: (_ for _ in ()).throw(AssertionError))
                for bench in benches
            ]
            print(
                f"{name}: {told([bench.seconds(name) for bench in benches], 0)} s, "
                "test accuracy"
                f" {told([evaluate(m.build(), data, 'test', CPU)['accuracy'] for m in models])}"
            )


if __name__ == "__main__":
    main()
