"""One forward pass that follows which positions of every tensor belong together.

The pass runs on the meta device, below torch's functions, where a model of any library is a
sequence of some sixty operations. An operation that is not known here keeps all positions of what
it is given, so that an unknown model is pruned less, not wrongly.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from compress.channels import uses
from compress.channels.followed import Followed, Product, Use
from compress.channels.identities import Identities
from compress.channels.operations import ELEMENTWISE, RULES
from compress.channels.sizes import (
    Axes,
    Sized,
    flat,
    is_sized,
    sized_attributes,
    sized_shape,
)


@dataclass
class Trace:
    """What one pass showed.

    Attributes:
        identities: of all atoms.
        axes: parameter or buffer → rows of its axes.
        sizes: every use of an attribute as the size of an axis.
        unknown: operations that made the positions of their arguments stay.
        products: convolutions and matrix products of the pass.
    """

    identities: Identities
    axes: dict[str, Axes]
    sizes: "list[Use]" = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)
    products: list[Product] = field(default_factory=list)


def trace(module: nn.Module, image_shape: Sequence[int]) -> Trace:
    """Follow a pass of images (B, C, H, W) through a module on the meta device, in eval mode.

    Raises:
        One of `compress.measure.model.PASS_ERRORS`: the model needs values, or another size.
    """
    follower = Followed()
    names = _tensors(module)
    for name, tensor in names.items():
        follower.start(name, tensor)
    device = next(iter(names.values())).device
    images = torch.empty(tuple(image_shape), device=device)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(sized_attributes(module, follower.axes))
        stack.enter_context(_Sizes(follower))
        stack.enter_context(_Operations(follower))
        outputs = module(images)
    for output in outputs if isinstance(outputs, tuple | list) else [outputs]:
        for rows in follower.axes(output):
            follower.ids.fix(rows)
    follower.fix_ratios()
    axes = {
        name: [
            None if rows is None else follower.ids.resolved(rows)
            for rows in follower.axes(tensor)
        ]
        for name, tensor in names.items()
    }
    return Trace(
        follower.ids, axes, follower.sizes, follower.unknown, follower.products
    )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of real numbers, those that are not saved included."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor for name, tensor in named if tensor.is_floating_point()}


class _Sizes(TorchFunctionMode):
    """Notes which attribute gave the size of which axis."""

    def __init__(self, follower: "Followed") -> None:
        super().__init__()
        self.follower = follower

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        follower = self.follower
        if name == "pad":
            pads = args[1] if len(args) > 1 else kwargs["pad"]
            follower.pad_is_sized = any(map(is_sized, pads))
        if name == "scaled_dot_product_attention" and kwargs.get("scale") is None:
            follower.ids.fix(follower.axes(args[0])[-1])  # the scale is its size
        result = func(*args, **kwargs)
        if name == "__get__" and isinstance(result, torch.Size):
            return sized_shape(result, follower.axes(args[0]))
        if name == "size":
            return self._sized(result, *args, **kwargs)
        rule = uses.RULES.get(name)
        if rule is None:
            uses.hold_attributes(follower, flat([*args, *kwargs.values()]))
        elif args and id(args[0]) in follower.known:
            rule(follower, result, *args, **kwargs)
        return result

    def _sized(self, result: Any, tensor: Tensor, dim: int | None = None) -> Any:
        """What `Tensor.size` gave, one number or all."""
        axes = self.follower.axes(tensor)
        if dim is None:
            return sized_shape(result, axes)
        rows = axes[dim]
        return result if rows is None else Sized(result, rows=rows)


class _Operations(TorchDispatchMode):
    """Follows rows through the operations below torch's functions."""

    def __init__(self, follower: Followed) -> None:
        super().__init__()
        self.follower = follower

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        f = self.follower
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        rule = RULES.get(name) or RULES.get(name.rstrip("_"))
        inputs = [x for x in flat([*args, *kwargs.values()]) if isinstance(x, Tensor)]
        if not any(id(x) in f.known for x in inputs):
            return out
        if name in ("t", "transpose", "view", "detach") and id(args[0]) in f.names:
            f.names[id(out)] = f.names[id(args[0])]
        if rule is not None:
            found = rule(f, out, *args, **kwargs)
            if isinstance(out, Tensor):
                f.set(out, found)
            else:
                for tensor, axes in zip(out, found, strict=False):
                    f.set(tensor, axes)
        elif torch.Tag.pointwise in func.tags or name.rstrip("_") in ELEMENTWISE:
            f.set(out, f.elementwise(out, inputs))
        else:
            f.unknown.add(name)
            f.fix(*inputs)
        return out
