"""The hook that prunes a ViT while it trains: scores every step, cuts every interval, ends
at the latency target.

Legend
    I, I'     importance of a unit, without and with the latency term: I' = I − η · credit,
              or I/ΣI − η · credit with ΣI over the units that are left (`importance_unit`
              share)
    n_t       groups zeroed after t intervals: ⌊t · prune_per_iter / 16⌋
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from compress.nvit.cost import LatencyModel
from compress.nvit.groups import UnitLayout, block_table, latency_credit, rank_groups
from compress.nvit.importance import (
    TaylorMeter,
    magnitude_scores,
    random_scores,
    taylor,
)
from compress.nvit.surgery import Masks
from trainers.training.fit import Hook

if TYPE_CHECKING:
    from compress.nvit.masked_vit import MaskedVit

Importance = Literal["nvit", "taylor", "magnitude", "random"]
StopReason = Literal["latency_target", "budget", "floors", "epochs"]


@dataclass(frozen=True)
class PruneRules:
    """How fast, by what and until when; fields as in `compress.nvit.stage.Nvit`."""

    importance: Importance
    latency_target: float
    latency_regularization: float
    latency_unit: Literal["dense", "seconds"]
    importance_unit: Literal["share", "loss"]
    prune_per_iter: int
    interval_prune: int
    momentum: float
    budget: int
    student_eval: bool
    seed: int


class Pruner(Hook):
    """Prunes `vit` in place, as a hook of its fit.

    Attributes:
        keep: units that are left, bool (U,), on the CPU.
        history: after each interval the step, units pruned so far, estimated latency over
            the unpruned model's, and all dimensions.
        stop_reason: why pruning ended.
    """

    def __init__(
        self,
        vit: "MaskedVit",
        layout: UnitLayout,
        latency: LatencyModel,
        rules: PruneRules,
        device: torch.device,
    ) -> None:
        self.vit, self.layout, self.latency, self.rules = vit, layout, latency, rules
        self.keep = torch.ones(layout.num_units, dtype=torch.bool)
        self.dense_ms = self.latency_ms()
        self.meter = TaylorMeter(layout.num_units, rules.momentum, device)
        self.masks: Masks | None = None
        self.intervals = 0
        self.history: list[dict[str, Any]] = []
        self.stop_reason: StopReason = "epochs"

    @property
    def pruned(self) -> bool:
        """Whether anything is pruned yet."""
        return self.masks is not None

    @property
    def num_pruned(self) -> int:
        return int((~self.keep).sum())

    def latency_ms(self) -> float:
        """Estimated latency of what is left."""
        table = block_table(self.layout.counts(self.keep)).numpy()
        return self.latency.model_ms(int(table[0, 0]), table[:, 1:])

    def on_grads(self, step: int) -> None:
        if self.rules.importance in ("nvit", "taylor"):
            self.meter.add(taylor(self.vit))
        if self.masks is not None:
            self.masks.on_grads()

    def on_step(self, step: int) -> bool | None:
        if self.masks is not None:
            self.masks.on_values()
        if step % self.rules.interval_prune:
            return None
        ended = self.decide()
        if self.masks is not None:
            self.masks.on_values()
        note = {
            "step": step,
            "units": self.num_pruned,
            "latency_ratio": self.latency_ms() / self.dense_ms,
        }
        self.history.append(note | self.layout.dims(self.keep))
        return ended

    def decide(self) -> bool:
        """End an interval: rank, choose what goes, mask it. True where pruning has ended."""
        self.intervals += 1
        ended = self._choose()
        if self.num_pruned:
            self._apply()
        return ended

    def scores(self) -> Tensor:
        """I' of every unit, float64 (U,), at the end of an interval."""
        match self.rules.importance:
            case "random":
                return random_scores(self.layout, self.rules.seed)
            case "magnitude":
                return magnitude_scores(self.vit, self.keep, self.layout)
        importance = self.meter.close()
        if self.rules.importance == "taylor":
            return importance
        counts = self.layout.counts(self.keep)
        saved_ms = torch.from_numpy(
            np.asarray(self.latency.gradient(block_table(counts).numpy()))
        )
        unit_ms = self.dense_ms if self.rules.latency_unit == "dense" else 1000.0
        credit = latency_credit(saved_ms / unit_ms, counts, self.layout.groups)
        if self.rules.importance_unit == "share":
            importance = importance / importance[self.keep].sum().clamp_min(
                torch.finfo(torch.float64).tiny
            )
        return (
            importance
            - self.rules.latency_regularization * credit[self.layout.structure]
        )

    def _choose(self) -> bool:
        """Take the lowest groups out of `keep`; True where pruning has ended."""
        ranking = rank_groups(self.scores(), self.keep, self.layout)
        per_iter, t = self.rules.prune_per_iter, self.intervals
        quota = t * per_iter // 16 - (t - 1) * per_iter // 16
        for group in range(min(quota, len(ranking.scores))):
            members = ranking.members(group)
            if self.num_pruned + len(members) > self.rules.budget:
                self.stop_reason = "budget"
                return True
            self.keep[members] = False
            if self.latency_ms() <= self.rules.latency_target * self.dense_ms:
                self.stop_reason = "latency_target"
                return True
        if quota > len(ranking.scores):
            self.stop_reason = "floors"
            return True
        return False

    def _apply(self) -> None:
        self.masks = Masks(self.vit, self.layout, self.keep)
        if self.rules.student_eval and not self.vit.student_eval:
            self.vit.student_eval = True
            self.vit.train(self.vit.training)

    def state_dict(self) -> dict[str, Any]:
        return {
            "keep": self.keep,
            "intervals": self.intervals,
            "history": self.history,
            "stop_reason": self.stop_reason,
            "meter": self.meter.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.keep, self.intervals = state["keep"], state["intervals"]
        self.history, self.stop_reason = state["history"], state["stop_reason"]
        self.meter.load_state_dict(state["meter"])
        if self.num_pruned:
            self._apply()
