"""Times of single layers, by a runtime that counts instead of taking time."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.measure import in_turns
from compress.measure.options import RuntimeOptions

CALL_MS, COPIED_MS, LAYER_MS = 5.0, 1e-3, 1e-3


class Counting:
    """A pass takes a call, a copy of each value that comes in or goes out, and its layers, by
    their weights and the places at which they are applied.
    """

    def session_of(self, module: nn.Module, inputs: Tensor, *_: Any) -> "Counting":
        self.ms = CALL_MS + COPIED_MS * inputs.numel()
        handles = [
            each.register_forward_hook(self.layer)
            for each in module.modules()
            if isinstance(each, nn.Conv2d | nn.Linear)
        ]
        outputs = module(inputs)
        self.ms += COPIED_MS * outputs.numel()
        for handle in handles:
            handle.remove()
        counted = Counting()
        counted.ms = self.ms
        return counted

    def layer(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        places = output.numel() / module.weight.shape[0]
        self.ms += LAYER_MS * module.weight.numel() * places

    def timed_pass(self, _: Any) -> Any:
        return lambda: self.ms


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(8, 4, 3, padding=1), (1, 8, 16, 16), 4 * 8 * 9 * 256),
        (nn.Conv2d(8, 8, 3, stride=2, groups=8), (2, 8, 9, 9), 8 * 9 * 16 * 2),
        (nn.Linear(12, 6), (1, 7, 12), 72 * 7),
        (nn.Linear(12, 6), (1, 3, 5, 12), 72 * 15),
        (nn.Linear(12, 6), (4, 12), 72 * 4),
        (nn.Sequential(nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)), (1, 8, 4, 4), 32 * 16),
    ],
)
def test_calls_and_copies_are_no_part_of_a_layer(
    layer: nn.Module,
    shape: tuple[int, ...],
    macs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(in_turns, "runtime", lambda name: Counting())
    options = RuntimeOptions(runtime="torch", batch_size=1)
    one = (layer.eval(), torch.zeros(shape))
    device = torch.device("cpu")
    found = in_turns.layer_times([one, one], options, device)
    # its output is averaged over all places: the next layers' values are never copied out
    axis = -1 if isinstance(layer, nn.Linear) else 1
    more = layer(one[1]).shape[axis] - shape[axis]
    expected = LAYER_MS * macs + COPIED_MS * more * shape[0]
    np.testing.assert_allclose(found, [expected] * 2, rtol=1e-9)


def test_noise_leaves_a_hundredth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a layer seems to take less than nothing."""

    class Noisy(Counting):
        def session_of(self, module: nn.Module, *_: Any) -> "Noisy":
            made = Noisy()
            made.ms = 2.0 if getattr(module, "layer", None) else 3.0
            return made

    monkeypatch.setattr(in_turns, "runtime", lambda name: Noisy())
    found = in_turns.layer_times(
        [(nn.Linear(2, 2), torch.zeros(1, 2))],
        RuntimeOptions(runtime="torch", batch_size=1),
        torch.device("cpu"),
    )
    np.testing.assert_allclose(found, [0.02])
