"""The hook that prunes a ViT while it trains: it scores units at every step, prunes at the
end of every interval, and ends the training at the latency target.

Legend
    I, I'     importance of a unit, without and with the latency term: I' = I − η · credit,
              or I/ΣI − η · credit with ΣI over the units that are left (`importance_unit`
              share)
    n_t       ⌊t · prune_per_iter / 16⌋; by `counting: new_groups`, the groups zeroed after t
              intervals

`counting: published` is what NViT's code does: groups are cut of all units, pruned ones
included, and an interval zeroes every group that scores at most as much as the n_t-th lowest
(the first interval: as the lowest), which mostly are zeroed already or at their floor. Its
first interval has a step more than the others. Whether the target is met is looked at one
step after a pruning, by a latency in which the embedding is still that of before it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from compress.nvit.compensate import compensation
from compress.nvit.cost import LatencyModel, MacsModel
from compress.nvit.groups import (
    GroupSizes,
    UnitLayout,
    block_table,
    latency_credit,
    rank_groups,
)
from compress.nvit.importance import (
    HEAD_DIVISOR,
    TaylorMeter,
    magnitude_scores,
    random_scores,
    taylor,
)
from compress.nvit.surgery import Masks, NormChannels, cut
from trainers.models.arch import Arch, ModelState
from trainers.training import distributed
from trainers.training.fit import Hook

if TYPE_CHECKING:
    from compress.nvit.masked_vit import MaskedVit

Counting = Literal["new_groups", "published"]
Importance = Literal["nvit", "taylor", "magnitude", "random"]
StopReason = Literal["latency_target", "budget", "floors", "epochs"]


@dataclass(frozen=True)
class PruneRules:
    """How fast, by what and until when; the stage `Nvit` has the same fields and describes them.

    Attributes:
        importance: what units are ranked by.
        latency_target: estimated latency over the unpruned model's at which pruning ends.
        latency_regularization: eta.
        latency_unit: of eta: the unpruned model's latency ("dense"), or seconds.
        importance_unit: a unit's share of the whole model's importance, or the loss itself.
        prune_per_iter: 16ths of a group that are pruned in an interval.
        counting: which groups, and when; see the top of this file.
        interval_prune: optimiser steps of an interval.
        momentum: of importance over intervals.
        importance_reset: whether importance smoothed so far is set to 0 after the first pruning.
        importance_weights: which weights gradients are multiplied by, those before an
            update, for which they were computed, or after it.
        head_divisor: of a head's sum.
        budget: units that may be pruned at most.
        student_eval: no dropout and stochastic depth from the first pruning on.
        norm_channels: what norms average over while channels are zeroed.
        seed: of the random importance.
    """

    importance: Importance = "nvit"
    latency_target: float = 0.5
    latency_regularization: float = 5e-4
    latency_unit: Literal["dense", "seconds"] = "dense"
    importance_unit: Literal["share", "loss"] = "loss"
    prune_per_iter: int = 32
    counting: Counting = "new_groups"
    interval_prune: int = 100
    momentum: float = 0.9
    importance_reset: bool = False
    importance_weights: Literal["before", "after"] = "before"
    head_divisor: int = HEAD_DIVISOR
    budget: int = 39_000
    student_eval: bool = True
    norm_channels: NormChannels = "kept"
    seed: int = 0


class Pruner(Hook):
    """Prunes `vit` in place, as a hook of its fit.

    Args:
        calibration: gives batches of images without labels, by which what is zeroed is
            compensated by what stays; None: it is not.

    Attributes:
        keep: units that are left, bool (U,), on the CPU.
        history: after each interval the step, units pruned so far, estimated latency over
            the unpruned model's, and all dimensions.
        stop_reason: why pruning ended.
        arch: of the unpruned model, where `of` made the pruner.
    """

    def __init__(
        self,
        vit: "MaskedVit",
        layout: UnitLayout,
        latency: LatencyModel,
        rules: PruneRules,
        device: torch.device,
        calibration: Callable[[], Iterable[Tensor]] | None = None,
    ) -> None:
        self.vit = vit
        self.calibration = calibration
        self.layout = layout
        self.latency = latency
        self.rules = rules
        self.keep = torch.ones(layout.num_units, dtype=torch.bool)
        self.dense_ms = self.latency_ms()
        self.meter = TaylorMeter(layout.num_units, rules.momentum, device)
        self.masks: Masks | None = None
        self.intervals = 0
        self.unchecked_ms: float | None = None
        self.history: list[dict[str, Any]] = []
        self.stop_reason: StopReason = "epochs"
        self.arch: Arch | None = None

    @classmethod
    def of(
        cls,
        module: nn.Module,
        rules: PruneRules | None = None,
        *,
        groups: GroupSizes | None = None,
        latency: LatencyModel | None = None,
        calibration: Callable[[], Iterable[Tensor]] | None = None,
    ) -> "Pruner":
        """A pruner for your own training loop.

        Train its `vit` instead of the module: it has the same logits. In every step call
        `on_grads` between the backward pass and the update, and `on_step` after it, until
        `on_step` returns True. `dense_module` is then the small model.

        Args:
            module: a timm ViT or DeiT, plain or distilled; not changed.
            rules: default: those of the paper, to half of the latency.
            groups: units that are pruned together; small models need small groups.
            latency: what a model of some dimensions costs: a measured
                `compress.measure.latency_table.LatencyTable`; default: `MacsModel`, which
                counts operations.
            calibration: as of the class.

        Raises:
            ValueError: not such a model.
        """
        from compress.nvit.masked_vit import MaskedVit
        from trainers.models.from_timm import state_of_module

        state = state_of_module(module)
        device = next(module.parameters()).device
        vit = MaskedVit.from_state(state).to(device)
        layout = UnitLayout.of(state.arch.dims, groups or GroupSizes())
        latency = latency or MacsModel.of(state.arch)
        rules = rules or PruneRules()
        pruner = cls(vit, layout, latency, rules, device, calibration)
        pruner.arch = state.arch
        return pruner

    def dense(self, arch: Arch) -> ModelState:
        """The kept units as a dense model with the logits of the masked one.

        Args:
            arch: of the unpruned model, a `pruned_vit`.
        """
        return cut(ModelState.from_module(arch, self.vit), self.layout, self.keep)

    def dense_module(self) -> nn.Module:
        """The kept units as a dense module, in eval mode on the device of `vit`. Only of a
        pruner that `of` made.
        """
        if self.arch is None:
            raise ValueError("this pruner knows no architecture; make it by Pruner.of")
        module = self.dense(self.arch).build()
        return module.to(next(self.vit.parameters()).device)

    @property
    def pruned(self) -> bool:
        """Whether anything is pruned yet."""
        return self.masks is not None

    @property
    def num_pruned(self) -> int:
        return int((~self.keep).sum())

    def latency_ms(self, embed: int | None = None) -> float:
        """Estimated latency of what is left, or of that at another width."""
        table = block_table(self.layout.counts(self.keep)).numpy()
        width = int(table[0, 0]) if embed is None else embed
        return self.latency.model_ms(width, table[:, 1:])

    def on_grads(self, step: int = 0) -> None:
        if self.rules.importance_weights == "before":
            self._score()
        if self.masks is not None:
            self.masks.on_grads()

    def _score(self) -> None:
        if self.rules.importance in ("nvit", "taylor"):
            self.meter.add(taylor(self.vit, self.rules.head_divisor))

    def on_step(self, step: int) -> bool | None:
        if self.masks is not None:
            self.masks.on_values()
        if self.rules.importance_weights == "after":
            self._score()
        if self._met_at_the_last_pruning():
            return True
        if not self._interval_ends(step):
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

    def _interval_ends(self, step: int) -> bool:
        if self.rules.counting == "published":
            return step > 1 and (step - 1) % self.rules.interval_prune == 0
        return step % self.rules.interval_prune == 0

    def _met_at_the_last_pruning(self) -> bool:
        """Whether the pruning a step before met the target, by published counting."""
        latency_ms, self.unchecked_ms = self.unchecked_ms, None
        met = latency_ms is not None and self._meets_target(latency_ms)
        if met:
            self.stop_reason = "latency_target"
        return met

    def _meets_target(self, latency_ms: float) -> bool:
        return latency_ms <= self.rules.latency_target * self.dense_ms

    def decide(self) -> bool:
        """End an interval: rank, choose what goes, mask it. True where pruning has ended."""
        self.intervals += 1
        published = self.rules.counting == "published"
        before = self.keep.clone()
        ended = self._choose_published() if published else self._choose()
        if self.calibration is not None and not self.keep.equal(before):
            self._compensate(before, self.calibration())
        if self.rules.importance_reset and self.num_pruned and not self.pruned:
            self.meter.reset()
        if self.num_pruned:
            self._apply()
        return ended

    @torch.no_grad()
    def _compensate(self, before: Tensor, batches: Iterable[Tensor]) -> None:
        """Change weights so that what was just taken out of `keep` is missed least."""
        found: dict[str, Tensor] | None = None
        if distributed.rank() == 0:
            changed = compensation(
                self.vit,
                self.layout,
                before,
                self.keep,
                batches,
                self.rules.norm_channels,
            )
            found = {name: value.cpu() for name, value in changed.items()}
        named = dict(self.vit.named_parameters())
        for name, value in distributed.from_rank_0(found).items():
            named[name].copy_(value)

    def scores(self) -> Tensor:
        """I' of every unit, float64 (U,), at the end of an interval."""
        match self.rules.importance:
            case "random":
                return random_scores(self.layout, self.rules.seed)
            case "magnitude":
                return magnitude_scores(self.vit, self.keep, self.layout)
        importance = self.meter.close()
        if self.rules.counting == "published":  # pruned units are ranked, too
            importance = torch.where(self.keep, importance, 0.0)
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
        per_iter = self.rules.prune_per_iter
        t = self.intervals
        quota = t * per_iter // 16 - (t - 1) * per_iter // 16
        for group in range(min(quota, len(ranking.scores))):
            members = ranking.members(group)
            if self.num_pruned + len(members) > self.rules.budget:
                self.stop_reason = "budget"
                return True
            self.keep[members] = False
            if self._meets_target(self.latency_ms()):
                self.stop_reason = "latency_target"
                return True
        if quota > len(ranking.scores):
            self.stop_reason = "floors"
            return True
        return False

    def _choose_published(self) -> bool:
        """The same by published counting."""
        ranking = rank_groups(self.scores(), self.keep, self.layout, every=True)
        t = self.intervals
        lowest = 1 if t == 1 else t * self.rules.prune_per_iter // 16
        scores = ranking.scores
        bound = scores[min(max(lowest, 1), len(scores)) - 1]
        embed = int(self.layout.counts(self.keep)[0])
        may_go = ~ranking.at_floor & self.keep[ranking.units[ranking.first]]
        for group in (may_go & (scores <= bound)).nonzero()[:, 0].tolist():
            members = ranking.members(group)
            if self.num_pruned + len(members) > self.rules.budget:
                self.stop_reason = "budget"
                return True
            self.keep[members] = False
        self.unchecked_ms = self.latency_ms(embed)
        if not may_go.any():
            self.stop_reason = "floors"
            return True
        return False

    def _apply(self) -> None:
        self.masks = Masks(self.vit, self.layout, self.keep, self.rules.norm_channels)
        if self.rules.student_eval and not self.vit.student_eval:
            self.vit.student_eval = True
            self.vit.train(self.vit.training)

    def state_dict(self) -> dict[str, Any]:
        return {
            "keep": self.keep,
            "intervals": self.intervals,
            "unchecked_ms": self.unchecked_ms,
            "history": self.history,
            "stop_reason": self.stop_reason,
            "meter": self.meter.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.keep = state["keep"]
        self.intervals = state["intervals"]
        self.unchecked_ms = state.get("unchecked_ms")
        self.history = state["history"]
        self.stop_reason = state["stop_reason"]
        self.meter.load_state_dict(state["meter"])
        if self.num_pruned:
            self._apply()
