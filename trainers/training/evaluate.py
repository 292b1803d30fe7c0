"""Accuracy and loss, exact over ranks: every image counts once."""

from typing import Literal

import torch
from torch import nn

from trainers.data.splits import Data, eval_batches
from trainers.training import distributed
from trainers.training.losses import cross_entropy


@torch.inference_mode()
def evaluate(
    module: nn.Module,
    data: Data,
    split: Literal["train", "val", "test"],
    device: torch.device,
    *,
    batch_size: int = 256,
    amp: torch.dtype | None = None,
) -> dict[str, float]:
    """Top-1 and top-5 accuracy (fractions) and mean cross-entropy of `module` on a split.

    The module's train/eval mode is restored. Top-5 of fewer than 5 classes counts all of them.

    Raises:
        ValueError: the split has no images.
    """
    if data.size(split) == 0:
        raise ValueError(
            f"the {split} split has no images; set data.val_fraction above 0"
        )
    was_training = module.training
    module.eval()
    # correct, correct in 5, loss, images
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    batches = eval_batches(
        data, split, batch_size, device, distributed.rank(), distributed.world_size()
    )
    for images, labels in batches:
        with torch.autocast(device.type, amp or torch.float32, enabled=amp is not None):
            logits = module(images)
        logits = (logits[0] if isinstance(logits, tuple) else logits).float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices.eq(labels[:, None])
        loss = cross_entropy(logits, labels) * len(labels)
        totals += torch.stack(
            [
                best[:, 0].sum(),
                best.sum(),
                loss,
                torch.full((), len(labels), device=device),
            ]
        ).double()
    module.train(was_training)
    correct, in_five, loss, images = distributed.sum_over_ranks(totals).tolist()
    return {
        "accuracy": correct / images,
        "top5_accuracy": in_five / images,
        "loss": loss / images,
    }
