"""Rank, reduction and barrier; no-ops in one process."""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


class RankFailed(RuntimeError):
    """What a rank raised, told elsewhere.

    Attributes:
        details: `type`, `message` and `traceback` of the error.
        deterministic: whether the same work would fail the same way again.
    """

    def __init__(self, details: dict[str, str], deterministic: bool) -> None:
        super().__init__(details["message"])
        self.details, self.deterministic = details, deterministic


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


def rows_of_all_ranks(rows: Tensor) -> Tensor:
    """The rows (n, …) of every rank, those of rank 0 first, on every rank. The ranks may have
    different numbers of rows.
    """
    if not active():
        return rows
    counts = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    counts[rank()] = len(rows)
    sizes = sum_over_ranks(counts).tolist()
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def barrier() -> None:
    if active():
        dist.barrier()


def mean_over_ranks(value: float, device: torch.device) -> float:
    """The mean of one number of each rank, on every rank."""
    if not active():
        return value
    return (
        float(sum_over_ranks(torch.tensor(value, dtype=torch.float64, device=device)))
        / world_size()
    )


def from_rank_0(value: T | None) -> T:
    """Rank 0's value on every rank; what other ranks give is ignored. Pickled among our own
    processes only.
    """
    if not active():
        assert value is not None
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


@torch.no_grad()
def same_buffers(module: nn.Module) -> None:
    """Give every rank rank 0's buffers: running statistics differ, since each rank sees
    other images.
    """
    if active():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` holds on any rank, so that all ranks decide alike."""
    if not active():
        return flag
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)))
