"""What `validate` opens: every pipeline of a space once; no trial fails for what was known."""

import copy
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sweeps.check import check_spec
from sweeps.check_pipelines import other_normalisation
from sweeps.describe import print_facts
from sweeps.space.overrides import apply_overrides
from sweeps.space.space import Space
from sweeps.space.sweep import Sweep
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError
from trainers.config import DataConfig, SourceConfig
from trainers.data.info import DataInfo
from trainers.models.arch import Arch

PLAIN: dict[str, Any] = {
    "name": "plain",
    "source": {
        "model": "vit_tiny_patch16_224",
        "args": {"patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 3},
    },
    "data": {"dataset": "digits", "limit": 60, "limit_test": 20, "val_fraction": 0.25},
    "stages": {
        "finetune": {"epochs": 1, "batch_size": 10, "warmup": 0, "augment": "none"}
    },
    "objectives": [{"metric": "accuracy", "mode": "max"}],
    "search": {"trials": 4},
    "measure": {"latency": False},
}
RESNET = ("source={model: resnet18}",)


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, Any]:
    """A fresh copy of the spec with one stage, stored under this test's folder."""
    return copy.deepcopy(PLAIN) | {"storage": str(tmp_path / "runs")}


def check(raw: dict[str, Any], *overrides: str) -> Sweep:
    return check_spec(spec_from(apply_overrides(raw, overrides)))


def space(text: str) -> str:
    return f"search.space={{{text}}}"


REFUSED = {
    "width in the middle": (
        space("source.args.embed_dim: {low: 24, high: 72, step: 4}"),
        r"source: model .*num_heads \(with source\.args\.embed_dim=\d\d\)$",
    ),
    "heads in the middle": (
        space("source.args.num_heads: {low: 1, high: 6}"),
        r"with source\.args\.num_heads=5",
    ),
    "two ends together": (
        space("source.args.num_heads: [3, 5], source.args.embed_dim: [24, 30, 36]"),
        r"with source\.args\.num_heads=5, source\.args\.embed_dim=(24|36)",
    ),
    "batch of no whole images": (
        space("stages.finetune.batch_size: {low: 8.0, high: 20}"),
        r"stages\.finetune\.batch_size: a whole number is needed, .*step without",
    ),
    "limit of no whole images": (
        space("data.limit: {low: 40.0, high: 60.0}"),
        r"data\.limit: a whole number",
    ),
    "size of the model": (
        "source.args.img_size=64",
        r"source: .* images of 64 px \(img_size\), .* 32 px \(data\.image_size\)",
    ),
    "channels of the model": (
        "source.args.in_chans=1",
        r"source: .* 1 channels \(in_chans\)",
    ),
    "one image and BatchNorm": (
        *RESNET,
        "stages.finetune.batch_size=1",
        r"stages\.finetune: batch_size: .*BatchNorm.*2 images or more$",
    ),
    "one image after accumulation": (
        *RESNET,
        "stages.finetune.max_batch_per_worker=1",
        r"one image a forward pass, and resnet18",
    ),
    "percent as bound": (
        "objectives=[{metric: accuracy, mode: max, bound: 90}]",
        r"objectives\.0\.bound: 90 .*accuracy, .* from 0 to 1; 90 % is written 0\.9",
    ),
    "bound below all": (
        "objectives=[{metric: loss, mode: min, bound: -1}]",
        r"objectives\.0\.bound: -1 is no value of loss, which lies from 0 up",
    ),
    "optimiser that asks more": (
        space("stages.finetune.optimizer: [adamw, adahessian]"),
        r"optimizer 'adahessian' cannot take a step.*with .*optimizer=adahessian",
    ),
    "betas": ("stages.finetune.betas=[0.9, 1.0]", r"betas\.1: .*less than 1"),
    "policy": (
        "stages.finetune.augment={auto_augment: ran-m9}",
        r"augment: auto_augment .*did you mean 'rand'\?",
    ),
    "policy of streamed images": (
        "data.in_memory=no",
        "stages.finetune.augment={auto_augment: augmixx-m3}",
        r"auto_augment .*did you mean 'augmix'\?",
    ),
    "deviation 0": ("data.std=[0.2, 0, 0.2]", r"data\.std\.1: .*greater than 0"),
    "crop that falls": (
        "stages.finetune.augment={crop: resized, crop_scale: [1.0, 0.08]}",
        r"crop_scale: the first number is the smaller one; write \[0\.08, 1\]",
    ),
    "noise that falls": ("stages.finetune.lr_noise=[0.9, 0.4]", r"lr_noise: .*\[0\.4"),
    "device of the average": ("stages.finetune.ema={device: gpu}", r"ema\.device"),
    "plateau without validation": (
        "stages.finetune.schedule=plateau",
        "data.val_fraction=0",
        "objectives=[{metric: gmacs, mode: min}]",
        r"schedule: plateau .*data\.val_fraction above 0",
    ),
    "teacher's file": (
        "stages.finetune.distill={teacher: resnet18, teacher_checkpoint: gone.pth}",
        r"teacher 'resnet18': teacher_checkpoint: no such file: gone\.pth$",
    ),
    "teacher of another size": (
        "source.args.img_size=64",
        "stages={random_init: {args: {img_size: 32}}, finetune: {epochs: 1,"
        " batch_size: 10, warmup: 0, distill: {teacher: source}}}",
        r"stages\.finetune: teacher 'source': .*64 px",
    ),
    "last rung": (
        "stages.finetune={epochs: 4, batch_size: 10, warmup: 2}",
        "search.refine={top: 1, epochs: 1}",
        r"search\.refine: stages\.finetune: warmup",
    ),
    "cut after asp": (
        "stages={asp: {}, nvit: {epochs: 2, batch_size: 10, latency: macs}}",
        r"stages\.nvit: .*2:4 pattern of 'asp'",
    ),
    "first of several fits": (
        "stages={wfn: {first_epoch: 1, fixing_epochs: 3, warmup: 2, batch_size: 10}}",
        r"stages\.wfn: warmup",
    ),
    "point between steps": (
        space("stages.finetune.lr: {low: 0.001, high: 0.01, step: 0.003}"),
        "search.points=[{stages.finetune.lr: 0.002}]",
        r"finetune\.lr: 0\.002 lies between .*nearest are 0\.001 and 0\.004",
    ),
    "whole point between steps": (
        space("stages.finetune.batch_size: {low: 4, high: 16, step: 4}"),
        "search.points=[{stages.finetune.batch_size: 6}]",
        r"nearest are 4 and 8",
    ),
    "point of another alternative": (
        "stages.init={one_of: {random_init: {}, none: null}}",
        space("stages.init.random_init.args.depth: [1, 2]"),
        "search.points=[{stages.init: none, stages.init.random_init.args.depth: 2}]",
        r"'stages\.init\.random_init\.args\.depth' means nothing where stages\.init is",
    ),
    "values that gp would list": (
        space("stages.finetune.lr: {low: 0.001, high: 1.0, step: 1.0e-9}"),
        "search.sampler=gp",
        r"search\.space\.stages\.finetune\.lr: 999,000,001 values are too many",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_every_trial_would_fail_by_is_refused(
    name: str, plain: dict[str, Any]
) -> None:
    *overrides, message = REFUSED[name]
    with pytest.raises(SpecError, match=message) as caught:
        check(plain, *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ("stages.finetune.batch_size=1",),
        (*RESNET, "stages.finetune.batch_size=2"),
        ("objectives=[{metric: accuracy, mode: max, bound: 0.9}]",),
        (space("stages.finetune.lr: {low: 0.001, high: 1.0, step: 1.0e-9}"),),
        (space("stages.finetune.batch_size: {low: 8.0, high: 12.0, step: 2.0}"),),
        (space("data.image_size: [16, 32, 48]"),),
        ("data.in_memory=no", "stages.finetune.augment={auto_augment: augmix-m3}"),
        ("stages.finetune.schedule=plateau",),
    ],
)
def test_what_works_is_accepted(
    overrides: tuple[str, ...], plain: dict[str, Any]
) -> None:
    check(plain, *overrides)


def test_draws_from_within_meet_every_value(plain: dict[str, Any]) -> None:
    plain["stages"]["init"] = {"one_of": {"random_init": {}, "none": None}}
    plain["search"]["space"] = {
        "stages.finetune.batch_size": {"low": 4, "high": 12},
        "stages.finetune.lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "stages.init.random_init.args.depth": [1, 2, 3],
    }
    searched = Space(spec_from(plain))
    draws = list(searched.interior(32, 8))
    assert draws == list(searched.interior(32, 8))
    for alternative in ("random_init", "none"):
        mine = [draw for draw in draws if draw["stages.init"] == alternative]
        assert len(mine) == 16
        assert {d["stages.finetune.batch_size"] for d in mine} == set(range(4, 13))
        rates: list[Any] = sorted(d["stages.finetune.lr"] for d in mine)
        assert sum(rate < 1e-3 for rate in rates) in (5, 6)
        depths = {d.get("stages.init.random_init.args.depth") for d in mine}
        assert depths == ({1, 2, 3} if alternative == "random_init" else {None})
    assert len(list(searched.interior(0, 5))) == 10


@pytest.mark.parametrize(
    ("name", "mean", "told"),
    [
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", (0.485, 0.456, 0.406), True),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", (0.5, 0.5, 0.5), False),
        ("deit_tiny_patch16_224.fb_in1k", (0.485, 0.456, 0.406), False),
        ("resnet20_cifar", (0.1, 0.1, 0.1), False),
    ],
)
def test_weights_that_saw_other_pixels_are_told(
    name: str, mean: tuple[float, float, float], told: bool
) -> None:
    std = (0.5, 0.5, 0.5) if mean[0] == 0.5 else (0.229, 0.224, 0.225)
    data = DataConfig(mean=mean, std=std)
    source = SourceConfig(model=name, pretrained=True)
    said = list(other_normalisation(Arch("timm", name), source, data))
    assert len(said) == told
    assert all("mean [0.5, 0.5, 0.5]" in line for line in said)
    kept = SourceConfig(model=name, pretrained=False)
    assert not list(other_normalisation(Arch("timm", name), kept, data))


def test_facts_and_remarks_are_told(
    plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    info = DataInfo(
        num_classes=10,
        image_size=32,
        num_train=45,
        class_names=tuple("0123456789"),
        num_val=15,
        num_test=20,
        place="digits",
        remarks=("2 images [bold]cannot be read[/].",),
    )
    monkeypatch.setattr("sweeps.check_pipelines.data_info", lambda config: info)
    sweep = check(plain, "data.split_seed=99")  # no other test has looked at this one
    assert sweep.remarks == info.remarks
    printed = StringIO()
    print_facts(sweep, Console(file=printed, width=40))
    assert printed.getvalue().splitlines() == [
        f"data       {info.describe()}",
        "note: 2 images [bold]cannot be read[/].",
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.smaller={one_of: {none: null, cut: {stage: prune_chanels}}}", "stage"),
        ("objectives=[{metric: acuracy, mode: max}]", "acuracy"),
    ],
)
def test_what_is_written_wrong_is_told_before_anything_is_looked_for(
    plain: dict[str, Any], override: str, said: str
) -> None:
    missing = ("data={dataset: folder, root: /nowhere}", "source.model=no_such_model")
    with pytest.raises(SpecError, match=r"nowhere|no_such_model"):
        check(copy.deepcopy(plain), *missing)
    with pytest.raises(SpecError, match=said):
        check(plain, override, *missing)
