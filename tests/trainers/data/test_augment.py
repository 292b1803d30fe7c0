"""Whole-batch augmentation against Pillow, timm and naive per-image loops."""

import importlib
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from trainers.config import AugmentConfig, DataConfig
from trainers.data import image_ops as ops
from trainers.data.augment import (
    BatchAugment,
    EvalTransform,
    Finish,
    color_jitter,
    erase,
    erase_boxes,
    resized_crop_boxes,
    three_augment,
)
from trainers.data.mixing import draw_mix, mix, one_hot
from trainers.data.randaugment import (
    GEOMETRIC,
    OPERATIONS,
    RandAugment,
    RandAugmentSpec,
    argument,
    geometric_matrix,
)

# after trainers, which makes it importable
timm_augment = importlib.import_module("timm.data.auto_augment")
CPU = torch.device("cpu")
FILL = (12, 40, 250)
WITH_INCREASING = (
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """uint8 (6, 3, 21, 21): noise, one colour, low contrast, and smooth pictures."""
    coarse = rng().integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    smooth = np.stack(
        [
            np.asarray(Image.fromarray(c).resize((21, 21), Image.Resampling.BICUBIC))
            for c in coarse
        ]
    )
    smooth[0] = rng(1).integers(0, 256, smooth[0].shape)
    smooth[1] = 77
    smooth[2] = smooth[2] // 4 + 60
    return torch.from_numpy(smooth.transpose(0, 3, 1, 2).copy())


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def from_pil(images: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(
        np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2).copy()
    )


def difference(ours: torch.Tensor, theirs: list[Image.Image]) -> torch.Tensor:
    assert ours.dtype == torch.uint8
    return (ours.int() - from_pil(theirs).int()).abs()


def apply_only(
    name: str, images: torch.Tensor, level: float, sign: float, increasing: bool
) -> torch.Tensor:
    """Our operation `name` on every image, through RandAugment's own dispatch."""
    spec = RandAugmentSpec(increasing=increasing)
    out = images.clone()
    n = len(images)
    number = np.full(n, OPERATIONS.index(name))
    RandAugment(spec, "bilinear", torch.tensor(FILL))._layer(
        out, number, np.full(n, level), np.full(n, sign)
    )
    return out


def timm_name(name: str, increasing: bool) -> str:
    if name.startswith("Translate"):
        return f"{name}Rel"
    return f"{name}Increasing" if increasing and name in WITH_INCREASING else name


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_timms(
    name: str, increasing: bool, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs_name = timm_name(name, increasing)
    for level in (2.0, 5.5, 9.0):
        for sign in (1.0, -1.0):
            monkeypatch.setattr(
                random, "random", lambda negate=sign < 0: 1.0 if negate else 0.0
            )
            to_args = timm_augment.LEVEL_TO_ARG[theirs_name]
            args = to_args(level, {}) if to_args else ()
            # Pillow refuses 0 bits; see the test of it
            if theirs_name == "Posterize" and args[0] == 0:
                continue
            apply: Any = timm_augment.NAME_TO_OP[theirs_name]
            theirs = [
                apply(p, *args, fillcolor=FILL, resample=Image.Resampling.BILINEAR)
                for p in to_pil(images)
            ]
            # Pillow truncates what it interpolates, we round
            limit = 1 if name in GEOMETRIC else 0
            assert (
                difference(
                    apply_only(name, images, level, sign, increasing), theirs
                ).max()
                <= limit
            ), (level, sign)


def test_posterize_to_no_bits_is_black(images: torch.Tensor) -> None:
    assert apply_only("Posterize", images, 10.0, 1.0, increasing=True).eq(0).all()


def test_operations_leave_the_other_images_alone(images: torch.Tensor) -> None:
    chosen = np.array(
        [
            OPERATIONS.index("Invert"),
            -1,
            OPERATIONS.index("ShearX"),
            -1,
            OPERATIONS.index("Color"),
            -1,
        ]
    )
    out = images.clone()
    RandAugment(RandAugmentSpec(), "bicubic", torch.tensor(FILL))._layer(
        out, chosen, np.full(6, 9.0), np.ones(6)
    )
    changed = (out != images).flatten(1).any(dim=1)
    assert changed.tolist() == [True, False, True, False, True, False]


def test_rand_augment_draws_per_image() -> None:
    spec = RandAugmentSpec.parse("rand-m9-mstd0.5-inc1")
    same = torch.from_numpy(
        rng().integers(0, 256, (1, 3, 16, 16), dtype=np.uint8)
    ).expand(64, -1, -1, -1)
    out = RandAugment(spec, "bicubic", torch.tensor(FILL))(same, rng())
    untouched = out.eq(same).flatten(1).all(dim=1).float().mean()
    assert 0.1 < untouched < 0.5  # both layers are skipped with probability 1/4
    assert len(torch.unique(out.flatten(1), dim=0)) > 30
    assert torch.equal(
        out, RandAugment(spec, "bicubic", torch.tensor(FILL))(same, rng())
    )


def test_rand_augment_notation() -> None:
    spec = RandAugmentSpec.parse("rand-m9-n3-p0.7-mstd0.5-inc1")
    assert spec == RandAugmentSpec(
        magnitude=9, layers=3, prob=0.7, magnitude_std=0.5, increasing=True
    )
    assert RandAugmentSpec.parse("rand") == RandAugmentSpec()
    for text in ("original", "rand-x3", "rand-m9-tweights", "augmix-m5"):
        with pytest.raises(ValueError, match="auto_augment"):
            RandAugmentSpec.parse(text)


def test_magnitudes_are_noisy_and_bounded() -> None:
    levels = RandAugment(
        RandAugmentSpec.parse("rand-m9-mstd0.5"), "bilinear", torch.zeros(3)
    )._levels(4000, rng())
    assert levels.max() == 10
    assert abs(levels.mean() - 9) < 0.05
    uniform = RandAugment(
        RandAugmentSpec.parse("rand-m8-mstd101"), "bilinear", torch.zeros(3)
    )._levels(4000, rng())
    assert abs(uniform.mean() - 4) < 0.2


def test_increasing_factor_keeps_at_least_a_tenth() -> None:
    assert argument(
        "Color", np.array([10.0]), np.array([-1.0]), increasing=True
    ) == pytest.approx(0.1)
    assert geometric_matrix("TranslateX", np.array([0.25]))[0, 0, 2] == 0.5


def test_padded_crop_is_slicing() -> None:
    index = (
        torch.arange(3 * 8 * 8).view(1, 3, 8, 8).expand(40, -1, -1, -1).to(torch.uint8)
    )
    index = index + torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1)
    draw = rng()
    top, left = torch.from_numpy(draw.integers(0, 5, (2, 40)))
    flip = torch.from_numpy(draw.random(40) < 0.5)
    ours = ops.padded_crop(index, 2, index.shape[-1], top, left, flip)
    for i in range(40):
        padded = torch.zeros(3, 12, 12, dtype=torch.uint8)
        padded[:, 2:10, 2:10] = index[i]
        expected = padded[:, top[i] : top[i] + 8, left[i] : left[i] + 8]
        assert torch.equal(ours[i], expected.flip(2) if flip[i] else expected)


def test_resized_crop_is_pillows(images: torch.Tensor) -> None:
    smooth = images[3:]
    box = torch.tensor([[3, 5, 12, 14]]).expand(3, -1)
    flip = torch.tensor([False, True, False])
    ours = ops.to_uint8(ops.resized_crop(smooth, box, flip, 42, "bilinear"))
    theirs = [
        p.crop((5, 3, 19, 15)).resize((42, 42), Image.Resampling.BILINEAR)
        for p in to_pil(smooth)
    ]
    theirs[1] = theirs[1].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    # at its edge a crop of ours sees the pixels beyond
    inner = difference(ours, theirs)[:, :, 2:-2, 2:-2]
    assert inner.max() <= 1


def test_resized_crop_boxes_lie_inside_and_have_the_area() -> None:
    boxes = resized_crop_boxes(2000, 32, (0.25, 1.0), rng())
    top, left, height, width = boxes.T
    assert boxes.min() >= 0
    assert (top + height).max() <= 32
    assert (left + width).max() <= 32
    area = height * width / 32**2
    assert 0.2 < area.min() < 0.3
    assert area.max() == 1.0
    aspect = width / height
    assert aspect.min() > 0.68
    assert aspect.max() < 1.48


def test_resize_is_pillows(images: torch.Tensor) -> None:
    for size, mode, filter_ in (
        (12, "bilinear", Image.Resampling.BILINEAR),
        (40, "bicubic", Image.Resampling.BICUBIC),
    ):
        theirs = [p.resize((size, size), filter_) for p in to_pil(images[1:])]
        assert (
            difference(ops.to_uint8(ops.resize(images[1:], size, mode)), theirs).max()
            <= 2
        )


def test_gaussian_blur_is_near_pillows(images: torch.Tensor) -> None:
    for sigma in (0.1, 1.0, 2.0):
        theirs = [p.filter(ImageFilter.GaussianBlur(sigma)) for p in to_pil(images[1:])]
        assert (
            difference(ops.gaussian_blur(images[1:], torch.full((5,), sigma)), theirs)
            .float()
            .mean()
            < 1.5
        )


def test_three_augment_is_one_of_three(images: torch.Tensor) -> None:
    batch = images[3:4].expand(60, -1, -1, -1)
    kinds = {"grey": 0, "solarise": 0, "blur": 0}
    for image in three_augment(batch, rng()):
        if torch.equal(image[0], image[1]) and torch.equal(image[0], image[2]):
            kinds["grey"] += 1
        elif torch.equal(image, torch.where(batch[0] < 128, batch[0], 255 - batch[0])):
            kinds["solarise"] += 1
        else:
            kinds["blur"] += 1
    assert min(kinds.values()) > 8


def test_color_jitter_stays_in_its_range() -> None:
    # of one grey colour only brightness shows
    level = torch.full((200, 3, 4, 4), 100, dtype=torch.uint8)
    values = color_jitter(level, 0.4, rng()).flatten(1)[:, 0].float()
    assert 59 <= values.min() < 65
    assert 135 < values.max() <= 140
    assert color_jitter(level, 0.0, rng()) is level


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing(mode: str) -> None:
    config = AugmentConfig(erase_prob=0.5, erase_mode=mode)
    images = torch.full((400, 3, 16, 16), 9.0)
    clean = np.arange(400) < 100
    erase(images, config, rng(), torch.Generator().manual_seed(0), clean)
    erased = images.ne(9.0).any(dim=1)
    share = erased.flatten(1).float().mean(dim=1)
    assert share[:100].eq(0).all()
    hit = share[share > 0]
    assert abs(len(hit) / 300 - 0.5) < 0.1
    assert hit.min() >= 0.01
    assert hit.max() <= 1 / 3 + 0.05
    values = images[share.argmax()][:, erased[share.argmax()]]
    distinct = [len(channel.unique()) for channel in values]
    assert distinct == [1, 1, 1] if mode != "pixel" else min(distinct) > 5
    assert (values == 0).all() == (mode == "const")


def test_erase_boxes_share_the_area() -> None:
    boxes = erase_boxes(1000, 32, 32, 3, rng())
    used = boxes[..., 2] * boxes[..., 3]
    counts = (used > 0).sum(axis=1)
    assert set(counts) == {1, 2, 3}
    assert used.sum(axis=1).max() / 32**2 < 1 / 3 + 0.05
    assert (boxes[..., 0] + boxes[..., 2]).max() <= 32
    assert (boxes[..., 1] + boxes[..., 3]).max() <= 32


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("kind", ["mixup", "cutmix", "minmax", "both"])
@pytest.mark.parametrize("batch", [8, 7])
def test_targets_weigh_the_pixels(mode: str, kind: str, batch: int) -> None:
    """Image k is filled with k, so a mixed image's mean is the mean of its targets' classes."""
    config = AugmentConfig(
        mixup=0.8 if kind in ("mixup", "both") else 0.0,
        cutmix=1.0 if kind in ("cutmix", "both") else 0.0,
        cutmix_minmax=(0.2, 0.8) if kind == "minmax" else None,
        mix_mode=mode,
    )
    labels = torch.arange(batch)
    images = labels.float().view(-1, 1, 1, 1).expand(-1, 3, 12, 10).contiguous()
    targets = one_hot(labels, batch)
    cut = False
    for seed in range(12):
        mixed, soft = mix(images, targets, config, rng(seed))
        assert torch.allclose(soft.sum(1), torch.ones(batch))
        assert torch.allclose(
            mixed.mean(dim=(1, 2, 3)), soft @ labels.float(), atol=1e-4
        )
        assert (soft > 0).sum(1).max() <= 2
        cut |= any(image.unique().numel() == 2 for image in mixed)
    assert torch.equal(images[:, 0, 0, 0], labels.float())  # inputs stay
    assert cut == (kind != "mixup")


def test_cutmix_lam_is_one_minus_the_pasted_area() -> None:
    config = AugmentConfig(mixup=0.0, cutmix=1.0, mix_mode="elem")
    plan = draw_mix(500, 16, 16, config, rng())
    area = (plan.boxes[:, 1] - plan.boxes[:, 0]) * (plan.boxes[:, 3] - plan.boxes[:, 2])
    assert np.allclose(plan.lam, 1 - area / 256)
    assert plan.boxes.min() >= 0
    assert plan.boxes.max() <= 16
    assert plan.cut.all()


def test_mixing_probabilities() -> None:
    plan = draw_mix(
        4000,
        16,
        16,
        AugmentConfig(mix_prob=0.5, mix_switch_prob=0.25, mix_mode="elem"),
        rng(),
    )
    mixed = plan.lam < 1
    assert abs(mixed.mean() - 0.5) < 0.05
    assert abs(plan.cut[mixed].mean() - 0.25) < 0.06
    pair = draw_mix(8, 16, 16, AugmentConfig(mix_mode="pair"), rng())
    assert np.array_equal(pair.lam, pair.lam[::-1])


def test_mixup_never_without_its_probability() -> None:
    images = torch.rand(4, 3, 8, 8)
    targets = one_hot(torch.arange(4), 4)
    mixed, soft = mix(images, targets, AugmentConfig(mix_prob=0.0), rng())
    assert mixed is images
    assert soft is targets


def test_normalisation_is_torchvisions() -> None:
    from torchvision.transforms import functional as TF

    images = torch.from_numpy(rng().integers(0, 256, (5, 3, 8, 8), dtype=np.uint8))
    data = DataConfig()
    ours = EvalTransform(data, 8, CPU)(images)
    assert ours.is_contiguous()
    theirs = TF.normalize(images.float() / 255, list(data.mean), list(data.std))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_evaluation_crops_the_centre_above_32_px() -> None:
    from torchvision.transforms import functional as TF

    coarse = rng().integers(0, 256, (3, 3, 4, 4), dtype=np.uint8)
    images = ops.to_uint8(ops.resize(torch.from_numpy(coarse), 48, "bicubic"))
    data = DataConfig(mean=(0, 0, 0), std=(1, 1, 1))
    ours = EvalTransform(data, 56, CPU)(images) * 255
    theirs = [
        TF.center_crop(TF.resize(p, [64, 64], TF.InterpolationMode.BICUBIC), [56, 56])
        for p in to_pil(images)
    ]
    assert (ours - from_pil(theirs)).abs().max() <= 2
    assert EvalTransform(data, 32, CPU)(images).shape == (3, 3, 32, 32)


@pytest.mark.parametrize("size", [24, 48])
@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(),
        AugmentConfig(preset="flip"),
        AugmentConfig(preset="none"),
        AugmentConfig(auto_augment=None),
        AugmentConfig(three_augment=True, crop="none"),
        AugmentConfig(crop="resized", erase_count=3, erase_mode="rand"),
    ],
)
def test_every_preset_gives_normalised_batches(
    config: AugmentConfig, size: int
) -> None:
    images = torch.from_numpy(rng().integers(0, 256, (8, 3, 24, 24), dtype=np.uint8))
    before = images.clone()
    augment, finish = (
        kind(config, DataConfig(), size, CPU) for kind in (BatchAugment, Finish)
    )

    def run() -> torch.Tensor:
        draw = rng(3)
        return finish(augment(images, draw), draw, torch.Generator().manual_seed(0))

    out = run()
    assert out.shape == (8, 3, size, size)
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    assert torch.equal(images, before)
    assert torch.equal(out, run())


@pytest.mark.gpu
def test_the_device_sees_the_same_augmentation() -> None:
    images = torch.from_numpy(rng().integers(0, 256, (64, 3, 32, 32), dtype=np.uint8))
    for config in (
        AugmentConfig(),
        AugmentConfig(crop="resized"),
        AugmentConfig(three_augment=True),
    ):
        on_cpu, on_gpu = (
            BatchAugment(config, DataConfig(), 32, device)(images.to(device), rng())
            .cpu()
            .float()
            for device in (CPU, torch.device("cuda"))
        )
        assert (on_gpu - on_cpu).abs().mean() < 0.1  # levels of 0..255


@pytest.mark.parametrize(
    ("preset", "idle"), [("none", "hflip"), ("flip", "mixup"), ("none", "crop")]
)
def test_an_option_that_its_preset_does_not_read_is_refused(
    preset: Any, idle: str
) -> None:
    other: dict[str, Any] = {"hflip": 0.3, "mixup": 0.2, "crop": "none"}
    with pytest.raises(ValueError, match=rf"preset '{preset}' does not read {idle}"):
        AugmentConfig(preset=preset, **{idle: other[idle]})


def test_what_a_preset_reads_or_leaves_at_its_default_is_taken() -> None:
    assert AugmentConfig(preset="flip", hflip=0.3, crop="none").hflip == 0.3
    assert (
        AugmentConfig.model_validate(AugmentConfig(preset="none").model_dump()).preset
        == "none"
    )
