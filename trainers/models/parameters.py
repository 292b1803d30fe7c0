"""Which parameters of a model are meant by "Linear and Conv parameters", which classify, and
what the dimensions of a transformer block are called.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

BLOCK_DIMS = ("heads", "qk", "v", "mlp")
"""Per-block entries of `Arch.dims` of a ViT whose blocks differ, each a list over blocks."""
DIMENSIONS = ("embed", *BLOCK_DIMS)
"""All its entries; `embed` is one number. Columns of arrays of dimensions are in this order."""

NORM_EPS = 1e-6
"""timm's epsilon of a ViT's LayerNorm."""

LINEAR_AND_CONV: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
"""Layers whose parameters are quantised, counted and coded: linear ones and convolutions of any
number of dimensions, transposed ones too.
"""
NORMS: tuple[type[nn.Module], ...] = (
    _BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
)
"""Layers whose parameters are quantised and counted too where a stage says `include_norm`."""
NORMS_QUANTIZED = "norms_quantized"
"""Key of `ModelState.meta`: true where a stage quantised the parameters of norms too."""


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


def quantizable_parameters(
    module: nn.Module, *, include_norm: bool
) -> dict[str, nn.Parameter]:
    """`linear_and_conv_parameters`, and with `include_norm` those of norms."""
    return linear_and_conv_parameters(module, also=NORMS if include_norm else ())


def counts_norms(meta: Mapping[str, Any]) -> bool:
    """Whether the values of norms belong to a model's quantised ones, by its `meta`."""
    return bool(meta.get(NORMS_QUANTIZED, False))


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
