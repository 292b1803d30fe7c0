"""How much each unit matters.

Legend
    P(u)      parameters of unit u: its positions along all axes, in all tensors
    P⁺(u)     of those, the ones that make it: rows of weights, biases, norms, tokens
    w, g      a parameter, and its gradient in one step
    magnitude   Σ_{P(u)} w² / number of values, then the root
    taylor      mean over steps of |Σ_{P⁺(u)} w·g|: the change of the loss to first order
    hessian     mean over steps of (Σ_{P⁺(u)} w·g)²: as NViT (Yang et al., CVPR 2023, eq. 6)
    activation  Σ over layers that read u of E[x_u²] · ‖W_u‖², x_u the input, W_u its columns
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from compress.channels.cost import Floats
from compress.channels.layout import Layout, Rows
from trainers.seeding import derive_seed
from trainers.training import distributed

ImportanceName = Literal["hessian", "taylor", "magnitude", "activation", "random"]
Normalisation = Literal["none", "mean", "isomorphic"]


class UnitSums:
    """Sums over the parameters of every unit, on the module's device."""

    def __init__(self, module: nn.Module, layout: Layout, *, makers: bool) -> None:
        """Args:
        makers: sum over P⁺(u) instead of P(u).
        """
        self.num_units = layout.num_units
        self.parts: list[tuple[nn.Parameter, int, Tensor]] = []
        named = dict(module.named_parameters())
        for (name, axis), rows in layout.rows.items():
            if name not in named or (makers and not _makes(named[name], axis)):
                continue
            index = torch.from_numpy(np.where(rows < 0, layout.num_units, rows))
            self.parts.append((named[name], axis, index.to(named[name].device)))

    @torch.no_grad()
    def __call__(self, value: Any) -> Tensor:
        """Σ of `value` (parameter → tensor of its shape) over the parameters of each unit (U,)."""
        device = self.parts[0][0].device
        total = torch.zeros(self.num_units + 1, dtype=torch.float64, device=device)
        for parameter, axis, index in self.parts:
            along = _along(value(parameter), axis).double()
            for column in index.T:
                total.index_add_(0, column, along)
        return total[:-1]

    def counts(self) -> Tensor:
        """How many values each unit has (U,)."""
        return self(torch.ones_like).clamp_min(1)


def _makes(parameter: nn.Parameter, axis: int) -> bool:
    """Whether positions along this axis of a parameter make something, and do not read it."""
    return parameter.ndim not in (2, 4, 5) or axis == 0


def _along(tensor: Tensor, axis: int) -> Tensor:
    """Sums over all other axes."""
    others = [i for i in range(tensor.ndim) if i != axis]
    return tensor.sum(others) if others else tensor


def weight_times_gradient(parameter: Tensor) -> Tensor:
    """w·g; zeros where there is no gradient."""
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    return parameter * parameter.grad


def magnitude(module: nn.Module, layout: Layout) -> Floats:
    """Root mean square of P(u), float64 (U,)."""
    sums = UnitSums(module, layout, makers=False)
    return (sums(torch.square) / sums.counts()).sqrt().cpu().numpy()


def random_scores(layout: Layout, seed: int) -> Floats:
    """Uniform numbers, a function of the seed alone (U,)."""
    generator = np.random.default_rng(derive_seed(seed, "channels random importance"))
    return generator.random(layout.num_units)


class GradientMeter:
    """Taylor or Hessian terms, averaged over steps; nothing waits for the device before `close`."""

    def __init__(
        self, module: nn.Module, layout: Layout, kind: Literal["taylor", "hessian"]
    ) -> None:
        self.kind = kind
        self.sums = UnitSums(module, layout, makers=True)
        device = self.sums.parts[0][0].device
        self.total = torch.zeros(layout.num_units, dtype=torch.float64, device=device)
        self.steps = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self) -> None:
        """Note the present gradients; a step in which they are not finite does not count."""
        found = self.sums(weight_times_gradient)
        found = found.abs() if self.kind == "taylor" else found.square()
        finite = found.sum().isfinite()
        self.total += torch.where(finite, found, 0.0)
        self.steps += finite

    def close(self) -> Floats:
        """The mean so far over steps and ranks (U,); it begins anew."""
        mean = distributed.sum_over_ranks(self.total / self.steps.clamp_min(1))
        mean = mean / distributed.world_size()
        self.total.zero_()
        self.steps.zero_()
        return mean.cpu().numpy()

    def state_dict(self) -> dict[str, Tensor]:
        return {"total": self.total.clone(), "steps": self.steps.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.total.copy_(state["total"])
        self.steps.copy_(state["steps"])


@torch.no_grad()
def activation(module: nn.Module, layout: Layout, batches: Iterable[Tensor]) -> Floats:
    """E[x_u²]·‖W_u‖² over all layers that read a unit (U,)."""
    squares: dict[str, Tensor] = {}
    counts: dict[str, int] = defaultdict(int)
    handles = []

    def watch(path: str, axis: int) -> Any:
        def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach()
            squares[path] = squares.get(path, 0.0) + _along(x.square(), axis % x.ndim)
            counts[path] += x.numel() // x.shape[axis]

        return note

    readers: dict[str, Rows] = {}
    for path, layer in module.named_modules():
        rows = layout.rows.get((f"{path}.weight", 1))
        if rows is None or not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        if getattr(layer, "groups", 1) == 1:
            readers[path] = rows
            axis = -1 if isinstance(layer, nn.Linear) else 1
            handles.append(layer.register_forward_pre_hook(watch(path, axis)))
    for images in batches:
        module(images)
    for handle in handles:
        handle.remove()
    total = np.zeros(layout.num_units + 1)
    for path, rows in readers.items():
        if path in squares:
            weight: Any = module.get_submodule(path).weight
            energy = squares[path] / counts[path] * _along(weight.square(), 1)
            for column in rows.T:
                np.add.at(total, column, energy.double().cpu().numpy())
    return total[:-1]


def normalised(scores: Floats, layout: Layout, how: Normalisation) -> Floats:
    """Scores that compare between groups (U,).

    mean: of each group's units is 1; isomorphic: of the units of all groups of the same form
    (Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024).
    """
    if how == "none":
        return scores
    found = scores.copy()
    kinds: dict[Any, list[Rows]] = defaultdict(list)
    for i, group in enumerate(layout.groups):
        form = _form(layout, group.axes) if how == "isomorphic" else i
        kinds[form].append(group.units)
    for members in kinds.values():
        units = np.concatenate(members)
        found[units] = scores[units] / max(float(scores[units].mean()), 1e-30)
    return found


def _form(layout: Layout, axes: Iterable[tuple[str, int]]) -> tuple[Any, ...]:
    """What a group is like, whatever its size: kinds of its tensors, and their axes."""
    kinds = [
        (name.rpartition(".")[2], len(layout.shapes[name]), axis) for name, axis in axes
    ]
    return tuple(sorted(kinds))
