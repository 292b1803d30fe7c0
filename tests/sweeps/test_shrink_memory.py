"""How many trials fit into memory, and what the plan says of it."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from compress.measure.memory import peak_memory_bytes, training_bytes
from sweeps.shrink.memory import Room, room
from tests.sweeps.test_shrink import SPEED


def seen(size: int, images: int) -> Any:
    info = SimpleNamespace(num_val=images, num_test=images, image_size=size)
    return SimpleNamespace(info=info, cores=2)


def test_large_images_and_batches_take_more() -> None:
    photos = replace(SPEED, pass_mb=10.0, train_mb=5.0)
    many, few = (room(seen(224, 1000), photos, n, local=True) for n in (64, 8))
    small = room(
        seen(32, 1000), replace(SPEED, pass_mb=0.1, train_mb=0.3), 32, local=True
    )
    assert many.trial_gb > few.trial_gb > small.trial_gb
    # a step of 64 images, each 10.6 MB of a pass and 1.5 times 5 kept for the gradient, a margin
    alive = 6 * SPEED.weight_mb + 64 * (10.6 + 7.5)
    assert many.trial_gb == pytest.approx(0.9 + 1.3 * alive / 1e3, abs=0.06)
    # of 32 images at a time, with gradients, a stage asks what matters, whatever the batch
    alive = 6 * SPEED.weight_mb + 32 * (5 + 0.6)
    assert few.trial_gb == pytest.approx(0.9 + 1.3 * alive / 1e3, abs=0.06)


@pytest.mark.parametrize(
    ("free", "memory", "words"),
    [
        (20.0, 4.0, "2 trials, about 4.0 GB each; 20.0 GB are free"),
        (10.0, 4.0, "1 trial, about 4.0 GB each"),
        (5.0, 3.0, "1 trial, about 4.0 GB each; 5.0 GB are free: it may be killed"),
        (0.05, 0.1, "1 trial, about 4.0 GB each; 0.1 GB are free: it may be"),
        (None, None, "2 trials, .* not known"),
    ],
)
def test_as_many_as_fit(free: float | None, memory: float | None, words: str) -> None:
    found = Room(4.0, True, free, cores=2)
    assert found.memory_gb == memory
    assert found.said().startswith(words) or free is None


def test_on_a_cluster_its_nodes_decide() -> None:
    found = Room(4.0, False, 1.0, cores=2)
    assert found.memory_gb == 4.0
    assert "as a node's cores and memory hold" in found.said()


def test_a_step_keeps_what_a_pass_frees() -> None:
    """Each ReLU's output (images, 3, 8, 8) stays for the backward pass."""
    module = nn.Sequential(nn.Conv2d(3, 3, 1), *[nn.ReLU() for _ in range(6)])
    few, more = (training_bytes(module, 8, images) for images in (2, 4))
    assert more - few >= 2 * 7 * 3 * 8 * 8 * 4
    assert peak_memory_bytes(module, 8, "cpu") < few
    assert all(p.grad is None for p in module.parameters())
    assert torch.is_grad_enabled()
