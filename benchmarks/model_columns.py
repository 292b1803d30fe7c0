"""The columns of the model matrix: what is tried with each family, and how a result is checked."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from model_cases import Case, Refused, flat, require
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.codec.file import decode, encode
from compress.measure.memory import peak_memory_bytes
from compress.measure.model import count_gmacs, measure_latency
from sweeps.export.formats import write_model
from trainers.models.arch import ModelState, on_meta
from trainers.models.parameters import classifier_parameters, linear_and_conv_parameters

FIT = {
    "epochs": 1,
    "images_per_epoch": 8,
    "batch_size": 4,
    "lr": 1e-3,
    "lr_scaling": "unscaled",
    "warmup": 0,
    "augment": {"preset": "none"},
}
AUX = FIT | {"patch_size": 16, "embed_dim": 16, "num_heads": 2, "drop_path": None}
SOFT = {"teacher": "source", "kind": "soft", "alpha": 0.5}
NVIT = FIT | {
    "epochs": 2,
    "latency": "macs",
    "measure": False,
    "latency_target": 0.7,
    "interval_prune": 1,
    "prune_per_iter": 48,
    "groups": {"embed": 4, "heads": 1, "qk": 2, "v": 2, "mlp": 8},
}
CHANNELS = FIT | {
    "target": {"macs": 0.7},
    "multiple": 1,
    "importance_images": 8,
    "compensate_images": 8,
}
WFN = FIT | {
    "percentages": [0.5, 1.0],
    "first_epoch": 0,
    "fixing_epochs": 1,
    "distance_allowed": 0.1,
}
del WFN["epochs"]


def train(**options: Any) -> Callable[[Case], None]:
    def column(case: Case) -> None:
        ran = case.ran({"finetune": FIT | options})
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
    planned = case.checked({"finetune": FIT})
    stored = load_file(str(planned.source.checkpoint))
    loaded = case.loaded(planned.source).weights
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
        names = [
            name
            for name in linear_and_conv_parameters(module)
            if name not in heads and "head" not in name.split(".")  # stays fresh, too
        ]
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


def channels(case: Case) -> None:
    ran = case.ran({"prune_channels": CHANNELS})
    require(ran.metrics["channels_removed"] > 0, "nothing was removed")
    dense = count_gmacs(ran.start.arch, case.family.image_size)
    require(ran.metrics["gmacs"] < dense, "pruning spared no operation")


def low_rank(case: Case) -> None:
    ran = case.ran({"low_rank": {"target": {"macs": 0.95}, "images": 8}})
    size = case.family.image_size
    require(ran.metrics["low_rank_layers"] > 0, "no layer was factored")
    found = ran.metrics["gmacs"] / count_gmacs(ran.start.arch, size)
    require(found <= 0.951, f"{found:.3f} of the operations are left")
    _codes_exactly(ran.model)


def token_merging(case: Case) -> None:
    ran = case.ran({"token_merging": {"r": 1}})
    require(ran.metrics["tokens_left"] < ran.metrics["tokens_before"], "none merged")
    dense = count_gmacs(ran.start.arch, case.family.image_size)
    require(ran.metrics["gmacs"] < dense, "merging spared no operation")


def asp(case: Case) -> None:
    ran = case.ran({"asp": {}, "finetune": FIT})
    for layer in ran.model.meta["asp"]["layers"]:
        fours = ran.model.weights[f"{layer}.weight"].reshape(-1, 4)
        require(bool(((fours == 0).sum(1) >= 2).all()), f"{layer} lost its 2:4 pattern")


def wfn(case: Case) -> None:
    _fixed(case, "wfn", WFN)


def pwfn(case: Case) -> None:
    _fixed(case, "pwfn", {k: v for k, v in WFN.items() if k != "distance_allowed"})


def _fixed(case: Case, kind: str, options: dict[str, Any]) -> None:
    ran = case.ran({kind: options})
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


def int8(case: Case) -> None:
    ran = case.ran({"int8": {"images": 8}})
    require(ran.metrics["int8_layers"] > 0, "no layer is in integers")
    _codes_exactly(ran.model)
    with tempfile.TemporaryDirectory() as folder:
        try:
            write_model(
                ran.model,
                "openvino",
                Path(folder),
                image_size=case.family.image_size,
                title=case.family.model,
            )
        except ValueError as error:
            if "differs from the model" in str(error):
                raise
            raise Refused(str(error)) from error


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
        "wave": Column(
            "WAVE",
            "the same",
            learngene(
                "wave",
                {"depth": 2, "template_dim": 8, "num_templates": 3},
                FIT | {"epochs": 1, "width": 8, "depth": 3},
            ),
            ("wave_aux", "wave_expand"),
        ),
        "sweet": Column(
            "SWEET",
            "the same",
            learngene(
                "sweet",
                {"depth": 2, "ranks": [6, 10, 9]},
                FIT | {"epochs": 1, "width": 24, "depth": 3},
            ),
            ("sweet_aux", "sweet_expand"),
        ),
        "nvit": Column("NViT", f"{ran}; fewer operations", nvit, ("nvit",)),
        "prune_channels": Column(
            "channels",
            f"{ran}; fewer operations; the cut model computes what the masked one does",
            channels,
            ("prune_channels",),
        ),
        "low_rank": Column(
            "low rank",
            "run, checked and measured; fewer operations, coded exactly",
            low_rank,
            ("low_rank",),
        ),
        "token_merging": Column(
            "token merging",
            f"{ran}; fewer operations",
            token_merging,
            ("token_merging",),
        ),
        "asp": Column(
            "2:4", "zeros in the pattern, held while training", asp, ("asp",)
        ),
        "wfn": Column("WFN", "fixed on few values, coded exactly", wfn, ("wfn",)),
        "pwfn": Column("PWFN", "fixed on few values, coded exactly", pwfn, ("pwfn",)),
        "int8": Column(
            "int8",
            "integers of weights and activations, coded exactly, the same logits in OpenVINO",
            int8,
            ("int8",),
        ),
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
