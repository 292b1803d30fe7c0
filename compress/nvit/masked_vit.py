"""A vision transformer of full dimensions in which NViT zeroes units while it trains."""

from typing import Any

import torch
from torch import nn

from compress.nvit.surgery import MaskedLayerNorm
from trainers.models.arch import ModelState
from trainers.models.pruned_vit import PrunedVit


class MaskedVit(PrunedVit):
    """A `PrunedVit` of full dimensions in which units are zeroed; same tensors, same names.

    Attributes:
        student_eval: whether `train()` leaves every layer in eval mode (no dropout, no
            stochastic depth). The root stays in training mode, which only decides that a
            distilled model gives both heads' logits.
    """

    def __init__(self, **args: Any) -> None:
        super().__init__(**args)
        self.student_eval = False
        for name, layer in list(self.named_modules()):
            if type(layer) is nn.LayerNorm:
                parent, _, leaf = name.rpartition(".")
                setattr(
                    self.get_submodule(parent),
                    leaf,
                    MaskedLayerNorm(layer.normalized_shape[0], layer.eps),
                )

    @classmethod
    def from_state(cls, state: ModelState) -> "MaskedVit":
        """The module of a `pruned_vit` state, nothing masked, in training mode."""
        with torch.random.fork_rng(devices=[]):
            module = cls(dims=state.arch.dims, **state.arch.args)
        module.load_state_dict(state.weights)
        return module

    def train(self, mode: bool = True) -> "MaskedVit":
        super().train(mode)
        if self.student_eval:
            for child in self.children():
                child.train(False)
        return self
