"""The presets of NViT, ReViT and WFN beside the defaults of the published commands, option by
option; what their learning rates and losses come to.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.finetune import Finetune
from compress.nvit.stage import Nvit
from compress.stage import Context
from compress.wfn.stage import Wfn
from sweeps.spec.load import read_spec
from trainers.config import DataConfig, TrainConfig
from trainers.models.arch import ModelState
from trainers.models.make import make_arch
from trainers.training.optim import Schedule, make_optimizer

Recipe = dict[str, Any]
STAGES: dict[str, type[Nvit | Finetune | Wfn]] = {
    "nvit": Nvit,
    "finetune": Finetune,
    "wfn": Wfn,
}
DEIT: Recipe = {  # augmentation and optimiser of DeiT, which NViT's commands leave as they are
    "optimizer": "adamw",
    "weight_decay": 0.05,
    "eps": 1e-8,
    "label_smoothing": 0.1,
    "clip_grad": None,
    "ema": None,
    "lr_scaling": "linear",
    "amp": "fp16",
    "augment.preset": "deit",
    "augment.color_jitter": 0.4,
    "augment.auto_augment": "rand-m9-mstd0.5-inc1",
    "augment.erase_prob": 0.25,
    "augment.mixup": 0.8,
    "augment.cutmix": 1.0,
    "augment.repeats": 3,
}
TEACHER: Recipe = {
    "distill.teacher": "regnety_160.deit_in1k",
    "distill.kind": "hard",
    "distill.alpha": 0.5,
    "distill.base_loss_heads": "mean",
}
PRUNE: Recipe = {
    **DEIT,
    **TEACHER,
    "batch_size": 4 * 128,
    "epochs": 50,
    "lr": 1e-4,
    "schedule": "constant",
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
TUNE: Recipe = {
    **DEIT,
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
    "kl_teacher": "source",
    "kl_loss_coeff": 1e5,
    "kl_tau": 20,
    "kl_heads": "both",
    "scratch": False,
}
REVIT: Recipe = {
    **DEIT,
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
}
FIX: Recipe = {
    "fixing_epochs": 3,  # the paper's; the code's default is 5
    "first_epoch": 0,
    "percentages": (0.3, 0.6, 0.8, 0.9, 0.95, 0.975, 0.99, 0.9975, 0.999, 1.0),
    "zero_distance": 2**-7,
    "regularisation_ratio": 0.4,
    "calculation_type": "relative",
    "clustering": "published",
    "include_norm": False,
    "powers_of_two": True,
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
IMAGENET: Recipe = {"dataset": "folder", "image_size": 224, "crop_fraction": 224 / 256}
DEIT_DATA: Recipe = {
    **IMAGENET,
    "val_fraction": 0,
    "resize": "side",
    "interpolation": "bicubic",
}
WFN_DATA: Recipe = {
    **IMAGENET,
    "val_fraction": 0.1,
    "resize": "warp",
    "interpolation": "bilinear",
}
DEIT_B = "deit_base_distilled_patch16_224"
PUBLISHED: dict[str, dict[str, Recipe]] = {
    **{
        f"nvit-{size}": {
            "source": {"model": DEIT_B, "pretrained": True},
            "data": DEIT_DATA,
            "nvit": PRUNE | {"latency_target": target},
            "finetune": TUNE,
        }
        for size, target in {"b": 0.54, "h": 0.50, "s": 0.39, "t": 0.19}.items()
    },
    **{
        f"revit-{size}": {
            "source": {"model": "revit", "args.embed": embed, "args.distilled": True},
            "data": DEIT_DATA,
            "finetune": REVIT,
        }
        for size, embed in {"t": 176, "s": 384}.items()
    },
    **{
        f"wfn-resnet{depth}-imagenet": {
            "source": {"model": f"resnet{depth}.tv_in1k", "pretrained": True},
            "data": WFN_DATA,
            "wfn": FIX,
        }
        for depth in (18, 34, 50)
    },
}


def flat(values: dict[str, Any], prefix: str = "") -> Recipe:
    found: Recipe = {}
    for name, value in values.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


def resolved(preset: str) -> dict[str, Recipe]:
    """A preset's recipe with all defaults filled in, by section and stage."""
    spec, _ = read_spec(preset)
    stages = {
        name: flat(STAGES[name].model_validate(config).model_dump())
        for name, config in spec["stages"].items()
    }
    data = flat(DataConfig.model_validate(spec["data"]).model_dump())
    return {"source": flat(spec["source"]), "data": data, **stages}


def first_difference(found: dict[str, Recipe], published: dict[str, Recipe]) -> str:
    """The first option that is not as published; empty where all are."""
    for section, recipe in published.items():
        for name, value in recipe.items():
            mine = found[section].get(name, "missing")
            if mine != value:
                return f"{section}.{name} is {mine!r}; published: {value!r}"
    return ""


@pytest.mark.parametrize("preset", PUBLISHED)
def test_recipes_are_the_published_ones(preset: str) -> None:
    found = resolved(preset)
    assert set(found) == set(PUBLISHED[preset])
    assert first_difference(found, PUBLISHED[preset]) == ""


def test_a_difference_is_named() -> None:
    found = resolved("nvit-b")
    found["finetune"]["kl_tau"] = 3
    assert (
        first_difference(found, PUBLISHED["nvit-b"])
        == "finetune.kl_tau is 3; published: 20"
    )


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
    options = read_spec(preset)[0]["stages"]["finetune"]
    config = TrainConfig(
        **Finetune.model_validate(options).model_dump(
            include=set(TrainConfig.model_fields)
        )
    )
    schedule = Schedule(make_optimizer(nn.Linear(1, 1), config), config, steps)
    seen = []
    for step in range(300 * steps):
        schedule.after_step(step)
        seen.append(schedule.lr)
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
    stage = Finetune.model_validate(read_spec("nvit-b")[0]["stages"]["finetune"])
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
