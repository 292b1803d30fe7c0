"""Smaller architectures of a family and NViT, as the plan's choices."""

from pathlib import Path
from typing import Any

import pytest

from sweeps.shrink import look as looking
from sweeps.shrink.candidates import is_trained, points
from sweeps.shrink.family import relatives, smaller
from sweeps.shrink.look import Look
from sweeps.shrink.methods import methods_for
from sweeps.shrink.request import Goal
from sweeps.shrink.wish import Wish
from tests.sweeps.test_shrink import SPEED
from trainers.config import SourceConfig
from trainers.models.source import load_source


def seen(folder: Path, model: str, **args: Any) -> Look:
    """A model of random weights and the digits."""
    config = SourceConfig(model=model, args=args)
    load_source(config, num_classes=10, image_size=32, seed=0).save(folder)
    return looking.look({"checkpoint": str(folder)}, {"dataset": "digits"}, ("torch",))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Look:
    folder = tmp_path_factory.mktemp("vit") / "model"
    args = {"patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4}
    return seen(folder, "vit_tiny_patch16_224", **args)


def test_relatives_differ_in_one_size() -> None:
    assert relatives("resnet34.a1_in1k")[:2] == ["resnet26", "resnet50"]
    assert "resnet18" in relatives("resnet34")
    assert "resnet18d" not in relatives("resnet34")
    assert {"convnext_nano", "convnext_atto"} <= set(relatives("convnext_tiny"))
    assert "vit_tiny_patch16_224" in relatives("vit_small_patch16_224")
    assert "mobilenetv3_small_050" in relatives("mobilenetv3_small_100")
    assert relatives("efficientnet_lite0")[0] == "efficientnet_lite1"
    assert "resnet20_cifar" in relatives("resnet56_cifar")
    assert relatives("revit") == []


def test_a_vit_has_fewer_heads_or_blocks(vit: Look) -> None:
    assert smaller(vit) == {
        "3 of 4 heads": {"args": {"embed_dim": 48, "num_heads": 3}},
        "2 of 4 blocks": {"args": {"depth": 2}},
        "2 of 4 heads": {"args": {"embed_dim": 32, "num_heads": 2}},
    }


def test_of_others_the_family_has_the_sizes(tmp_path: Path) -> None:
    """Larger ones are none, and weight selection has said that each can take weights."""
    narrow = seen(tmp_path / "model", "resnet44_cifar", width=4)
    found = smaller(narrow)
    assert list(found) == ["resnet32_cifar", "resnet20_cifar"]
    assert found["resnet20_cifar"] == {"model": "resnet20_cifar", "args": {"width": 4}}
    methods = methods_for(narrow, "torch", "macs", 3000, is_timed=True)
    assert methods.space["stages.cut.smaller.model"] == list(found)
    assert not methods.has("cut", "nvit")


def test_they_are_choices_of_the_plan_after_what_is_cheap(vit: Look) -> None:
    methods = methods_for(vit, "torch", "macs", 3000, is_timed=True)
    assert methods.has("cut", "nvit")
    assert methods.space["stages.cut.nvit.target.macs"][0] == 0.85
    assert list(methods.space["stages.cut.smaller.args"]["choices"]) == [*smaller(vit)]
    wish = Wish((Goal("macs", times=0.4),), {}, "torch", 1, 1, 1.0)
    found = points(methods, wish, SPEED)
    trained = [is_trained(point) for point in found]
    assert trained == sorted(trained)
    cuts = [point["stages.cut"] for point in found if is_trained(point)]
    last = ["nvit", "smaller", "smaller", "smaller", "channels", "channels"]
    assert cuts[-6:] == last
    assert found[-6]["stages.cut.nvit.target.macs"] == 0.4
