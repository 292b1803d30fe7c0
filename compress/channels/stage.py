"""Structured pruning of any model: channels, heads and hidden units that a budget does not afford.

Which positions of which tensors can only go together is followed through a pass of the model
(`trace`, `layout`). `importance` says what each is worth, `cost` and `latency` what it costs,
`choice` what stays, `surgery` cuts. The result is a dense model.
"""

import logging
from typing import ClassVar

import torch

from compress.channels.decide import Decider, Decision, layout_of
from compress.channels.importance import GradientMeter, magnitude, normalised
from compress.channels.layout import Layout
from compress.channels.looking import inputs_of, looked_at, scores_of
from compress.channels.options import ChannelOptions
from compress.channels.pruner import ChannelPruner
from compress.channels.surgery import (
    cut_arch,
    cut_state,
    difference,
    divergences,
    layers_that_lose,
    with_compensation,
)
from compress.compensation import InputMoments, recalibrate
from compress.finetune import check_fit, with_drop_rates
from compress.metrics import Metric
from compress.runtimes.registry import runtime as runtime_of
from compress.stage import Context, Phase, Stage
from trainers.config import DistillConfig
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState
from trainers.models.cut_model import Cut
from trainers.training import distributed
from trainers.training.losses import DistillObjective

_log = logging.getLogger(__name__)
MOST_DIFFERENCE = 1e-4
"""Of the logits of masked and cut model, over the largest: beyond it, the cut is wrong."""


class PruneChannels(Stage, ChannelOptions):
    """Prune channels, heads and hidden units of any model to a target of cost, and tune what
    is left.
    """

    phase: ClassVar[Phase] = "prune"
    version: ClassVar[int] = 5
    finds_dims: ClassVar[bool] = True
    continues: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "groups: Fang et al., DepGraph, CVPR 2023; choice: Shen et al., Structural Pruning"
        " via Latency-Saliency Knapsack, NeurIPS 2022"
    )
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "channels_removed", "share of all channels, heads and units removed", "1"
        ),
        Metric("channels_cost_ratio", "estimated cost over the incoming model's", "1"),
        Metric("channels_blocks_dropped", "residual blocks removed as a whole", "1"),
        Metric(
            "channels_latency_ratio",
            "measured latency of the cut model over the incoming one's",
            "1",
            is_time=True,
        ),
    )

    def num_epochs(self) -> int:
        return self.epochs + (self.prune_epochs if self.pruning == "iterative" else 0)

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        """The whole architecture as one that nothing was cut from: the result is at most this.

        Raises:
            ValueError: the model cannot be cut, or nothing may go.
        """
        if arch.builder == "int8":
            raise ValueError(
                "prune_channels cuts real weights; move it before the quantize stage"
            )
        layout = layout_of(arch, data.image_size)
        self.check_patterns(layout)
        if all(
            rule.least >= len(group.units)
            for rule, group in zip(self.rules(layout), layout.groups, strict=True)
        ):
            raise ValueError(
                "exclude, least and floors leave nothing to remove; relax one of them"
            )
        found = cut_arch(arch, Cut())
        if self.num_epochs():
            check_fit(found, self, data)
        if self.target.quantity == "latency":
            runtime_of(self.latency.runtime).check(self.latency)
        return found

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        if "asp" in model.meta:
            raise ValueError(
                "pruning after `asp` would break its 2:4 pattern; put `asp` after"
                " `prune_channels`"
            )
        layout = layout_of(model.arch, ctx.data.info.image_size)
        decider = Decider(model, layout, self, ctx)
        if self.pruning == "iterative":
            model, decision = self._while_training(model, layout, decider, ctx)
            small = self._cut(model, layout, decision, None, ctx)
        else:
            looked = looked_at(model, layout, self, ctx)
            scores = normalised(looked.scores, layout, self.normalisation)
            found = [
                (each, self._cut(model, layout, each, looked.inputs, ctx))
                for each in decider.decide(scores)
            ]
            decision, small = self._better(model, found, ctx)
        self._report(layout, decision, ctx)
        return self._tuned(small, model, ctx) if self.epochs else small

    def _while_training(
        self, model: ModelState, layout: Layout, decider: Decider, ctx: Context
    ) -> tuple[ModelState, Decision]:
        """Prune in intervals; the trained weights, and what stays of them."""
        scores = magnitude(model.build(), layout)
        (first,) = decider.decide(normalised(scores, layout, "mean"))
        arch = with_drop_rates(model.arch, self)
        student = arch.build()
        student.load_state_dict(model.weights)
        student.to(ctx.device)
        count = min(
            self.images_per_epoch or ctx.data.info.num_train, ctx.data.info.num_train
        )
        steps = self.prune_epochs * max(1, count // self.batch_size)
        intervals = min(self.intervals, steps)
        shares = [
            1 + (first.cost_ratio - 1) * (i + 1) / intervals for i in range(intervals)
        ]
        kind = self.importance
        pruner = ChannelPruner(
            student,
            layout,
            decider.rules,
            decider.cost,
            [share * decider.full for share in shares],
            steps // intervals,
            (
                GradientMeter(student, layout, kind)
                if kind == "hessian" or kind == "taylor"
                else lambda module: scores_of(module, layout, self, ctx)
            ),
            self.normalisation,
        )
        config = self.model_copy(
            update={
                "epochs": self.prune_epochs,
                "schedule_epochs": None,
                "schedule": "constant",
                "warmup": 0.0,
            }
        )
        objective = self._objective(model, ctx)
        ctx.fit(student, objective, config, hooks=[pruner], name="prune")
        weights = ModelState.from_module(model.arch, student, model.meta)
        return weights, Decision(pruner.keep, (), first.cost_ratio, first.latency_ratio)

    def _cut(
        self,
        model: ModelState,
        layout: Layout,
        decision: Decision,
        inputs: InputMoments | None,
        ctx: Context,
    ) -> ModelState:
        """The dense model, once it is known to compute what the masked one does.

        Args:
            inputs: by which the cut is compensated; None: they are found here.

        Raises:
            ValueError: it does not.
        """
        if self.compensate:
            if inputs is None:
                dense = model.build().to(ctx.device)
                lose = layers_that_lose(dense, layout, decision.keep)
                inputs = inputs_of(dense, lose, self, ctx)
            model = with_compensation(model, layout, decision.keep, inputs)
        small = cut_state(model, layout, decision.keep, decision.dropped)
        size = ctx.data.info.image_size
        found = difference(model, layout, decision.keep, small, size, decision.dropped)
        if not found <= MOST_DIFFERENCE:
            raise ValueError(
                f"prune_channels: the cut {model.arch.name} differs from the masked one by"
                f" {found:.1e} of the largest logit; exclude the layers that are to blame"
            )
        if not self.compensate:
            return small
        module = small.build().to(ctx.device)
        # what is left of the errors moves the inputs of the norms
        recalibrate(module, ctx.images(self.compensate_images))
        return ModelState.from_module(small.arch, module, small.meta)

    def _better(
        self, model: ModelState, found: list[tuple[Decision, ModelState]], ctx: Context
    ) -> tuple[Decision, ModelState]:
        """Of cuts that meet the target, or all where none does, the one that says most nearly what
        the incoming model says of training images.
        """
        if len(found) == 1:
            return found[0]

        images, cuts = ctx.images(self.importance_images), [cut for _, cut in found]
        changed = torch.tensor(divergences(model, cuts, images, ctx.device))
        # summed, so that all ranks take the same
        changed = distributed.sum_over_ranks(changed)
        order = [
            (not decision.meets_target, value)
            for (decision, _), value in zip(found, changed.tolist(), strict=True)
        ]
        return found[order.index(min(order))]

    def _objective(self, model: ModelState, ctx: Context) -> DistillObjective:
        teacher = model.build().to(ctx.device).requires_grad_(False)
        distill = DistillConfig(
            teacher="source", kind="soft", alpha=self.distill_weight
        )
        return DistillObjective(teacher, distill, self.label_smoothing)

    def _tuned(self, small: ModelState, model: ModelState, ctx: Context) -> ModelState:
        module = with_drop_rates(small.arch, self).build()
        module.load_state_dict(small.weights)
        ctx.fit(module, self._objective(model, ctx), self, name="tune")
        return ModelState.from_module(small.arch, module, small.meta)

    def _report(self, layout: Layout, decision: Decision, ctx: Context) -> None:
        removed = 1 - float(decision.keep.mean())
        _log.info(
            "prune_channels: removed %.3f of %d units and %d blocks, cost %.3f",
            removed,
            layout.num_units,
            len(decision.dropped),
            decision.cost_ratio,
        )
        ctx.report(
            channels_removed=removed,
            channels_cost_ratio=decision.cost_ratio,
            channels_blocks_dropped=len(decision.dropped),
        )
        if decision.latency_ratio is not None:
            ctx.report(channels_latency_ratio=decision.latency_ratio)
