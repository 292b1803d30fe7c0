"""What memory a trial takes, and so how many run at a time without one being killed for it."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.numbers import plural
from sweeps.shrink.look import Look, Speed
from trainers.machine import free_memory_bytes

_PROCESS_MB = 900.0
"""Of a trial's process before it has a model: torch, Ray, the runtime, NNCF."""
_MODELS = 6
"""Copies of the weights: the model, what came in, its teacher, gradients, moments of AdamW."""
_ROUNDED = 1.5
"""Times what a step keeps, where it trains with integers' rounding."""
_MARGIN = 1.3
"""Times what is alive: what allocators keep, and what operators take for themselves."""
_USED = 0.6
"""Of the free memory, which trials may take; about what Ray counts on a node of its own."""


@dataclass(frozen=True)
class Room:
    """How many trials fit.

    Attributes:
        trial_gb: that one takes, about.
        is_local: whether they run on this machine.
        free_gb: of it; None where it is not known.
        cores: of it.
    """

    trial_gb: float
    is_local: bool
    free_gb: float | None
    cores: int

    @property
    def memory_gb(self) -> float | None:
        """`resources.memory_gb`: on this machine one trial always fits."""
        if not self.is_local:
            return self.trial_gb
        if self.free_gb is None:
            return None
        return max(0.1, round(min(self.trial_gb, _USED * self.free_gb), 1))

    def said(self) -> str:
        """A line of the plan."""
        each = f"about {self.trial_gb:.1f} GB each"
        if not self.is_local:
            return f"as many trials as a node's cores and memory hold, {each}"
        if self.free_gb is None:
            return f"{plural(self.cores, 'trial')}, {each}; what is free is not known"
        fit = int(_USED * self.free_gb / self.trial_gb)
        said = plural(max(1, min(self.cores, fit)), "trial")
        said += f", {each}; {self.free_gb:.1f} GB are free"
        return said if fit else f"{said}: it may be killed for memory"


def room(seen: Look, speed: Speed, batch: int, *, local: bool) -> Room:
    """How many trials fit into this machine's memory and cores.

    Args:
        batch: images of a training step.
        local: whether they run here.
    """
    import torch

    from trainers.training.evaluate import calibration_batch, evaluation_batch

    size, cpu = seen.info.image_size, torch.device("cpu")
    most = evaluation_batch(size, cpu)
    images = min(most, max(seen.info.num_val, seen.info.num_test))
    pixels = 3 * 4 * size**2 / 1e6
    evaluated = images * (speed.pass_mb + pixels)
    trained = batch * (_ROUNDED * speed.train_mb + speed.pass_mb + pixels)
    looked_at = calibration_batch(size, cpu) * (speed.train_mb + pixels)
    alive = _MODELS * speed.weight_mb + max(evaluated, trained, looked_at)
    trial_gb = round((_PROCESS_MB + _MARGIN * alive) / 1e3, 1)
    free = free_memory_bytes()
    return Room(trial_gb, local, None if free is None else free / 1e9, seen.cores)
