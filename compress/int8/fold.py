"""Batch norms that become part of the convolution before them, as runtimes do it.

Legend
    γ, β, μ, v, ε   weight, bias, running mean and variance, epsilon of a norm
    W, b            weight and bias of the convolution: W' = W γ / √(v + ε),
                    b' = (b − μ) γ / √(v + ε) + β
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from trainers.models.quantised import remove_norm

_LOOKS = frozenset({"__get__", "dim", "size"})
"""Functions that ask for a tensor's shape and do not use its values."""


class _Uses(TorchFunctionMode):
    """Counts the functions that use a tensor, by its id."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") not in _LOOKS:
            self.counts.update(id(value) for value in args if isinstance(value, Tensor))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def fold_norms(module: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """Fold every batch norm whose only input is the result of a convolution used nowhere else.

    Args:
        module: in eval mode; changed in place.
        images: some, to follow them through the model.

    Returns:
        (convolution, norm) paths.
    """
    pairs = _pairs(module, images)
    for conv, norm in pairs:
        layer: Any = module.get_submodule(conv)
        old: Any = module.get_submodule(norm)
        scale = torch.rsqrt(old.running_var + old.eps)
        scale = scale if old.weight is None else scale * old.weight
        shift = -old.running_mean * scale
        shift = shift if old.bias is None else shift + old.bias
        bias = layer.bias
        remove_norm(module, conv, norm)
        layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.copy_(shift if bias is None else shift + bias * scale)
    return pairs


def _pairs(module: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """(convolution, norm) paths of those that can be folded."""
    kept: list[Any] = []  # an id is a tensor's only as long as it lives
    results: dict[int, str] = {}
    inputs: list[tuple[int, str]] = []
    calls: Counter[str] = Counter()
    uses = _Uses()
    handles = []
    for path, layer in module.named_modules():

        def note(layer: nn.Module, args: Any, output: Any, path: str = path) -> None:
            kept.extend([args, output])
            calls[path] += 1
            if isinstance(layer, nn.Conv2d):
                results[id(output)] = path
                uses.counts[id(output)] = 0  # others, gone now, may have had this id
            elif args:
                inputs.append((id(args[0]), path))

        if isinstance(layer, nn.Conv2d | _BatchNorm):
            handles.append(layer.register_forward_hook(note))
    try:
        with uses:
            module(images)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (results[tensor], norm)
        for tensor, norm in inputs
        if tensor in results
        and uses.counts[tensor] == 1
        and calls[norm] == calls[results[tensor]] == 1
        and getattr(module.get_submodule(norm), "running_mean", None) is not None
    ]
