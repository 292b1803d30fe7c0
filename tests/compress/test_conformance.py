"""What every stage promises, over all of STAGES, on a convolutional and a transformer model.

A new stage adds its smallest config to `CASES`; nothing else here names a method.
"""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.cache import StageCache
from compress.pipeline import STAGES, NamedStage, Pipeline, run_pipeline
from compress.stage import Context
from trainers.config import DataConfig, SourceConfig, TrainConfig
from trainers.data.splits import Data, PixelStore
from trainers.models.arch import Arch, ModelState
from trainers.models.make import make_arch
from trainers.seeding import seed_everything
from trainers.training import fit as fit_module
from trainers.training.fit import Hook
from trainers.training.losses import TaskObjective

CPU = torch.device("cpu")
SOURCES = {
    "vit": SourceConfig(
        model="vit_tiny_patch16_224",
        args={"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2},
    ),
    "resnet": SourceConfig(model="resnet20_cifar", args={"width": 8}),
}
TRAIN = {"epochs": 2, "batch_size": 40, "lr": 1e-3, "warmup": 0, "augment": "flip"}
WFN = {
    "percentages": [0.5, 1.0],
    "first_epoch": 1,
    "fixing_epochs": 1,
    "batch_size": 40,
    "lr": 1e-3,
    "augment": "flip",
    "distance_allowed": 0.1,
}
AUX = TRAIN | {
    "patch_size": 16,
    "embed_dim": 16,
    "num_heads": 2,
    "distill": {"teacher": "source", "kind": "soft", "alpha": 1},
}
NVIT = TRAIN | {
    "latency": "macs",
    "measure": False,
    "latency_target": 0.3,
    "interval_prune": 2,
    "prune_per_iter": 48,
    "groups": {"embed": 4, "heads": 1, "qk": 2, "v": 2, "mlp": 8},
}
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "finetune": {"vit": TRAIN, "resnet": TRAIN},
    "random_init": {
        "vit": {"args": {"embed_dim": 16}},
        "resnet": {"args": {"width": 4}},
    },
    "weight_selection": {
        "vit": {"args": {"embed_dim": 16, "depth": 1}},
        "resnet": {"args": {"width": 4}},
    },
    "sws_aux": dict.fromkeys(SOURCES, AUX | {"repeats": [1, 2]}),
    "sws_expand": {key: {"layers_source": [0, 1, 1]} for key in SOURCES},
    "lets_aux": dict.fromkeys(SOURCES, AUX | {"gene_dim": 8, "depth": 4}),
    "lets_expand": {key: {"width": 8, "depth": 3} for key in SOURCES},
    "tleg_aux": dict.fromkeys(SOURCES, AUX | {"depth": 3}),
    "tleg_expand": {key: {"depth": 2} for key in SOURCES},
    "nvit": {"vit": NVIT, "resnet": "is a ViT or DeiT"},
    "asp": {"vit": {"measure": False}, "resnet": "no Linear layer"},
    "wfn": {"vit": WFN, "resnet": WFN},
    "uniform_quant": {"vit": {"bits": 4}, "resnet": {"bits": 4}},
    "kmeans_quant": {
        "vit": {"clusters": 8},
        "resnet": {"clusters": 8, "scope": "network"},
    },
}
"""Stage → source → config, or a text that its refusal must hold."""
FIRST = {"sws_expand": "sws_aux", "lets_expand": "lets_aux", "tleg_expand": "tleg_aux"}
"""Stage → the stage that makes its input; others take the source."""


def test_every_stage_has_cases() -> None:
    assert set(CASES) == set(STAGES)
    assert all(set(case) == set(SOURCES) for case in CASES.values())


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


@pytest.fixture(
    params=[(kind, source) for kind in STAGES for source in SOURCES],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def case(
    request: pytest.FixtureRequest,
    digits: Data,
    inputs: Callable[[str, str], ModelState],
) -> tuple[Any, ModelState]:
    """(stage, model) for each pair; a stage that refuses a source shows its message and is done."""
    kind, source = request.param
    model, config = inputs(kind, source), CASES[kind][source]
    if isinstance(config, str):
        with pytest.raises(ValueError, match=config):
            STAGES[kind]().check(model.arch, digits.info)
        pytest.skip("refuses this model, with a message")
    return STAGES[kind].model_validate(config), model


def test_deterministic_and_pure(
    case: tuple[Any, ModelState], digits: Data, tmp_path: Path
) -> None:
    stage, model = case
    before = model.hash()
    results = []
    for i in range(2):
        seed_everything(i)  # the surroundings must not matter
        results.append(stage.run(model, context(digits, tmp_path / str(i), model)))
    assert results[0].hash() == results[1].hash()
    assert model.hash() == before
    mine, theirs = results[0].weights, model.weights
    shared = {t.data_ptr() for t in theirs.values() if t.numel()} & {
        t.data_ptr() for t in mine.values() if t.numel()
    }
    assert not shared, "the result shares memory with the input"


def test_predicted_arch_and_round_trip(
    case: tuple[Any, ModelState], digits: Data, tmp_path: Path
) -> None:
    stage, model = case
    result = stage.run(model, context(digits, tmp_path / "work", model))
    predicted = stage.check(model.arch, digits.info)
    assert (
        replace(predicted, dims=result.arch.dims) if stage.finds_dims else predicted
    ) == result.arch
    assert Arch.from_json(result.arch.to_json()) == result.arch
    result.save(tmp_path / "saved")
    loaded = ModelState.load(tmp_path / "saved")
    assert loaded.hash() == result.hash()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(loaded.build()(images), result.build()(images))


def test_config_survives_json(case: tuple[Any, ModelState]) -> None:
    stage, _ = case
    assert type(stage).model_validate(stage.model_dump(mode="json")) == stage
    assert type(stage).model_validate_json(stage.model_dump_json()) == stage


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", STAGES)
def test_killed_and_resumed(
    kind: str,
    source: str,
    digits_config: DataConfig,
    data_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed after the first epoch's checkpoint and run again: the model of an
    uninterrupted run.
    """
    config = CASES[kind][source]
    if isinstance(config, str):
        pytest.skip("refuses this model, with a message")
    stages = tuple(
        NamedStage(k, k, STAGES[k].model_validate(CASES[k][source]))
        for k in (FIRST.get(kind), kind)
        if k is not None
    )
    pipeline = Pipeline(SOURCES[source], digits_config, stages, 0)

    def go(folder: Path, **more: Any) -> str:
        return run_pipeline(
            pipeline,
            cache=StageCache(folder),
            data_cache=data_cache,
            device=CPU,
            **more,
        ).model.hash()

    expected = go(tmp_path / "whole")
    epochs = 0
    train_epoch = fit_module._Fit.train_epoch

    def counted(self: Any) -> dict[str, Any]:
        nonlocal epochs
        epochs += 1
        return train_epoch(self)

    monkeypatch.setattr(fit_module._Fit, "train_epoch", counted)

    def die(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    try:
        go(tmp_path / "killed", on_epoch=die)
    except KeyboardInterrupt:
        assert epochs == 1
    assert go(tmp_path / "killed") == expected
    assert epochs in (0, 2), "a finished epoch ran again"


@pytest.mark.gpu
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", STAGES)
def test_on_a_gpu(
    kind: str, source: str, digits_config: DataConfig, data_cache: Path, tmp_path: Path
) -> None:
    """Killed after the first epoch's checkpoint and run again on a GPU: the CPU's model up
    to rounding.
    """
    config = CASES[kind][source]
    if isinstance(config, str):
        pytest.skip("refuses this model, with a message")
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
                torch, "Generator", lambda device, kind=torch.Generator: kind()
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


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", STAGES)
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
