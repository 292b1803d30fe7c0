"""Which layers of a model can be of low rank, and what they cost."""

import json
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatch
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress.budget import Quantity
from compress.measure.layer_shape import LayerShape
from trainers.models.arch import Arch, on_meta
from trainers.models.parameters import classifier_layers


class LayerSize(NamedTuple):
    """Dimensions of a layer that can be factored.

    Attributes:
        inputs, outputs: features or channels.
        places: tokens or pixels of an image at which it is computed.
        value_bytes: of one weight.
        is_conv: a 1×1 convolution, not a Linear.
    """

    inputs: int
    outputs: int
    places: int
    value_bytes: int
    is_conv: bool

    def shape(self) -> LayerShape:
        """As a stand-in of it is measured: the places of an image in a row."""
        if self.is_conv:
            return LayerShape(
                "conv",
                self.outputs,
                self.inputs,
                (1, self.places),
                kernel=(1, 1),
                stride=(1, 1),
                padding=(0, 0),
                dilation=(1, 1),
            )
        return LayerShape("linear", self.outputs, self.inputs, (self.places,))

    def cost_as_is(self, quantity: Quantity) -> float:
        """Of its weights, in the unit of the quantity."""
        return self.inputs * self.outputs * self._each(quantity)

    def cost_of_rank(self, quantity: Quantity) -> float:
        """Of each rank, in the unit of the quantity."""
        return (self.inputs + self.outputs) * self._each(quantity)

    def cost(self, quantity: Quantity, rank: int) -> float:
        """Of its factors, in the unit of the quantity."""
        return rank * self.cost_of_rank(quantity)

    def _each(self, quantity: Quantity) -> int:
        """What one weight costs."""
        return {"macs": self.places, "bytes": self.value_bytes}.get(quantity, 1)


def factorable(
    arch: Arch, image_size: int, left_out: Iterable[str] = ()
) -> dict[str, LayerSize]:
    """Path → size of the Linear layers and 1×1 convolutions that a pass calls, but classifiers.
    The same pass is not made twice in a process.

    Args:
        left_out: patterns of paths.
    """
    text = json.dumps(arch.to_json(), sort_keys=True)
    return dict(_factorable(text, image_size, tuple(left_out)))


@lru_cache(maxsize=64)
def _factorable(
    arch_json: str, image_size: int, left_out: tuple[str, ...]
) -> dict[str, LayerSize]:
    arch = Arch.from_json(json.loads(arch_json))
    module = on_meta(arch)
    heads = classifier_layers(module)
    uses = Counter(
        id(value)
        for layer in module.modules()
        for value in layer.parameters(recurse=False)
    )
    found: dict[str, LayerSize] = {}
    handles = [
        layer.register_forward_hook(_noting(path, found))
        for path, layer in module.named_modules()
        if _can(layer, uses)
        and path not in heads
        and not any(fnmatch(path, pattern) for pattern in left_out)
    ]
    channels = arch.args.get("in_chans", 3)
    with torch.inference_mode():
        module.eval()(torch.empty(1, channels, image_size, image_size, device="meta"))
    for handle in handles:
        handle.remove()
    return found


def _can(layer: Any, uses: Counter[int]) -> bool:
    """Whether the layer is of a kind that can be factored, and its weight its own."""
    if type(layer) not in (nn.Linear, nn.Conv2d) or uses[id(layer.weight)] > 1:
        return False
    if isinstance(layer, nn.Linear):
        return True
    return (
        layer.kernel_size == (1, 1)
        and layer.groups == 1
        and layer.padding in ((0, 0), "valid")
    )


def _noting(path: str, found: dict[str, LayerSize]) -> Any:
    def note(layer: nn.Module, args: Any, output: Tensor) -> None:
        weight = layer.get_parameter("weight")
        outputs, inputs = weight.shape[:2]
        places = output.numel() // outputs
        before = found[path].places if path in found else 0
        found[path] = LayerSize(
            inputs,
            outputs,
            before + places,
            weight.element_size(),
            isinstance(layer, nn.Conv2d),
        )

    return note
