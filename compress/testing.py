"""What every stage promises, as a test that others run on theirs.

    from compress.testing import check_stage

    def test_halve() -> None:
        check_stage(Halve(fraction=0.5))

A stage is run twice: once without a break, and once killed after its first epoch and started
again, in other surroundings; one that `continues` a third time, from the end of fewer epochs.
Neither pytest nor Ray is needed.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch

from compress.metrics import Metric, Value
from compress.stage import Context, Phase, Stage
from trainers.config import DataConfig, TrainConfig
from trainers.data.splits import Data, load_data
from trainers.models.arch import Arch, ModelState
from trainers.models.make import make_arch
from trainers.seeding import seed_everything

_SEED = 11
_DEVICE = torch.device("cpu")


def check_stage(
    stage: Stage,
    models: Sequence[ModelState] | None = None,
    data: Data | None = None,
) -> list[ModelState]:
    """Check that a stage keeps every promise of `compress.stage.Stage`.

    Args:
        stage: with a config that runs in seconds (two epochs where it trains).
        models: what to run it on; default: `tiny_models`. It may refuse some of them by a
            `ValueError`, but not all.
        data: default: `tiny_data`.

    Returns:
        What the stage made of each model that it takes.

    Raises:
        AssertionError: names the stage and the promise that it does not keep.
    """
    check_declarations(type(stage))
    with tempfile.TemporaryDirectory(prefix="compress-testing-") as folder:
        data = data or tiny_data(Path(folder) / "data")
        models = models or tiny_models(data)
        results: list[ModelState] = []
        refusals: list[str] = []
        for i, model in enumerate(models):
            try:
                stage.check(model.arch, data.info)
            except ValueError as error:
                refusals.append(f"{model.arch.name}: {error}")
                continue
            results.append(_check_on(stage, model, data, Path(folder) / str(i)))
    _require(
        bool(results),
        stage,
        f"it must take one of the models at least; it refused {'; '.join(refusals)}",
    )
    return results


def check_declarations(stage: type[Stage]) -> None:
    """Check what a stage says about itself.

    Raises:
        AssertionError: names the stage and what it lacks.
    """
    phase = getattr(stage, "phase", None)
    version = getattr(stage, "version", None)
    _require(
        phase in get_args(Phase),
        stage,
        f"`phase` must be one of {', '.join(get_args(Phase))}; it is {phase!r}",
    )
    _require(
        isinstance(version, int),
        stage,
        f"`version` must be an integer, raised whenever results change; it is {version!r}",
    )
    _require(bool(stage.__doc__), stage, "it needs a docstring, which users are shown")
    described = all(isinstance(metric, Metric) for metric in stage.metrics)
    _require(described, stage, "`metrics` must be a tuple of compress.metrics.Metric")
    names = [metric.name for metric in stage.metrics]
    _require(
        len(set(names)) == len(names), stage, "`metrics` must name each metric once"
    )


def tiny_data(cache: Path) -> Data:
    """120 training, 40 validation and 60 test images of 32 pixels: scikit-learn's digits.

    Args:
        cache: folder for decoded images.
    """
    config = DataConfig(
        dataset="digits", limit=160, limit_test=60, val_fraction=0.25, workers=0
    )
    return load_data(config, cache)


def tiny_models(data: Data) -> list[ModelState]:
    """A vision transformer of two blocks and a narrow ResNet, randomly initialised, for
    these data.
    """
    vit = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    kinds = {"vit_tiny_patch16_224": vit, "resnet20_cifar": {"width": 8}}
    return [
        ModelState.initialised(
            make_arch(
                name,
                num_classes=data.info.num_classes,
                image_size=data.info.image_size,
                args=args,
            ),
            7,
        )
        for name, args in kinds.items()
    ]


@dataclass
class _Ran:
    """What one run of a stage gave."""

    model: ModelState
    metrics: dict[str, Value]
    rows: list[dict[str, Any]] = field(default_factory=list)
    restored_seconds: float = 0.0


class _Killed(BaseException):
    """Ends a run in place of a signal; a BaseException, so that no stage catches it."""


def _check_on(stage: Stage, model: ModelState, data: Data, folder: Path) -> ModelState:
    """Check all that a stage promises about a model that it takes."""
    _check_config(stage)
    predicted = stage.check(model.arch, data.info)
    before = model.hash()
    seed_everything(1)
    whole = _run(stage, model, data, folder / "whole")
    _require(model.hash() == before, stage, "it must not change the incoming model")
    _require(
        not _storages(model) & _storages(whole.model),
        stage,
        "its result must not share memory with the incoming model; clone what is passed on",
    )
    _check_arch(stage, predicted, whole.model.arch)
    _require(
        not stage.keeps_costs or whole.model.arch == model.arch,
        stage,
        "it says `keeps_costs`, so the architecture of its result must be that of its input",
    )
    _check_metrics(stage, whole.metrics)
    _check_saved(stage, whole.model, folder / "saved")
    seed_everything(2)  # the surroundings must not matter
    again = _killed_and_resumed(stage, model, data, folder / "killed")
    _require(
        again.model.hash() == whole.model.hash(),
        stage,
        "run a second time, killed after its first epoch and resumed, it must give the"
        " same bits; take every random number from ctx.seed and train with ctx.fit",
    )
    _check_continues(stage, model, whole.model, data, folder / "longer")
    _require(
        again.metrics.keys() == whole.metrics.keys(),
        stage,
        "it must report the same metrics each time",
    )
    return whole.model


def _check_config(stage: Stage) -> None:
    kind = type(stage)
    unknown = set(kind.never_cheaper) - set(kind.model_fields)
    _require(not unknown, stage, f"`never_cheaper` names no option of it: {unknown}")
    by_dict = kind.model_validate(stage.model_dump(mode="json"))
    by_text = kind.model_validate_json(stage.model_dump_json())
    _require(
        by_dict == stage == by_text,
        stage,
        "its config must survive being written as JSON",
    )


def _check_arch(stage: Stage, predicted: Arch, found: Arch) -> None:
    if stage.finds_dims:
        predicted = replace(predicted, dims=found.dims)
    _require(
        predicted == found,
        stage,
        f"`check` must return the architecture of the result; it said {predicted}, the"
        f" result has {found}",
    )
    _require(
        Arch.from_json(found.to_json()) == found,
        stage,
        "the architecture of its result must survive being written as JSON",
    )


def _check_metrics(stage: Stage, reported: dict[str, Value]) -> None:
    unknown = reported.keys() - {metric.name for metric in stage.metrics}
    _require(
        not unknown,
        stage,
        f"it reports {', '.join(sorted(unknown))}; describe each in `metrics`",
    )


def _check_saved(stage: Stage, model: ModelState, folder: Path) -> None:
    """The result must come back from disk, and compute the same."""
    model.save(folder)
    loaded = ModelState.load(folder)
    _require(
        loaded.hash() == model.hash(), stage, "its result must survive save and load"
    )
    size = model.arch.args.get("img_size", 32)
    channels = model.arch.args.get("in_chans", 3)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, channels, size, size, generator=generator)
    with torch.inference_mode():
        same = torch.equal(loaded.build()(images), model.build()(images))
    _require(same, stage, "its result must compute the same after save and load")


def _killed_and_resumed(
    stage: Stage, model: ModelState, data: Data, folder: Path
) -> _Ran:
    """Kill the stage at its first epoch's row, if it trains, and run it again in place."""
    finished: list[dict[str, Any]] = []

    def kill(row: dict[str, Any]) -> None:
        finished.append(dict(row))
        raise _Killed

    try:
        return _run(stage, model, data, folder, on_epoch=kill)
    except _Killed:
        resumed = _run(stage, model, data, folder)
    _require(
        resumed.restored_seconds > 0,
        stage,
        "killed and started again, it must go on from its checkpoint; use ctx.fit",
    )
    # rows hold the time that an epoch took, which an epoch that is trained again does not repeat
    _require(
        resumed.rows[:1] == finished,
        stage,
        "killed and started again, it must not train an epoch again that had finished;"
        " use ctx.fit",
    )
    return resumed


def _check_continues(
    stage: Stage, model: ModelState, whole: ModelState, data: Data, folder: Path
) -> None:
    """Train one epoch less to the end, and go on from there."""
    if not stage.continues:
        return
    is_long = isinstance(stage, TrainConfig) and stage.epochs > 1
    _require(is_long, stage, "a stage that `continues` must have an option `epochs`")
    assert isinstance(stage, TrainConfig)
    lengths = {"epochs": stage.epochs - 1, "schedule_epochs": stage.scheduled_epochs}
    _run(stage.model_copy(update=lengths), model, data, folder)
    _require(
        _run(stage, model, data, folder).model.hash() == whole.hash(),
        stage,
        "it says that it `continues`: with an epoch more it must go on from the checkpoint of"
        " one epoch less to the same bits",
    )


def _run(
    stage: Stage,
    model: ModelState,
    data: Data,
    folder: Path,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> _Ran:
    rows: list[dict[str, Any]] = []
    ctx = Context(
        data,
        _DEVICE,
        _SEED,
        folder,
        find_teacher=lambda name, checkpoint: model,
        on_epoch=on_epoch or rows.append,
    )
    result = stage.run(model, ctx)
    return _Ran(result, ctx.reported, rows, ctx.restored_seconds)


def _storages(model: ModelState) -> set[int]:
    """Addresses of the memory that a model's tensors occupy."""
    return {
        tensor.untyped_storage().data_ptr()
        for tensor in model.weights.values()
        if tensor.numel()
    }


def _require(holds: bool, stage: Stage | type[Stage], promise: str) -> None:
    if not holds:
        kind = stage if isinstance(stage, type) else type(stage)
        raise AssertionError(f"{kind.__name__}: {promise}")
