"""Steps of every stage on a device: no step waits for it, and a GPU gives what the CPU gives."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.cache import StageCache
from compress.pipeline import STAGES, NamedStage, Pipeline, run_pipeline
from compress.stage import Context
from tests.compress.cases import CASES, FIRST, TRAIN
from trainers.config import DataConfig, SourceConfig, TrainConfig
from trainers.data.splits import Data, PixelStore
from trainers.models.arch import ModelState
from trainers.models.make import make_arch
from trainers.training import fit as fit_module
from trainers.training.fit import Hook
from trainers.training.losses import TaskObjective

CPU = torch.device("cpu")
PAIRS = [
    (kind, source)
    for kind, by_source in CASES.items()
    for source, config in by_source.items()
    if not isinstance(config, str)
]
"""(stage, source) for every model that the stage takes."""
SOURCES = {
    "vit": SourceConfig(
        model="vit_tiny_patch16_224",
        args={"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2},
    ),
    "resnet": SourceConfig(model="resnet20_cifar", args={"width": 8}),
}


def source_state(source: str, data: Data) -> ModelState:
    config = SOURCES[source]
    assert config.model is not None
    arch = make_arch(
        config.model,
        num_classes=data.info.num_classes,
        image_size=data.info.image_size,
        args=config.args,
    )
    return ModelState.initialised(arch, 7)


def context(data: Data, workdir: Path, teacher: ModelState, seed: int = 11) -> Context:
    return Context(data, CPU, seed, workdir, lambda name, checkpoint: teacher)


@pytest.fixture(scope="session")
def inputs(
    digits: Data, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], ModelState]:
    """(stage, source) → the model that the stage takes, made once."""

    @cache
    def made(kind: str, source: str) -> ModelState:
        model = source_state(source, digits)
        if kind not in FIRST:
            return model
        first = STAGES[FIRST[kind]].model_validate(CASES[FIRST[kind]][source])
        return first.run(
            model, context(digits, tmp_path_factory.mktemp("first"), model)
        )

    return made


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "source"), PAIRS)
def test_on_a_gpu(
    kind: str, source: str, digits_config: DataConfig, data_cache: Path, tmp_path: Path
) -> None:
    """Killed after the first epoch's checkpoint and run again on a GPU: the CPU's model up
    to rounding.
    """
    stages = tuple(
        NamedStage(k, k, STAGES[k].model_validate(CASES[k][source]))
        for k in (FIRST.get(kind), kind)
        if k is not None
    )
    pipeline = Pipeline(SOURCES[source], digits_config, stages, 0)

    def go(device: str, **more: Any) -> ModelState:
        cache = StageCache(tmp_path / device)
        return run_pipeline(
            pipeline,
            cache=cache,
            data_cache=data_cache,
            device=torch.device(device),
            **more,
        ).model

    def die(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        go("cuda", on_epoch=die)
    there, here = go("cuda"), go("cpu")
    assert all(
        t.device.type == "cpu" and bool(t.isfinite().all())
        for t in there.weights.values()
    )
    assert there.weights.keys() == here.weights.keys()
    if not STAGES[kind].finds_dims:
        assert there.arch == here.arch
        for name, mine in here.weights.items():
            assert (there.weights[name].float() - mine.float()).abs().mean() < 0.02, (
                name
            )


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "source"), PAIRS)
def test_a_step_waits_for_no_gpu(
    kind: str,
    source: str,
    digits: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the second batch of an epoch on, whatever makes the host wait is an error."""
    config = CASES[kind][source]
    if isinstance(config, str) or not {"epochs", "fixing_epochs"} & config.keys():
        pytest.skip("trains nothing")
    if "interval_prune" in config:  # its decisions read: let one fall on a first batch
        config = config | {"interval_prune": 4}
    micro_batches, gpu, steps = fit_module._Fit._micro_batches, torch.device("cuda"), 0

    def watched(fit: Any) -> Iterator[Any]:
        nonlocal steps
        try:
            for number, batch in enumerate(micro_batches(fit)):
                torch.cuda.set_sync_debug_mode("error" if number else "default")
                steps += number > 0
                yield batch
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(fit_module._Fit, "_micro_batches", watched)
    model = source_state(source, digits)
    augmented = config | {"augment": "deit", "clip_grad": 1.0}
    stage = STAGES[kind].model_validate(augmented)
    ctx = Context(digits, gpu, 11, tmp_path, lambda name, checkpoint: model)
    stage.run(model, ctx)
    assert steps > 0


def on_meta(values: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A deep copy in which every tensor is on the meta device."""

    def copied(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
        if id(tensor) not in memo:
            there = torch.empty_like(tensor, device="meta", requires_grad=False)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            memo[id(tensor)] = (
                torch.nn.Parameter(there, tensor.requires_grad)
                if is_parameter
                else there
            )
        return memo[id(tensor)]

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__deepcopy__", copied)
        patch.setattr(torch.nn.Parameter, "__deepcopy__", copied)
        return copy.deepcopy(values)


@pytest.fixture
def steps_on_meta(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """After each epoch of a fit, one step of the same fit on the meta device; a list of the
    numbers of steps after which that was done.

    That device has no values: to ask for one, or for how many values are so and so, is an
    error there, as it is a wait on a GPU. Tensors of the host stay what they are.
    """
    train_epoch, numbers = fit_module._Fit.train_epoch, list[int]()

    def step_there(fit: Any) -> None:
        store = PixelStore(fit.data.train.store.pixels)
        data = replace(fit.data, train=replace(fit.data.train, store=store))
        config = fit.config.model_copy(
            update={"images_per_epoch": fit.config.batch_size}
        )
        parts = on_meta((fit.module, fit.objective, fit.hooks), monkeypatch)
        there = fit_module._Fit(
            parts[0], data, parts[1], config, parts[2], fit.seed, torch.device("meta")
        )
        there.result.steps = (
            1_000_000  # no interval of a case ends with the step after it
        )
        train_epoch(there)
        numbers.append(fit.result.steps)

    def both(fit: Any) -> dict[str, Any]:
        row = train_epoch(fit)
        with monkeypatch.context() as patch:
            patch.setattr(
                torch, "Generator", lambda device="cpu", kind=torch.Generator: kind()
            )
            patch.setattr(
                torch, "autocast", lambda *args, **options: contextlib.nullcontext()
            )
            # the mean loss of the epoch is read when its steps are over
            patch.setattr(fit_module._LossMeter, "mean", lambda meter: 0.0)
            step_there(fit)
        return row

    monkeypatch.setattr(fit_module._Fit, "train_epoch", both)
    return numbers


@pytest.mark.parametrize(("kind", "source"), PAIRS)
def test_a_step_asks_its_device_for_nothing(
    kind: str,
    source: str,
    digits: Data,
    inputs: Callable[[str, str], ModelState],
    tmp_path: Path,
    steps_on_meta: list[int],
) -> None:
    config, model = CASES[kind][source], inputs(kind, source)
    if isinstance(config, str):
        pytest.skip("refuses this model, with a message")
    stage = STAGES[kind].model_validate(config)
    steps_on_meta.clear()  # those of the stage that made its input
    stage.run(model, context(digits, tmp_path, model))
    assert bool(steps_on_meta) == bool({"epochs", "fixing_epochs"} & config.keys())


@pytest.mark.parametrize(
    "extra",
    [
        {"augment": {"repeats": 2, "erase_resplit": True}},
        {"augment": {"three_augment": True, "erase_mode": "const", "mix_mode": "elem"}},
        {"augment": {"auto_augment": None, "crop": "resized", "erase_mode": "rand"}},
        {"ema": {"decay": 0.9}, "clip_grad": 1.0, "max_batch_per_worker": 10},
        {"grad_checkpointing": True, "channels_last": True},
        {"distill": {"teacher": "source", "kind": "hard"}, "kl_teacher": "source"},
    ],
    ids=lambda extra: "-".join(extra),
)
def test_no_option_of_a_fit_asks_the_device(
    extra: dict[str, Any],
    digits: Data,
    inputs: Callable[[str, str], ModelState],
    tmp_path: Path,
    steps_on_meta: list[int],
) -> None:
    model = inputs("finetune", "vit")
    stage = STAGES["finetune"].model_validate(TRAIN | extra)
    stage.run(model, context(digits, tmp_path, model))
    assert steps_on_meta


def test_asking_is_noticed(
    digits: Data, tmp_path: Path, steps_on_meta: list[int]
) -> None:
    class Asks(Hook):
        def on_loss(self, loss: torch.Tensor, step: int) -> torch.Tensor:
            return loss if bool(loss > 0) else -loss

    model = source_state("vit", digits)
    ctx = context(digits, tmp_path, model)
    with pytest.raises(RuntimeError, match="meta"):
        ctx.fit(model.build(), TaskObjective(0.1), TrainConfig(**TRAIN), hooks=[Asks()])
