"""What two ranks do in the tests of sharded parameters: each function gives what its rank saw."""

import copy
import functools
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from compress.cache import StageCache
from compress.pipeline import STAGES, NamedStage, Pipeline, run_pipeline
from tests.compress.cases import AUX
from tests.distributed.jobs import CPU, DATA, RESNET, TRAIN, VIT, _data_cache
from trainers.config import SourceConfig, TrainConfig
from trainers.data.splits import load_data
from trainers.models.arch import ModelState
from trainers.models.make import make_arch
from trainers.timm_library import timm
from trainers.training import distributed
from trainers.training import fit as fit_module
from trainers.training.evaluate import evaluate
from trainers.training.losses import TaskObjective
from trainers.training.optim import make_optimizer
from trainers.training.sharding import (
    blocks,
    gathered,
    load_module,
    load_optimizer,
    shard,
    whole,
)

Stages = list[tuple[str, dict[str, Any]]]
SMALL_AUX = AUX | {"augment": "none"}
SMALL_SWEET = SMALL_AUX | {"depth": 2, "ranks": [6, 10, 9]}
AVERAGED = {
    "clip_grad": 0.5,
    "ema": {"decay": 0.8, "use": True},
    "max_batch_per_worker": 10,
    "layer_decay": 0.8,
}
CASES: dict[str, tuple[SourceConfig, Stages]] = {
    "clipped, averaged": (VIT, [("finetune", TRAIN | AVERAGED)]),
    "fp16, recomputed": (VIT, [("finetune", TRAIN | {"amp": "fp16", "grad_checkpointing": True})]),
    "2:4": (VIT, [("asp", {"measure": False}), ("finetune", TRAIN)]),
    "sws_aux": (VIT, [("sws_aux", SMALL_AUX | {"repeats": [1, 2]})]),
}  # fmt: skip
MORE_CASES: dict[str, tuple[SourceConfig, Stages]] = {
    "plain": (VIT, [("finetune", TRAIN)]),
    "batch norm, eval mode": (RESNET, [("finetune", TRAIN | {"train_mode": False, "epochs": 1})]),
    "batch norm": (RESNET, [("finetune", TRAIN | {"channels_last": True})]),
    "distilled": (VIT, [("finetune", TRAIN | {"distill": {"teacher": "source", "kind": "soft"}})]),
    "lets_aux": (VIT, [("lets_aux", SMALL_AUX | {"gene_dim": 8, "depth": 4})]),
    "tleg_aux": (VIT, [("tleg_aux", SMALL_AUX | {"depth": 3})]),
    "wave_aux": (VIT, [("wave_aux", SMALL_AUX | {"depth": 2, "template_dim": 8})]),
    "sweet": (VIT, [("sweet_aux", SMALL_SWEET), ("sweet_expand", TRAIN | {"width": 8})]),
    "compiled": (VIT, [("finetune", TRAIN | {"compile": True})]),
}  # fmt: skip
"""Those that do not pay for their time at every run of the tests."""


def train(
    folder: Path, case: str, strategy: Any, **more: Any
) -> tuple[ModelState, list[Any]]:
    """The model that a case's stages give, and its epochs."""
    source, kinds = (CASES | MORE_CASES)[case]
    stages = [NamedStage(k, k, STAGES[k].model_validate(c)) for k, c in kinds]
    rows: list[Any] = []
    result = run_pipeline(
        Pipeline(source, DATA, tuple(stages), 0),
        cache=StageCache(folder / strategy / case),
        data_cache=_data_cache(),
        device=CPU,
        strategy=strategy,
        on_epoch=more.get("on_epoch") or rows.append,
    )
    return result.model, [[row["train_loss"], row["loss"]] for row in rows]


def more_compared(folder: Path) -> dict[str, Any]:
    """`compared` for the other cases; compiled graphs are captured and run as they are."""
    captured = functools.partial(torch.compile, backend="eager")
    with patch.object(torch, "compile", captured):
        return compared(folder, MORE_CASES)


def compared(folder: Path, cases: Iterable[str] = CASES) -> dict[str, Any]:
    """For each case the largest difference of weights to those of DDP, and both's losses."""
    found = {}
    for case in cases:
        (one, rows), (other, other_rows) = (
            train(folder, case, strategy) for strategy in ("ddp", "fsdp")
        )
        assert one.arch == other.arch
        pairs = [
            (v.double(), other.weights[n].double()) for n, v in one.weights.items()
        ]
        far = max(float((a - b).abs().max()) for a, b in pairs)
        zeros = all(torch.equal(a == 0, b == 0) for a, b in pairs)
        found[case] = [far, zeros, rows, other_rows]
    return found


class _Killed(Exception):
    """Ends a rank's stage in place of a signal."""


def resumed(folder: Path) -> list[Any]:
    """Hashes of a fit killed after its first epoch and run again, and of an uninterrupted one."""
    case = "clipped, averaged"

    def kill(row: Any) -> None:
        raise _Killed

    try:
        train(folder / "killed", case, "fsdp", on_epoch=kill)
    except _Killed:
        distributed.barrier()
    again, rows = train(folder / "killed", case, "fsdp")
    at_once, all_rows = train(folder / "whole", case, "fsdp")
    return [again.hash(), at_once.hash(), rows == all_rows]


def held(folder: Path) -> dict[str, float]:
    """The share of a model's parameters, gradients and optimiser state that this rank holds after
    a step, and the most parameters that it had put together at a time.
    """
    arch = make_arch(
        "vit_tiny_patch16_224",
        num_classes=10,
        image_size=32,
        args={"patch_size": 8, "embed_dim": 24, "depth": 6, "num_heads": 2},
    )
    module = ModelState.initialised(arch, 0).build()
    total = sum(p.numel() for p in module.parameters())
    fits: list[Any] = []
    begin = fit_module._Fit.train_epoch

    def seen(fit: Any) -> Any:
        fits.append(fit)
        with patch.object(fit.optimizer, "zero_grad", lambda **options: None):
            return begin(fit)

    data = load_data(DATA, _data_cache())
    config = TrainConfig(**TRAIN | {"epochs": 1, "optimizer": "adamw"})
    with patch.object(fit_module._Fit, "train_epoch", seen):
        fit_module.fit(
            module, data, TaskObjective(0.1), config,
            seed=0, device=CPU, workdir=folder / "held", strategy="fsdp",
        )  # fmt: skip
    (fit,) = fits
    # one image: the second rank has none, and must make a pass all the same
    one = replace(data.test, rows=data.test.rows[:1], labels=data.test.labels[:1])
    one_image = replace(data, test=one)
    parameters = list(fit.module.parameters())
    states = [
        value
        for entries in fit.optimizer.state.values()
        for value in entries.values()
        if isinstance(value, Tensor) and value.ndim
    ]
    largest = max(
        sum(p.numel() for p in block.parameters()) for block in blocks(module, 32)
    )
    found = {
        "parameters": _local(parameters) / total,
        "gradients": _local([p.grad for p in parameters]) / total,
        "optimizer": _local(states) / (2 * total),
        "block": largest / total,
        "given": sum(p.numel() for p in module.parameters()) / total,
    }
    scores = evaluate(fit.module, one_image, "test", CPU, in_lockstep=True)
    whole_scores = evaluate(module, one_image, "test", CPU)
    return found | {"loss": scores["loss"], "loss of all": whole_scores["loss"]}


def _local(tensors: list[Any]) -> int:
    """Values that this rank has memory for to hold them; several may be parts of one buffer."""
    assert all(isinstance(tensor, DTensor) for tensor in tensors)
    buffers = [tensor.to_local().untyped_storage() for tensor in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in buffers if s.nbytes()}.values()) // 4


def _layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 2), nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 33), nn.Linear(33, 5)
    )  # fmt: skip


def optimizers(names: list[str] | None = None) -> dict[str, str]:
    """What is wrong with steps on sharded parameters, by optimiser; "" where nothing is.

    After two of four steps all state travels into a new optimiser, as from a checkpoint. Kron's
    are left out, since they compile for minutes.
    """
    images = torch.randn(4, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    found = {}
    for name in names or (n for n in timm.optim.list_optimizers() if "kron" not in n):
        config = TrainConfig(optimizer=name, lr=1e-2, lr_scaling="unscaled")
        one = _layers()
        other = copy.deepcopy(one)
        try:
            optimizer = make_optimizer(one, config)
            for batch in images:
                _step(one, optimizer, batch)
        except (ValueError, RuntimeError, TypeError, AssertionError):
            continue  # the training loop refuses it
        try:
            _steps_in_parts(other, config, images)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            found[name] = type(error).__name__
            continue
        pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        far = max(float((a - whole(b)).abs().max() / a.abs().max()) for a, b in pairs)
        found[name] = "" if far < 1e-4 else f"differs by {far}"
    return found


def _step(
    module: nn.Module, optimizer: Any, batch: Tensor, factor: float = 1.0
) -> None:
    (module(batch).square().sum() * factor).backward()
    optimizer.step()
    optimizer.zero_grad()


def _steps_in_parts(module: nn.Module, config: TrainConfig, images: Tensor) -> None:
    shard(module, CPU, 4)
    optimizer = make_optimizer(module, config)
    rank, world = distributed.rank(), distributed.world_size()
    for number, batch in enumerate(images):
        if number == 2:
            state = gathered([module.state_dict(), optimizer.state_dict()])
            first = rank == 0
            load_module(module, state[0] if first else None)
            optimizer = make_optimizer(module, config)
            load_optimizer(optimizer, state[1] if first else None)
        _step(module, optimizer, batch[rank::world], world)


def families() -> dict[str, str]:
    """What is wrong with the loss or the gradients of one pass, by model family; "" where nothing
    is.
    """
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
    from model_families import FAMILIES

    found = {}
    for family in FAMILIES:
        size = family.image_size
        arch = make_arch(
            family.model, num_classes=10, image_size=size, args=family.args
        )
        one = ModelState.initialised(arch, 0).build()
        other = copy.deepcopy(one)
        shard(other, CPU, size)
        images = torch.randn(
            4, 3, size, size, generator=torch.Generator().manual_seed(1)
        )
        losses = [_loss(module, images) for module in (one, other)]
        pairs = zip(one.named_parameters(), other.parameters(), strict=True)
        wrong = [name for (name, a), b in pairs if not _same_gradient(a, b)]
        found[family.name] = "" if losses[0] == losses[1] else "loss "
        found[family.name] += ", ".join(wrong)
    return found


def _loss(module: nn.Module, images: Tensor) -> float:
    torch.manual_seed(1)
    output = module.train()(images)
    outputs = output if isinstance(output, tuple) else (output,)
    loss = torch.stack([each.square().mean() for each in outputs]).sum()
    loss.backward()
    return float(loss)


def _same_gradient(one: Tensor, other: Tensor) -> bool:
    if one.grad is None or other.grad is None:
        return one.grad is other.grad
    return torch.allclose(one.grad, whole(other.grad), atol=1e-6, rtol=1e-4)
