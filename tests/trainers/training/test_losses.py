"""Objectives against formulas written out in NumPy."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainers.config import DistillConfig
from trainers.training.losses import (
    DistillObjective,
    KlObjective,
    TaskObjective,
    cross_entropy,
    hard_distillation,
    soft_distillation,
)

RNG = np.random.default_rng(0)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_distillation_is_deits_mean_over_batch_and_classes(tau: float) -> None:
    student, teacher = RNG.normal(size=(7, 5)), RNG.normal(size=(7, 5))
    log_t, log_s = log_softmax(teacher / tau), log_softmax(student / tau)
    expected = tau**2 * (np.exp(log_t) * (log_t - log_s)).sum() / (7 * 5)
    assert soft_distillation(
        torch.tensor(student), torch.tensor(teacher), tau
    ).item() == pytest.approx(expected)


def test_hard_distillation_uses_the_teachers_argmax() -> None:
    student, teacher = RNG.normal(size=(6, 4)), RNG.normal(size=(6, 4))
    expected = -log_softmax(student)[np.arange(6), teacher.argmax(1)].mean()
    assert hard_distillation(
        torch.tensor(student), torch.tensor(teacher)
    ).item() == pytest.approx(expected)


def test_smoothing_acts_alike_on_labels_and_soft_targets() -> None:
    logits, labels = (
        torch.tensor(RNG.normal(size=(6, 4))),
        torch.tensor([0, 1, 2, 3, 0, 1]),
    )
    target = 0.9 * np.eye(4)[labels] + 0.1 / 4
    expected = -(target * log_softmax(logits.numpy())).sum(1).mean()
    assert cross_entropy(logits, labels, 0.1).item() == pytest.approx(expected)
    assert cross_entropy(
        logits, torch.eye(4, dtype=torch.float64)[labels], 0.1
    ).item() == pytest.approx(expected)


class Fixed(nn.Module):
    """Returns what it was given at construction."""

    def __init__(self, output: Tensor | tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.output


def test_two_heads_split_task_and_distillation() -> None:
    heads = torch.tensor(RNG.normal(size=(3, 4))), torch.tensor(RNG.normal(size=(3, 4)))
    teacher, labels = torch.tensor(RNG.normal(size=(3, 4))), torch.tensor([1, 0, 3])
    objective = DistillObjective(
        Fixed(teacher), DistillConfig(teacher="source", kind="hard", alpha=0.3), 0.0
    )
    expected = 0.7 * nn.functional.cross_entropy(
        heads[0], labels
    ) + 0.3 * nn.functional.cross_entropy(heads[1], teacher.argmax(1))
    assert objective(Fixed(heads), torch.zeros(3), labels).item() == pytest.approx(
        expected.item()
    )


@pytest.mark.parametrize("active", [False, True])
def test_kl_to_the_dense_model_is_added_to_what_labels_and_a_cnn_say(
    active: bool,
) -> None:
    heads = torch.tensor(RNG.normal(size=(3, 4))), torch.tensor(RNG.normal(size=(3, 4)))
    cnn, dense, labels = (
        torch.tensor(RNG.normal(size=(3, 4))),
        RNG.normal(size=(3, 4)),
        torch.tensor([1, 0, 3]),
    )
    both = DistillObjective(
        Fixed(cnn), DistillConfig(teacher="source", kind="hard", alpha=0.5), 0.0
    )
    objective = KlObjective(
        both, Fixed(torch.tensor(dense)), 50.0, 3.0, 0.7, active=lambda: active
    )
    log_t, log_s = (
        log_softmax(dense / 3),
        log_softmax((heads[0] + heads[1]).numpy() / 2 / 3),
    )
    kl = (np.exp(log_t) * (log_t - log_s)).sum() / (3 * 4)
    images = torch.zeros(3)
    expected = 0.7 * both(Fixed(heads), images, labels).item() + (
        50.0 * kl if active else 0.0
    )
    assert objective(Fixed(heads), images, labels).item() == pytest.approx(expected)
    plain = KlObjective(TaskObjective(0.1), Fixed(torch.tensor(dense)), 50.0, 3.0)
    log_s = log_softmax(heads[0].numpy() / 3)
    kl = (np.exp(log_t) * (log_t - log_s)).sum() / (3 * 4)
    expected = cross_entropy(heads[0], labels, 0.1).item() + 50.0 * kl
    assert plain(Fixed(heads[0]), images, labels).item() == pytest.approx(expected)


def two_heads(size: tuple[int, int] = (3, 4)) -> tuple[Tensor, Tensor]:
    return torch.tensor(RNG.normal(size=size)), torch.tensor(RNG.normal(size=size))


def test_the_loss_of_labels_may_take_the_mean_of_both_heads() -> None:
    heads, labels = two_heads(), torch.tensor([1, 0, 3])
    teacher = torch.tensor(RNG.normal(size=(3, 4)))
    config = DistillConfig(teacher="source", alpha=0.3, base_loss_heads="mean")
    got = DistillObjective(Fixed(teacher), config, 0.0)(
        Fixed(heads), torch.zeros(3), labels
    )
    mean = (heads[0] + heads[1]).numpy() / 2
    labelled = -log_softmax(mean)[np.arange(3), labels].mean()
    distilled = -log_softmax(heads[1].numpy())[np.arange(3), teacher.argmax(1)].mean()
    assert got.item() == pytest.approx(0.7 * labelled + 0.3 * distilled, rel=1e-6)


def test_kl_of_both_heads_is_the_mean_of_their_divergences() -> None:
    heads, dense, labels = (
        two_heads((6, 5)),
        two_heads((6, 5)),
        torch.arange(5).repeat(2)[:6],
    )
    objective = KlObjective(
        TaskObjective(0.0), Fixed(dense), 50.0, 20.0, original_coeff=0.0, heads="both"
    )
    each = []
    for student, teacher in zip(heads, dense, strict=True):
        log_t, log_s = (
            log_softmax(teacher.numpy() / 20),
            log_softmax(student.numpy() / 20),
        )
        each.append((np.exp(log_t) * (log_t - log_s)).sum() / (6 * 5))
    got = objective(Fixed(heads), torch.zeros(6), labels).item()
    assert got == pytest.approx(50 * (each[0] + each[1]) / 2, rel=1e-6)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        objective(Fixed(heads[0]), torch.zeros(6), labels)
