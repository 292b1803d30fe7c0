"""The presets of NViT, ReViT and WFN beside the defaults of the published commands, option by
option; what their learning rates and losses come to.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.finetune import Finetune
from compress.stage import Context
from sweeps.spec.load import read_spec
from tests.sweeps.test_published_recipes import (
    DECIDES_NOTHING,
    DEIT,
    FOLDER_224,
    Rows,
    first_difference,
    of,
    rates,
    recipe,
)
from trainers.config import FitOptions
from trainers.models.arch import ModelState
from trainers.models.make import make_arch

NVIT_DEIT: Rows = DEIT | {"ema": None, "schedule_step": "epoch_start"}
"""What NViT's commands leave as it is in DeiT."""
IDLE = {
    "measure",  # of latency, at the end
    "table",  # measured where it is pruned
    "target",  # another name of latency_target
    "compensate",  # off
    "compensate_images",
    "latency_dtype",
    "norm_channels",  # docs/replication.md
    "hold",
    "last_iteration",
    "first_iteration",
    "distance_allowed",  # searched, below
    "calibration_images",  # of layer-wise rounding
}
CONSTANT = {  # idle at a constant rate
    "min_lr",
    "warmup_lr",
    "schedule_step",
    "cosine_span",
    "cooldown_epochs",
    "lr_noise",
}
WITH_KL = {"kl_loss_coeff", "kl_tau", "kl_heads"}  # idle without a teacher to follow
"""Options that change no result of these presets, or whose published value they offer."""
TEACHER: Rows = {
    "distill.teacher": "regnety_160.deit_in1k",
    "distill.kind": "hard",
    "distill.alpha": 0.5,
    "distill.base_loss_heads": "mean",
}
PRUNE: Rows = {
    **NVIT_DEIT,
    **TEACHER,
    "batch_size": 4 * 128,
    "epochs": 50,
    "lr": 1e-4,
    "schedule": "constant",
    "schedule_step": "step",
    "warmup": 0,
    "drop_path": 0.1,
    "interval_prune": 100,
    "prune_per_iter": 32,
    "budget": 39_000,
    "counting": "published",
    "importance": "nvit",
    "importance_unit": "loss",
    "importance_momentum": 0.9,
    "importance_reset": True,
    "importance_weights": "after",
    "head_divisor": 12,
    "latency_regularization": 5e-4,
    "latency_unit": "seconds",
    "latency": "measured",
    "latency_batch": 256,
    "table_below": "to_zero",
    "kl_loss_coeff": 1e5,
    "kl_tau": 3,
    "original_loss_coeff": 1,
    "student_eval": True,
    "groups.embed": 16,
    "groups.heads": 2,
    "groups.qk": 8,
    "groups.v": 8,
    "groups.mlp": 16,
}
TUNE: Rows = {
    **NVIT_DEIT,
    **TEACHER,
    "batch_size": 144 * 32,
    "epochs": 300,
    "lr": 2e-4,
    "schedule": "cosine",
    "schedule_step": "epoch_start",
    "warmup": 0,
    "min_lr": 1e-5,
    "scale_min_lr": False,
    "train_mode": False,
    "drop_path": None,  # given as 0.1, idle in eval mode
    "kl_teacher": "source",
    "kl_loss_coeff": 1e5,
    "kl_tau": 20,
    "kl_heads": "both",
    "scratch": False,
}
REVIT: Rows = {
    **NVIT_DEIT,
    **TEACHER,
    "batch_size": 256,
    "epochs": 300,
    "lr": 5e-4,
    "schedule": "cosine",
    "schedule_step": "epoch_start",
    "warmup": 5,
    "min_lr": 1e-5,
    "warmup_lr": 1e-6,
    "scale_min_lr": False,
    "train_mode": True,
    "drop_path": 0.1,
    "kl_teacher": None,
    "scratch": False,
}
FIX: Rows = {
    "images_per_epoch": None,
    "eps": 1e-8,
    "betas": None,
    "weight_decay_end": None,
    "layer_decay": None,
    "drop": 0,
    "drop_path": None,
    "ema": None,
    "train_mode": True,
    "amp": "none",
    "fixing_epochs": 3,  # the paper's; the code's default is 5
    "first_epoch": 0,
    "percentages": (0.3, 0.6, 0.8, 0.9, 0.95, 0.975, 0.99, 0.9975, 0.999, 1.0),
    "zero_distance": 2**-7,
    "regularisation_ratio": 0.4,
    "calculation_type": "relative",
    "clustering": "published",
    "include_norm": False,
    "powers_of_two": True,
    "rounding": "nearest",
    "optimizer": "adam",
    "weight_decay": 0,
    "lr": 2e-5,
    "lr_scaling": "unscaled",
    "schedule": "constant",
    "warmup": 0,
    "clip_grad": 0.5,
    "batch_size": 4 * 64,
    "max_batch_per_worker": 64,
    "label_smoothing": 0,
    "augment.preset": "flip",
    "augment.hflip": 0.5,
    "augment.crop": "random",
}
WFN_DATA: Rows = FOLDER_224 | {
    "data.dataset": "folder",
    "data.val_fraction": 0.1,
    "data.resize": "warp",
    "data.interpolation": "bilinear",
}
DEIT_B: Rows = FOLDER_224 | {
    "data.dataset": "folder",
    "source.model": "deit_base_distilled_patch16_224",
    "source.pretrained": True,
}
REVIT_SOURCE: Rows = FOLDER_224 | {
    "data.dataset": "folder",
    "source.model": "revit",
    "source.pretrained": False,
    "source.args.distilled": True,
}
PUBLISHED: dict[str, Rows] = {
    **{
        f"nvit-{size}": {"seed": 1}
        | DEIT_B
        | of("nvit", PRUNE | {"latency_target": target})
        | of("finetune", TUNE)
        for size, target in {"b": 0.54, "h": 0.50, "s": 0.39, "t": 0.19}.items()
    },
    **{
        f"revit-{size}": REVIT_SOURCE
        | {"source.args.embed": embed}
        | of("finetune", REVIT)
        for size, embed in {"t": 176, "s": 384}.items()
    },
    **{
        f"wfn-resnet{depth}-imagenet": WFN_DATA
        | {"source.model": f"resnet{depth}.tv_in1k", "source.pretrained": True}
        | of("wfn", FIX)
        for depth in (18, 34, 50)
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_as_published(name: str) -> None:
    assert first_difference(name, PUBLISHED[name], []) is None


def test_the_first_difference_is_named() -> None:
    found = first_difference(
        "nvit-b", PUBLISHED["nvit-b"], ["stages.finetune.kl_tau=3"]
    )
    assert found == "nvit-b: finetune.kl_tau is 3.0, published is 20"


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_option_of_training_lacks_a_row(name: str) -> None:
    """A new option needs a published value, or a word that it decides nothing."""
    for stage, config in recipe(name)[0].items():
        if not isinstance(config, FitOptions):
            continue
        have = {p.split(".")[1] for p in PUBLISHED[name] if p.startswith(f"{stage}.")}
        idle = DECIDES_NOTHING | IDLE
        idle |= CONSTANT if config.schedule == "constant" else set()
        idle |= WITH_KL if getattr(config, "kl_teacher", "") is None else set()
        assert set(type(config).model_fields) - idle <= have, stage


def test_deltas_of_wfn_are_those_of_the_table() -> None:
    for depth in (18, 34, 50):
        spec, _ = read_spec(f"wfn-resnet{depth}-imagenet")
        space = spec["search"]["space"]
        assert space == {"stages.wfn.distance_allowed": [0.0075, 0.01, 0.015]}


# --- learning rates
# ------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "high", "warmup"), [("nvit-b", 1.8e-3, 0), ("revit-t", 2.5e-4, 5)]
)
def test_learning_rates_are_the_published_ones(
    preset: str, high: float, warmup: int
) -> None:
    """One an epoch; a cosine over all 300 epochs to 1e-5, warm-up from 1e-6 cut out of it;
    neither end scaled by the batch.
    """
    steps = 3
    seen = rates(recipe(preset)[0]["finetune"], steps)
    expected = [
        1e-6 + (high - 1e-6) * epoch / warmup
        if epoch < warmup
        else 1e-5 + (high - 1e-5) * (1 + math.cos(math.pi * epoch / 300)) / 2
        for epoch in range(300)
        for _ in range(steps)
    ]
    np.testing.assert_allclose(seen, expected, rtol=1e-9)


# --- losses
# ------------------------------------------------------------


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def ce(z: np.ndarray, y: np.ndarray) -> float:
    return float(-(log_softmax(z) * y).sum(1).mean())


def kl(student: np.ndarray, teacher: np.ndarray, tau: float) -> float:
    p, q = log_softmax(teacher / tau), log_softmax(student / tau)
    return float((np.exp(p) * (p - q)).mean())  # over batch and classes


def smoothed(targets: Tensor, classes: int) -> np.ndarray:
    return 0.9 * np.eye(classes)[targets.numpy()] + 0.1 / classes


@pytest.fixture(scope="module")
def models() -> dict[str, ModelState]:
    deit = {
        "patch_size": 16,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
    }
    arch = make_arch(
        "deit_tiny_distilled_patch16_224", num_classes=7, image_size=32, args=deit
    )
    cnn = make_arch("resnet20_cifar", num_classes=7, image_size=32, args={"width": 4})

    def noisy(seed: int) -> ModelState:
        state = ModelState.initialised(arch, seed)
        generator = torch.Generator().manual_seed(seed)
        weights = {
            name: value + 0.3 * torch.randn(value.shape, generator=generator)
            for name, value in state.weights.items()
        }
        return ModelState(arch, weights, {})

    return {
        "student": noisy(1),
        "dense": noisy(2),
        "cnn": ModelState.initialised(cnn, 0),
    }


@torch.no_grad()
def both_heads(state: ModelState, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of a timm model, by its own layers."""
    module: Any = state.build().double().eval()
    x = module.forward_features(images)
    heads = module.head(x[:, 0]), module.head_dist(x[:, 1])
    return heads[0].numpy(), heads[1].numpy()


def test_losses_of_fine_tuning_are_the_published_ones(
    models: dict[str, ModelState], digits: Any, tmp_path: Any
) -> None:
    """half CE of the heads' mean, half CE of the distillation head with the CNN's labels, and
    1e5 times the mean over heads of the divergence from the dense model at temperature 20.
    """
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(6, 3, 32, 32, generator=generator, dtype=torch.float64)
    targets = torch.randint(7, (6,), generator=generator)
    stage: Finetune = recipe("nvit-b")[0]["finetune"]
    found = {"source": models["dense"], "regnety_160.deit_in1k": models["cnn"]}
    device = torch.device("cpu")
    context = Context(digits, device, 0, tmp_path, lambda name, _: found[name])
    context.teacher = lambda name, *_: found[name].build().double()  # type: ignore
    module = models["student"].build().double()
    with torch.no_grad():
        loss = float(stage._objective(module, context)(module, images, targets))

    mine, dense = (both_heads(models[name], images) for name in ("student", "dense"))
    with torch.no_grad():
        labels = models["cnn"].build().double()(images).argmax(1).numpy()
    task = ce((mine[0] + mine[1]) / 2, smoothed(targets, 7))
    base = 0.5 * task + 0.5 * ce(mine[1], np.eye(7)[labels])
    divergence = sum(kl(m, d, 20.0) for m, d in zip(mine, dense, strict=True)) / 2
    assert loss == pytest.approx(base + 1e5 * divergence, rel=1e-6)

    without = stage.model_copy(update={"kl_teacher": None})
    with torch.no_grad():
        again = float(without._objective(module, context)(module, images, targets))
    assert again == pytest.approx(base, rel=1e-6)
