"""Pruning in steps while a model trains: what is removed is masked, and cut out at the end."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.channels.choice import Choice, GroupRule
from compress.channels.cost import Cost, Floats
from compress.channels.importance import GradientMeter, Normalisation, normalised
from compress.channels.layout import Keep, Layout
from compress.channels.surgery import Masks
from trainers.training.fit import Hook

Score = Callable[[nn.Module], Floats]
"""Importance of all units (U,) that needs no gradients."""


class ChannelPruner(Hook):
    """Removes units at the end of each interval, until the cost is at its limit.

    Args:
        module: is trained; norms average over the channels that stay, while it runs.
        limits: cost after each interval, falling.
        interval: optimiser steps of an interval.
        meter: of importance by gradients, or a function of the module.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        rules: Sequence[GroupRule],
        cost: Cost,
        limits: Sequence[float],
        interval: int,
        meter: GradientMeter | Score,
        normalisation: Normalisation,
    ) -> None:
        self.module, self.layout, self.rules, self.cost = module, layout, rules, cost
        self.limits, self.interval, self.meter = limits, interval, meter
        self.normalisation = normalisation
        self.keep: Keep = np.ones(layout.num_units, bool)
        self.intervals = 0
        self.masks: Masks | None = None
        self._running = ExitStack()
        module.register_forward_pre_hook(lambda *_: self._begin_pass())
        module.register_forward_hook(lambda *_: self._running.close(), always_call=True)

    def _begin_pass(self) -> None:
        if self.masks is not None:
            self._running.enter_context(self.masks.norms_over_kept())

    def on_grads(self, step: int) -> None:
        if isinstance(self.meter, GradientMeter):
            self.meter.add()
        if self.masks is not None:
            self.masks.on_grads()

    def on_step(self, step: int) -> bool | None:
        if self.masks is not None:
            self.masks.on_values()
        if step % self.interval:
            return None
        self.decide()
        return self.intervals == len(self.limits)

    def decide(self) -> None:
        """End an interval: choose what goes, and mask it."""
        meter = self.meter
        scores = (
            meter.close() if isinstance(meter, GradientMeter) else meter(self.module)
        )
        scores = normalised(scores, self.layout, self.normalisation)
        choice = Choice(self.layout.groups, self.rules, scores, self.cost, self.keep)
        self.keep = choice.to(self.limits[self.intervals])
        self.intervals += 1
        self._mask()

    def _mask(self) -> None:
        self.masks = Masks(self.module, self.layout, self.keep)
        self.masks.on_values()

    def state_dict(self) -> dict[str, Any]:
        meter = self.meter.state_dict() if isinstance(self.meter, GradientMeter) else {}
        return {
            "keep": torch.from_numpy(self.keep.copy()),
            "intervals": self.intervals,
            "meter": meter,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.keep = state["keep"].numpy().copy()
        self.intervals = state["intervals"]
        if isinstance(self.meter, GradientMeter):
            self.meter.load_state_dict(state["meter"])
        if not self.keep.all():
            self._mask()
