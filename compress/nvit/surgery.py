"""From masks to a smaller model: a ViT whose pruned units are zero, and the dense model
that computes the same.

Legend
    keep    units that stay, bool (U,), in the flat order of `compress.nvit.groups.UnitLayout`
    n       kept channels of the residual stream

A plain LayerNorm averages over all E channels, zeroed ones too, so a masked model and its
dense cut would differ. Here the masked model's norms take mean and variance over the n kept
channels.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.nvit.groups import UnitLayout, axis_keeps
from trainers.models.arch import Arch, ModelState


class MaskedLayerNorm(nn.LayerNorm):
    """LayerNorm over the kept channels of (…, E); its input, weight and bias are zero at
    the others.
    """

    keep: Tensor
    num_kept: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(channels, eps=eps)
        self.register_buffer("keep", torch.ones(channels), persistent=False)
        self.register_buffer(
            "num_kept", torch.tensor(float(channels)), persistent=False
        )
        self.whole = True
        self.share = 1.0

    def set_keep(self, keep: Tensor) -> None:
        """Normalise over `keep` (E,) bool from now on."""
        self.keep.copy_(keep)
        self.num_kept.copy_(keep.sum())
        self.whole = bool(keep.all())
        self.share = float(keep.sum()) / len(keep)

    def forward(self, x: Tensor) -> Tensor:
        if self.whole:
            return F.layer_norm(
                x, self.normalized_shape, self.weight, self.bias, self.eps
            )
        x = x.float()
        centred = (x - x.sum(-1, keepdim=True) / self.num_kept) * self.keep
        if x.is_cuda:
            return self.of_centred(centred)
        variance = centred.square().sum(-1, keepdim=True) / self.num_kept
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias

    def of_centred(self, x: Tensor) -> Tensor:
        """The norm of x (…, E) with mean 0 over the kept channels and 0 at the others, by
        one kernel: over all E channels the variance is n/E of that over the kept ones, so
        eps counts n/E as much, and the weights take back the root of it.
        """
        weight = self.weight * math.sqrt(self.share)
        eps = self.share * self.eps
        return F.layer_norm(x, self.normalized_shape, weight, self.bias, eps)


NormChannels = Literal["kept", "all"]


class Masks:
    """Zeroes the pruned units of a `MaskedVit`, and their gradients.

    Args:
        norm_channels: what norms average over; over "all" channels, the dense model of
            `cut` computes something else.
    """

    def __init__(
        self,
        vit: nn.Module,
        layout: UnitLayout,
        keep: Tensor,
        norm_channels: NormChannels = "kept",
    ) -> None:
        named = dict(vit.named_parameters())
        embedding = named["pos_embed"]
        axes = axis_keeps(keep, layout, list(named))
        shared = {
            id(kept): kept for by_axis in axes.values() for kept in by_axis.values()
        }
        factors = {
            i: kept.to(embedding.device, embedding.dtype)
            for i, kept in shared.items()
            if not kept.all()
        }
        # one factor an axis: a mask of a whole matrix would take as much memory as the matrix
        self.factors: list[tuple[nn.Parameter, Tensor]] = [
            (
                named[name],
                factors[id(kept)].view(-1, *[1] * (named[name].ndim - axis - 1)),
            )
            for name, by_axis in axes.items()
            for axis, kept in by_axis.items()
            if id(kept) in factors
        ]
        embed = layout.split(keep)["embed"]
        for layer in vit.modules() if norm_channels == "kept" else ():
            if isinstance(layer, MaskedLayerNorm):
                layer.set_keep(embed)

    @torch.no_grad()
    def on_values(self) -> None:
        """Set pruned weights to 0."""
        for parameter, factor in self.factors:
            parameter.mul_(factor)

    @torch.no_grad()
    def on_grads(self) -> None:
        """Set pruned weights' gradients to 0, so that they do not count in a clipped norm."""
        for parameter, factor in self.factors:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)


def cut(state: ModelState, layout: UnitLayout, keep: Tensor) -> ModelState:
    """The dense model of the kept units: same logits as the masked one, per-block
    dimensions in `arch.dims`.

    Args:
        state: a `pruned_vit` of full dimensions; values of pruned units do not matter.
    """
    weights = dict(state.weights)
    for name, axes in axis_keeps(keep, layout, list(weights)).items():
        for axis, kept in axes.items():
            weights[name] = weights[name].index_select(axis, kept.nonzero()[:, 0])
    arch = Arch("pruned_vit", state.arch.name, state.arch.args, layout.dims(keep))
    return ModelState(
        arch, {name: value.clone() for name, value in weights.items()}, state.meta
    )
