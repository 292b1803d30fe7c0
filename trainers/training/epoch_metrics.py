"""The metrics of an epoch: what training reports after each one, and what may end a trial early.

A new one touches this file alone: give its name, description, unit, direction and the function
that computes it from all predictions of a split. A package of somebody else's offers the same
object under `EPOCH_METRICS` (see docs/extending.md).

The functions are plain torch and give what torchmetrics' functions of the same name give; tests
hold them equal. torchmetrics itself is not imported: that takes a second and 90 MB in every
process of a sweep, for it brings matplotlib and SciPy. A function of
`torchmetrics.functional.classification` can be given as `compute` by whoever wants another metric.

Legend: N images, C classes.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Compute = Callable[["Tensor", "Tensor"], "Tensor | float | None"]
"""(logits float32 (N, C), labels int64 (N,)), each image of the split once → the value, a scalar.
None or a value that is not finite: the metric has no meaning here and is left out of the row.
"""

ECE_BINS = 15


class EpochMetric(NamedTuple):
    """A number that an epoch of training has.

    Attributes:
        name: as in the rows of epochs and in a spec; `test_<name>` is the same on the test set.
        description: what was measured, in one phrase.
        unit: of the value: "fraction" for shares from 0 to 1, "nats" for entropies.
        mode: whether more is better.
        compute: from logits and labels to the value. None: the loop sums it up batch by batch.
    """

    name: str
    description: str
    unit: str
    mode: Literal["max", "min"]
    compute: Compute | None = None

    @property
    def on_validation(self) -> bool:
        """Whether it is measured on the validation part, so that the test set has it too."""
        return self.name != TRAIN_LOSS


TRAIN_LOSS = "train_loss"


def class_counts(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Confusion matrix, int64 (C, C): images of class [row] that were taken for class [column]."""
    classes = logits.shape[1]
    cells = labels * classes + logits.argmax(1)
    return cells.bincount(minlength=classes * classes).view(classes, classes)


def per_class_accuracy(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Share of each class's images that are recognised, float64 (C,); NaN without images."""
    counts = class_counts(logits, labels).double()
    return counts.diagonal() / counts.sum(1)


def balanced_accuracy(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Mean of `per_class_accuracy` over the classes that have images."""
    return per_class_accuracy(logits, labels).nanmean()


def f1_macro(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Mean of the classes' F1 = 2·hits / (images + predictions), over those that have either."""
    counts = class_counts(logits, labels).double()
    return (2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))).nanmean()


def ece(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3).

    The images are put into 15 bins of equal width by the probability of the predicted class; the
    error is the mean over images of the gap between accuracy and mean probability of their bin.
    """
    import torch

    confidence, predicted = logits.softmax(1).max(1)
    inner_edges = torch.linspace(0, 1, ECE_BINS + 1, device=logits.device)[1:-1]
    bins = torch.bucketize(confidence, inner_edges, right=True)
    gap = (predicted == labels).double() - confidence.double()
    return bins.bincount(gap, minlength=ECE_BINS).abs().sum() / len(labels)


def auroc(logits: "Tensor", labels: "Tensor") -> float | None:
    """Mean over the classes of the area under the ROC curve of "this class or not".

    A class's area is the share of pairs (an image of the class, another one) in which the first
    has the higher probability of the class; equal ones count half. None if a class has no images
    or all of them: its area does not exist then, and a mean over the others would be compared
    between trials that have other classes.
    """
    import numpy as np

    # on the CPU, where NumPy's sort is several times as fast as torch's
    probabilities = logits.softmax(1).T.contiguous().cpu().numpy()
    classes = labels.cpu().numpy()
    areas = []
    for label, scores in enumerate(probabilities):
        own, every = scores[classes == label], np.sort(scores)
        others = len(every) - len(own)
        if not len(own) or not others:
            return None
        left, right = np.searchsorted(every, own), np.searchsorted(every, own, "right")
        # of every pair within the class, one is below the other: n² / 2, with itself a half
        below = (left + right).sum() / 2 - len(own) ** 2 / 2
        areas.append(below / (len(own) * others))
    return float(np.mean(areas))


_BUILT_IN = (
    EpochMetric("accuracy", "top-1 accuracy on the validation part", "fraction", "max"),
    EpochMetric(
        "top5_accuracy", "top-5 accuracy on the validation part", "fraction", "max"
    ),
    EpochMetric("loss", "mean cross-entropy on the validation part", "nats", "min"),
    EpochMetric(TRAIN_LOSS, "mean loss of the epoch's training steps", "nats", "min"),
    EpochMetric(
        "balanced_accuracy",
        "mean over the classes of the share of their validation images that is recognised",
        "fraction",
        "max",
        balanced_accuracy,
    ),
    EpochMetric(
        "f1_macro",
        "mean over the classes of the F1 score on the validation part",
        "fraction",
        "max",
        f1_macro,
    ),
    EpochMetric(
        "auroc",
        "mean over the classes of the area under the ROC curve, class against the rest, on the"
        " validation part; absent where a class has no images",
        "fraction",
        "max",
        auroc,
    ),
    EpochMetric(
        "ece",
        "expected calibration error on the validation part, 15 bins",
        "fraction",
        "min",
        ece,
    ),
)
EPOCH_METRICS: Mapping[str, EpochMetric] = {metric.name: metric for metric in _BUILT_IN}
"""Name → metric, those of this package."""


def epoch_metrics() -> dict[str, EpochMetric]:
    """Name → metric: ours and those of plugins.

    Raises:
        ValueError: a plugin takes a name that a built-in has, or offers something else.
    """
    from trainers import plugins

    return plugins.merged(
        plugins.EPOCH_METRICS,
        EPOCH_METRICS,
        fits=lambda value: isinstance(value, EpochMetric),
        rule="a trainers.training.epoch_metrics.EpochMetric",
    )
