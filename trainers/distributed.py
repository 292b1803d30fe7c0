"""Rank, reduction and barrier; no-ops in one process."""

import torch
import torch.distributed as dist
from torch import Tensor


def active() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if active() else 0


def world_size() -> int:
    return dist.get_world_size() if active() else 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """`value` summed over ranks, in place, on every rank."""
    if active():
        dist.all_reduce(value)
    return value


def barrier() -> None:
    if active():
        dist.barrier()


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` holds on any rank, so that all ranks decide alike."""
    if not active():
        return flag
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)))
