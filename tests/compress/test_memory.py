"""The peak memory of an inference batch: exact on networks whose activations are known."""

import pytest
import torch
from torch import nn

from compress.measure.memory import peak_memory_bytes

FLOAT = 4


class TwoWide(nn.Module):
    """Images (B, 3, 4, 4) → 48 → `width` → `width` → 10, one activation after the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(48, width),
            nn.Linear(width, width),
            nn.Linear(width, 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


@pytest.mark.parametrize("batch", [1, 7])
def test_weights_images_and_the_two_largest_activations(batch: int) -> None:
    width = 100
    module = TwoWide(width)
    weights = sum(p.numel() for p in module.parameters())
    values = weights + batch * (48 + 2 * width)
    found = peak_memory_bytes(module, 4, "cpu", batch_size=batch)
    assert found == FLOAT * values
    assert found == peak_memory_bytes(module, 4, "cpu", batch_size=batch)


def test_half_precision_takes_half() -> None:
    module = TwoWide(100)
    whole = peak_memory_bytes(module, 4, "cpu", batch_size=2)
    half = peak_memory_bytes(module, 4, "cpu", batch_size=2, dtype="bfloat16")
    assert half == whole // 2
    assert next(module.parameters()).dtype == torch.float32, "the module was changed"


def test_what_is_freed_does_not_count() -> None:
    """A residual keeps its input alive; a chain of layers does not."""

    class Residual(TwoWide):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            kept = self.layers[1](images.flatten(1))
            x = self.layers[2](kept)
            x = self.layers[2](x)
            x = x + kept
            return self.layers[3](x)

    chain = peak_memory_bytes(TwoWide(64), 4, "cpu", batch_size=8)
    residual = peak_memory_bytes(Residual(64), 4, "cpu", batch_size=8)
    assert residual - chain == FLOAT * 8 * 64


@pytest.mark.gpu
def test_cuda_counts_at_least_the_tensors() -> None:
    module = TwoWide(256)
    on_cpu = peak_memory_bytes(module, 4, "cpu", batch_size=16)
    other = torch.zeros(1 << 20, device="cuda")
    found = [peak_memory_bytes(module, 4, "cuda", batch_size=16) for _ in range(2)]
    assert found[0] == found[1] >= on_cpu
    assert other.numel() == 1 << 20
