"""Shapes of layers, of which stand-ins are measured."""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class LayerShape:
    """What decides a layer's latency.

    Attributes:
        kind: "linear" or "conv".
        outputs, inputs: of the whole layer.
        places: height and width of the input, or tokens.
        kernel, stride, padding, dilation, groups: of a convolution.
        vary: which of outputs and inputs can change.
    """

    kind: str
    outputs: int
    inputs: int
    places: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: Any = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    vary: tuple[bool, bool] = (True, True)

    def module(self, outputs: int, inputs: int) -> nn.Module:
        """The layer with fewer outputs and inputs, in eval mode."""
        if self.kind == "linear":
            return nn.Linear(inputs, outputs).eval()
        groups = max(1, round(self.groups * inputs / self.inputs))
        made = nn.Conv2d(
            inputs,
            outputs,
            self.kernel,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,
            self.dilation,  # type: ignore[arg-type]
            groups,
        )
        return made.eval()

    def input_shape(self, batch: int, inputs: int) -> tuple[int, ...]:
        """Of a batch."""
        if self.kind == "linear":
            return (batch, *self.places, inputs)
        return (batch, inputs, *self.places)
