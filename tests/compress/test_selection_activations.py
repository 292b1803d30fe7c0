"""Selection by activations and its compensation, against what the teacher's layers really do."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.selection.activations import compensated_tensors, weighed
from compress.selection.elements import take
from compress.selection.transfer import Transfer, initialise, plan_transfer
from trainers.models.resnet_cifar import resnet_cifar

LAYER = "layer1.1.conv2"


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(0)
    module = resnet_cifar("resnet20_cifar", num_classes=3, width=8)
    module.train()
    module(torch.randn(64, 3, 16, 16))
    return module.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    smooth = F.interpolate(torch.randn(48, 3, 4, 4), size=(16, 16), mode="bilinear")
    return smooth + 0.3 * torch.randn(48, 3, 16, 16)


def planned(teacher: nn.Module) -> Transfer:
    student = resnet_cifar("resnet20_cifar", num_classes=3, width=4)
    return plan_transfer(
        student,
        teacher,
        layer_rule="first",
        heads={"linear.weight", "linear.bias"},
        copy_head=False,
    )


def seen_by(teacher: nn.Module, path: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of a layer."""
    found: list[tuple[Tensor, Tensor]] = []
    handle = teacher.get_submodule(path).register_forward_hook(
        lambda layer, args, output: found.append((args[0].clone(), output.clone()))
    )
    with torch.no_grad():
        teacher(images)
    handle.remove()
    return found[0]


def test_scores_are_weights_times_what_they_are_multiplied_with(
    teacher: nn.Module, images: Tensor
) -> None:
    transfer = planned(teacher)
    tensors = transfer.prepared(teacher.state_dict())
    scored = weighed(transfer, tensors, teacher, images.split(20))
    x, _ = seen_by(teacher, LAYER, images)
    padded = F.pad(x, (1, 1, 1, 1))
    weight = tensors[f"{LAYER}.weight"]
    for channel, row, column in [(0, 0, 0), (3, 1, 2), (7, 2, 1)]:
        window = padded[:, channel, row : row + 16, column : column + 16]
        rms = float(window.square().mean().sqrt())
        torch.testing.assert_close(
            scored[f"{LAYER}.weight"][:, channel, row, column],
            weight[:, channel, row, column].double() * rms,
            rtol=1e-4,
            atol=1e-9,
        )
    assert torch.equal(scored["bn1.weight"], tensors["bn1.weight"])


def test_a_channel_that_is_never_on_is_not_taken(
    teacher: nn.Module, images: Tensor
) -> None:
    silent: Any = resnet_cifar("resnet20_cifar", num_classes=3, width=8).eval()
    silent.load_state_dict(teacher.state_dict())
    norm = silent.layer1[1].bn1
    with (
        torch.no_grad()
    ):  # two large channels inside a block, both always 0 after the ReLU
        norm.weight[2:4] = 1e-3
        norm.bias[2:4] = -50.0
        silent.layer1[1].conv2.weight[:, 2:4] *= 20
        silent.layer1[1].conv1.weight[2:4] *= 2
    transfer = planned(silent)
    tensors = transfer.prepared(silent.state_dict())
    scored = weighed(transfer, tensors, silent, [images])
    by_weight, _ = transfer.indices(tensors, "magnitude", 0)
    by_activation, _ = transfer.indices(scored, "activation", 0)
    assert {2, 3} <= set(by_weight[f"{LAYER}.weight"][1].tolist())
    scores = scored[f"{LAYER}.weight"].abs().sum((0, 2, 3))
    assert float(scores[2:4].max()) == 0.0
    assert float(scores.sum()) > 0
    assert (
        by_activation[f"{LAYER}.weight"][1].tolist()
        != by_weight[f"{LAYER}.weight"][1].tolist()
    )


@pytest.mark.parametrize("rule", ["uniform", "magnitude"])
def test_compensated_layers_are_nearer_to_the_teacher(
    rule: Any, teacher: nn.Module, images: Tensor
) -> None:
    transfer = planned(teacher)
    tensors = transfer.prepared(teacher.state_dict())
    indices, _ = transfer.indices(tensors, rule, 0)
    changed = compensated_tensors(transfer, indices, teacher, images.split(20))
    assert changed.keys() <= transfer.shapes.keys()
    assert "conv1.weight" not in changed  # all three colours stay
    for name, tensor in changed.items():
        assert tuple(tensor.shape) == transfer.shapes[name]
    outputs, inputs = indices[f"{LAYER}.weight"][:2]
    x, y = seen_by(teacher, LAYER, images)
    plain = take(tensors[f"{LAYER}.weight"], indices[f"{LAYER}.weight"])
    norm = LAYER.replace("conv", "bn")
    mean = tensors[f"{norm}.running_mean"][outputs]

    def moved(weight: Tensor, new_mean: Tensor) -> float:
        """Difference of what the norm gets, both less its running mean."""
        made = F.conv2d(x[:, inputs], weight, padding=1) - new_mean.view(1, -1, 1, 1)
        return float((made - (y[:, outputs] - mean.view(1, -1, 1, 1))).square().mean())

    best = moved(changed[f"{LAYER}.weight"], changed[f"{norm}.running_mean"])
    assert best < 0.7 * moved(plain, mean)


def test_without_images_the_rule_is_refused(teacher: nn.Module) -> None:
    student = resnet_cifar("resnet20_cifar", num_classes=3, width=4)
    with pytest.raises(ValueError, match="activation needs images"):
        initialise(student, teacher, element_rule="activation", classifier=["linear"])
