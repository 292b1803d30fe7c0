"""The metrics of an epoch: what training reports after each one, and what may end a trial early.

A new one touches this file alone: give its name, description, unit, direction and the function
that computes it from all predictions of a split. A package of somebody else's offers the same
object under `EPOCH_METRICS` (see docs/extending.md).

They are torchmetrics' functions on all predictions of a split. torchmetrics is imported at the
first evaluation, not before: its import takes a second.

Legend: N images, C classes.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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


@lru_cache(maxsize=1)
def _torchmetrics() -> Any:
    """torchmetrics' functions of classification; importing them imports torchvision, too."""
    from trainers.torchvision_internals import declare_missing_operators

    declare_missing_operators()
    from torchmetrics.functional import classification

    return classification


def per_class_accuracy(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Share of each class's images that are recognised, float64 (C,); NaN without images."""
    counts = (
        _torchmetrics()
        .multiclass_confusion_matrix(logits, labels, logits.shape[1])
        .double()
    )
    return counts.diagonal() / counts.sum(1)


def balanced_accuracy(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Mean of `per_class_accuracy` over the classes that have images.

    torchmetrics' own mean also counts a class that has none but was predicted.
    """
    return per_class_accuracy(logits, labels).nanmean()


def f1_macro(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Mean of the classes' F1 = 2·hits / (images + predictions), over those that have either."""
    return _torchmetrics().multiclass_f1_score(
        logits, labels, logits.shape[1], average="macro"
    )


def ece(logits: "Tensor", labels: "Tensor") -> "Tensor | None":
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3).

    The images are put into 15 bins of equal width by the probability of the predicted class; the
    error is the mean over images of the gap between accuracy and mean probability of their bin.
    None where a logit is not finite.
    """
    if not bool(logits.isfinite().all()):
        return None
    probabilities, classes = logits.softmax(1), logits.shape[1]
    return _torchmetrics().multiclass_calibration_error(
        probabilities, labels, classes, n_bins=ECE_BINS
    )


def auroc(logits: "Tensor", labels: "Tensor") -> "Tensor | None":
    """Mean over the classes of the area under the ROC curve of "this class or not".

    A class's area is the share of pairs (an image of the class, another one) in which the first
    has the higher probability of the class; equal ones count half. None if a class has no images
    or all of them: its area does not exist then, and a mean over the others would be compared
    between trials that have other classes.
    """
    classes = logits.shape[1]
    images = labels.bincount(minlength=classes)
    if classes == 1 or not bool((images > 0).all()):
        return None
    return _torchmetrics().multiclass_auroc(
        logits.softmax(1), labels, classes, average="macro"
    )


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
