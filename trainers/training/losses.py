"""Task and distillation objectives.

Legend: B batch, C classes, z student logits, t teacher logits, y targets, tau temperature.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.config import DistillConfig

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, images (B, 3, H, W), targets (B,) or (B, C)) → scalar loss."""
KlHeads = Literal["mean", "both"]
Output = Tensor | tuple[Tensor, Tensor]
"""Logits (B, C), or a distilled model's of the class head and the distillation head."""


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of logits (B, C) with labels (B,) or soft targets (B, C),
    label-smoothed.
    """
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def soft_distillation(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """tau² · KL(teacher/tau ‖ student/tau), mean over batch × classes (DeiT's published code; its
    paper's equation 2 averages over the batch only)."""
    return (
        F.kl_div(
            F.log_softmax(student / tau, dim=1),
            F.log_softmax(teacher / tau, dim=1),
            reduction="sum",
            log_target=True,
        )
        * (tau * tau)
        / student.numel()
    )


def hard_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the teacher's argmax (DeiT, equation 3)."""
    return F.cross_entropy(student, teacher.argmax(dim=1))


def kl_divergence(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """KL(teacher/tau ‖ student/tau), mean over batch × classes (NViT; without DeiT's factor
    tau²).
    """
    p, q = F.log_softmax(teacher / tau, 1), F.log_softmax(student / tau, 1)
    return F.kl_div(q, p, reduction="sum", log_target=True) / student.numel()


def _heads(output: Output) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def _class_logits(output: Output) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _mean_logits(output: Output) -> Tensor:
    return (output[0] + output[1]) / 2 if isinstance(output, tuple) else output


class TaskObjective:
    """Cross-entropy on the class head."""

    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return self.loss(model(images), images, targets)

    def loss(self, output: Output, images: Tensor, targets: Tensor) -> Tensor:
        """The loss, given the output of the forward pass."""
        return cross_entropy(_class_logits(output), targets, self.smoothing)


class DistillObjective:
    """(1 − alpha) · task loss + alpha · distillation, on the distillation head where the
    model has one.
    """

    def __init__(
        self, teacher: nn.Module, config: DistillConfig, smoothing: float
    ) -> None:
        self.teacher, self.config, self.smoothing = teacher, config, smoothing

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return self.loss(model(images), images, targets)

    def loss(self, output: Output, images: Tensor, targets: Tensor) -> Tensor:
        """The loss, given the output of the forward pass."""
        distilled = _heads(output)[-1]
        mean = self.config.base_loss_heads == "mean"
        logits = _mean_logits(output) if mean else _class_logits(output)
        with torch.no_grad():
            teacher = _class_logits(self.teacher(images))
        if self.config.kind == "hard":
            distill = hard_distillation(distilled, teacher)
        else:
            distill = soft_distillation(distilled, teacher, self.config.tau)
        alpha = self.config.alpha
        return (1 - alpha) * cross_entropy(
            logits, targets, self.smoothing
        ) + alpha * distill


class KlObjective:
    """original_coeff · `base` + kl_coeff · KL(dense ‖ model) at temperature tau (NViT).

    Args:
        base: the task or distillation loss.
        dense: the model to stay close to, frozen, in eval mode.
        active: whether the KL term counts at this moment.
        heads: of models of two heads. mean: the divergence of the heads' mean logits; both:
            the mean of the two heads' divergences, for which `dense` gives both.
    """

    def __init__(
        self,
        base: TaskObjective | DistillObjective,
        dense: nn.Module,
        kl_coeff: float,
        tau: float,
        original_coeff: float = 1.0,
        active: Callable[[], bool] = lambda: True,
        heads: KlHeads = "mean",
    ) -> None:
        self.base, self.dense, self.kl_coeff, self.tau = base, dense, kl_coeff, tau
        self.original_coeff, self.active = original_coeff, active
        self.heads = heads

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        output = model(images)
        loss = self.original_coeff * self.base.loss(output, images, targets)
        if not self.active():
            return loss
        with torch.no_grad():
            teacher = self.dense(images)
        return loss + self.kl_coeff * self._divergence(output, teacher)

    def _divergence(self, student: Output, teacher: Output) -> Tensor:
        if self.heads == "mean":
            return kl_divergence(_mean_logits(student), _mean_logits(teacher), self.tau)
        pairs = zip(_heads(student), _heads(teacher), strict=True)
        return torch.stack([kl_divergence(s, t, self.tau) for s, t in pairs]).mean()
