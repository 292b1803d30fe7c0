"""The model of a fit as one process of several has it: all of it, or a part.

Both classes hold the module that is trained, what is called in its place, and its averaged
weights; they differ in what a rank holds and in how ranks exchange it.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from trainers.config import EmaConfig, TrainConfig
from trainers.option_types import Strategy
from trainers.timm_library import timm
from trainers.training import distributed
from trainers.training.recompute import recompute_activations
from trainers.training.sharding import (
    gathered,
    load_module,
    load_optimizer,
    shard,
    whole,
)

State = dict[str, Any]


class ParallelModel(ABC):
    """A module that this process trains together with others, or alone.

    Attributes:
        module: with the parameters that the optimiser and hooks change.
        ema: timm's moving average of the weights; None where none is kept.
        called: computes what `module` computes, and exchanges what ranks must exchange.
        in_lockstep: whether all ranks must make the same number of passes, also at evaluation.
    """

    module: nn.Module
    ema: Any
    called: nn.Module
    in_lockstep: bool

    def without_exchange(self) -> AbstractContextManager[Any]:
        """A backward pass inside adds to the gradients of this rank's own images alone."""
        return nullcontext()

    @abstractmethod
    def state_dict(self, optimizer: Optimizer) -> State:
        """Module, optimiser and averaged weights, whole, on rank 0. Every rank calls this."""

    @abstractmethod
    def load_state_dict(self, optimizer: Optimizer, state: State | None) -> None:
        """Take back what `state_dict` gave on rank 0, which alone has it."""

    @abstractmethod
    def give_back(self, averaged: bool) -> None:
        """Put the trained weights into the module that the fit was given; or the averaged ones."""


class WholeModel(ParallelModel):
    """Every rank holds all of the module that the fit was given; DDP averages gradients."""

    in_lockstep = False

    def __init__(
        self, module: nn.Module, config: TrainConfig, device: torch.device
    ) -> None:
        self.module = module.to(device)
        if config.grad_checkpointing:
            recompute_activations(module)
        if config.channels_last:
            layout: Any = torch.channels_last  # torch's stubs lack this overload
            self.module = self.module.to(memory_format=layout)  # type: ignore
        self.ema = _averaged(module, config.ema)
        self.called = self.module
        if distributed.world_size() > 1:
            devices = [device] if device.type == "cuda" else None
            self.called = DistributedDataParallel(self.module, device_ids=devices)

    def without_exchange(self) -> AbstractContextManager[Any]:
        if isinstance(self.called, DistributedDataParallel):
            found: AbstractContextManager[Any] = self.called.no_sync()
            return found
        return nullcontext()

    def state_dict(self, optimizer: Optimizer) -> State:
        return {
            "module": self.module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
        }

    def load_state_dict(self, optimizer: Optimizer, state: State | None) -> None:
        state = distributed.from_rank_0(state)
        self.module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])

    def give_back(self, averaged: bool) -> None:
        if averaged:
            self.module.load_state_dict(self.ema.module.state_dict())


class ShardedModel(ParallelModel):
    """Each rank holds a part of a copy of the module that the fit was given.

    That module stays where it is, whole and untouched to the end. Gradients are exchanged with
    every micro-batch: those of one rank's images would be whole, and take the room that is saved.
    Weights keep their memory format, since parts have none; with `channels_last` images have it.
    """

    in_lockstep = True

    def __init__(
        self,
        module: nn.Module,
        config: TrainConfig,
        device: torch.device,
        image_size: int,
    ) -> None:
        self.given = module
        self.module = copy.deepcopy(module)
        if config.grad_checkpointing:
            recompute_activations(self.module)
        self.ema = _averaged(self.module, config.ema)
        shard(self.module, device, image_size)
        if self.ema is not None:
            shard(self.ema.module, device, image_size)
        self.called = self.module

    def state_dict(self, optimizer: Optimizer) -> State:
        found: State = gathered(
            {
                "module": self.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": self.ema.module.state_dict() if self.ema else None,
            }
        )
        return found

    def load_state_dict(self, optimizer: Optimizer, state: State | None) -> None:
        parts = state or {"module": None, "optimizer": None, "ema": None}
        load_module(self.module, parts["module"])
        load_optimizer(optimizer, parts["optimizer"])
        if self.ema is not None:
            load_module(self.ema.module, parts["ema"])

    def give_back(self, averaged: bool) -> None:
        trained = self.ema.module if averaged else self.module
        self._load_given(trained.state_dict())

    @torch.no_grad()
    def _load_given(self, state: Mapping[str, Tensor]) -> None:
        given = self.given.state_dict()
        for name, value in state.items():
            given[name].copy_(whole(value))


def parallel_model(
    strategy: Strategy,
    module: nn.Module,
    config: TrainConfig,
    device: torch.device,
    image_size: int,
) -> ParallelModel:
    """The model of a fit, by strategy; a process that is alone holds all of it."""
    if strategy == "fsdp" and distributed.world_size() > 1:
        return ShardedModel(module, config, device, image_size)
    return WholeModel(module, config, device)


def _averaged(module: nn.Module, config: EmaConfig | None) -> Any:
    """timm's moving average of the weights; None where none is kept."""
    if config is None:
        return None
    return timm.utils.ModelEmaV3(module, decay=config.decay, device=config.device)
