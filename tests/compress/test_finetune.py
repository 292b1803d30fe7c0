"""Fine-tuning as NViT's published code does it: eval mode, both heads' divergences, the mean of
both heads for the labels. And BatchNorms that are set anew when the weights have stopped.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor
from torch.nn import BatchNorm2d

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


def test_norms_are_those_of_the_final_weights(digits: Data, tmp_path: Path) -> None:
    """Each BatchNorm takes mean and variance of what the trained layers before it give."""
    arch = make_arch("resnet20_cifar", num_classes=10, image_size=32, args={"width": 4})
    start = ModelState.initialised(arch, 0)
    found = {}
    for images in (0, 48):
        ctx = Context(digits, CPU, 0, tmp_path / str(images), lambda name, _: start)
        options = {"epochs": 2, "batch_size": 40, "lr": 0.01, "warmup": 0}
        config = Finetune(**options, precise_bn_images=images)  # type: ignore[arg-type]
        found[images] = config.run(start, ctx)
    plain, precise = found[0].build(), found[48].build()
    names = {name for name, _ in plain.named_buffers()}
    kept = {name for name in plain.state_dict() if name not in names}
    for name in kept:  # the weights do not differ by a bit
        assert torch.equal(plain.state_dict()[name], precise.state_dict()[name])
    x, _ = next(eval_batches(digits, "train", 48, CPU))
    inputs: dict[str, Tensor] = {}
    norms = {n: m for n, m in precise.named_modules() if isinstance(m, BatchNorm2d)}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(
            lambda _, given, name=name: inputs.update({name: given[0]})
        )
    with torch.inference_mode():
        precise.train()(x)  # as in training, each norm by its own batch
    close = {"rtol": 1e-3, "atol": 1e-3}
    for name in norms:
        mean = inputs[name].mean((0, 2, 3))
        variance = inputs[name].var((0, 2, 3))
        after = found[48].weights
        torch.testing.assert_close(after[f"{name}.running_mean"], mean, **close)
        torch.testing.assert_close(after[f"{name}.running_var"], variance, **close)
        before = found[0].weights[f"{name}.running_mean"]
        assert not torch.allclose(before, mean, rtol=0.01)
