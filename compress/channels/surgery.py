"""From units that stay to a model without the others, and the masked model that computes the same.

A norm over channels (LayerNorm, GroupNorm) of a masked model averages over the channels that stay,
as it does once the others are cut.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.channels.layout import Keep, Layout
from compress.compensation import InputMoments, corrected_tensors, mendable
from trainers.models.arch import Arch, ModelState, on_meta
from trainers.models.cut_model import Cut
from trainers.training.losses import kl_divergence


def cut_arch(arch: Arch, cut: Cut) -> Arch:
    """The architecture of a model after a cut, which may have been cut before."""
    inner = arch
    if arch.builder == "cut":
        before = Cut.from_json(arch.dims)
        inner = Arch.from_json(arch.dims["inner"])
        cut = before.then(cut)
    return Arch(
        "cut", arch.name, dict(arch.args), {"inner": inner.to_json(), **cut.to_json()}
    )


def cut_state(
    state: ModelState, layout: Layout, keep: Keep, dropped: Sequence[str] = ()
) -> ModelState:
    """The dense model of the units that stay, without the blocks that are dropped."""
    cut = Cut().then(replace(layout.cut(keep, on_meta(state.arch)), dropped=dropped))
    weights = dict(state.weights)
    for name, axes in layout.axis_keeps(keep).items():
        for axis, kept in axes.items():
            index = torch.from_numpy(np.flatnonzero(kept))
            weights[name] = weights[name].index_select(axis, index)
    for alias, name in layout.aliases.items():
        weights[alias] = weights[name]
    arch = cut_arch(state.arch, cut)
    return ModelState(
        arch,
        {
            name: value.clone().contiguous()
            for name, value in weights.items()
            if not name.startswith(tuple(f"{path}." for path in dropped))
        },
        dict(state.meta),
    )


def layers_that_lose(
    module: nn.Module, layout: Layout, keep: Keep | None = None
) -> list[str]:
    """Paths of the Linear layers and convolutions that lose inputs where units go, and can make up
    for them.

    Args:
        keep: what stays; None: whatever goes.
    """
    keeps = None if keep is None else layout.axis_keeps(keep)
    paths = [
        name.removesuffix(".weight")
        for name, axis in layout.rows
        if axis == 1
        and name.endswith(".weight")
        and (keeps is None or 1 in keeps.get(name, {}))
    ]
    layers = (nn.Linear, nn.Conv2d)
    return mendable(
        module, [p for p in paths if isinstance(module.get_submodule(p), layers)]
    )


def with_compensation(
    state: ModelState, layout: Layout, keep: Keep, inputs: InputMoments
) -> ModelState:
    """The whole model, in which what stays does also what is removed did, as well as it can.

    Args:
        inputs: of `layers_that_lose`.
    """
    module = state.build()
    axis_keeps = layout.axis_keeps(keep)
    kept = {
        path: torch.from_numpy(np.flatnonzero(axis_keeps[f"{path}.weight"][1]))
        for path in layers_that_lose(module, layout, keep)
    }
    weights = dict(state.weights)
    for name, value in corrected_tensors(module, kept, inputs).items():
        path = name.removesuffix(".weight")
        if path in kept and name.endswith(".weight"):
            whole = torch.zeros_like(weights[name])
            whole[:, kept[path]] = value.to(whole.dtype)
            value = whole
        weights[name] = value.to(weights[name].dtype)
    return ModelState(state.arch, weights, state.meta)


@torch.no_grad()
def divergences(
    model: ModelState,
    cuts: Sequence[ModelState],
    images: Iterable[Tensor],
    device: torch.device,
) -> list[float]:
    """KL(model ‖ cut) of the probabilities of classes for each cut, mean over images and classes:
    what a cut changed of what a model says, on images without labels.
    """
    teacher, *students = (each.build().to(device).eval() for each in (model, *cuts))
    totals, count = [0.0] * len(cuts), 0
    for batch in images:
        said = teacher(batch)
        for i, student in enumerate(students):
            totals[i] += float(kl_divergence(student(batch), said)) * len(batch)
        count += len(batch)
    return [total / max(1, count) for total in totals]


class Masks:
    """Zeroes what is removed in a module's parameters, and in their gradients."""

    def __init__(self, module: nn.Module, layout: Layout, keep: Keep) -> None:
        named = dict([*module.named_parameters(), *module.named_buffers()])
        self.factors: list[tuple[Tensor, Tensor]] = []
        self.norms: dict[int, Tensor] = {}
        for name, axes in layout.axis_keeps(keep).items():
            tensor = named[name]
            for axis, kept in axes.items():
                factor = torch.from_numpy(kept).to(tensor.device, tensor.dtype)
                shape = (-1, *[1] * (tensor.ndim - axis - 1))
                self.factors.append((tensor, factor.view(shape)))
                if name.endswith("weight") and tensor.ndim == 1:
                    self.norms[id(tensor)] = factor

    @torch.no_grad()
    def on_values(self) -> None:
        """Set the values of what is removed to 0."""
        for tensor, factor in self.factors:
            tensor.mul_(factor)

    @torch.no_grad()
    def on_grads(self) -> None:
        """Set the gradients of what is removed to 0."""
        for tensor, factor in self.factors:
            if tensor.grad is not None:
                tensor.grad.mul_(factor)

    @contextmanager
    def norms_over_kept(self) -> Iterator[None]:
        """Let norms average over what stays, in this block."""
        with _NormsOverKept(self.norms):
            yield


class _NormsOverKept(TorchFunctionMode):
    """Replaces layer and group norms of masked channels."""

    def __init__(self, norms: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.norms = norms

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.layer_norm or func is torch.layer_norm:
            weight = kwargs.get("weight", args[2] if len(args) > 2 else None)
            keep = self.norms.get(id(weight))
            if keep is not None:
                return _layer_norm(keep, *args, **kwargs)
        if func is F.group_norm or func is torch.group_norm:
            weight = kwargs.get("weight", args[2] if len(args) > 2 else None)
            keep = self.norms.get(id(weight))
            if keep is not None:
                return _group_norm(keep, *args, **kwargs)
        return func(*args, **kwargs)


def _layer_norm(
    keep: Tensor,
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    count = keep.sum()
    centred = (x - (x * keep).sum(-1, keepdim=True) / count) * keep
    variance = centred.square().sum(-1, keepdim=True) / count
    found = centred * torch.rsqrt(variance + eps)
    found = found if weight is None else found * weight
    return found if bias is None else found + bias


def _group_norm(
    keep: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    shape = (-1, *[1] * (x.ndim - 2))
    mask = keep.view(shape)
    grouped = (len(x), num_groups, -1)
    ones = (mask * torch.ones_like(x)).reshape(grouped)
    values = (x * mask).reshape(grouped)
    count = ones.sum(-1, keepdim=True)
    centred = (values - values.sum(-1, keepdim=True) / count) * ones
    variance = centred.square().sum(-1, keepdim=True) / count
    found = (centred * torch.rsqrt(variance + eps)).reshape(x.shape)
    found = found if weight is None else found * weight.view(shape)
    return found if bias is None else found + bias.view(shape)


@torch.no_grad()
def difference(
    state: ModelState,
    layout: Layout,
    keep: Keep,
    cut: ModelState,
    image_size: int,
    dropped: Sequence[str] = (),
) -> float:
    """Largest difference between the logits of the masked and of the cut model on random
    images, relative to the largest logit.
    """
    channels = state.arch.args.get("in_chans", 3)
    shape = (2, channels, image_size, image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    module = state.build()
    masks = Masks(module, layout, keep)
    masks.on_values()
    Cut(dropped=dropped).apply(module)
    with masks.norms_over_kept():
        expected = module(images)
    found = cut.build()(images)
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
