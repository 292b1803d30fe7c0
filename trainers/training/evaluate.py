"""The metrics of a model on a split, exact over ranks: every image counts once."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainers import measuring
from trainers.data.recognised import Recognised, recognised
from trainers.data.splits import Data, Split, eval_batches
from trainers.training import distributed
from trainers.training.epoch_metrics import epoch_metrics, per_class_accuracy
from trainers.training.losses import cross_entropy
from trainers.training.predictions import (
    Predictions,
    WorstImages,
    calibration,
    confusion,
)

_MOST_IMAGES = 256
_MOST_LOOKED_AT = 128
_SMALL_PX = 48
"""Up to this size of images `evaluation_batch` does not reduce their number."""


class Evaluation(NamedTuple):
    """What a model does on a split.

    Attributes:
        metrics: of `epoch_metrics()`, all that have a meaning here, by name.
        class_accuracy: for each class the share of its images that is recognised; None
            without images.
        class_images: images of each class.
        predictions: what they show; None where no samples were asked for, or a logit is not
            finite.
        recognised: which images are, by their first choice.
    """

    metrics: dict[str, float]
    class_accuracy: list[float | None]
    class_images: list[int]
    predictions: Predictions | None = None
    recognised: Recognised | None = None


def evaluation_batch(image_size: int, device: torch.device) -> int:
    """Images of a batch that is evaluated, a power of two.

    On a CPU large images pass in few at a time, so that what a layer gives stays in the caches
    and its memory is not asked for anew: of EfficientNet-Lite0 256 images of 224 px take 17 s of a
    core of an AMD EPYC at once, 12 s by 32 and 6 s by 8.
    """
    if device.type != "cpu":
        return _MOST_IMAGES
    fitting = _MOST_IMAGES * (_SMALL_PX / image_size) ** 2
    return max(1, min(_MOST_IMAGES, 2 ** math.floor(math.log2(max(fitting, 1)))))


def calibration_batch(image_size: int, device: torch.device) -> int:
    """Images of a batch by which a stage looks at a model, forward or forward and back: as many as
    statistics over a batch want, and as few as memory holds. With gradients EfficientNet-Lite0
    takes 40 MB an image of 224 px, 20 GB for 512 of them.
    """
    return min(_MOST_LOOKED_AT, 4 * evaluation_batch(image_size, device))


def laid_out(images: Tensor) -> Tensor:
    """Images (B, C, H, W) in the memory layout in which convolutions pass them fastest: on a CPU
    channels last. One core of an AMD EPYC evaluates EfficientNet-Lite0 1.55 times as fast then,
    ResNets and MobileNetV3 1.15 times, a ViT and a ConvNeXt as fast as before.
    """
    if images.device.type != "cpu":
        return images
    return images.contiguous(memory_format=torch.channels_last)


def evaluate(
    module: nn.Module,
    data: Data,
    split: Split,
    device: torch.device,
    *,
    batch_size: int | None = None,
    amp: torch.dtype | None = None,
    in_lockstep: bool = False,
) -> dict[str, float]:
    """The metrics of `module` on a split: `evaluate_classes` without the classes."""
    return evaluate_classes(
        module,
        data,
        split,
        device,
        batch_size=batch_size,
        amp=amp,
        in_lockstep=in_lockstep,
    ).metrics


def evaluate_classes(
    module: nn.Module,
    data: Data,
    split: Split,
    device: torch.device,
    *,
    batch_size: int | None = None,
    amp: torch.dtype | None = None,
    in_lockstep: bool = False,
    samples: int = 0,
) -> Evaluation:
    """All epoch metrics of `module` on a split, and the accuracy of each class.

    Accuracies are fractions, the loss is the mean cross-entropy. Top-5 of fewer than 5 classes
    counts all of them. A metric that has no meaning here (`auroc` where a class has no images) or
    no finite value is left out. The module's train/eval mode is restored. In a process group every
    rank calls this and gets the same result.

    Args:
        batch_size: images of one forward pass on one rank; None: `evaluation_batch`.
        amp: type of autocast; None is without.
        in_lockstep: let every rank make the same number of passes, as a sharded module needs it.
        samples: how many of the images with the largest loss to keep in `Evaluation.predictions`.

    Raises:
        ValueError: the split has no images, or none that can be read.
    """
    if data.size(split) == 0:
        raise ValueError(
            f"the {split} split has no images; set data.val_fraction above 0"
        )
    if batch_size is None:
        batch_size = evaluation_batch(data.info.image_size, device)
    was_training = module.training
    module.eval()
    # what a sharded module puts together in a pass it may use again when it is trained
    with torch.no_grad() if in_lockstep else torch.inference_mode():
        worst = None
        if samples:
            worst = WorstImages(samples, data.config, data.info.image_size, device)
        found = _evaluated(
            module, data, split, device, batch_size, amp, in_lockstep, worst
        )
    module.train(was_training)
    return found


def _evaluated(
    module: nn.Module,
    data: Data,
    split: Split,
    device: torch.device,
    batch_size: int,
    amp: torch.dtype | None,
    in_lockstep: bool,
    worst: WorstImages | None,
) -> Evaluation:
    # correct, correct in 5, loss, images
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    all_logits, all_labels = [], []
    batches = eval_batches(
        data, split, batch_size, device, distributed.rank(), distributed.world_size()
    )
    if in_lockstep:
        batches = _in_lockstep(batches, data.info.image_size, device)
    for images_seen, logits, labels in _predictions(module, batches, device, amp):
        if worst is not None:
            worst.add(images_seen, logits, labels)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices.eq(labels[:, None])
        loss = cross_entropy(logits, labels) * len(labels)
        count = torch.full((), len(labels), device=device)
        totals += torch.stack([best[:, 0].sum(), best.sum(), loss, count]).double()
        all_logits.append(logits)
        all_labels.append(labels)
    correct, in_five, loss, images = distributed.sum_over_ranks(totals).tolist()
    if images == 0:  # the count of unreadable ones that is allowed was not exceeded
        raise ValueError(
            f"none of the {data.size(split)} images of the {split} part can be read;"
            " repair them or give others"
        )
    metrics = {
        "accuracy": correct / images,
        "top5_accuracy": in_five / images,
        "loss": loss / images,
    }
    logits, labels = _of_all_ranks(all_logits, all_labels, data, device)
    by_class = per_class_accuracy(logits, labels).tolist()
    shown = None
    if worst is not None and bool(logits.isfinite().all()):
        shown = Predictions(
            confusion(logits, labels), calibration(logits, labels), worst.samples()
        )
    return Evaluation(
        metrics | _computed(logits, labels),
        [None if math.isnan(value) else value for value in by_class],
        labels.bincount(minlength=data.info.num_classes).tolist(),
        shown,
        recognised(logits.argmax(1).cpu(), labels.cpu()),
    )


def _in_lockstep(
    batches: Iterator[tuple[Tensor, Tensor]], image_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's batches; then an image without a label as often as other ranks have more."""
    blank = torch.zeros(1, 3, image_size, image_size, device=device)
    none = torch.empty(0, dtype=torch.int64, device=device)
    batch = next(batches, None)
    while distributed.any_rank(batch is not None, device):
        yield batch or (blank, none)
        batch = next(batches, None)


def _predictions(
    module: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    device: torch.device,
    amp: torch.dtype | None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(images, logits float32 (B, C), labels (B,)) of the batches that have labels."""
    for unordered, labels in batches:
        images = laid_out(unordered)
        with torch.autocast(device.type, amp or torch.float32, enabled=amp is not None):
            output = module(images)
        if len(labels):
            logits = output[0] if isinstance(output, tuple) else output
            yield images, logits.float(), labels
        measuring.pause_point()


def _of_all_ranks(
    logits: list[Tensor], labels: list[Tensor], data: Data, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(logits (N, C), labels (N,)) of the whole split, the same on every rank. A rank may have
    no images.
    """
    # an empty block in front: a rank without images must know the shape, too
    own_logits = torch.cat(
        [torch.empty(0, data.info.num_classes, device=device), *logits]
    )
    own_labels = torch.cat([torch.empty(0, dtype=torch.int64, device=device), *labels])
    return distributed.rows_of_all_ranks(own_logits), distributed.rows_of_all_ranks(
        own_labels
    )


def _computed(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """The metrics that are computed from all predictions, where they have a finite value."""
    values = {
        name: metric.compute(logits, labels)
        for name, metric in epoch_metrics().items()
        if metric.compute is not None
    }
    numbers = {k: float(value) for k, value in values.items() if value is not None}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
