"""Models in which layers are products of two smaller ones: y = U (V x) + b.

A factored layer is an `nn.Sequential` of two layers of the kind that it was, so that whatever
takes linear layers and convolutions takes them.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn


def factored_layer(layer: nn.Module, rank: int) -> nn.Sequential:
    """Two layers in the place of one, not initialised from it.

    Args:
        layer: a Linear, or a Conv2d of kernel 1 without padding and groups.
        rank: features or channels between the two, at least 1.
    """
    has_bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Sequential(
            nn.Linear(layer.in_features, rank, bias=False),
            nn.Linear(rank, layer.out_features, bias=has_bias),
        )
    assert isinstance(layer, nn.Conv2d), "nothing else is factored"
    stride: Any = layer.stride
    return nn.Sequential(
        nn.Conv2d(layer.in_channels, rank, 1, stride, bias=False),
        nn.Conv2d(rank, layer.out_channels, 1, bias=has_bias),
    )


def factor(module: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """Put factored layers into a module, in place.

    Args:
        ranks: path of a layer → rank.

    Raises:
        ValueError: a rank that is no positive integer, or a path without such a layer.
    """
    for path, rank in ranks.items():
        parent, _, leaf = path.rpartition(".")
        layer = module.get_submodule(path)
        if type(layer) not in (nn.Linear, nn.Conv2d) or not _is_rank(rank):
            raise ValueError(
                f"ranks: {path}: a {type(layer).__name__} of rank {rank!r}; needed is a Linear"
                " or Conv2d and a positive integer"
            )
        setattr(module.get_submodule(parent), leaf, factored_layer(layer, rank))
    return module


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
