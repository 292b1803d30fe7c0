"""A ViT without class token as a function of named weights, for networks that compute the
weights of their layers.

The names are timm's, so that the weights a network computes are at once those of a timm ViT with
`class_token=False, global_pool="avg"`.

Legend
    B images, P patches, D width, H heads, L layers
    w    one layer's weights by timm's names within a block (`norm1.weight`, `attn.qkv.weight`, …)
    x    tokens (B, P, D)
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.timm_library import timm

Weights = Mapping[str, Tensor]


def _attention(x: Tensor, w: Weights, num_heads: int) -> Tensor:
    images, patches, width = x.shape
    qkv = F.linear(x, w["attn.qkv.weight"], w["attn.qkv.bias"])
    q, k, v = (
        qkv.reshape(images, patches, 3, num_heads, width // num_heads)
        .permute(2, 0, 3, 1, 4)
        .unbind(0)
    )
    x = (
        F.scaled_dot_product_attention(q, k, v)
        .transpose(1, 2)
        .reshape(images, patches, width)
    )
    return F.linear(x, w["attn.proj.weight"], w["attn.proj.bias"])


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth, timm's `drop_path` number for number: while training, a branch x (B, …) is
    left out for a share `rate` of the images and scaled up for the others.
    """
    if rate == 0.0 or not training:
        return x
    keep = 1 - rate
    kept = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep)
    if keep > 0.0:
        kept.div_(keep)
    return x * kept


def layer(
    x: Tensor,
    w: Weights,
    num_heads: int,
    eps: float,
    drop_rate: float = 0.0,
    training: bool = False,
) -> Tensor:
    """One pre-norm layer, timm's `Block`, with stochastic depth of `drop_rate`: (B, P, D) →
    (B, P, D).
    """
    normed = F.layer_norm(x, x.shape[-1:], w["norm1.weight"], w["norm1.bias"], eps)
    x = x + drop_path(_attention(normed, w, num_heads), drop_rate, training)
    normed = F.layer_norm(x, x.shape[-1:], w["norm2.weight"], w["norm2.bias"], eps)
    hidden = F.gelu(F.linear(normed, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
    return x + drop_path(
        F.linear(hidden, w["mlp.fc2.weight"], w["mlp.fc2.bias"]), drop_rate, training
    )


def template(
    *,
    img_size: int,
    patch_size: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    num_classes: int,
    norm_eps: float,
) -> Any:
    """A freshly initialised timm `VisionTransformer` with mean pooling, for its parts."""
    return timm.models.VisionTransformer(
        img_size=img_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        num_classes=num_classes,
        class_token=False,
        global_pool="avg",
        norm_layer=partial(timm.layers.LayerNorm, eps=norm_eps),
    )


class MeanVit(nn.Module):
    """A ViT whose weights are what `outer_weights` and `layer_weights` return.

    Args:
        depth: layers L that a forward pass runs; stochastic depth rises linearly over them
            to `drop_path_rate`.
        norm_before_pool: the order of the published SWS network; else timm's `fc_norm`,
            which pools first.
    """

    def __init__(
        self,
        *,
        depth: int,
        num_heads: int,
        norm_eps: float,
        norm_before_pool: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_eps = norm_eps
        self.norm_before_pool = norm_before_pool
        self.drop_rate = drop_rate
        self.drop_path_rates = [
            drop_path_rate * i / max(depth - 1, 1) for i in range(depth)
        ]

    def outer_weights(self) -> Weights:
        """Patch embedding, position embedding, `fc_norm` and head, by timm's names."""
        raise NotImplementedError

    def layer_weights(self) -> Sequence[Weights]:
        """Weights of each of the L layers."""
        raise NotImplementedError

    def weights(self) -> tuple[Weights, Sequence[Weights]]:
        """(outer weights, weights of each layer) of this pass."""
        return self.outer_weights(), self.layer_weights()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, 3, S, S)."""
        # weights are computed as precisely as they are kept
        with torch.autocast(images.device.type, enabled=False):
            outer, layers = self.weights()
        kernel = outer["patch_embed.proj.weight"]
        x = F.conv2d(
            images, kernel, outer["patch_embed.proj.bias"], stride=kernel.shape[-1]
        )
        x = x.flatten(2).transpose(1, 2) + outer["pos_embed"]
        for w, rate in zip(layers, self.drop_path_rates, strict=True):
            x = layer(x, w, self.num_heads, self.norm_eps, rate, self.training)
        if not self.norm_before_pool:
            x = x.mean(dim=1)
        x = F.layer_norm(
            x,
            x.shape[-1:],
            outer["fc_norm.weight"],
            outer["fc_norm.bias"],
            self.norm_eps,
        )
        if self.norm_before_pool:
            x = x.mean(dim=1)
        return F.linear(
            F.dropout(x, self.drop_rate, self.training),
            outer["head.weight"],
            outer["head.bias"],
        )


def state_of(outer: Weights, layers: Sequence[Weights]) -> dict[str, Tensor]:
    """A timm ViT's state dict, detached contiguous copies."""
    named = dict(outer) | {
        f"blocks.{i}.{name}": value
        for i, w in enumerate(layers)
        for name, value in w.items()
    }
    return {name: value.detach().clone().contiguous() for name, value in named.items()}
