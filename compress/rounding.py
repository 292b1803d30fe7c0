"""Layer-wise rounding: each weight goes to a shared value, later ones make up for its error.

Optimal Brain Quantization (Frantar & Alistarh, NeurIPS 2022, arXiv:2208.11580) in the order of
GPTQ (Frantar et al., ICLR 2023, arXiv:2210.17323, section 3), followed by coordinate descent.
Closed form, from a few images without labels; nothing is trained.

Legend
    W, Q        weights of a layer, one row for each output (O, d), and what they are rounded to
    x           an input (d,): features, or the patch that a convolution sees
    S           covariance of x (d, d); the second moment where nothing can take a constant
    λ           damping · mean of the diagonal of S
    H           S + λ I
    U           upper Cholesky factor of H⁻¹ = Uᵀ U (GPTQ, section 3, step 3)
    j           a column, largest H_jj first (GPTQ's act-order)

Each row minimises E(q) = (w − q) H (w − q)ᵀ: the squared error of the layer's output over the
images, and λ times that of the weights, so that few images do not decide everything.

Greedy (OBQ, equations 3 and 4; GPTQ, equation 4): q_j = nearest(w_j), then
    w_k ← w_k − (w_j − q_j) U_jk / U_jj for all later k.
Descent: in turn each q_j becomes nearest(q_j + [(w − q) H]_j / H_jj), the best value while the
others stay. E never rises. A row starts from the better of greedy and nearest rounding, so that
its E is at most that of nearest rounding.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.compensation import COMPENSATE_IMAGES, Moments, input_moments
from trainers.config import Config
from trainers.hashing import LATER

Nearest = Callable[[Tensor, Tensor], Tensor]
"""Values (R, n) and the output that each row belongs to (R,) → what each value is rounded to,
(R, n).
"""
DAMPING = 0.01
"""λ over the mean diagonal, GPTQ's default."""
DESCENTS = 4
"""Passes of coordinate descent at most."""
_MOST_ROWS = 1 << 14
"""Of a batch's patches, some that many are looked at."""
_BLOCK = 128
"""Columns whose errors are handed on together (GPTQ, section 3, step 2)."""


def nearest(values: Tensor, centroids: Tensor) -> Tensor:
    """Values of any shape, each replaced by its nearest centroid (ascending); the lower one on a
    tie.
    """
    centroids = centroids.to(values.device)
    edges = (centroids[1:] + centroids[:-1]) / 2
    found = torch.searchsorted(edges, values.double().contiguous())
    return centroids[found].to(values.dtype)


class RoundingOptions(Config):
    """How a stage moves weights to the values that they share."""

    rounding: Annotated[Literal["nearest", "layerwise"], LATER] = Field(
        "nearest",
        description=(
            "layerwise: later weights of a row make up for the error of earlier ones, by"
            " what the layer sees of calibration_images"
        ),
    )
    calibration_images: Annotated[int, LATER] = Field(
        COMPENSATE_IMAGES,
        ge=1,
        description="training images without labels, for rounding: layerwise",
    )


@torch.no_grad()
def round_rows(
    weight: Tensor,
    second: Tensor,
    nearest: Nearest,
    *,
    outputs: Tensor | None = None,
    free: Tensor | None = None,
    damping: float = DAMPING,
    descents: int = DESCENTS,
) -> Tensor:
    """Q (R, d), float64: the rows of a weight on the values that `nearest` allows.

    Args:
        weight: W (R, d); not changed.
        second: S (d, d) of the inputs.
        nearest: which values are allowed.
        outputs: what it is told of the rows (R,); default: their number.
        free: weights that may have any value, bool (R, d).
        damping: λ over the mean diagonal of S.
        descents: passes of coordinate descent over all columns; fewer where nothing moves.
    """
    w = weight.double()
    outputs = torch.arange(len(w)) if outputs is None else outputs
    h = second.double().to(w.device)
    scale = h.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    h = h + damping * scale * torch.eye(len(h), dtype=h.dtype, device=h.device)
    order = h.diagonal().argsort(descending=True, stable=True)
    if free is not None:  # in the end they make up for all others
        order = order[free[:, order].all(0).argsort(stable=True)]
        free = free[:, order]
    w = w[:, order]
    h = h[order][:, order]

    def allowed(values: Tensor, start: int) -> Tensor:
        """What columns start … of the new order are rounded to."""
        found = nearest(values, outputs).to(torch.float64)
        if free is None:
            return found
        return torch.where(free[:, start : start + values.shape[1]], values, found)

    plain = allowed(w, 0)
    greedy = _greedy(w, h, allowed)
    better = _error(w - greedy, h) < _error(w - plain, h)
    q = torch.where(better[:, None], greedy, plain)
    for _ in range(descents):
        if not _descend(w, q, h, allowed):
            break
    result = torch.empty_like(q)
    result[:, order] = q
    return result


def _error(difference: Tensor, h: Tensor) -> Tensor:
    """E of each row (R,)."""
    return ((difference @ h) * difference).sum(1)


def _greedy(w: Tensor, h: Tensor, allowed: Callable[[Tensor, int], Tensor]) -> Tensor:
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    u = torch.linalg.cholesky(inverse, upper=True)
    left = w.clone()
    q = torch.empty_like(w)
    for start in range(0, w.shape[1], _BLOCK):
        stop = min(start + _BLOCK, w.shape[1])
        errors = torch.empty_like(w[:, start:stop])
        for j in range(start, stop):
            q[:, j : j + 1] = allowed(left[:, j : j + 1], j)
            error = (left[:, j] - q[:, j]) / u[j, j]
            left[:, j + 1 : stop] -= error[:, None] * u[j, j + 1 : stop]
            errors[:, j - start] = error
        left[:, stop:] -= errors @ u[start:stop, stop:]
    return q


def _descend(
    w: Tensor, q: Tensor, h: Tensor, allowed: Callable[[Tensor, int], Tensor]
) -> bool:
    """One pass over the columns of q, in place; whether anything moved."""
    slopes = (w - q) @ h
    moved = False
    for j in range(w.shape[1]):
        best = allowed((q[:, j] + slopes[:, j] / h[j, j])[:, None], j)[:, 0]
        change = best - q[:, j]
        gain = change * (2 * slopes[:, j] - change * h[j, j])
        # of two values that are as good, the one that is there stays
        change = torch.where(gain > 1e-12 * h[j, j] * w[:, j].square(), change, 0.0)
        if bool(change.any()):
            moved = True
            q[:, j] += change
            slopes -= change[:, None] * h[j]
    return moved


class GroupedMoments(Moments):
    """Moments of the inputs of each group of a convolution. Means are over all vectors; of very
    many, second moments are over a part, since neighbouring patches say the same.

    Args:
        size: inputs of all groups together.
        groups: in which the inputs fall, one after the other.
    """

    def __init__(self, size: int, groups: int) -> None:
        self.count = 0
        inner = size // groups
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._drawn = 0
        self._drawn_sum = torch.zeros(groups, inner, dtype=torch.float64)
        self._products = torch.zeros(groups, inner, inner, dtype=torch.float64)
        self._generator = torch.Generator().manual_seed(0)

    def add(self, rows: Tensor) -> None:
        self.count += len(rows)
        self._sum += rows.sum(0, dtype=torch.float64).cpu()
        if len(rows) > _MOST_ROWS:
            drawn = torch.randperm(len(rows), generator=self._generator)[:_MOST_ROWS]
            rows = rows[drawn.to(rows.device)]
        self._drawn += len(rows)
        each = rows.view(len(rows), len(self._products), -1).transpose(0, 1)
        self._drawn_sum += each.sum(1, dtype=torch.float64).cpu()
        self._products += (each.transpose(1, 2) @ each).double().cpu()

    def second(self, *, centred: bool = True) -> Tensor:
        """S of each group (G, d, d), float64."""
        count = max(1, self._drawn)
        second = self._products / count
        if not centred:
            return second
        mean = self._drawn_sum / count
        return second - mean[:, :, None] * mean[:, None, :]


@torch.no_grad()
def round_layer(
    layer: nn.Module,
    moments: GroupedMoments,
    nearest: Nearest,
    *,
    free: Tensor | None = None,
    centred: bool = True,
    damping: float = DAMPING,
) -> tuple[Tensor, Tensor]:
    """A Linear's or Conv2d's weight, rounded, and what its mean output lost, (outputs,).

    Args:
        layer: not changed.
        moments: of its inputs.
        nearest: which values are allowed.
        free: weights that may have any value, bool, in the weight's shape.
        centred: whether the loss of the mean output will be added to a bias or taken from the
            running mean of a norm.
        damping: see `round_rows`.
    """
    weight: Any = layer.weight
    groups = getattr(layer, "groups", 1)
    rows = len(weight) // groups
    second = moments.second(centred=centred)
    old = weight.detach().cpu().double().reshape(groups, rows, weight.shape[1], -1)
    by_place = second.shape[-1] == weight.shape[1]
    old = old.movedim(3, 2) if by_place else old.flatten(2).unsqueeze(2)
    any_value = None if free is None else _as_laid_out(free.cpu(), weight, old)
    new = torch.empty_like(old)
    for group in range(groups):
        outputs = torch.arange(group * rows, (group + 1) * rows)
        for place in range(old.shape[2]):
            new[group, :, place] = round_rows(
                old[group, :, place],
                second[group],
                nearest,
                outputs=outputs,
                free=None if any_value is None else any_value[group, :, place],
                damping=damping,
            )
    lost = torch.einsum(
        "grpd,gd->gr", old - new, moments.mean.view(groups, -1)
    ).flatten()
    new = new.movedim(2, 3) if old.shape[2] > 1 else new
    return new.reshape(weight.shape).to(weight), lost


def _as_laid_out(values: Tensor, weight: Tensor, old: Tensor) -> Tensor:
    """A tensor in the weight's shape, in the layout of `old`."""
    inner = values.reshape(len(old), old.shape[1], weight.shape[1], -1)
    return inner.movedim(3, 2) if old.shape[2] > 1 else inner.reshape(old.shape)


@torch.no_grad()
def round_module(
    module: nn.Module,
    values: Mapping[str, Callable[[Tensor], Tensor]],
    batches: Iterable[Tensor],
    *,
    free: Mapping[str, Tensor] | None = None,
    damping: float = DAMPING,
) -> None:
    """Round parameters of a module in place, layer by layer.

    Linear layers and 2-D convolutions are rounded as above. What their mean output loses goes to
    the bias before that is rounded, or, where there is none, to the running mean of the BatchNorm
    that follows. All other parameters go to the nearest value.

    Args:
        module: left in eval mode.
        values: name of a parameter → a function from values of any shape to what they are rounded
            to. What is not named stays.
        batches: images without labels (B, C, H, W), on the module's device; read once.
        free: name of a parameter → which of its values may be anything, bool, in its shape.
        damping: see `round_rows`.
    """
    free = free or {}
    watched = [
        path
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and f"{path}.weight" in values
    ]
    found = input_moments(module, watched, batches, new=_grouped)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers())
    done: set[int] = set()
    for path in watched:
        layer = module.get_submodule(path)
        weight = parameters[f"{path}.weight"]
        if path not in found.moments or id(weight) in done:
            continue
        mean = buffers.get(f"{found.norm_after.get(path)}.running_mean")
        bias = parameters.get(f"{path}.bias")
        rounded, lost = round_layer(
            layer,
            found.moments[path],  # type: ignore[arg-type]
            _of_all_outputs(values[f"{path}.weight"]),
            free=free.get(f"{path}.weight"),
            centred=bias is not None or mean is not None,
            damping=damping,
        )
        weight.copy_(rounded)
        done.add(id(weight))
        if bias is not None:
            bias.add_(lost.to(bias))
        elif mean is not None:
            mean.sub_(lost.to(mean))
    for name, to_value in values.items():
        parameter = parameters[name]
        if id(parameter) in done:
            continue
        done.add(id(parameter))
        rounded = to_value(parameter)
        if name in free:
            rounded = torch.where(free[name], parameter, rounded)
        parameter.copy_(rounded)


def _of_all_outputs(to_value: Callable[[Tensor], Tensor]) -> Nearest:
    return lambda rows, outputs: to_value(rows)


def _grouped(layer: nn.Module, size: int) -> GroupedMoments:
    return GroupedMoments(size, getattr(layer, "groups", 1))
