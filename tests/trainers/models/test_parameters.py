"""Linear and Conv parameters, and the layers that classify, of models of several families."""

import pytest
import torch
from torch import nn

from trainers.models.arch import Arch, meta_device, on_meta
from trainers.models.make import make_arch
from trainers.models.parameters import (
    classifier_layers,
    classifier_parameters,
    is_linear_or_conv,
    linear_and_conv_parameters,
)

VIT = {"patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}


def arch(name: str, **args: object) -> Arch:
    return make_arch(name, num_classes=3, image_size=32, args=args)


def test_weights_and_biases_of_linear_and_conv_layers() -> None:
    module = nn.ModuleDict(
        {
            "conv": nn.Conv3d(1, 1, 1),
            "norm": nn.BatchNorm2d(2),
            "up": nn.Sequential(nn.ConvTranspose1d(1, 1, 1, bias=False)),
            "linear": nn.Linear(2, 2),
        }
    )
    found = linear_and_conv_parameters(module)
    layers = ("conv.weight", "conv.bias", "up.0.weight", "linear.weight", "linear.bias")
    assert tuple(found) == layers
    assert found["linear.bias"] is module["linear"].bias
    more = linear_and_conv_parameters(module, also=(nn.BatchNorm2d,))
    assert set(more) - set(found) == {"norm.weight", "norm.bias"}
    assert list(linear_and_conv_parameters(nn.Linear(2, 2))) == ["weight", "bias"]
    assert not is_linear_or_conv(module["norm"])


@pytest.mark.parametrize(
    ("name", "args", "layers"),
    [
        ("vit_tiny_patch16_224", VIT, ("head",)),
        ("deit_tiny_distilled_patch16_224", VIT, ("head", "head_dist")),
        ("resnet20_cifar", {"width": 2}, ("linear",)),
        ("convnext_atto", {}, ("head.fc",)),
        ("resnet10t", {}, ("fc",)),
    ],
)
def test_layers_that_classify(
    name: str, args: dict[str, int], layers: tuple[str, ...]
) -> None:
    module = on_meta(arch(name, **args))
    assert classifier_layers(module) == layers
    assert classifier_parameters(module) == {
        f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")
    }


def test_a_model_that_does_not_say_what_classifies() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    assert classifier_layers(module) == ()
    with pytest.raises(ValueError, match=r"Sequential does not say.*get_classifier"):
        classifier_parameters(module)


def test_on_meta_draws_no_number_and_takes_no_memory() -> None:
    state = torch.get_rng_state()
    for described in (arch("vit_tiny_patch16_224", **VIT), arch("resnet20_cifar")):
        module = on_meta(described)
        assert all(p.is_meta for p in module.parameters())
        built = described.build().state_dict()
        assert {n: t.shape for n, t in module.state_dict().items()} == {
            n: t.shape for n, t in built.items()
        }
        torch.set_rng_state(state)
        on_meta(described)
        assert torch.equal(torch.get_rng_state(), state)
    with meta_device():
        assert nn.Linear(2, 2).weight.is_meta
    assert not nn.Linear(2, 2).weight.is_meta
