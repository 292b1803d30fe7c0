"""Epoch metrics: equal to scikit-learn's, left out where they have no meaning."""

import math

import pytest
import torch
from torch import Tensor, nn

from trainers import plugins
from trainers.data.splits import Data
from trainers.training.epoch_metrics import (
    EPOCH_METRICS,
    EpochMetric,
    auroc,
    balanced_accuracy,
    ece,
    epoch_metrics,
    f1_macro,
    per_class_accuracy,
)
from trainers.training.evaluate import evaluate, evaluate_classes

CPU = torch.device("cpu")


def predictions(images: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that know something of the labels, some of them equal; every class has images."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    labels[images // 2 :] %= max(2, classes // 2)  # the first classes have more images
    logits = torch.randn(images, classes, generator=generator).round(decimals=1)
    logits[torch.arange(images), labels] += torch.rand(images, generator=generator) * 2
    return logits, labels


def ece_by_hand(logits: Tensor, labels: Tensor) -> float:
    """Guo et al. 2017, equations 2 and 3, bin by bin."""
    confidence, predicted = logits.double().softmax(1).max(1)
    error = 0.0
    for k in range(15):
        inside = (confidence >= k / 15) & (confidence < (k + 1) / 15)
        inside |= (confidence == 1.0) if k == 14 else torch.zeros_like(inside)
        if inside.any():
            hits = (predicted == labels)[inside].double().mean()
            error += float(inside.sum()) * abs(float(hits - confidence[inside].mean()))
    return error / len(labels)


@pytest.mark.parametrize(("images", "classes"), [(50, 2), (400, 10), (999, 37)])
def test_equal_to_scikit_learn(images: int, classes: int) -> None:
    """scikit-learn's scores of the same predictions, and the calibration error by hand."""
    from sklearn import metrics as theirs

    logits, labels = predictions(images, classes)
    taken_for = logits.argmax(1)
    one_hot = torch.eye(classes)[labels]
    areas = theirs.roc_auc_score(one_hot, logits.softmax(1), average="macro")
    for ours, expected in (
        (balanced_accuracy, theirs.balanced_accuracy_score(labels, taken_for)),
        (f1_macro, theirs.f1_score(labels, taken_for, average="macro")),
        (auroc, areas),
        (ece, ece_by_hand(logits, labels)),
    ):
        value = ours(logits, labels)
        assert value is not None
        assert float(value) == pytest.approx(expected, abs=2e-6), ours
    expected_shares = theirs.recall_score(labels, taken_for, average=None)
    assert per_class_accuracy(logits, labels).tolist() == pytest.approx(expected_shares)


def test_classes_without_images() -> None:
    """Balanced accuracy and F1 are means over the classes that exist; AUROC is absent."""
    logits, labels = predictions(90, 3)
    wide = torch.cat([logits, torch.full((90, 1), -9.0)], dim=1)
    assert math.isnan(per_class_accuracy(wide, labels)[3])
    assert balanced_accuracy(wide, labels) == balanced_accuracy(logits, labels)
    assert f1_macro(wide, labels) == f1_macro(logits, labels)
    assert auroc(logits, labels) is not None
    assert auroc(wide, labels) is None
    assert auroc(logits[labels == 1], labels[labels == 1]) is None
    # all images of one class: no other image to compare with
    only = labels.clamp(max=0)
    assert auroc(logits[:, :1], only) is None
    # a class that was predicted and has no images lowers F1, not the balanced accuracy
    wide[0, 3] = 99.0
    assert f1_macro(wide, labels) < f1_macro(logits, labels)


def test_known_values() -> None:
    sure = torch.eye(4) * 30
    labels = torch.arange(4)
    for function, right, wrong in (
        (balanced_accuracy, 1.0, 0.0),
        (f1_macro, 1.0, 0.0),
        # of three others, the one that is taken for the class is above
        (
            auroc,
            1.0,
            1 / 3,
        ),
        (ece, 0.0, 1.0),
    ):
        for shift, expected in ((0, right), (1, wrong)):
            value = function(sure.roll(shift, 0), labels)
            assert value is not None
            assert float(value) == pytest.approx(expected, abs=1e-6), function
    even = torch.zeros(4, 4)
    assert float(auroc(even, labels) or 0) == 0.5


class Fixed(nn.Module):
    """Gives the same logits for every image."""

    def __init__(self, value: float, classes: int = 10) -> None:
        super().__init__()
        self.logits = torch.full((classes,), value)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def test_evaluate_has_all_of_them_and_the_accuracy_of_each_class(digits: Data) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    found = evaluate_classes(module, digits, "test", CPU, batch_size=7)
    assert set(found.metrics) == set(EPOCH_METRICS) - {"train_loss"}
    shares = [share for share in found.class_accuracy if share is not None]
    assert len(shares) == 10
    assert sum(shares) / 10 == pytest.approx(found.metrics["balanced_accuracy"])
    for batch_size in (1, 60):
        other = evaluate(module, digits, "test", CPU, batch_size=batch_size)
        assert other == pytest.approx(found.metrics, abs=1e-6)


def test_a_value_that_is_not_finite_is_left_out(digits: Data) -> None:
    found = evaluate(Fixed(math.nan), digits, "val", CPU)
    assert "ece" not in found
    assert "auroc" not in found or math.isfinite(found["auroc"])
    assert evaluate(Fixed(0.0), digits, "val", CPU)["auroc"] == 0.5


def test_every_metric_is_described() -> None:
    for name, metric in epoch_metrics().items():
        assert metric.name == name
        assert metric.description
        assert metric.unit
        assert metric.mode == ("min" if name.endswith(("loss", "ece")) else "max")
        assert metric.on_validation == (name != "train_loss")


def test_a_plugins_metric(digits: Data) -> None:
    text = """
from torchmetrics.functional.classification import multiclass_cohen_kappa
from trainers.training.epoch_metrics import EpochMetric
def kappa(logits, labels):
    return multiclass_cohen_kappa(logits, labels, logits.shape[1])
EPOCH_METRICS = {"kappa": EpochMetric("kappa", "Cohen's kappa", "1", "max", kappa)}
"""
    file = plugins.PluginFile(name="k.py", sha256=plugins.digest(text), text=text)
    plugins.load([file])
    try:
        assert isinstance(epoch_metrics()["kappa"], EpochMetric)
        assert evaluate(Fixed(0.0), digits, "val", CPU)["kappa"] == pytest.approx(
            0, abs=1e-6
        )
    finally:
        plugins.forget()
    assert "kappa" not in evaluate(Fixed(0.0), digits, "val", CPU)
