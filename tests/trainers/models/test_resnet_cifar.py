"""CIFAR ResNets against their description: names, sizes, and a naive option-A shortcut."""

import pytest
import torch
from torch import nn

from trainers.models.make import make_arch
from trainers.models.resnet_cifar import RESNET_CIFAR, BasicBlock, resnet_cifar


@pytest.mark.parametrize(
    ("name", "depth", "params"),
    # He et al. 2016, table 6, in millions: 0.27, 0.46, 0.66, 0.85
    [
        ("resnet20_cifar", 20, 269_722),
        ("resnet32_cifar", 32, 464_154),
        ("resnet44_cifar", 44, 658_586),
        ("resnet56_cifar", 56, 853_018),
    ],
)
def test_depth_and_parameters(name: str, depth: int, params: int) -> None:
    with torch.device("meta"):
        module = resnet_cifar(name, num_classes=10)
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in module.modules()) == depth
    assert sum(p.numel() for p in module.parameters()) == params
    assert module.get_classifier() is module.linear


def test_names_and_shapes_of_resnet20() -> None:
    batch_norm = {
        "weight": 1,
        "bias": 1,
        "running_mean": 1,
        "running_var": 1,
        "num_batches_tracked": 0,
    }
    expected: dict[str, tuple[int, ...]] = {
        "conv1.weight": (16, 3, 3, 3),
        "linear.weight": (10, 64),
        "linear.bias": (10,),
    }
    expected |= {f"bn1.{leaf}": (16,) * axes for leaf, axes in batch_norm.items()}
    channels = {1: 16, 2: 32, 3: 64}
    for stage, width in channels.items():
        for block in range(3):
            before = channels[stage - 1] if block == 0 and stage > 1 else width
            path = f"layer{stage}.{block}"
            expected |= {
                f"{path}.conv1.weight": (width, before, 3, 3),
                f"{path}.conv2.weight": (width, width, 3, 3),
            }
            for norm in ("bn1", "bn2"):
                expected |= {
                    f"{path}.{norm}.{leaf}": (width,) * axes
                    for leaf, axes in batch_norm.items()
                }
    with torch.device("meta"):
        state = resnet_cifar("resnet20_cifar", num_classes=10).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


@pytest.mark.parametrize(
    ("before", "after", "stride", "size"),
    [(16, 32, 2, 8), (32, 64, 2, 7), (3, 6, 2, 5), (4, 4, 1, 6), (4, 9, 1, 4)],
)
def test_option_a_shortcut_against_loops(
    before: int, after: int, stride: int, size: int
) -> None:
    block = BasicBlock(before, after, stride).eval()
    nn.init.zeros_(block.bn2.weight)  # leaves relu(shortcut)
    images = torch.rand(2, before, size, size)
    with torch.no_grad():
        got = block(images)

    side, low = (size + stride - 1) // stride, (after - before) // 2
    expected = torch.zeros(2, after, side, side)
    for n in range(2):
        for c in range(before):
            for i in range(side):
                for j in range(side):
                    expected[n, low + c, i, j] = images[n, c, stride * i, stride * j]
    assert torch.equal(got, expected)


def test_block_adds_its_branch_to_the_shortcut() -> None:
    block = BasicBlock(4, 4, 1).eval()
    images = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        branch = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(images)))))
        assert torch.equal(block(images), torch.relu(branch + images))


@pytest.mark.parametrize("image_size", [4, 32, 33])
def test_forward_shape_and_width(image_size: int) -> None:
    module = (
        make_arch(
            "resnet20_cifar", num_classes=5, image_size=image_size, args={"width": 4}
        )
        .build()
        .eval()
    )
    assert module(torch.zeros(2, 3, image_size, image_size)).shape == (2, 5)
    assert module.linear.in_features == 16


def test_spatial_sizes_halve_at_each_later_stage() -> None:
    module = resnet_cifar("resnet20_cifar", num_classes=10, width=4).eval()
    shapes = []
    for layer in (module.layer1, module.layer2, module.layer3):
        layer.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[1:])))
    module(torch.zeros(1, 3, 32, 32))
    assert shapes == [(4, 32, 32), (8, 16, 16), (16, 8, 8)]
    assert set(RESNET_CIFAR) == {
        "resnet20_cifar",
        "resnet32_cifar",
        "resnet44_cifar",
        "resnet56_cifar",
    }
