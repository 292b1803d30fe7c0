"""Which model family works with which method, measurement and file format?

    python benchmarks/model_matrix.py run [--families ViT Swin] [--workdir DIR] [--limit 600]
    python benchmarks/model_matrix.py page

Each family of `model_families.py` meets each column in a process of its own, with random
weights, on a handful of images. A cell works, is refused by what `sweeps validate` checks (an
export: when it is asked for), or is broken: another error, a refusal that comes only when the
stage runs, or a result that fails its check. `run` writes each cell to the working folder as
it comes, and goes on from there when called again; what is broken is tried again. At its end
it writes `results/model_matrix.json`. `page` writes the table into `docs/models.md`.
Time: 20 to 30 minutes of a core.
"""

import argparse
import hashlib
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from model_families import FAMILIES, Family
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.cache import StageCache
from compress.codec.file import decode, encode
from compress.measure.layers import measure_layers
from compress.measure.memory import peak_memory_bytes
from compress.measure.model import count_gmacs, measure_latency
from compress.measure.options import MeasureConfig
from compress.metrics import FinalModel, measure
from compress.pipeline import NamedStage, Pipeline, PipelineResult, run_pipeline, stages
from sweeps.check import check_spec
from sweeps.export.formats import write_model
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError
from trainers.data.splits import Data, load_data
from trainers.models.arch import ModelState, on_meta
from trainers.models.make import make_arch
from trainers.models.parameters import classifier_parameters, linear_and_conv_parameters
from trainers.models.source import load_source

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "model_matrix.json"
PAGE = ROOT / "docs" / "models.md"

SEED = 3
DATA = {
    "dataset": "digits",
    "limit": 24,
    "limit_test": 8,
    "val_fraction": 0.25,
    "workers": 0,
}
TRAIN = {
    "epochs": 1,
    "images_per_epoch": 8,
    "batch_size": 4,
    "lr": 1e-3,
    "lr_scaling": "unscaled",
    "warmup": 0,
    "augment": {"preset": "none"},
}
AUX = TRAIN | {"patch_size": 16, "embed_dim": 16, "num_heads": 2, "drop_path": None}
SOFT = {"teacher": "source", "kind": "soft", "alpha": 0.5}
NVIT = TRAIN | {
    "epochs": 2,
    "latency": "macs",
    "measure": False,
    "latency_target": 0.7,
    "interval_prune": 1,
    "prune_per_iter": 48,
    "groups": {"embed": 4, "heads": 1, "qk": 2, "v": 2, "mlp": 8},
}
WFN = TRAIN | {
    "percentages": [0.5, 1.0],
    "first_epoch": 0,
    "fixing_epochs": 1,
    "distance_allowed": 0.1,
}
del WFN["epochs"]

Stages = dict[str, dict[str, Any]]
Status = Literal["works", "refuses", "broken"]


class Refused(Exception):
    """What was asked for was refused before anything was computed; says what the user reads."""


@dataclass(frozen=True)
class Cell:
    """One family and one column.

    Attributes:
        status: works, refuses, or broken.
        reason: the sentence of a refusal, or the error; empty where it works.
        seconds: spent on it.
    """

    status: Status
    reason: str = ""
    seconds: float = 0.0


@dataclass
class Case:
    """A family's member, with what the columns need of it.

    Attributes:
        family: the row.
        workdir: for its checkpoints and stages.
    """

    family: Family
    workdir: Path

    @cached_property
    def data(self) -> Data:
        return load_data(
            self._config(self.family.model, {}).data, self.workdir / "data"
        )

    @cached_property
    def state(self) -> ModelState:
        """The member as the first stage gets it: read from a checkpoint file."""
        return self._loaded(self.checked({"finetune": TRAIN}).source)

    def _config(self, model: str, args: dict[str, Any]) -> Any:
        """The validated form of a spec without stages of interest."""
        return spec_from(self._spec(model, args, {"random_init": {}}))

    def _loaded(self, source: Any) -> ModelState:
        info = self.data.info
        return load_source(
            source,
            num_classes=info.num_classes,
            image_size=info.image_size,
            seed=SEED,
        )

    def checkpoint(self, model: str, args: dict[str, Any]) -> Path:
        """A file with weights of which none has its initial value, so that zeros at the
        start (layer scale, heads) hide nothing.
        """
        digest = hashlib.sha256(json.dumps([model, args]).encode()).hexdigest()
        path = self.workdir / f"{digest[:16]}.safetensors"
        if not path.exists():
            arch = make_arch(
                model,
                num_classes=self.data.info.num_classes,
                image_size=self.data.info.image_size,
                args=args,
            )
            save_file(disturbed(arch.build()), path)
        return path

    def _spec(
        self, model: str, args: dict[str, Any], stages_: Stages
    ) -> dict[str, Any]:
        return {
            "name": "matrix",
            "storage": str(self.workdir),
            "source": {"model": model, "args": args},
            "data": DATA | {"image_size": self.family.image_size},
            "stages": stages_,
            "objectives": [{"metric": "accuracy", "mode": "max"}],
        }

    def checked(self, stages_: Stages, *, larger: bool = False) -> Pipeline:
        """What `sweeps validate` makes of these stages.

        Args:
            larger: start from the family's larger model, not from its member.

        Raises:
            Refused: as a user reads it.
        """
        model, args = self.family.model, self.family.args
        if larger:
            args = args if self.family.larger is None else self.family.larger
            if self.family.larger_model is not None:
                model, args = self.family.larger_model, {}
        raw = self._spec(model, args, stages_)
        try:
            check_spec(
                spec_from(raw)
            )  # without a file first: is there such a model at all?
            raw["source"]["checkpoint"] = str(self.checkpoint(model, args))
            sweep = check_spec(spec_from(raw))
        except SpecError as error:
            raise Refused(str(error)) from error
        return Pipeline(sweep.spec.source, sweep.spec.data, sweep.example, SEED)

    def ran(self, stages_: Stages, *, larger: bool = False) -> "Ran":
        """These stages, checked and run, and all that a trial measures of the result.

        Raises:
            Refused: by the check.
        """
        planned = self.checked(stages_, larger=larger)
        start = self._loaded(planned.source)
        before = start.hash()
        with tempfile.TemporaryDirectory(dir=self.workdir) as folder:
            result = run_pipeline(
                planned,
                cache=StageCache(Path(folder)),
                data_cache=self.workdir / "data",
                device=torch.device("cpu"),
            )
        require(start.hash() == before, "the stages changed the source")
        quantized = any(stage.config.phase == "quantize" for stage in planned.stages)
        final = FinalModel(
            result.model,
            self.data,
            torch.device("cpu"),
            MeasureConfig(batch_size=2, warmup=1, repeats=3),
            dict(result.metrics),
        )
        metrics = measure(final, quantized=quantized)
        for name, value in metrics.items():
            require(
                isinstance(value, str) or math.isfinite(value), f"{name} is {value}"
            )
        require(bool(measure_layers(result.model)), "no layer has a row")
        return Ran(planned.stages, start, result, metrics)


@dataclass(frozen=True)
class Ran:
    """What a pipeline gave.

    Attributes:
        stages: of it.
        start: the source model.
        result: of the pipeline.
        metrics: of its final model.
    """

    stages: tuple[NamedStage, ...]
    start: ModelState
    result: PipelineResult
    metrics: dict[str, Any]

    @property
    def model(self) -> ModelState:
        return self.result.model


def disturbed(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors, with noise on every parameter."""
    generator = torch.Generator().manual_seed(SEED)
    parameters = {name for name, _ in module.named_parameters()}
    return {
        name: (
            tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
            if name in parameters and tensor.is_floating_point()
            else tensor.clone()
        ).contiguous()
        for name, tensor in module.state_dict().items()
    }


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All values, float64 (n,)."""
    return torch.cat([tensor.double().reshape(-1) for tensor in tensors])


def require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


# ------------------------------------------------------------------ columns


def train(**options: Any) -> Callable[[Case], None]:
    def column(case: Case) -> None:
        ran = case.ran({"finetune": TRAIN | options})
        same = [
            name
            for name, _ in on_meta(ran.model.arch).named_parameters()
            if torch.equal(ran.model.weights[name], ran.start.weights[name])
        ]
        require(
            len(same) < len(ran.model.weights) / 2,
            f"{len(same)} parameters were not trained: {', '.join(same[:3])}",
        )

    return column


def read_checkpoint(case: Case) -> None:
    planned = case.checked({"finetune": TRAIN})
    from safetensors.torch import load_file

    stored = load_file(str(planned.source.checkpoint))
    loaded = case._loaded(planned.source).weights
    require(stored.keys() == loaded.keys(), "other names than in the file")
    wrong = [name for name in stored if not torch.equal(stored[name], loaded[name])]
    require(not wrong, f"{len(wrong)} tensors differ from the file: {wrong[:3]}")


def random_init(case: Case) -> None:
    ran = case.ran({"random_init": {}})
    require(ran.model.hash() != ran.start.hash(), "nothing was drawn anew")


def weight_selection(**options: Any) -> Callable[[Case], None]:
    def column(case: Case) -> None:
        student = {"model": case.family.model, "args": case.family.args}
        ran = case.ran({"weight_selection": student | options}, larger=True)
        module = on_meta(ran.model.arch)
        heads = classifier_parameters(module)
        names = [n for n in linear_and_conv_parameters(module) if n not in heads]
        taken = flat(ran.model.weights[name] for name in names)
        known = flat(ran.start.weights.values()).sort().values
        places = torch.searchsorted(known, taken).clamp_max(len(known) - 1)
        strange = int((known[places] != taken).sum())
        require(strange == 0, f"{strange} values that the teacher does not have")

    return column


def learngene(method: str, options: dict[str, Any], expand: dict[str, Any]) -> Any:
    def column(case: Case) -> None:
        aux = AUX | options | {"distill": SOFT}
        aux["patch_size"] = case.family.image_size // 2
        ran = case.ran({f"{method}_aux": aux, f"{method}_expand": expand})
        require(ran.model.arch.builder == "timm", "the descendant is no plain ViT")

    return column


def nvit(case: Case) -> None:
    ran = case.ran({"nvit": NVIT})
    require(ran.metrics["pruned_units"] > 0, "nothing was pruned")
    dense = count_gmacs(ran.start.arch, case.family.image_size)
    require(ran.metrics["gmacs"] < dense, "pruning spared no operation")


def asp(case: Case) -> None:
    ran = case.ran({"asp": {}, "finetune": TRAIN})
    for layer in ran.model.meta["asp"]["layers"]:
        fours = ran.model.weights[f"{layer}.weight"].reshape(-1, 4)
        require(bool(((fours == 0).sum(1) >= 2).all()), f"{layer} lost its 2:4 pattern")


def wfn(case: Case) -> None:
    ran = case.ran({"wfn": WFN})
    require(
        ran.metrics["unique_values"] == ran.metrics["codebook_size"],
        f"{ran.metrics['unique_values']} values,"
        f" {ran.metrics['codebook_size']} in the codebook",
    )
    _codes_exactly(ran.model)


def quantize(kind: str, most: int, **options: Any) -> Callable[[Case], None]:
    def column(case: Case) -> None:
        ran = case.ran({kind: options})
        for name in linear_and_conv_parameters(on_meta(ran.model.arch)):
            values = len(ran.model.weights[name].unique())
            require(values <= most, f"{name} has {values} values")
        _codes_exactly(ran.model)

    return column


def codec(case: Case) -> None:
    _codes_exactly(case.state)


def _codes_exactly(state: ModelState) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.wfn"
        encode(state, path)
        require(decode(path).hash() == state.hash(), "the coded file decodes otherwise")


def macs(case: Case) -> None:
    size = case.family.image_size
    counted = 1e9 * count_gmacs(case.state.arch, size)
    least = _macs_of_layers(case.state.build(), size)
    require(
        counted >= 0.999 * least > 0,
        f"{counted:.4g} operations counted, its layers alone have {least:.4g}",
    )


def _macs_of_layers(module: nn.Module, size: int) -> float:
    """Multiply-accumulates of linear layers and convolutions, by hooks on a real pass."""
    total = 0.0

    def count(layer: Any, inputs: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features
        else:
            total += output.numel() * layer.weight[0].numel()

    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        module(torch.zeros(1, 3, size, size))
    return total


def latency(case: Case) -> None:
    module = case.state.build()
    size = case.family.image_size
    for precision in ("float32", "bfloat16"):
        found = measure_latency(
            module, size, "cpu", batch_size=2, dtype=precision, warmup=1, repeats=3
        )
        require(found.median_ms > 0, "no time was measured")
    stored = sum(p.numel() * p.element_size() for p in module.parameters())
    peak = peak_memory_bytes(module, size, "cpu", batch_size=2)
    require(peak > stored, f"{peak} bytes at the peak, the weights alone take {stored}")


def exported(format_name: str) -> Callable[[Case], None]:
    def column(case: Case) -> None:
        state = case.state
        with tempfile.TemporaryDirectory() as folder:
            try:
                write_model(
                    state,
                    format_name,
                    Path(folder),
                    image_size=case.family.image_size,
                    title=case.family.model,
                )
            except ValueError as error:
                if "differs from the model" in str(error):
                    raise
                raise Refused(str(error)) from error

    return column


@dataclass(frozen=True)
class Column:
    """A column of the matrix.

    Attributes:
        title: as the table's heading has it.
        tells: what a cell that works has shown.
        run: raises `Refused`, or any other error where the cell is broken.
        kinds: stages that the column covers.
    """

    title: str
    tells: str
    run: Callable[[Case], None]
    kinds: tuple[str, ...] = ()


def _training() -> dict[str, Column]:
    trained = "trained, evaluated and measured"
    return {
        "checkpoint": Column(
            "checkpoint",
            "weights read from a file, bit by bit",
            read_checkpoint,
        ),
        "train": Column("train", trained, train(), ("finetune",)),
        "drop_path": Column(
            "drop path", f"{trained} with stochastic depth", train(drop_path=0.1)
        ),
        "layer_decay": Column(
            "layer decay",
            f"{trained} with a rate for each layer",
            train(layer_decay=0.75),
        ),
        "options": Column(
            "bf16, EMA",
            f"{trained} in bfloat16, channels last, with averaged weights",
            train(amp="bf16", channels_last=True, ema={"use": True, "decay": 0.5}),
        ),
        "distill": Column(
            "distil", f"{trained} as student and teacher", train(distill=SOFT)
        ),
    }


def _methods() -> dict[str, Column]:
    ran = "run, checked and measured"
    return {
        "random_init": Column("random", ran, random_init, ("random_init",)),
        "weight_selection": Column(
            "weight selection",
            "selected from a larger member, by each rule for layers",
            weight_selection(),
            ("weight_selection",),
        ),
        "selection_magnitude": Column(
            "… by magnitude",
            "selected by magnitude, blocks evenly spaced",
            weight_selection(element_rule="magnitude", layer_rule="uniform"),
        ),
        "sws": Column(
            "SWS",
            "the family as the teacher of the auxiliary network",
            learngene("sws", {"repeats": [1, 2]}, {"layers_source": [0, 1]}),
            ("sws_aux", "sws_expand"),
        ),
        "lets": Column(
            "LeTs",
            "the same",
            learngene("lets", {"gene_dim": 8, "depth": 4}, {"width": 8, "depth": 3}),
            ("lets_aux", "lets_expand"),
        ),
        "tleg": Column(
            "TLEG",
            "the same",
            learngene("tleg", {"depth": 3}, {"depth": 2}),
            ("tleg_aux", "tleg_expand"),
        ),
        "nvit": Column("NViT", f"{ran}; fewer operations", nvit, ("nvit",)),
        "asp": Column(
            "2:4", "zeros in the pattern, held while training", asp, ("asp",)
        ),
        "wfn": Column("WFN", "fixed on few values, coded exactly", wfn, ("wfn",)),
        "uniform_quant": Column(
            "uniform",
            "4 bits, coded exactly",
            quantize("uniform_quant", 16, bits=4),
            ("uniform_quant",),
        ),
        "kmeans_quant": Column(
            "k-means",
            "16 values for all layers, norms too, coded exactly",
            quantize("kmeans_quant", 16, scope="network", include_norm=True),
            ("kmeans_quant",),
        ),
    }


def _measurements() -> dict[str, Column]:
    return {
        "codec": Column("codec", "coded and decoded, bit by bit", codec),
        "macs": Column("MACs", "counted, no fewer than its layers have", macs),
        "latency": Column(
            "latency, memory", "measured, in float32 and bfloat16", latency
        ),
        "safetensors": Column(
            "safetensors", "read again, same logits", exported("safetensors")
        ),
        "onnx": Column("ONNX", "same logits in ONNX Runtime", exported("onnx")),
        "torchscript": Column("TorchScript", "same logits", exported("torchscript")),
        "torch_export": Column("torch.export", "same logits", exported("torch_export")),
    }


COLUMNS: dict[str, Column] = _training() | _methods() | _measurements()
"""Every column, in the order of the table."""


def uncovered() -> set[str]:
    """Kinds of stages that no column covers."""
    covered = {kind for column in COLUMNS.values() for kind in column.kinds}
    return stages().keys() - covered


def cell(case: Case, column: Column) -> Cell:
    """Try one cell."""
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            column.run(case)
        status, reason = "works", ""
    except Refused as error:
        status, reason = "refuses", " ".join(str(error).split())
    except Exception as error:  # noqa: BLE001 (whatever it is, the matrix looks for it)
        lines = str(error).strip().splitlines() or [""]
        status, reason = "broken", f"{type(error).__name__}: {lines[0][:300]}"
    seconds = round(time.perf_counter() - begin, 2)
    return Cell(status, reason, seconds)  # type: ignore[arg-type]


# ------------------------------------------------------------------ all of them


@dataclass
class Row:
    """What is known of a family: its cells, in a file that grows by a line each.

    Attributes:
        path: of the file.
        cells: by column; of several tries the last.
        begun: a column that was begun and not finished, or None.
    """

    path: Path
    cells: dict[str, Cell] = field(default_factory=dict)
    begun: str | None = None

    @classmethod
    def read(cls, folder: Path, family: Family) -> "Row":
        found = cls(folder / f"{FAMILIES.index(family):02d}.jsonl")
        lines = found.path.read_text().splitlines() if found.path.exists() else []
        for line in lines:
            note = json.loads(line)
            column = note.pop("column")
            found.begun = column if not note else None
            if note:
                found.cells[column] = Cell(**note)
        return found

    def write(self, column: str, made: Cell | None = None) -> None:
        note = {"column": column} | (asdict(made) if made else {})
        with self.path.open("a") as file:
            file.write(json.dumps(note) + "\n")

    def missing(self) -> list[str]:
        """Columns that are yet to be tried; what was broken is tried again."""
        return [
            name
            for name in COLUMNS
            if name not in self.cells or self.cells[name].status == "broken"
        ]


def run_family(folder: Path, name: str, columns: Iterable[str]) -> None:
    """Try a family's cells in this process."""
    torch.set_num_threads(1)
    (family,) = (f for f in FAMILIES if f.name == name)
    row = Row.read(folder, family)
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        case = Case(family, Path(workdir))
        for column in columns:
            row.write(column)
            row.write(column, cell(case, COLUMNS[column]))


def run_all(folder: Path, families: list[Family], limit: float) -> None:
    """Try every missing cell, a process for each family; one that dies loses one cell."""
    folder.mkdir(parents=True, exist_ok=True)
    for family in families:
        done: set[str] = set()
        while left := [c for c in Row.read(folder, family).missing() if c not in done]:
            command = [sys.executable, __file__, "family", family.name, *left]
            try:
                ended = subprocess.run(
                    [*command, "--workdir", str(folder)], timeout=limit, check=False
                )
                why = f"its process ended with {ended.returncode}"
            except subprocess.TimeoutExpired:
                why = f"it took more than {limit:g} s"
            row = Row.read(folder, family)
            if row.begun is None:
                done |= set(left)
                break
            row.write(row.begun, Cell("broken", why))
            done |= set(left[: left.index(row.begun) + 1])
        print(_summary(family, Row.read(folder, family)), flush=True)


def _summary(family: Family, row: Row) -> str:
    counts = {
        status: sum(made.status == status for made in row.cells.values())
        for status in ("works", "refuses", "broken")
    }
    seconds = sum(made.seconds for made in row.cells.values())
    broken = "".join(
        f"\n    {name}: {made.reason}"
        for name, made in row.cells.items()
        if made.status == "broken"
    )
    return f"{family.name:32s} {counts} {seconds:.0f} s{broken}"


def collected(folder: Path) -> dict[str, Any]:
    """All rows, as the result's file has them."""
    rows = {}
    for family in FAMILIES:
        cells = Row.read(folder, family).cells
        rows[family.name] = {
            "kind": family.kind,
            "model": family.model,
            "args": family.args,
            "image_size": family.image_size,
            "cells": {
                name: [cells[name].status, cells[name].reason]
                for name in COLUMNS
                if name in cells
            },
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("run", "family", "page"))
    parser.add_argument(
        "names", nargs="*", help="of a task 'family': it and its columns"
    )
    parser.add_argument("--families", nargs="*", default=[])
    parser.add_argument("--workdir", type=Path, default=Path("/tmp/model-matrix"))
    parser.add_argument("--limit", type=float, default=600, help="seconds of a family")
    parser.add_argument("--afresh", action="store_true", help="forget earlier cells")
    options = parser.parse_args()
    if options.task == "family":
        run_family(options.workdir, options.names[0], options.names[1:])
        return
    if options.task == "run":
        if options.afresh:
            shutil.rmtree(options.workdir, ignore_errors=True)
        chosen = [
            f for f in FAMILIES if f.name in options.families or not options.families
        ]
        run_all(options.workdir, chosen, options.limit)
        RESULTS.write_text(json.dumps(collected(options.workdir), indent=1) + "\n")
        return
    from model_page import page

    PAGE.write_text(page(PAGE.read_text(), json.loads(RESULTS.read_text()), COLUMNS))


if __name__ == "__main__":
    main()
