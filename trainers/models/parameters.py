"""Which parameters of a model are meant by "Linear and Conv parameters", and which classify."""

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

LINEAR_AND_CONV: tuple[type[nn.Module], ...] = (nn.Linear, _ConvNd)
"""Layers whose parameters are quantised, counted and coded: linear ones and convolutions of any
number of dimensions, transposed ones too.
"""


def is_linear_or_conv(layer: nn.Module) -> bool:
    """Whether `layer` is a linear layer or a convolution (or a subclass of one)."""
    return isinstance(layer, LINEAR_AND_CONV)


def linear_and_conv_parameters(
    module: nn.Module, also: tuple[type[nn.Module], ...] = ()
) -> dict[str, nn.Parameter]:
    """Weights and biases of linear and convolutional layers.

    Args:
        also: further classes of layers whose parameters are wanted.

    Returns:
        Parameters by their name in the state dict, in module order. One that several layers share
        appears under each of its names.
    """
    kinds = LINEAR_AND_CONV + also
    return {
        f"{path}.{leaf}" if path else leaf: parameter
        for path, layer in module.named_modules()
        if isinstance(layer, kinds)
        for leaf, parameter in layer.named_parameters(recurse=False)
    }


def classifier_layers(module: nn.Module) -> tuple[str, ...]:
    """Paths of the layers that classify (two in a distilled DeiT); none if the model does not
    say.

    timm's models say it by `pretrained_cfg["classifier"]`, ours by timm's `get_classifier`.
    """
    configured = getattr(module, "pretrained_cfg", None) or {}
    names = configured.get("classifier") or ()
    names = (names,) if isinstance(names, str) else tuple(names)
    if names:
        return names
    find: Any = getattr(module, "get_classifier", None)
    found = find() if find is not None else ()
    heads = found if isinstance(found, tuple | list) else (found,)
    return tuple(
        path
        for path, child in module.named_modules()
        if any(child is head for head in heads)
    )


def classifier_parameters(module: nn.Module) -> set[str]:
    """Names in the state dict of all that belongs to the layers that classify.

    Raises:
        ValueError: the model does not say which layers classify.
    """
    paths = classifier_layers(module)
    if not paths:
        raise ValueError(
            f"{type(module).__name__} does not say which layers classify: it needs a method"
            " get_classifier that returns them"
        )
    return {
        name
        for name in module.state_dict()
        if any(name.startswith(f"{path}.") for path in paths)
    }
