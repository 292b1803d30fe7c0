"""Task and distillation objectives.

Legend: B batch, C classes, z student logits, t teacher logits, y targets, tau temperature.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.config import DistillConfig

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, images (B, 3, H, W), targets (B,) or (B, C)) → scalar loss."""


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of logits (B, C) with labels (B,) or soft targets (B, C), label-smoothed."""
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def soft_distillation(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """tau² · KL(teacher/tau ‖ student/tau), mean over batch × classes (DeiT's published code; its
    paper's equation 2 averages over the batch only)."""
    return (
        F.kl_div(
            F.log_softmax(student / tau, dim=1), F.log_softmax(teacher / tau, dim=1), reduction="sum", log_target=True
        )
        * (tau * tau)
        / student.numel()
    )


def hard_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the teacher's argmax (DeiT, equation 3)."""
    return F.cross_entropy(student, teacher.argmax(dim=1))


def _class_logits(output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


class TaskObjective:
    """Cross-entropy on the class head."""

    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(_class_logits(model(images)), targets, self.smoothing)


class DistillObjective:
    """(1 − alpha) · task loss + alpha · distillation, on the distillation head where the model has one."""

    def __init__(self, teacher: nn.Module, config: DistillConfig, smoothing: float) -> None:
        self.teacher, self.config, self.smoothing = teacher, config, smoothing

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        output = model(images)
        logits, distilled = output if isinstance(output, tuple) else (output, output)
        with torch.no_grad():
            teacher = _class_logits(self.teacher(images))
        if self.config.kind == "hard":
            distill = hard_distillation(distilled, teacher)
        else:
            distill = soft_distillation(distilled, teacher, self.config.tau)
        alpha = self.config.alpha
        return (1 - alpha) * cross_entropy(logits, targets, self.smoothing) + alpha * distill
