"""Random initialisation: seeded, of the asked architecture, and the baseline of weight
selection.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from compress.selection.random_init import RandomInit
from compress.selection.stage import WeightSelection
from compress.stage import Context
from trainers.data.splits import DataInfo
from trainers.models.arch import ModelState
from trainers.models.make import make_arch

INFO = DataInfo(num_classes=7, image_size=32, num_train=1)


def context(seed: int) -> Context:
    data = cast(Any, SimpleNamespace(info=INFO))
    return Context(data, torch.device("cpu"), seed, Path("unused"), cast(Any, None))


@pytest.fixture(scope="module")
def source() -> ModelState:
    return ModelState.initialised(
        make_arch("resnet32_cifar", num_classes=10, image_size=32), 1
    )


def test_fresh_weights_of_the_students_architecture_from_the_seed(
    source: ModelState,
) -> None:
    before = source.hash()
    stage = RandomInit(model="resnet20_cifar", args={"width": 8})
    first, again, other = (stage.run(source, context(seed)) for seed in (3, 3, 4))
    assert (
        first.arch
        == stage.check(source.arch, INFO)
        == make_arch("resnet20_cifar", num_classes=7, image_size=32, args={"width": 8})
    )
    assert first.hash() == again.hash() != other.hash()
    assert source.hash() == before
    torch.manual_seed(3)
    expected = first.arch.build().state_dict()
    assert all(
        torch.equal(tensor, expected[name]) for name, tensor in first.weights.items()
    )


def test_global_generator_is_left_alone(source: ModelState) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    RandomInit().run(source, context(5))
    assert torch.equal(torch.rand(3), expected)


def test_without_a_name_the_incoming_architecture_for_these_classes(
    source: ModelState,
) -> None:
    result = RandomInit().run(source, context(0))
    assert result.arch == make_arch("resnet32_cifar", num_classes=7, image_size=32)
    assert result.weights["linear.weight"].shape == (7, 64)


def test_classifier_is_that_of_weight_selection(source: ModelState) -> None:
    random = RandomInit(model="resnet20_cifar").run(source, context(9))
    selected = WeightSelection(model="resnet20_cifar").run(source, context(9))
    for leaf in ("weight", "bias"):
        assert torch.equal(
            random.weights[f"linear.{leaf}"], selected.weights[f"linear.{leaf}"]
        )
    assert not torch.equal(
        random.weights["conv1.weight"], selected.weights["conv1.weight"]
    )


def test_unknown_model_is_refused(source: ModelState) -> None:
    with pytest.raises(ValueError, match="unknown model 'resnet21_cifar'"):
        RandomInit(model="resnet21_cifar").check(source.arch, INFO)
