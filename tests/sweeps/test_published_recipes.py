"""The presets of papers, resolved, against the values of the published commands and defaults.

A row is a path within the resolved recipe and its published value; of a stage that trains, every
option that can change a result has a row. Where a preset is not as published, `NOT_AS_PUBLISHED`
says so, and its header too.
"""

from typing import Any

import numpy as np
import pytest
from torch import nn

from sweeps.space.resolve import resolved_trial
from sweeps.space.space import Space
from sweeps.spec.load import preset_text, read_spec, spec_from
from trainers.config import FitOptions
from trainers.training.optim import Schedule, make_optimizer

Rows = dict[str, Any]

# ---- what the published training loops have in common
# ------------------------------------------------------------------------------

DEIT_AUGMENT: Rows = {
    "preset": "deit",
    "hflip": 0.5,
    "crop": "auto",  # random resized crop at 224 px
    "crop_scale": (0.08, 1.0),
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "three_augment": False,
    "erase_prob": 0.25,
    "erase_mode": "pixel",
    "erase_count": 1,
    "erase_resplit": False,
    "mixup": 0.8,
    "cutmix": 1.0,
    "cutmix_minmax": None,
    "mix_prob": 1.0,
    "mix_switch_prob": 0.5,
    "mix_mode": "batch",
}
ADAMW: Rows = {
    "optimizer": "adamw",
    "eps": 1e-8,
    "betas": None,
    "weight_decay": 0.05,
    "weight_decay_end": None,
    "layer_decay": None,
    "clip_grad": None,
}
COMMON: Rows = ADAMW | {
    "images_per_epoch": None,
    "drop": 0.0,
    "label_smoothing": 0.1,
    "train_mode": True,
    "schedule": "cosine",
    "cooldown_epochs": 0,
    "lr_noise": None,
}
DEIT: Rows = (
    COMMON
    | {f"augment.{name}": value for name, value in DEIT_AUGMENT.items()}
    | {
        "augment.repeats": 3,
        "schedule_epochs": None,
        "batch_size": 512,
        "lr_scaling": "linear",
        "min_lr": 1e-5,
        "warmup_lr": 1e-6,
        "schedule_step": "epoch",
        "cosine_span": "whole",
        "drop_path": 0.1,
        "amp": "fp16",
    }
)
"""DeiT's loop: the rate is set after each epoch."""
CONVNEXT: Rows = (
    COMMON
    | {f"augment.{name}": value for name, value in DEIT_AUGMENT.items()}
    | {
        "augment.repeats": 1,
        "epochs": 300,
        "lr_scaling": "unscaled",
        "min_lr": 1e-6,
        "warmup": 50.0,
        "warmup_lr": 0.0,
        "schedule_step": "step",
        "cosine_span": "after_warmup",
        "ema": None,
        "drop_path": None,
        "amp": "fp16",
        "distill": None,
        "kl_teacher": None,
    }
)
"""ConvNeXt's loop, which weight selection uses: the rate is set before each step."""
FOLDER_224: Rows = {
    "data.image_size": 224,
    "data.val_fraction": 0.0,
    "data.mean": (0.485, 0.456, 0.406),
    "data.std": (0.229, 0.224, 0.225),
    "data.interpolation": "bicubic",
    "data.crop_fraction": 0.875,
    "data.resize": "side",
    "data.limit": None,
}
SOFT = {
    "distill.teacher": "source",
    "distill.kind": "soft",
    "distill.alpha": 1.0,
    "distill.tau": 1.0,
    "distill.base_loss_heads": "class",
}


def of(stage: str, rows: Rows) -> Rows:
    return {f"{stage}.{name}": value for name, value in rows.items()}


# ---- weight selection
# ------------------------------------------------------------------------------


def weight_selection(teacher: str, student: str, dataset: str, **train: Any) -> Rows:
    """`train`: what the command gives."""
    return (
        FOLDER_224
        | {
            "source.model": teacher,
            "source.pretrained": True,
            "data.dataset": dataset,
            "weight_selection.model": student,
            "weight_selection.args": {},
            "weight_selection.layer_rule": "first",
            "weight_selection.element_rule": "uniform",
            "weight_selection.selection_rounding": "float32",
            "weight_selection.copy_head": False,
            "random_init.model": student,
        }
        | of("finetune", CONVNEXT | train)
    )


VIT_S = "vit_small_patch16_224.augreg_in21k"
CONVNEXT_T = "convnext_tiny.fb_in22k"
IMAGENET = {"batch_size": 4096, "lr": 4e-3}

# ---- learngenes
# ------------------------------------------------------------------------------


def sws(dim: int, heads: int, aux_epochs: int, lr: float) -> Rows:
    return (
        FOLDER_224
        | {
            "seed": 123,
            "source.model": "levit_384.fb_dist_in1k",
            "source.pretrained": True,
            "data.dataset": "folder",
            "sws_aux.repeats": (3, 3, 4, 3, 3),
            "sws_aux.patch_size": 16,
            "sws_aux.embed_dim": dim,
            "sws_aux.num_heads": 12,
            "sws_aux.norm_eps": 1e-5,
            "sws_aux.norm_before_pool": True,
            "sws_expand.layers_source": (0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4),
            "sws_expand.num_heads": heads,
            "sws_expand.norm_eps": 1e-6,
            "sws_expand.norm_before_pool": False,
            "sws_expand.head": "copy",
        }
        | of("sws_aux", DEIT | SOFT)
        | of(
            "sws_aux",
            {
                "epochs": aux_epochs,
                "lr": 5e-4,
                "warmup": 5.0,
                "ema.decay": 0.99996,
                "ema.use": False,
            },
        )
        | of("finetune", DEIT | DESCENDANT | {"epochs": 10, "lr": lr})
    )


DESCENDANT: Rows = {
    "warmup": 0.0,
    "min_lr": 1e-6,
    "ema": None,  # kept and not used, so that it changes nothing
    "distill": None,
    "kl_teacher": None,
    "scratch": False,
}
LETS: Rows = (
    FOLDER_224
    | {
        "seed": 123,
        "source.model": "levit_384.fb_dist_in1k",
        "source.pretrained": True,
        "data.dataset": "folder",
        "lets_aux.patch_size": 16,
        "lets_aux.gene_dim": 384,
        "lets_aux.embed_dim": 768,
        "lets_aux.num_heads": 12,
        "lets_aux.depth": 16,
        "lets_aux.norm_eps": 1e-6,
        "lets_aux.width_init": "rand",
        "lets_aux.depth_init": "stackbert-noisy",
        "lets_aux.noise": 0.03,
        "lets_aux.residual": None,
        "lets_aux.learn": ("gene", "width", "depth"),
        "lets_expand.width": 768,
        "lets_expand.mapping_layer": (0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13),
        "lets_expand.mapping_layer_coeff": (0, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 14),
        "lets_expand.head": "grown",
    }
    | of("lets_aux", DEIT | SOFT)
    | of("lets_aux", {"epochs": 300, "lr": 5e-4, "warmup": 5.0, "ema": None})
    | of("finetune", DEIT | DESCENDANT | {"epochs": 5, "lr": 1e-5})
)

# ------------------------------------------------------------------------------

PUBLISHED: dict[str, Rows] = {
    "ws-vit-t-cifar100": weight_selection(
        VIT_S, "vit_tiny_patch16_224", "cifar100", batch_size=512, lr=2e-3
    ),
    "ws-convnext-f-cifar100": weight_selection(
        CONVNEXT_T,
        "convnext_femto",
        "cifar100",
        batch_size=1024,
        lr=4e-3,
        drop_path=0.1,
    ),
    "ws-vit-t-imagenet": weight_selection(
        VIT_S, "vit_tiny_patch16_224", "folder", **IMAGENET
    ),
    "ws-convnext-f-imagenet": weight_selection(
        CONVNEXT_T, "convnext_femto", "folder", **IMAGENET
    ),
    "sws-deit-s": sws(384, 6, 150, 5e-5),
    "sws-deit-b": sws(768, 12, 100, 1e-5),
    "lets-deit": LETS,
}
NOT_AS_PUBLISHED: dict[str, Rows] = {
    # 12 heads that expand into 6 take other channels together than those trained together
    "sws-deit-s": {"sws_aux.num_heads": 6},
}
OPTION: dict[str, list[str]] = {
    "sws-deit-s": [
        "stages.sws_aux.num_heads=12",
        "stages.sws_expand.num_heads=6",
        "stages.sws_expand.regroup_heads=true",
    ],
}
"""The overrides, as the preset's header gives them, that make all of it as published."""
DECIDES_NOTHING = {
    "max_batch_per_worker",  # accumulation keeps the global batch
    "decay_rate",
    "decay_epochs",
    "patience_epochs",
    "lr_noise_pct",
    "lr_noise_std",
    "momentum",  # not of AdamW
    "channels_last",
    "compile",
    "grad_checkpointing",
    "tf32",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "scale_min_lr",  # at a batch of 512, or unscaled
}


def recipe(name: str, overrides: list[str] | None = None) -> tuple[dict[str, Any], int]:
    """Source, data and each stage of a preset's first points by name, resolved; and the seed."""
    from sweeps.space.overrides import apply_overrides

    spec = spec_from(apply_overrides(read_spec(name)[0], overrides or []))
    space = Space(spec)
    points = [space.encode(given) for given in spec.search.points] or space.probes()
    trials = [resolved_trial(space, draw) for draw in points]
    sections: dict[str, Any] = {"source": trials[0].source, "data": trials[0].data}
    for trial in trials:
        # a slot's stage is named after the slot
        sections |= {
            key: stage.config
            for stage in trial.stages
            for key in (stage.name, stage.kind)
        }
    return sections, spec.seed


def value_at(sections: dict[str, Any], path: str) -> Any:
    first, *rest = path.split(".")
    value = sections[first]
    for part in rest:
        value = getattr(value, part) if not isinstance(value, dict) else value[part]
    return value


def first_difference(name: str, published: Rows, overrides: list[str]) -> str | None:
    """The first row in which a preset is not as published, in words."""
    sections, seed = recipe(name, overrides)
    for path, wanted in published.items():
        found = seed if path == "seed" else value_at(sections, path)
        if path.endswith("_expand.num_heads") and found is None:
            found = value_at(sections, path.replace("_expand", "_aux"))
        if found != wanted:
            return f"{name}: {path} is {found!r}, published is {wanted!r}"
    return None


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_as_published(name: str) -> None:
    rows = PUBLISHED[name] | NOT_AS_PUBLISHED.get(name, {})
    assert first_difference(name, rows, []) is None


@pytest.mark.parametrize("name", NOT_AS_PUBLISHED)
def test_what_differs_is_had_by_the_options_of_the_header(name: str) -> None:
    header = preset_text(name)
    assert all(option in header for option in OPTION[name])
    assert first_difference(name, PUBLISHED[name], OPTION[name]) is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_option_of_training_lacks_a_row(name: str) -> None:
    """A new option of training needs a published value, or a word that it decides nothing."""
    sections, _ = recipe(name)
    rows = PUBLISHED[name]
    for stage, config in sections.items():
        if not isinstance(config, FitOptions):
            continue
        have = {path.split(".")[1] for path in rows if path.startswith(f"{stage}.")}
        assert set(FitOptions.model_fields) - DECIDES_NOTHING <= have, stage


def test_the_first_difference_is_named() -> None:
    rows = PUBLISHED["sws-deit-b"] | {"finetune.min_lr": 0.5, "finetune.epochs": 1}
    assert first_difference("sws-deit-b", rows, []) == (
        "sws-deit-b: finetune.min_lr is 1e-06, published is 0.5"
    )


# ---- learning rates over all steps, against the published loops
# ------------------------------------------------------------------------------


def deit_rates(epochs: int, base: float, low: float, warmup: int, start: float) -> Any:
    """The rate of each epoch: a schedule over epochs (warm-up cut out of the cosine) is asked
    after each epoch for that epoch's value, which the next epoch then has.
    """
    at = np.arange(epochs, dtype=np.float64)
    cosine = low + (base - low) * (1 + np.cos(np.pi * at / epochs)) / 2
    ramp = start + at * (base - start) / max(warmup, 1)
    value = np.where(at < warmup, ramp, cosine)
    return np.concatenate([value[:1], value[:-1]])


def convnext_rates(steps: int, warmup: int, base: float, low: float) -> Any:
    """The rate of each step: from 0 to the full rate, then a cosine over the steps left."""
    rest = np.arange(steps - warmup)
    cosine = low + (base - low) * (1 + np.cos(np.pi * rest / len(rest))) / 2
    return np.concatenate([np.linspace(0, base, warmup), cosine])


def rates(config: Any, steps_per_epoch: int) -> Any:
    """The learning rate of every step of a fit."""
    schedule = Schedule(
        make_optimizer(nn.Linear(1, 1), config), config, steps_per_epoch
    )
    found = []
    for step in range(schedule.total):
        found.append(schedule.lr)
        schedule.after_step(step + 1)
        if (step + 1) % steps_per_epoch == 0:
            schedule.after_epoch(step // steps_per_epoch, None)
    return np.array(found)


EPOCHWISE: list[tuple[str, str, tuple[int, float, float, int, float]]] = [
    # preset, stage, epochs, rate, least rate, warm-up epochs, rate at its start
    ("sws-deit-s", "sws_aux", (150, 5e-4, 1e-5, 5, 1e-6)),
    ("sws-deit-s", "finetune", (10, 5e-5, 1e-6, 0, 1e-6)),
    ("sws-deit-b", "sws_aux", (100, 5e-4, 1e-5, 5, 1e-6)),
    ("sws-deit-b", "finetune", (10, 1e-5, 1e-6, 0, 1e-6)),
    ("lets-deit", "lets_aux", (300, 5e-4, 1e-5, 5, 1e-6)),
    ("lets-deit", "finetune", (5, 1e-5, 1e-6, 0, 1e-6)),
]


@pytest.mark.parametrize(("preset", "stage", "facts"), EPOCHWISE)
def test_learning_rates_of_deits_loop(
    preset: str, stage: str, facts: tuple[int, float, float, int, float]
) -> None:
    steps_per_epoch = 3
    wanted = np.repeat(deit_rates(*facts), steps_per_epoch)
    found = rates(recipe(preset)[0][stage], steps_per_epoch)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_learning_rates_by_hand() -> None:
    """The rates that the published descendants were seen to have."""
    by_hand = {
        "sws-deit-s": [1, 1, 0.976, 0.906, 0.798, 0.661, 0.51, 0.359, 0.222, 0.114],
        "lets-deit": [1, 1, 0.914, 0.689, 0.411],
    }
    for preset, shares in by_hand.items():
        found = rates(recipe(preset)[0]["finetune"], 1)
        assert np.round(found / found[0], 3).tolist() == shares


@pytest.mark.parametrize(
    ("preset", "images"),
    [
        (name, 50_000 if "cifar" in name else 1_281_167)
        for name in PUBLISHED
        if name.startswith("ws-")
    ],
)
def test_learning_rates_of_convnexts_loop(preset: str, images: int) -> None:
    """Equal but for the warm-up, whose steps are here by one part in its length lower."""
    config = recipe(preset)[0]["finetune"]
    steps_per_epoch = images // config.batch_size
    warmup = 50 * steps_per_epoch
    wanted = convnext_rates(300 * steps_per_epoch, warmup, config.lr, 1e-6)
    found = rates(config, steps_per_epoch)
    np.testing.assert_allclose(found[warmup:], wanted[warmup:], rtol=1e-9)
    assert np.abs(found - wanted).max() <= config.lr / warmup * (1 + 1e-9)
    assert found.sum() / wanted.sum() == pytest.approx(1, abs=1e-4)
