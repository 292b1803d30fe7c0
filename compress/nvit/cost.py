"""What NViT knows about a model's cost while it prunes: a measured table, multiply-accumulates
or parameters.

Legend
    N, E            tokens with class and distillation token, width of the residual stream
    H, QK, V, M     heads, dimensions a head, hidden units of one block
    block           N·E·H·(2·QK + 2·V) + N²·H·(QK + V) + 2·N·E·M multiply-accumulates;
                    E·H·(2·QK + 2·V) + 2·E·M weights, H·(2·QK + V) + 2·E + M biases (those of
                    q, k, v only with qkv_bias) and 4·E parameters of norms
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trainers.models.arch import Arch, shared_on_meta

Array = npt.NDArray[Any]


class LatencyModel(Protocol):
    """What a table of latencies answers; `compress.measure.latency_table.LatencyTable` is one."""

    def block_ms(self, dims: Array) -> Array:
        """Milliseconds (n,) of blocks with dimensions (n, 5): embed, heads, qk, v, mlp."""

    def gradient(self, dims: Array) -> Array:
        """What one unit fewer of each dimension saves, ms (n, 5)."""

    def model_ms(self, embed: int, blocks: Array) -> float:
        """Milliseconds of a model with block dimensions (L, 4): heads, qk, v, mlp."""


@dataclass(frozen=True)
class MacsModel:
    """Stands in for a table where results must not depend on a machine: 10^9
    multiply-accumulates count as 1 ms.

    The same on every machine, and no latency: memory traffic, kernel launches and
    unfavourable sizes cost nothing.

    Attributes:
        num_tokens: N.
        stem_per_channel, head_per_channel: multiply-accumulates of patch embedding and
            classifiers, a channel.
    """

    num_tokens: int
    stem_per_channel: int
    head_per_channel: int

    @classmethod
    def of(cls, arch: Arch) -> "MacsModel":
        """The model of one image through a `pruned_vit`."""
        args = arch.args
        sides = [
            size if isinstance(size, list | tuple) else [size] * 2
            for size in (args["img_size"], args["patch_size"])
        ]
        patches = math.prod(image // patch for image, patch in zip(*sides, strict=True))
        pixels = args.get("in_chans", 3) * math.prod(sides[1])
        tokens = patches + args.get("class_token", True) + args.get("distilled", False)
        heads = 1 + args.get("distilled", False)
        return cls(tokens, patches * pixels, heads * args["num_classes"])

    def block_ms(self, dims: Array) -> Array:
        e, h, qk, v, m = np.asarray(dims, np.float64).T
        n = self.num_tokens
        return (n * e * h * 2 * (qk + v) + n * n * h * (qk + v) + 2 * n * e * m) / 1e9

    def gradient(self, dims: Array) -> Array:
        return _saved_by_one_less(self, dims)

    def model_ms(self, embed: int, blocks: Array) -> float:
        blocks = np.asarray(blocks)
        dims = np.concatenate([np.full((len(blocks), 1), embed), blocks], 1)
        return (
            float(self.block_ms(dims).sum())
            + embed * (self.stem_per_channel + self.head_per_channel) / 1e9
        )


@dataclass(frozen=True)
class ParamsModel:
    """Stands in for a table where parameters are to be saved: 10^6 of them count as 1 ms.

    Attributes:
        qkv_bias: whether q, k and v have biases.
        other_per_channel: parameters of embeddings, the last norm and the classifiers, a
            channel.
        other: parameters that do not depend on the width.
    """

    qkv_bias: bool
    other_per_channel: int
    other: int

    @classmethod
    def of(cls, arch: Arch) -> "ParamsModel":
        """The model of a `pruned_vit`."""
        shapes = {
            name: p.shape
            for name, p in shared_on_meta(arch).named_parameters()
            if not name.startswith("blocks.")
        }
        embed = arch.dims["embed"]
        total = sum(shape.numel() for shape in shapes.values())
        biases = (f"{head}.bias" for head in ("head", "head_dist"))
        other = sum(shapes[name].numel() for name in biases if name in shapes)
        has_bias = arch.args.get("qkv_bias", True)
        return cls(has_bias, (total - other) // embed, other)

    def block_ms(self, dims: Array) -> Array:
        e, h, qk, v, m = np.asarray(dims, np.float64).T
        weights = e * h * 2 * (qk + v) + 2 * e * m
        biases = self.qkv_bias * h * (2 * qk + v) + 2 * e + m
        return (weights + biases + 4 * e) / 1e6

    def gradient(self, dims: Array) -> Array:
        return _saved_by_one_less(self, dims)

    def model_ms(self, embed: int, blocks: Array) -> float:
        blocks = np.asarray(blocks)
        dims = np.concatenate([np.full((len(blocks), 1), embed), blocks], 1)
        rest = embed * self.other_per_channel + self.other
        return float(self.block_ms(dims).sum()) + rest / 1e6


def _saved_by_one_less(model: LatencyModel, dims: Array) -> Array:
    """What one unit fewer of each dimension saves (n, 5)."""
    dims = np.asarray(dims, np.float64)
    fewer = (dims[:, None, :] - np.eye(5)).reshape(-1, 5)
    return model.block_ms(dims)[:, None] - model.block_ms(fewer).reshape(-1, 5)
