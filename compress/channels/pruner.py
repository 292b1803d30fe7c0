"""Pruning in steps while a model trains: what is removed is masked, and cut out at the end."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.channels.choice import Choice, GroupRule
from compress.channels.cost import Cost, Floats
from compress.channels.importance import GradientMeter, Normalisation, normalised
from compress.channels.layout import Keep, Layout
from compress.channels.surgery import Masks
from trainers.training.fit import Hook


class MaskedModel(nn.Module):
    """A module whose norms average over the channels that stay. Its parameters are the module's
    own; state by the same names behind "module.".
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.masks: Masks | None = None

    def forward(self, images: Tensor) -> Any:
        if self.masks is None:
            return self.module(images)
        with self.masks.norms_over_kept():
            return self.module(images)


Score = Callable[[nn.Module], Floats]
"""Importance of all units (U,) that needs no gradients."""


class ChannelPruner(Hook):
    """Removes units at the end of each interval, until the cost is at its limit.

    Args:
        limits: cost after each interval, falling.
        interval: optimiser steps of an interval.
        meter: of importance by gradients, or a function of the module.
    """

    def __init__(
        self,
        model: MaskedModel,
        layout: Layout,
        rules: Sequence[GroupRule],
        cost: Cost,
        limits: Sequence[float],
        interval: int,
        meter: GradientMeter | Score,
        normalisation: Normalisation,
    ) -> None:
        self.model, self.layout, self.rules, self.cost = model, layout, rules, cost
        self.limits, self.interval, self.meter = limits, interval, meter
        self.normalisation = normalisation
        self.keep: Keep = np.ones(layout.num_units, bool)
        self.intervals = 0

    def on_grads(self, step: int) -> None:
        if isinstance(self.meter, GradientMeter):
            self.meter.add()
        if self.model.masks is not None:
            self.model.masks.on_grads()

    def on_step(self, step: int) -> bool | None:
        if self.model.masks is not None:
            self.model.masks.on_values()
        if step % self.interval:
            return None
        self.decide()
        return self.intervals == len(self.limits)

    def decide(self) -> None:
        """End an interval: choose what goes, and mask it."""
        meter = self.meter
        module = self.model.module
        scores = meter.close() if isinstance(meter, GradientMeter) else meter(module)
        scores = normalised(scores, self.layout, self.normalisation)
        choice = Choice(self.layout.groups, self.rules, scores, self.cost, self.keep)
        self.keep = choice.to(self.limits[self.intervals])
        self.intervals += 1
        self._mask()

    def _mask(self) -> None:
        self.model.masks = Masks(self.model.module, self.layout, self.keep)
        self.model.masks.on_values()

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
