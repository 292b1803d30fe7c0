"""Pipelines: order and dimension checks, stage keys, sharing, teachers."""

import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from compress import pipeline as pipeline_module
from compress.cache import StageCache
from compress.pipeline import (
    NamedStage,
    Pipeline,
    PipelineResult,
    check_order,
    check_pipeline,
    run_pipeline,
)
from compress.stage import Context, Phase, Stage
from trainers.config import DataConfig, SourceConfig
from trainers.data.splits import data_info
from trainers.models.arch import ModelState
from trainers.models.source import source_arch
from trainers.training.sharding import check_module

VIT = SourceConfig(
    model="vit_tiny_patch16_224",
    args={"patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2},
)
TRAIN: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 40,
    "lr": 1e-3,
    "warmup": 0,
    "augment": "none",
}


def named(name: str, kind: str, **config: Any) -> NamedStage:
    return NamedStage(name, kind, pipeline_module.STAGES[kind].model_validate(config))


def go(
    tmp_path: Path,
    data: DataConfig,
    data_cache: Path,
    *stages: NamedStage,
    seed: int = 0,
    **more: Any,
) -> PipelineResult:
    pipeline = Pipeline(more.pop("source", VIT), data, stages, seed)
    return run_pipeline(
        pipeline,
        cache=StageCache(tmp_path),
        data_cache=data_cache,
        device=torch.device("cpu"),
        **more,
    )


def student(**args: Any) -> NamedStage:
    return named("init", "weight_selection", args={"embed_dim": 16, "depth": 2} | args)


def test_students_share_the_teacher(
    tmp_path: Path, digits_config: DataConfig, data_cache: Path
) -> None:
    teacher = named("teacher", "finetune", **TRAIN)
    rows: list[dict[str, Any]] = []
    first = go(
        tmp_path,
        digits_config,
        data_cache,
        teacher,
        student(),
        named("finetune", "finetune", **TRAIN),
    )
    second = go(
        tmp_path,
        digits_config,
        data_cache,
        teacher,
        student(depth=1),
        named("finetune", "finetune", **TRAIN),
        on_epoch=rows.append,
    )
    assert [s.cached for s in first.stages] == [False, False, False]
    assert [s.cached for s in second.stages] == [True, False, False]
    assert second.stages[0].seconds_full == first.stages[0].seconds_full
    assert [(r["stage"], r["cached"]) for r in rows] == [
        ("teacher", True),
        ("finetune", False),
    ]
    third = go(
        tmp_path,
        digits_config,
        data_cache,
        teacher,
        student(),
        named("finetune", "finetune", **TRAIN),
    )
    assert all(s.cached for s in third.stages)
    assert third.model.hash() == first.model.hash()


def test_every_module_of_a_pipeline_is_compiled(
    tmp_path: Path,
    digits_config: DataConfig,
    data_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stage that makes another module has it compiled again; the losses, and the names of the
    weights, are those without. The backend that only captures is enough for that.
    """
    compiled: list[int] = []
    compile_module = torch.compile

    def spy(module: torch.nn.Module) -> Any:
        compiled.append(sum(value.numel() for value in module.parameters()))
        return compile_module(module, backend="eager")

    monkeypatch.setattr(torch, "compile", spy)
    losses, results = [], []
    for option in (False, True):
        rows: list[dict[str, Any]] = []
        train = TRAIN | {"compile": option}
        stages = (
            named("teacher", "finetune", **train),
            student(),
            named("finetune", "finetune", **train),
        )
        results.append(
            go(tmp_path, digits_config, data_cache, *stages, on_epoch=rows.append).model
        )
        losses.append([row["train_loss"] for row in rows])
    assert len(set(compiled)) == len(compiled) == 2
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert list(results[1].weights) == list(results[0].weights)


def test_same_bits_without_the_cache(
    tmp_path: Path, digits_config: DataConfig, data_cache: Path
) -> None:
    stages = (student(), named("finetune", "finetune", **TRAIN))
    hashes = [
        go(tmp_path / str(i), digits_config, data_cache, *stages).model.hash()
        for i in range(2)
    ]
    assert hashes[0] == hashes[1]
    assert (
        go(tmp_path / "0", digits_config, data_cache, *stages, seed=1).model.hash()
        != hashes[0]
    )


def test_killed_and_resumed_is_uninterrupted(
    tmp_path: Path, digits_config: DataConfig, data_cache: Path
) -> None:
    """A killed stage leaves its checkpoints in the cache, where the next attempt finds them."""
    stages = (student(), named("finetune", "finetune", **TRAIN | {"epochs": 2}))
    whole = go(tmp_path / "whole", digits_config, data_cache, *stages)

    def die(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "killed", digits_config, data_cache, *stages, on_epoch=die)
    again = go(tmp_path / "killed", digits_config, data_cache, *stages)
    assert [run.cached for run in again.stages] == [True, False]
    assert again.stages[1].seconds_full > again.stages[1].seconds
    assert again.model.hash() == whole.model.hash()


def test_keys_follow_what_decides_a_result(
    tmp_path: Path, digits_config: DataConfig, data_cache: Path
) -> None:
    def keys(
        *stages: NamedStage, seed: int = 0, data: DataConfig = digits_config
    ) -> list[str]:
        return [
            s.key for s in go(tmp_path, data, data_cache, *stages, seed=seed).stages
        ]

    base = keys(student(), named("finetune", "finetune", **TRAIN))
    assert keys(student(), named("other_name", "finetune", **TRAIN)) == base
    assert (
        keys(student(), named("finetune", "finetune", **TRAIN | {"lr": 2e-3}))[0]
        == base[0]
    )
    assert (
        keys(student(), named("finetune", "finetune", **TRAIN | {"lr": 2e-3}))[1]
        != base[1]
    )
    assert keys(student(), seed=1)[0] != base[0]
    assert (
        keys(student(), data=digits_config.model_copy(update={"limit": 150}))[0]
        != base[0]
    )
    assert (
        keys(student(), data=digits_config.model_copy(update={"workers": 0}))[0]
        == base[0]
    )


def test_checkpoints_count_by_content_not_by_path(
    tmp_path: Path, digits_config: DataConfig, data_cache: Path
) -> None:
    info = data_info(digits_config)
    state = ModelState.initialised(
        source_arch(VIT, info.num_classes, info.image_size), 3
    )
    state.save(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    keys = [
        go(
            tmp_path / "cache",
            digits_config,
            data_cache,
            student(),
            source=SourceConfig(checkpoint=tmp_path / name),
        )
        .stages[0]
        .key
        for name in ("a", "b")
    ]
    assert keys[0] == keys[1]


def test_distillation_from_an_earlier_stage(
    tmp_path: Path, digits_config: DataConfig, data_cache: Path
) -> None:
    distill = {"teacher": "stage:teacher", "kind": "soft", "alpha": 1.0}
    stages = (
        named("teacher", "finetune", **TRAIN),
        student(),
        named("finetune", "finetune", **TRAIN, distill=distill),
    )
    distilled = go(tmp_path, digits_config, data_cache, *stages)
    plain = go(
        tmp_path,
        digits_config,
        data_cache,
        *stages[:2],
        named("finetune", "finetune", **TRAIN),
    )
    assert distilled.model.hash() != plain.model.hash()
    other = (named("first", "finetune", **TRAIN), named("teacher", "finetune", **TRAIN))
    text_alike = (
        named("teacher", "finetune", **TRAIN),
        named("first", "finetune", **TRAIN),
    )
    keys = [
        go(
            tmp_path,
            digits_config,
            data_cache,
            *two,
            named("last", "finetune", **TRAIN, distill=distill),
        )
        .stages[-1]
        .key
        for two in (other, text_alike)
    ]
    assert keys[0] != keys[1]  # the same words, another teacher


def test_teacher_must_exist_and_fit(digits_config: DataConfig) -> None:
    info = data_info(digits_config)
    arch = source_arch(VIT, info.num_classes, info.image_size)
    distill = {"teacher": "stage:nobody"}
    with pytest.raises(
        ValueError,
        match=(
            r"stages\.last: teacher 'stage:nobody' is no earlier stage; earlier ones:"
            r" first"
        ),
    ):
        check_pipeline(
            arch,
            [
                named("first", "finetune", **TRAIN),
                named("last", "finetune", **TRAIN, distill=distill),
            ],
            info,
        )


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (
            "nvit",
            {"epochs": 9, "interval_prune": 2, "batch_size": 40, "latency": "macs"},
        ),
        ("wfn", {"batch_size": 40}),
        ("int8", TRAIN),
    ],
)
def test_stages_that_need_whole_parameters_are_refused(
    kind: str, config: dict[str, Any], digits_config: DataConfig
) -> None:
    info = data_info(digits_config)
    arch = source_arch(VIT, info.num_classes, info.image_size)
    stages = [named("last", kind, **config)]
    check_pipeline(arch, stages, info, 2, "ddp")
    check_pipeline(arch, stages, info, 1, "fsdp")
    with pytest.raises(
        ValueError, match=rf"^stages\.last: {kind} works on whole parameters"
    ):
        check_pipeline(arch, stages, info, 2, "fsdp")
    trained = [
        named("last", "finetune", **TRAIN),
        named("after", "uniform_quant", bits=4),
    ]
    check_pipeline(arch, trained, info, 2, "fsdp")


def test_a_parameter_of_a_single_number_cannot_be_split() -> None:
    module = torch.nn.Linear(2, 2)
    check_module(module)
    module.gain = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(
        ValueError, match=r"Linear has parameters of a single number \(gain\)"
    ):
        check_module(module)


class Fake(Stage):
    """A stage of any phase."""

    phase: ClassVar[Phase]
    version: ClassVar[int] = 1

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        return model


def fake(phase: Phase) -> NamedStage:
    return NamedStage(
        phase,
        phase,
        type(f"Fake_{phase}", (Fake,), {"phase": phase, "__module__": __name__})(),
    )


def test_a_stage_with_a_loop_of_its_own_reports_epochs(
    tmp_path: Path, digits_config: DataConfig, data_cache: Path
) -> None:
    """As plugins do: their rows name no fit."""

    class Loop(Fake):
        phase = "train"

        def run(self, model: ModelState, ctx: Context) -> ModelState:
            ctx.on_epoch({"epoch": 1, "score": 0.5})
            return model

    rows: list[dict[str, Any]] = []
    stage = NamedStage("own", "own", Loop())
    go(tmp_path, digits_config, data_cache, stage, on_epoch=rows.append)
    assert rows == [{"stage": "own", "cached": False, "epoch": 1, "score": 0.5}]


@pytest.mark.parametrize(
    ("phases", "fine"),
    [
        (["train", "init", "train", "prune", "train", "quantize"], True),
        (["init", "init", "train"], True),
        (["quantize", "quantize"], True),
        (["prune", "init"], False),
        (["quantize", "train"], False),
        (["quantize", "prune"], False),
        (["prune", "quantize", "init"], False),
    ],
)
def test_order(phases: list[Phase], fine: bool) -> None:
    stages = [fake(phase) for phase in phases]
    if fine:
        check_order(stages)
    else:
        with pytest.raises(ValueError, match="would undo it; move it before"):
            check_order(stages)


def test_dimensions_are_checked_without_work(digits_config: DataConfig) -> None:
    info = data_info(digits_config)
    arch = source_arch(VIT, info.num_classes, info.image_size)
    archs = check_pipeline(
        arch, [student(), named("finetune", "finetune", **TRAIN)], info
    )
    assert archs[-1].args["embed_dim"] == 16
    with pytest.raises(
        ValueError, match=r"stages\.init: .*\(10, 64\)|stages\.init: .*64.*32"
    ):
        check_pipeline(arch, [student(embed_dim=64)], info)
