"""Mixup (Zhang et al. 2018, arXiv:1710.09412) and cutmix (Yun et al. 2019,
arXiv:1905.04899) of batches.

Legend: lam, the weight of an image's own pixels and label; its partner is the batch's image
from the other end, as in timm. Cutmix: lam is one minus the pasted part of the image, after
clipping at the border.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.config import AugmentConfig
from trainers.data.transfer import put


@dataclass(frozen=True)
class MixPlan:
    """What is drawn for a batch: `lam` (B,), `cut` (B,) bool, `boxes` (B, 4) top, bottom,
    left, right in px.
    """

    lam: NDArray[np.float64]
    cut: NDArray[np.bool_]
    boxes: NDArray[np.int64]


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """int64 (B,) to float32 (B, num_classes)."""
    return torch.nn.functional.one_hot(labels, num_classes).float()


def mix(
    images: Tensor, targets: Tensor, config: AugmentConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mix float images (B, 3, H, W) and targets (B, num_classes); draws from `rng` alone."""
    plan = draw_mix(len(images), images.shape[2], images.shape[3], config, rng)
    if (plan.lam == 1).all():
        return images, targets
    lam = put(plan.lam, images.device, torch.float32)
    targets = targets.flip(0).lerp(targets, lam.view(-1, 1))
    partners = images.flip(0)
    if not plan.cut.any():
        return partners.lerp(images, lam.view(-1, 1, 1, 1)), targets
    if config.mix_mode == "batch":
        top, bottom, left, right = plan.boxes[0]
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
        return mixed, targets
    boxes = put(plan.boxes, images.device).view(-1, 4, 1, 1)
    y = torch.arange(images.shape[2], device=images.device).view(1, -1, 1)
    x = torch.arange(images.shape[3], device=images.device).view(1, 1, -1)
    inside = (
        (y >= boxes[:, 0]) & (y < boxes[:, 1]) & (x >= boxes[:, 2]) & (x < boxes[:, 3])
    )
    cut = put(plan.cut, images.device).view(-1, 1, 1)
    weight = torch.where(cut, (~inside).float(), lam.view(-1, 1, 1)).unsqueeze(1)
    return partners.lerp(images, weight), targets


def draw_mix(
    batch: int, height: int, width: int, config: AugmentConfig, rng: np.random.Generator
) -> MixPlan:
    """Draw lam, kind and box once a batch, once a pair (both share them) or once an image
    (`mix_mode`).
    """
    draws = {"batch": 1, "pair": batch // 2, "elem": batch}[config.mix_mode]
    cutmix_alpha = 1.0 if config.cutmix_minmax is not None else config.cutmix
    both = config.mixup > 0 and cutmix_alpha > 0
    cut = rng.random(draws) < (
        config.mix_switch_prob if both else float(cutmix_alpha > 0)
    )
    lam = np.where(
        cut,
        rng.beta(cutmix_alpha, cutmix_alpha, draws) if cutmix_alpha > 0 else 1.0,
        rng.beta(config.mixup, config.mixup, draws) if config.mixup > 0 else 1.0,
    )
    mixed = rng.random(draws) < config.mix_prob
    boxes = _boxes(lam, height, width, config.cutmix_minmax, rng)
    pasted = (
        (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / (height * width)
    )
    # clipped boxes are smaller than drawn: the label follows the pixels that were pasted
    lam = np.where(mixed, np.where(cut, 1 - pasted, lam), 1.0)
    cut &= mixed
    if config.mix_mode == "batch":
        spread = np.zeros(batch, np.int64)
    elif config.mix_mode == "pair":
        # image i and its partner from the other end have the i-th draw; the one in the middle of
        # an odd batch is its own partner and stays as it is
        spread = np.minimum(np.arange(batch), np.arange(batch)[::-1])
        lam = np.append(lam, 1.0)
        cut = np.append(cut, False)
        boxes = np.append(boxes, [[0, 0, 0, 0]], axis=0)
    else:
        spread = np.arange(batch)
    return MixPlan(lam[spread], cut[spread], boxes[spread])


def _boxes(
    lam: NDArray[np.float64],
    height: int,
    width: int,
    minmax: tuple[float, float] | None,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """(n, 4) top, bottom, left, right: of area 1 - lam about a uniform centre and clipped,
    or sides in `minmax`.
    """
    n = len(lam)
    if minmax is not None:
        tall, wide = (
            _between(int(side * minmax[0]), int(side * minmax[1]), n, rng)
            for side in (height, width)
        )
        top = rng.integers(0, height - tall + 1)
        left = rng.integers(0, width - wide + 1)
        return np.stack([top, top + tall, left, left + wide], axis=1)
    ratio = np.sqrt(1 - lam)
    tall, wide = (height * ratio).astype(np.int64), (width * ratio).astype(np.int64)
    y, x = rng.integers(height, size=n), rng.integers(width, size=n)
    edges = [y - tall // 2, y + (tall + 1) // 2, x - wide // 2, x + (wide + 1) // 2]
    limits = (height, height, width, width)
    clipped = [e.clip(0, limit) for e, limit in zip(edges, limits, strict=True)]
    return np.stack(clipped, axis=1)


def _between(
    low: int, high: int, n: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    return rng.integers(low, max(low + 1, high), size=n)
