"""Which methods a model can take: each stage is asked itself, on the model's description alone.

The methods stand in three slots: what is cut (by all but NViT without training), whether the result
is tuned, and what is stored. A model that a stage refuses goes without it, and the plan says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compress.pipeline import NamedStage, check_pipeline
from sweeps.shrink.family import STAGE as STUDENT
from sweeps.shrink.family import smaller
from sweeps.shrink.look import LARGE_PX, Look
from sweeps.spec.stages import build_stage
from sweeps.spec.yaml_text import Tree
from trainers.models.arch import shared_on_meta
from trainers.words import one_line

LADDER = (0.85, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1)
"""Shares of the source's cost that are left by what is cut, as long as no goal says more."""
_FLIPLESS = ("digits", "svhn")
"""Data sets whose mirrored images are something else."""
_TUNING_LR = (3e-5, 1e-3)
"""Where a cut took much, a high rate gains most; where it took little, it takes more away."""
_FIRST_LR = {0: 1e-4, 100: 3e-4}
"""Steps → learning rate of the tunings that are tried first, which so many steps do not harm."""
_TUNED = "stages.tune.tuned"
TUNED_EPOCHS = f"{_TUNED}.epochs"
_MOST_EPOCHS = 30
_BATCH = 32
_PRUNINGS = 40
"""Intervals of NViT in which a model comes to the least share."""
_HEAD_GROUPS = 4
"""Groups of query, key or value dimensions in a block, about."""
INTEGER_RUNTIMES = ("openvino", "onnxruntime")
_FOUR_BIT_RUNTIMES = ("openvino",)
"""Whose files hold weights of 4 bits as such."""
_FOUR_BIT_SHARES = [0.5, 0.75, 1.0]
"""Of the weights, those that have 4 bits: in the layers that bear it best."""
_LOOKED_AT = (128, 512)
"""Fewest and most training images by which a cut is decided."""
_FLOAT_LAYERS = [2, 8]
"""Layers that may be left in float."""
MIXED = "int8_mixed"
TRAINED = "_trained"
"""Ends the name of a way to store whose rounding is trained."""


@dataclass
class Methods:
    """The slots of the spec and what is searched in them.

    Attributes:
        slots: name → alternative → config; None is "leave it as it is".
        space: parameter → values; of what is cut from little to much.
        left_out: a sentence for each method that the model cannot take.
        ladder: shares of the source's cost that are left by what is cut, falling.
        epoch_images: images of an epoch of a tuning.
        batch_size: of a tuning.
    """

    slots: dict[str, dict[str, Tree | None]] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    ladder: tuple[float, ...] = LADDER
    epoch_images: int = 0
    batch_size: int = 1

    def has(self, slot: str, alternative: str) -> bool:
        """Whether the model can take this."""
        return alternative in self.slots[slot]

    @property
    def short_epochs(self) -> int:
        """Epochs of a short tuning."""
        return int(self.space[TUNED_EPOCHS][0])

    def tuning(self, epochs: int) -> Tree:
        """What is tried first of so many epochs: the learning rate goes with the steps."""
        steps = epochs * self.epoch_images // self.batch_size
        lr = max(lr for fewest, lr in _FIRST_LR.items() if steps >= fewest)
        return {TUNED_EPOCHS: epochs, f"{_TUNED}.lr": lr}


def methods_for(
    seen: Look,
    runtime: str,
    quantity: str,
    tuning_images: int,
    *,
    is_timed: bool,
    ladder: tuple[float, ...] = LADDER,
) -> Methods:
    """The methods that this model takes.

    Args:
        runtime: of deployment.
        quantity: what the cut is counted in: a key of `compress.budget.Target`.
        tuning_images: images of a short tuning that the time affords.
        is_timed: whether a time is the goal.
        ladder: shares of the source's cost that may be left, falling.
    """
    found = Methods(ladder=ladder)
    training = training_config(seen, tuning_images)
    students = smaller(seen)
    # a cut asks for gradients of these images, and passes them about ten times
    looked_at = int(np.clip(tuning_images // 4, *_LOOKED_AT))
    cuts = _cuts(seen, quantity, training, students, is_timed, looked_at)
    found.slots = {
        "cut": {"none": None, **cuts},
        "tune": {"none": None, "tuned": _tune(training)},
        "store": {"float": None, **_stores(training, runtime, quantity)},
    }
    _leave_out(found, seen)
    if found.has("store", MIXED):
        found.space[f"stages.store.{MIXED}.float_layer_count"] = _FLOAT_LAYERS
    for name in ("int4", f"int4{TRAINED}"):
        if found.has("store", name):
            found.space[f"stages.store.{name}.four_bit_fraction"] = _FOUR_BIT_SHARES
    for name, config in list(found.slots["cut"].items()):
        if config is not None and "target" in config:
            _with_rungs(found, seen, name, config, quantity)
    if found.has("cut", "tokens"):
        found.space["stages.cut.tokens.r"] = _merged(seen)
    if found.has("cut", "smaller"):
        found.space |= _students(students)
    if found.has("tune", "tuned"):
        found.space[TUNED_EPOCHS] = [training["epochs"]]
        low, high = _TUNING_LR
        lr = {"low": low, "high": high, "log": True}
        found.space[f"{_TUNED}.lr"] = lr
        found.epoch_images = training.get("images_per_epoch", seen.info.num_train)
        found.batch_size = training["batch_size"]
    return found


def training_config(seen: Look, images: int) -> Tree:
    """Options of a short training that sees so many images in all."""
    batch = max(4, min(_BATCH, seen.info.num_train // 8))
    epochs = max(1, min(_MOST_EPOCHS, images // seen.info.num_train))
    flips = seen.data.get("dataset") not in _FLIPLESS
    config: Tree = {
        "epochs": epochs,
        "batch_size": batch,
        "lr": 3e-4,
        "lr_scaling": "unscaled",
        "warmup": "10%",
        "label_smoothing": 0.0,
    }
    if seen.channels_last:
        config["channels_last"] = True
    if images < seen.info.num_train:
        config["images_per_epoch"] = max(4 * batch, images)
    if not flips:
        config["augment"] = "none"
    elif seen.info.image_size > LARGE_PX:
        config["augment"] = {"preset": "flip", "crop": "none"}
    else:
        config["augment"] = "flip"
    return config


def _cuts(
    seen: Look,
    quantity: str,
    training: Tree,
    students: Mapping[str, Tree],
    is_timed: bool,
    looked_at: int,
) -> dict[str, Tree | None]:
    """What may be cut, from what needs no training to what does; plain ViTs alone take all.

    Args:
        looked_at: images by which a cut is decided and mended.
    """

    def target() -> Tree:
        return {"target": {quantity: LADDER[0]}}  # else by the search

    channels: Tree = {
        "stage": "prune_channels",
        "epochs": 0,
        "importance_images": looked_at,
        "compensate_images": looked_at,
    }
    if is_timed:  # a block takes its calls with it, channels do not
        channels["blocks"] = True
    found: dict[str, Tree | None] = {
        "channels": channels | target(),
        "low_rank": {"stage": "low_rank", "images": looked_at} | target(),
    }
    if "img_size" in seen.arch.args:
        found["tokens"] = {"stage": "token_merging", "r": _merged(seen)[0]}
    if students:
        found["smaller"] = STUDENT | next(iter(students.values()))
    if "img_size" in seen.arch.args:
        found["nvit"] = _nvit(seen, training) | target()
    return found


def _students(choices: Mapping[str, Tree]) -> Tree:
    """Smaller architectures as a searched parameter: names of models, or arguments."""
    if all("model" in options for options in choices.values()):
        names = [options["model"] for options in choices.values()]
        return {"stages.cut.smaller.model": names}
    args = {label: options["args"] for label, options in choices.items()}
    return {"stages.cut.smaller.args": {"choices": args}}


def _nvit(seen: Look, training: Tree) -> Tree:
    """NViT in a short training: so many units an interval that the least share is reached."""
    images = training.get("images_per_epoch", seen.info.num_train)
    steps = training["epochs"] * (images // training["batch_size"])
    interval = max(1, min(100, steps // (2 * _PRUNINGS)))
    vit: Any = shared_on_meta(seen.arch)
    width, depth = int(getattr(vit, "embed_dim", 192)), len(getattr(vit, "blocks", []))
    # of each block: the hidden units, queries, keys and values, in groups of about 16
    groups = width / 16 + depth * (4 * width / 16 + 3 * _HEAD_GROUPS)
    least = LADDER[-1]
    return {
        "stage": "nvit",
        **training,
        "lr": 1e-4,
        "interval_prune": interval,
        "prune_per_iter": max(16, round(16 * groups * (1 - least) / _PRUNINGS)),
        "measure": False,
    }


def _tune(training: Tree) -> Tree:
    distill = {"teacher": "source", "kind": "soft", "alpha": 0.5, "tau": 2.0}
    return {"stage": "finetune", "distill": distill} | training


def _stores(training: Tree, runtime: str, quantity: str) -> dict[str, Tree | None]:
    """Integers: everywhere, or but for the layers that bear them worst; of 4 bits too where the
    size of the file is what counts.
    """
    if runtime not in INTEGER_RUNTIMES:
        return {}
    half = max(1, training["epochs"] // 2)
    trained = training | {"epochs": half, "lr": 1e-4}
    plain: Tree = {"stage": "int8", "images": 128}
    found: dict[str, Tree | None] = {
        "int8": plain,
        MIXED: plain | {"float_layer_count": _FLOAT_LAYERS[0]},
        f"int8{TRAINED}": plain | trained,
    }
    if quantity == "params" and runtime in _FOUR_BIT_RUNTIMES:
        small = plain | {"four_bit_fraction": _FOUR_BIT_SHARES[-1]}
        found |= {"int4": small, f"int4{TRAINED}": small | trained}
    return found


def _merged(seen: Look) -> list[int]:
    """Tokens that each block merges: a tenth to a third of all by the last block."""
    args = seen.arch.args
    size, patch = seen.info.image_size, int(args.get("patch_size", 16))
    depth = int(args.get("depth", 12))
    tokens = (size // patch) ** 2
    return sorted({max(1, round(tokens * s / depth)) for s in (0.2, 0.4, 0.6)})


def _leave_out(found: Methods, seen: Look) -> None:
    """Take away what the model cannot take, alone or before what the other slots hold."""
    for slot in ("store", "tune", "cut"):
        for name, config in list(found.slots[slot].items()):
            if config is None:
                continue
            why = _refused(found.slots, slot, config, seen)
            if why is not None:
                del found.slots[slot][name]
                found.left_out.append(f"{name} is left out: {why}")


def _with_rungs(
    found: Methods, seen: Look, name: str, config: Tree, quantity: str
) -> None:
    """Search the shares that this method can reach; without any it is left out."""
    reached = [
        share
        for share in found.ladder
        if not _refused(
            {"store": {}}, "cut", config | {"target": {quantity: share}}, seen
        )
    ]
    if reached:
        config["target"] = {quantity: reached[0]}
        found.space[f"stages.cut.{name}.target.{quantity}"] = reached
    else:
        del found.slots["cut"][name]
        found.left_out.append(
            f"{name} is left out: it cannot reach {found.ladder[0]:g}"
        )


def _refused(
    slots: Mapping[str, Mapping[str, Tree | None]], slot: str, config: Tree, seen: Look
) -> str | None:
    """Why a method does not go with the model; None where it does.

    Cuts are tried with every store that has been found possible, each after the cut.
    """
    afterwards: list[list[NamedStage]] = [[]]
    if slot == "cut":
        stores = [c for c in slots["store"].values() if c is not None]
        afterwards += [[_stage("store", store)] for store in stores]
    for after in afterwards:
        try:
            stages = [_stage(slot, config), *after]
            check_pipeline(seen.arch, stages, seen.info)
        except (ValueError, TypeError, RuntimeError) as error:
            return one_line(error)
    return None


def _stage(slot: str, config: Tree) -> NamedStage:
    kind = str(config["stage"])
    fields = {key: value for key, value in config.items() if key != "stage"}
    return NamedStage(slot, kind, build_stage(kind, fields, f"stages.{slot}"))
