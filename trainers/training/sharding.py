"""Parameters that are split over the ranks of a process group (torch's FSDP2, `fully_shard`).

Each rank holds a part of every parameter, of its gradient and of its optimiser state. A block's
parameters are put together when its forward or backward pass begins, and dropped when that ends.
All ranks must therefore make the same passes through the module.

torch's modules for this are imported where they are used: that takes most of a second.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.config import FitOptions
from trainers.training import distributed

_LARGEST_SHARE = 0.25
"""A block with a larger share of a model's parameters is split into the blocks inside it."""

SHARDED_OPTIMIZERS = frozenset((
    "adabelief", "adadelta", "adagrad", "adam", "adamax", "adamc", "adamw", "adamwlegacy",
    "adan", "adanw", "adopt", "adoptc", "adoptw", "lamb", "lambc", "lambcd", "lambcw",
    "lambw", "laprop", "lapropc", "larc", "lars", "lion", "lionc", "madgrad", "madgradw",
    "momentum", "nadam", "nadamc", "nadamlegacy", "nadamw", "nesterov", "nesterovw",
    "nlarc", "nlars", "radabelief", "radam", "radamlegacy", "radamw", "rmsprop",
    "rmsproptf", "rmsproptfc", "rmsproptfw", "sgd", "sgdc", "sgdw",
))  # fmt: skip
"""timm's optimisers that take the same steps on sharded parameters as on whole ones
(`tests/distributed/test_sharding.py` tries all that timm has).
"""


def check_options(options: FitOptions) -> None:
    """Refuse what a fit with sharded parameters cannot do.

    Raises:
        ValueError: the optimiser needs whole parameters, or averaged weights are to be elsewhere.
    """
    name = options.optimizer.lower().removeprefix("lookahead_")
    if name not in SHARDED_OPTIMIZERS:
        raise ValueError(
            f"optimizer {options.optimizer!r} needs whole parameters, and resources.strategy"
            " fsdp splits them over the workers; choose adamw, sgd, lamb or lion, or set the"
            " strategy to ddp"
        )
    if options.ema is not None and options.ema.device is not None:
        raise ValueError(
            "ema.device: with resources.strategy fsdp the averaged weights are split over the"
            " workers like the model, and stay with it; leave device out"
        )


def check_module(module: nn.Module) -> None:
    """Refuse a module that cannot be sharded; one on the meta device will do.

    Raises:
        ValueError: it has a parameter without axes, which has no parts.
    """
    single = [name for name, p in module.named_parameters() if p.ndim == 0]
    if single:
        raise ValueError(
            f"{type(module).__name__} has parameters of a single number ({single[0]}), which"
            " resources.strategy fsdp cannot split; set the strategy to ddp"
        )


@torch.no_grad()
def blocks(module: nn.Module, image_size: int) -> list[nn.Module]:
    """The parts of a module whose parameters are put together at a time: the elements of its
    lists of layers. Of one that holds more than a quarter of all parameters, the elements of the
    lists inside it.

    Parameters are put together where a part is called. Whether it is, or only gives its
    parameters to others, a pass of one blank image tells.

    Args:
        module: whole, on one device; left in eval mode.
        image_size: pixels.
    """
    found = list(_blocks(module, _LARGEST_SHARE * _count(module)))
    called: set[nn.Module] = set()
    hooks = [
        block.register_forward_pre_hook(lambda block, inputs: called.add(block))
        for block in found
    ]
    device = next(module.parameters()).device
    module.eval()(torch.zeros(1, 3, image_size, image_size, device=device))
    for hook in hooks:
        hook.remove()
    return [block for block in found if block in called]


def _blocks(module: nn.Module, limit: float) -> Iterator[nn.Module]:
    for child in module.children():
        inner = list(_blocks(child, limit))
        has_layers = any(_count(layer) for layer in child.children())
        is_block = _is_list(module) and not _is_list(child) and has_layers
        if is_block and (_count(child) <= limit or not inner):
            yield child
        else:
            yield from inner


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shard(module: nn.Module, device: torch.device, image_size: int) -> None:
    """Split a module's parameters over the ranks, in place, and move them to `device`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for block in blocks(module, image_size):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def placed_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A tensor of a parameter's shape, known to all ranks, where the parameter is: on its device,
    and of a sharded one this rank's part.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(
        value, parameter.device_mesh, parameter.placements, src_data_rank=None
    )


# ------------------------------------------------------------------ whole again, and back
# One tensor at a time: the whole model need not fit on the device, and its whole state is on rank
# 0 alone.

State = dict[str, Any]


@torch.no_grad()
def whole(value: Tensor) -> Tensor:
    """A tensor with all its parts, on the CPU. Every rank calls this."""
    from torch.distributed.tensor import DTensor

    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def gathered(value: Any) -> Any:
    """Values in dicts and lists, with whole tensors on rank 0; None in their place on others."""
    if isinstance(value, Tensor):
        found = whole(value)
        return found if distributed.rank() == 0 else None
    if isinstance(value, dict):
        return {key: gathered(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [gathered(each) for each in value]
    return value


@torch.no_grad()
def load_module(module: nn.Module, state: State | None) -> None:
    """Give a sharded module the whole tensors that rank 0 has; other ranks give None."""
    for name, own in module.state_dict().items():
        value = torch.empty(own.shape, dtype=own.dtype, device=own.device)
        if state is not None:
            value.copy_(state[name])
        dist.broadcast(value, src=0)
        own.copy_(placed_like(value, own))


class _Absent(NamedTuple):
    """Stands for a tensor that rank 0 is going to send."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@torch.no_grad()
def load_optimizer(optimizer: torch.optim.Optimizer, state: State | None) -> None:
    """The same for an optimiser of sharded parameters, whose state has tensors of their shapes."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    outline: State = distributed.from_rank_0(None if state is None else _outline(state))
    for index, entries in outline["state"].items():
        parameter = parameters[index]
        for key, entry in entries.items():
            if not isinstance(entry, _Absent):
                continue
            value = torch.empty(entry.shape, dtype=entry.dtype, device=parameter.device)
            if state is not None:
                value.copy_(state["state"][index][key])
            dist.broadcast(value, src=0)
            is_whole = value.shape == parameter.shape
            entries[key] = placed_like(value, parameter) if is_whole else value
    optimizer.load_state_dict(outline)


def _outline(state: State) -> State:
    """An optimiser's state without its tensors."""
    entries = {
        index: {
            key: _Absent(tuple(value.shape), value.dtype)
            if isinstance(value, Tensor)
            else value
            for key, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return state | {"state": entries}
