"""What every stage promises, over all of STAGES, on the models that each takes.

A new stage adds its smallest config to `tests.compress.cases`; nothing else here names a method.
The learngene stages build networks of their own, so one source is enough for them.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from compress.metrics import Metric
from compress.pipeline import STAGES
from compress.stage import Context, Phase, Stage
from compress.testing import check_declarations, check_stage, tiny_data, tiny_models
from tests.compress.cases import CASES, FIRST
from trainers.data.splits import Data, DataInfo
from trainers.models.arch import Arch, ModelState
from trainers.training import fit as fit_module


def test_every_stage_has_cases() -> None:
    assert set(CASES) == set(STAGES)
    for stage in STAGES.values():
        check_declarations(stage)


@pytest.fixture(scope="session")
def data(data_cache: Path) -> Data:
    return tiny_data(data_cache)


@pytest.fixture(scope="session")
def inputs(
    data: Data, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], ModelState]:
    """(stage, source) → the model that the stage takes, made once."""
    sources = dict(zip(("vit", "resnet"), tiny_models(data), strict=True))

    @cache
    def made(kind: str, source: str) -> ModelState:
        if kind not in FIRST:
            return sources[source]
        first = STAGES[FIRST[kind]].model_validate(CASES[FIRST[kind]][source])
        folder = tmp_path_factory.mktemp("first")
        model = sources[source]
        ctx = Context(
            data, torch.device("cpu"), 11, folder, lambda name, checkpoint: model
        )
        return first.run(model, ctx)

    return made


@pytest.mark.parametrize(
    ("kind", "source"), [(kind, source) for kind in CASES for source in CASES[kind]]
)
def test_keeps_its_promises(
    kind: str,
    source: str,
    data: Data,
    inputs: Callable[[str, str], ModelState],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = inputs(kind, source)
    config = CASES[kind][source]
    if isinstance(config, str):
        with pytest.raises(ValueError, match=config):
            STAGES[kind]().check(model.arch, data.info)
        return
    trained: list[tuple[int, int]] = []
    train_epoch = fit_module._Fit.train_epoch

    def noted(self: fit_module._Fit) -> fit_module.TrainedEpoch:
        trained.append((self.seed, self.epoch))
        return train_epoch(self)

    monkeypatch.setattr(fit_module._Fit, "train_epoch", noted)
    check_stage(STAGES[kind].model_validate(config), [model], data)
    # once without a break, once in two processes, and once from the end of fewer epochs: no
    # finished epoch is trained again
    times = 3 if STAGES[kind].continues else 2
    once = len(trained) // times
    assert trained == times * trained[:once]
    assert len(set(trained[:once])) == once


class Good(Stage):
    """Doubles every weight."""

    phase: ClassVar[Phase] = "train"
    version: ClassVar[int] = 1
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("doubled", "tensors", "1"),)

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        weights = {
            name: self.change(value, ctx) for name, value in model.weights.items()
        }
        ctx.report(doubled=len(weights))
        return ModelState(model.arch, weights, model.meta)

    def change(self, value: torch.Tensor, ctx: Context) -> torch.Tensor:
        return value * 2


class Shares(Good):
    """Passes tensors on."""

    def change(self, value: torch.Tensor, ctx: Context) -> torch.Tensor:
        return value.view(-1).view(value.shape)


class InPlace(Good):
    """Changes what came in."""

    def change(self, value: torch.Tensor, ctx: Context) -> torch.Tensor:
        return value.mul_(2).clone()


class Random(Good):
    """Draws numbers that no seed decides."""

    def change(self, value: torch.Tensor, ctx: Context) -> torch.Tensor:
        return value + torch.rand(()).to(value.dtype)


class Undeclared(Good):
    """Reports what it does not describe."""

    metrics: ClassVar[tuple[Metric, ...]] = ()


class OtherArch(Good):
    """Predicts another model than it returns."""

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        return Arch("resnet_cifar", "resnet20_cifar", {"num_classes": 2})


class RefusesAll(Good):
    """Takes nothing."""

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        raise ValueError(f"{arch.name} is not for me")


def test_the_check_passes_what_is_right(data: Data) -> None:
    models = tiny_models(data)
    found = check_stage(Good(), data=data)
    assert [model.arch for model in found] == [model.arch for model in models]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Shares(), "Shares: its result must not share memory"),
        (InPlace(), "InPlace: it must not change the incoming model"),
        (Random(), "Random: run a second time.*must give the same bits"),
        (Undeclared(), "Undeclared: it reports doubled"),
        (OtherArch(), "OtherArch: `check` must return the architecture"),
        (RefusesAll(), "RefusesAll: .*it refused vit_tiny_patch16_224: .* not for me"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Stage) else "",
)
def test_the_check_finds_what_is_wrong(stage: Stage, message: str, data: Data) -> None:
    with pytest.raises(AssertionError, match=message):
        check_stage(stage, data=data)


def test_the_check_finds_an_epoch_that_is_trained_again(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(self: fit_module._Fit, state: dict[str, Any] | None) -> None:
        if state is not None:
            self.result.seconds = self.result.seconds_restored = state["seconds"]

    monkeypatch.setattr(fit_module._Fit, "load_state_dict", forget)
    stage = STAGES["finetune"].model_validate(CASES["finetune"]["resnet"])
    with pytest.raises(AssertionError, match="must not train an epoch again"):
        check_stage(stage, tiny_models(data)[1:], data)


def test_the_check_finds_a_wrong_declaration() -> None:
    class NoVersion(Good):
        """Has no version."""

        version: ClassVar[Any] = None

    with pytest.raises(AssertionError, match="NoVersion: `version` must be an integer"):
        check_declarations(NoVersion)
