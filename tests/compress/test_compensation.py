"""Compensation: the least-squares optimum, by a slow solver, for every kind of layer."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress import compensation
from compress.compensation import (
    Moments,
    compensated,
    corrected_tensors,
    input_moments,
    mendable,
    predict,
    recalibrate,
)
from trainers.models.resnet_cifar import resnet_cifar


def mixed(count: int, size: int, seed: int = 0) -> Tensor:
    """Vectors (count, size) whose entries depend on each other, with a mean."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(count, size // 2, generator=generator)
    mixing = torch.randn(size // 2, size, generator=generator)
    noise = 0.3 * torch.randn(count, size, generator=generator)
    return latent @ mixing + noise + torch.randn(size, generator=generator)


def slow(x: Tensor, y: Tensor, *, constant: bool) -> tuple[Tensor, Tensor]:
    """Weights and constant of least squares, by torch's solver on all rows."""
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    rows = torch.cat([x.double(), ones], 1) if constant else x.double()
    solution = torch.linalg.lstsq(rows, y.double()).solution.T
    if not constant:
        return solution, torch.zeros(len(solution), dtype=torch.float64)
    return solution[:, :-1], solution[:, -1]


@pytest.mark.parametrize("constant", [True, False])
def test_a_linear_layer_is_that_of_least_squares(constant: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 5, bias=constant)
    x = mixed(400, 12)
    kept = torch.tensor([0, 2, 3, 7, 10])
    moments = Moments(12)
    for part in x.split(96):
        moments.add(part)
    with torch.no_grad():
        y = layer(x)
    weight, shift = compensated(layer, moments, kept, ridge=1e-9, centred=constant)
    expected, offset = slow(x[:, kept], y, constant=constant)
    torch.testing.assert_close(weight.double(), expected, rtol=1e-3, atol=1e-4)
    bias = shift.double() + (layer.bias.double() if constant else 0.0)
    torch.testing.assert_close(bias, offset, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": (0, 1), "dilation": 2},
        {"kernel_size": (1, 3)},
        {"kernel_size": 1, "stride": 2},
    ],
)
def test_a_convolution_is_that_of_least_squares_over_patches(
    options: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    layer: Any = nn.Conv2d(6, 4, **options)
    images = mixed(8 * 81, 6).view(8, 9, 9, 6).movedim(-1, 1)
    kept = torch.tensor([1, 2, 5])
    found = input_moments(nn.Sequential(layer), ["0"], [images[:5], images[5:]])
    weight, shift = compensated(layer, found.moments["0"], kept, ridge=1e-9)
    with torch.no_grad():
        wanted = layer(images)
        cut: Any = nn.Conv2d(3, 4, **options)
        cut.weight.copy_(weight)
        cut.bias.copy_(layer.bias + shift)
        error = (cut(images[:, kept]) - wanted).square().mean()
    patches = F.unfold(
        images[:, kept],
        layer.kernel_size,
        layer.dilation,
        layer.padding,
        layer.stride,
    )
    rows = patches.transpose(1, 2).flatten(0, 1)
    y = wanted.movedim(1, -1).reshape(-1, 4)
    best, offset = slow(rows, y, constant=True)
    least = (rows.double() @ best.T + offset - y).square().mean()
    assert float(error) == pytest.approx(float(least), rel=1e-3)


def test_no_other_weights_do_better() -> None:
    """The ridge solution is the minimum of the penalised error: every step away is worse."""
    torch.manual_seed(1)
    layer = nn.Linear(10, 3)
    x = mixed(300, 10, seed=2)
    kept, ridge = torch.arange(4), 0.1
    moments = Moments(10)
    moments.add(x)
    found = compensated(layer, moments, kept, ridge=ridge)
    part = moments.second()[kept][:, kept].diagonal().mean()

    def penalised(weight: Tensor, bias: Tensor) -> float:
        error = (layer(x) - F.linear(x[:, kept], weight, bias)).double()
        change = (weight - layer.weight[:, kept]).double()
        return float(
            error.square().sum() / len(x) + ridge * part * change.square().sum()
        )

    with torch.no_grad():
        bias = layer.bias + found.shift
        least = penalised(found.weight, bias)
        assert least < penalised(layer.weight[:, kept], layer.bias)
        for seed in range(20):
            torch.manual_seed(seed)
            other = found.weight + 0.02 * torch.randn_like(found.weight)
            assert penalised(other, bias + 0.02 * torch.randn(3)) > least


def test_nothing_cut_changes_nothing_and_what_repeats_is_replaced_exactly() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    x = mixed(200, 6)
    x[:, 5] = 2 * x[:, 1] - x[:, 3] + 1
    moments = Moments(6)
    moments.add(x)
    whole = compensated(layer, moments, torch.arange(6))
    torch.testing.assert_close(whole.weight, layer.weight.detach())
    assert not whole.shift.any()
    cut = compensated(layer, moments, torch.arange(5), ridge=1e-9)
    with torch.no_grad():
        again = F.linear(x[:, :5], cut.weight, layer.bias + cut.shift)
        torch.testing.assert_close(again, layer(x), rtol=1e-4, atol=1e-4)


def test_large_patches_are_predicted_channel_by_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compensation, "_MOST_INPUTS", 8)
    torch.manual_seed(0)
    layer: Any = nn.Conv2d(3, 2, 3)
    images = torch.randn(4, 3, 8, 8)
    images[:, 2] = 0.5 * images[:, 0] - images[:, 1] + 2
    found = input_moments(nn.Sequential(layer), ["0"], [images])
    assert len(found.moments["0"].mean) == 3
    weight, shift = compensated(layer, found.moments["0"], torch.arange(2), ridge=1e-9)
    with torch.no_grad():
        again = F.conv2d(images[:, :2], weight, layer.bias + shift)
        torch.testing.assert_close(again, layer(images), rtol=1e-4, atol=1e-4)


def test_a_norm_takes_the_constant_of_a_convolution_without_bias() -> None:
    module = resnet_cifar("resnet20_cifar", num_classes=4, width=4)
    images = torch.randn(16, 3, 16, 16)
    recalibrate(module, [images])
    block: Any = module.layer1[0]
    kept = torch.tensor([0, 2])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    inputs = input_moments(module, ["layer1.0.conv2"], [images])
    found = corrected_tensors(module, {"layer1.0.conv2": kept}, inputs)
    assert set(found) == {"layer1.0.conv2.weight", "layer1.0.bn2.running_mean"}
    assert found["layer1.0.conv2.weight"].shape == (4, 2, 3, 3)
    after = module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    with torch.no_grad():
        hidden = F.relu(
            block.bn1(block.conv1(F.relu(module.bn1(module.conv1(images)))))
        )
        wanted = block.bn2(block.conv2(hidden))
        plain = block.bn2(
            F.conv2d(hidden[:, kept], block.conv2.weight[:, kept], padding=1)
        )
        block.bn2.running_mean.copy_(found["layer1.0.bn2.running_mean"])
        weight = found["layer1.0.conv2.weight"]
        fixed = block.bn2(F.conv2d(hidden[:, kept], weight, padding=1))
    errors = [(each - wanted).square().mean() for each in (plain, fixed)]
    assert errors[1] < 0.7 * errors[0]
    assert (fixed - wanted).mean((0, 2, 3)).abs().max() < 1e-3


def test_depthwise_convolutions_stay_as_they_are() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    kept = torch.tensor([0, 3])
    assert mendable(module, ["0", "1"]) == ["1"]
    inputs = input_moments(module, ["1"], [torch.randn(2, 4, 8, 8)])
    found = corrected_tensors(module, {"0": kept, "1": kept}, inputs)
    assert set(found) == {"1.weight", "1.bias"}


def test_recalibrated_norms_have_the_statistics_of_the_batches() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.2))
    batches = [torch.randn(6, 3, 5, 5) + i for i in range(3)]
    recalibrate(module, batches)
    norm: Any = module[1]
    with torch.no_grad():
        outputs = [module[0](images) for images in batches]
    mean = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    var = torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)
    assert norm.momentum == 0.2
    assert not module.training


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, 1000.0])
def test_constants_predict_constants(value: float) -> None:
    """An attention that has one key gives 1 to all that reads it: nothing is learnt from that."""
    moments = Moments(6)
    torch.manual_seed(0)
    rows = torch.full((500, 6), value)
    rows[:, 5] = torch.randn(500)  # varies, and is removed
    for batch in rows.split(100):
        moments.add(batch)
    found = predict(moments, torch.tensor([1, 5]), torch.tensor([0, 2, 3, 4]))
    assert found.matrix.isfinite().all()
    said = found.matrix @ torch.full((4,), value, dtype=torch.float64) + found.offset
    expected = torch.tensor([value, float(rows[:, 5].mean())], dtype=torch.float64)
    torch.testing.assert_close(said, expected, rtol=1e-6, atol=1e-6)
    assert found.matrix.abs().max() < 0.5
