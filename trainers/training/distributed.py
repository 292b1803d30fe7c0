"""Which of several processes this one is, and what they do together; in one process nothing
happens.
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


class RankFailed(RuntimeError):
    """An error that a rank raised, as another process sees it.

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
    """Number of this process, from 0."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """Number of processes."""
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
    """Wait until every rank has come here."""
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


def max_over_ranks(value: float, device: torch.device) -> float:
    """The largest of one number of each rank, on every rank."""
    if not active():
        return value
    found = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return float(found)


def from_rank_0(value: T | None) -> T:
    """The value of rank 0 on every rank; what other ranks give is ignored. It travels pickled, but
    only between processes of this job.
    """
    if not active():
        assert value is not None
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


@torch.no_grad()
def same_buffers(module: nn.Module) -> None:
    """Give every rank the buffers of rank 0: running statistics differ between ranks, since each
    sees other images.
    """
    if active():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` holds on any rank, so that all ranks decide alike."""
    if not active():
        return flag
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)))
