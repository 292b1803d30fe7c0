"""How much each unit of a ViT matters: NViT's second-order Taylor term, and baselines.

Legend
    w, g         a parameter and its gradient ∂L/∂w at one step
    P(s)         parameters of unit s
    I_t(s)       (1/d · Σ_{w ∈ P(s)} w·g)² at step t: first the sum, then the square (paper,
                 equations 4 to 6)
    d            divisor: the number of blocks for EMB, 6 for heads (12 in NViT's code, which
                 divides a head by 2 once more), 2 for QK and V, 1 for MLP

P(s) holds, with biases: for an EMB channel its rows of the patch embedding and, in every
block, its columns of q, k, v, fc1 and its rows of proj and fc2; for a head its rows of q,
k, v; for a QK dimension its rows of q in all heads (its rows of k are pruned along, not
counted); for a V dimension its rows of v; for an MLP unit its row of fc1.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress.nvit.groups import UnitLayout
from trainers.seeding import derive_seed
from trainers.training import distributed

if TYPE_CHECKING:
    from trainers.models.pruned_vit import PrunedVit

HEAD_DIVISOR = 6


def taylor(vit: "PrunedVit", head_divisor: int = HEAD_DIVISOR) -> Tensor:
    """I_t of every unit at the present weights and gradients, (U,), on the module's device."""
    return _unit_sums(
        vit,
        lambda p: p * p.grad if p.grad is not None else torch.zeros_like(p),
        {"heads": head_divisor, "qk": 2, "v": 2},
    ).square()


def squared_norms(vit: "PrunedVit") -> Tensor:
    """Σ w² over P(s) of every unit (U,)."""
    return _unit_sums(vit, lambda p: p.square(), {})


@torch.no_grad()
def _unit_sums(
    vit: "PrunedVit", value: Callable[[Tensor], Tensor], divisors: dict[str, int]
) -> Tensor:
    """Σ over P(s) of `value`, divided (EMB by the number of blocks), for all units (U,)."""

    def rows(layer: nn.Module) -> tuple[Tensor, Tensor]:
        """A layer's sums over each row, bias included, and over each column."""
        weight = value(layer.weight).flatten(1)  # type: ignore[arg-type, operator]
        own = weight.sum(1)
        bias: Any = layer.bias
        return own if bias is None else own + value(bias), weight.sum(0)

    embed = rows(vit.patch_embed.proj)[0]
    parts: list[Tensor] = []
    blocks: Any = vit.blocks
    for block in blocks:
        attn = block.attn
        mlp = block.mlp
        (q, q_columns) = rows(attn.q)
        (k, k_columns) = rows(attn.k)
        (v, v_columns) = rows(attn.v)
        hidden, hidden_columns = rows(mlp.fc1)
        embed = (
            embed
            + q_columns
            + k_columns
            + v_columns
            + hidden_columns
            + rows(attn.proj)[0]
            + rows(mlp.fc2)[0]
        )
        q, k, v = (x.view(attn.num_heads, -1) for x in (q, k, v))
        sums = {
            "heads": q.sum(1) + k.sum(1) + v.sum(1),
            "qk": q.sum(0),
            "v": v.sum(0),
            "mlp": hidden,
        }
        parts += [x / divisors.get(kind, 1) for kind, x in sums.items()]
    return torch.cat([embed / len(blocks) if divisors else embed, *parts]).double()


class TaylorMeter:
    """I averaged over the steps of an interval, then smoothed over intervals.

    Steps whose gradients are not finite (a loss scale found too large) do not count.
    Nothing waits for the device before `close`.
    """

    def __init__(self, num_units: int, momentum: float, device: torch.device) -> None:
        self.momentum = momentum
        self.total = torch.zeros(num_units, dtype=torch.float64, device=device)
        self.steps = torch.zeros((), dtype=torch.float64, device=device)
        self.smoothed: Tensor | None = None

    def add(self, contribution: Tensor) -> None:
        """Note I_t (U,) of one step."""
        finite = contribution.sum().isfinite()
        self.total += torch.where(finite, contribution, 0.0)
        self.steps += finite

    def close(self) -> Tensor:
        """End the interval: I (U,) on the CPU, the mean over ranks, so that all ranks
        decide alike.
        """
        mean = (
            distributed.sum_over_ranks(self.total / self.steps.clamp_min(1))
            / distributed.world_size()
        )
        mean = mean.cpu()
        self.smoothed = (
            mean
            if self.smoothed is None
            else self.momentum * self.smoothed + (1 - self.momentum) * mean
        )
        self.total.zero_()
        self.steps.zero_()
        return self.smoothed

    def reset(self) -> None:
        """Go on as if all intervals before had had importance 0."""
        if self.smoothed is not None:
            self.smoothed = torch.zeros_like(self.smoothed)

    def state_dict(self) -> dict[str, Any]:
        return {
            "total": self.total.clone(),
            "steps": self.steps.clone(),
            "smoothed": self.smoothed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total.copy_(state["total"])
        self.steps.copy_(state["steps"])
        self.smoothed = state["smoothed"]


def magnitude_scores(vit: "PrunedVit", keep: Tensor, layout: UnitLayout) -> Tensor:
    """L2 norm of each unit's parameters over its structure's mean, divided by the group
    size, float64 (U,).

    So a group's score is the mean of its units' relative norms, and structures of any kind compare.
    """
    norms = squared_norms(vit).sqrt().cpu()
    kept = norms * keep
    mean = torch.zeros(len(layout.sizes), dtype=torch.float64).index_add_(
        0, layout.structure, kept
    )
    mean /= layout.counts(keep).clamp_min(1)
    return norms / (mean.clamp_min(1e-30) * layout.groups)[layout.structure]


def random_scores(layout: UnitLayout, seed: int) -> Tensor:
    """Uniform scores, divided by the group size, a function of the seed alone, float64 (U,).

    Sorted uniform numbers lie evenly, so all structures shrink at about the same rate.
    """
    generator = torch.Generator().manual_seed(
        derive_seed(seed, "nvit random importance")
    )
    uniform = torch.rand(layout.num_units, generator=generator, dtype=torch.float64)
    return uniform / layout.groups[layout.structure]
