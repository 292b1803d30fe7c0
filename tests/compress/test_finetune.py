"""Fine-tuning as NViT's published code does it: eval mode, both heads' divergences, the mean of
both heads for the labels.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from compress.finetune import Finetune
from compress.stage import Context
from trainers.data.splits import Data, eval_batches
from trainers.models.arch import ModelState
from trainers.models.make import make_arch

CPU = torch.device("cpu")
PUBLISHED: dict[str, Any] = {
    "distill": {"teacher": "stage:cnn", "base_loss_heads": "mean"},
    "kl_teacher": "source",
    "kl_heads": "both",
    "kl_tau": 20.0,
    "kl_loss_coeff": 1e5,
    "train_mode": False,
    "drop_path": 0.5,
    "label_smoothing": 0.0,
    "augment": "none",
    "epochs": 1,
    "warmup": 0,
    "lr": 1e-12,
}


def distilled(
    data: Data, seed: int, name: str = "deit_tiny_distilled_patch16_224"
) -> ModelState:
    args = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    arch = make_arch(name, num_classes=10, image_size=data.info.image_size, args=args)
    state = ModelState.initialised(arch, seed)
    draw = torch.Generator().manual_seed(seed)
    shaken = {
        n: t + 0.3 * torch.randn(t.shape, generator=draw)
        for n, t in state.weights.items()
    }
    return ModelState(arch, shaken)


def heads_of(state: ModelState, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of both heads without stochastic depth, from the model's parts."""
    vit: Any = state.build()
    with torch.inference_mode():
        x = vit.forward_features(images)
        return vit.head(x[:, 0]), vit.head_dist(x[:, 1])


def kl(student: Tensor, teacher: Tensor, tau: float) -> float:
    t, s = F.softmax(teacher / tau, 1), F.softmax(student / tau, 1)
    return float((t * (t / s).log()).sum() / t.numel())


def test_the_loss_is_the_published_one(digits: Data, tmp_path: Path) -> None:
    """With stochastic depth of 0.5 in the model, and none in the loss."""
    student, dense, cnn = (distilled(digits, seed) for seed in (0, 1, 2))
    teachers = {"stage:cnn": cnn, "source": dense}
    rows: list[dict[str, Any]] = []
    size = digits.size("train")
    ctx = Context(digits, CPU, 0, tmp_path, lambda name, _: teachers[name], rows.append)
    Finetune(**PUBLISHED, batch_size=size).run(student, ctx)

    images, labels = next(eval_batches(digits, "train", size, CPU))
    (own, own_dist), (c, d) = heads_of(student, images), heads_of(dense, images)
    hard = sum(heads_of(cnn, images)).argmax(1)  # type: ignore[union-attr]
    expected = (
        0.5 * F.cross_entropy((own + own_dist) / 2, labels)
        + 0.5 * F.cross_entropy(own_dist, hard)
        + 1e5 * (kl(own, c, 20) + kl(own_dist, d, 20)) / 2
    )
    assert rows[0]["train_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_both_heads_need_two_heads(digits: Data, tmp_path: Path) -> None:
    plain = distilled(digits, 0, "deit_tiny_patch16_224")
    ctx = Context(digits, CPU, 0, tmp_path, lambda name, _: plain)
    with pytest.raises(ValueError, match="VisionTransformer has one head"):
        Finetune(**PUBLISHED, batch_size=40).run(plain, ctx)
    for missing in ("distill", "kl_teacher"):
        with pytest.raises(
            ValidationError, match="'both' needs kl_teacher, and distill"
        ):
            Finetune(**PUBLISHED | {missing: None})
