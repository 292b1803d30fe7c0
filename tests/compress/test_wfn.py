"""The WFN stage: schedule, held weights, regulariser against the dense formula, baselines."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress import quant_baselines
from compress.measure.layers import ValuesRow, layer_rows
from compress.measure.model import measure_static
from compress.quant_baselines import (
    KmeansQuant,
    UniformQuant,
    kmeans,
    uniform_grid,
)
from compress.rounding import nearest
from compress.stage import Context
from compress.wfn import fixing as wfn_module
from compress.wfn.clustering import cluster
from compress.wfn.fixing import (
    Fixing,
    FixRules,
    HoldFixed,
    fixable_parameters,
    flat,
)
from compress.wfn.regulariser import PullTable, dense, pull, pull_each
from compress.wfn.stage import Wfn
from trainers.config import TrainConfig
from trainers.data.splits import Data
from trainers.models.arch import ModelState
from trainers.models.make import make_arch
from trainers.training.fit import fit
from trainers.training.losses import TaskObjective

CPU = torch.device("cpu")
GAMMA_0 = 2**-7


@torch.no_grad()
def assign(parameters: dict[str, nn.Parameter], values: Tensor) -> None:
    parts = values.split([p.numel() for p in parameters.values()])
    for parameter, part in zip(parameters.values(), parts, strict=True):
        parameter.copy_(part.view_as(parameter))


@pytest.fixture(scope="module")
def model() -> ModelState:
    return ModelState.initialised(
        make_arch("resnet20_cifar", num_classes=10, image_size=32, args={"width": 4}), 0
    )


def context(digits: Data, folder: Path) -> Context:
    return Context(
        digits, CPU, 3, folder, lambda name, checkpoint: pytest.fail("no teacher here")
    )


def dense_oracle(weights: Tensor, centroids: Tensor, relative: bool) -> Tensor:
    """Σ_i Σ_k softmin_k(D/0.05)·D, from the description, in float64, by autograd."""
    w = weights.double()[:, None]
    gap = (w - centroids.double()).abs()
    if relative:
        small = w.abs() <= GAMMA_0
        near_zero = torch.where(centroids == 0, gap * 0, gap)
        gap = torch.where(small, near_zero, gap / w.abs())
    return (torch.softmax(-gap / 0.05, 1) * gap).sum()


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("scale", [0.02, 0.3, 4.0])
@pytest.mark.parametrize("count", [1, 2, 17, 120])
def test_regulariser_is_the_dense_formula(
    relative: bool, scale: float, count: int
) -> None:
    generator = torch.Generator().manual_seed(count)
    weights = torch.randn(300, generator=generator) * scale
    weights[:3] = torch.tensor(
        [GAMMA_0 * 0.999, -GAMMA_0 * 1.001, 30 * scale]
    )  # near the break, outside the table
    centroids = torch.cat(
        [torch.zeros(1), torch.randn(count, generator=generator) * scale]
    ).unique()
    distance: Any = "relative" if relative else "euclidean"
    table = PullTable.build(centroids, 3 * scale, distance, GAMMA_0)
    slow = weights.double().requires_grad_()
    expected = dense_oracle(slow, centroids, relative)
    expected.backward()
    fast = weights.clone().requires_grad_()
    mine = pull(fast, table)
    (mine * 2).backward()
    assert mine.item() == pytest.approx(expected.item(), rel=1e-5)
    assert fast.grad is not None
    assert slow.grad is not None
    error = (fast.grad.double() / 2 - slow.grad).norm() / slow.grad.norm()
    assert error < 1e-5


@pytest.mark.parametrize("distance", ["relative", "euclidean"])
def test_weights_beyond_the_table_are_read_too(distance: Any) -> None:
    """Far beyond all centroids, where an accelerator may not be asked how many there are."""
    centroids = torch.tensor([-0.4, -0.1, 0.0, 0.02, 0.3])
    table = PullTable.build(centroids, 0.5, distance, GAMMA_0)
    sizes = torch.logspace(-4.03, 5.01, 400)
    weights = torch.cat([-sizes, sizes, torch.tensor([0.5, -0.5, 1e9, -1e12])])
    value, slope = table.read(weights)
    there = weights.double()
    expected, rise = dense(there, centroids.double(), distance, GAMMA_0)
    torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=2e-6)
    size = weights.abs().double().clamp_min(0.5)  # df/dw falls as 1/w² there
    scale = size.square() if distance == "relative" else torch.ones(())
    torch.testing.assert_close(
        slope * scale, rise * scale, rtol=1e-3, atol=1e-3, check_dtype=False
    )


def test_sums_of_parts_are_those_of_each_alone() -> None:
    """However parts are put together, values and gradients are the same bits."""
    generator = torch.Generator().manual_seed(0)
    table = PullTable.build(torch.linspace(-0.3, 0.3, 9), 0.5, "relative", GAMMA_0)
    sizes = (3, 1_200_000, 1, 900_000)
    parts = [
        torch.randn(n, generator=generator).mul_(0.2).requires_grad_() for n in sizes
    ]
    alone = [part.detach().clone().requires_grad_() for part in parts]
    sums = pull_each(parts, table)
    (sums * torch.arange(1.0, 5.0)).sum().backward()
    for i, part in enumerate(alone):
        expected = pull(part, table)
        (expected * (i + 1)).backward()
        assert torch.equal(sums[i], expected)
        assert torch.equal(parts[i].grad, part.grad)


def test_regulariser_never_builds_the_matrix() -> None:
    """2 M weights × 60 centroids would be 480 MB; the table reads them in chunks."""
    weights = (
        torch.randn(2_000_000, generator=torch.Generator().manual_seed(0)) * 0.05
    ).requires_grad_()
    table = PullTable.build(torch.linspace(-0.3, 0.3, 60), 0.5, "relative", GAMMA_0)
    pull(weights, table).backward()
    assert weights.grad is not None
    assert bool(torch.isfinite(weights.grad).all())


@pytest.mark.parametrize(
    "optimizer",
    [{"optimizer": "adam"}, {"optimizer": "sgd", "momentum": 0.9, "eps": None}],
)
def test_held_weights_do_not_move_a_bit(
    model: ModelState, digits: Data, tmp_path: Path, optimizer: dict[str, Any]
) -> None:
    module = model.build()
    parameters = fixable_parameters(module, include_norm=False)
    config = TrainConfig(
        epochs=2,
        batch_size=30,
        lr=0.05,
        lr_scaling="unscaled",
        warmup=0,
        weight_decay=0.1,
        augment="none",
        **optimizer,
    )
    warm = HoldFixed(
        parameters,
        torch.zeros_like(flat(parameters), dtype=torch.bool),
        flat(parameters),
        None,
        0.0,
    )
    fit(
        module,
        digits,
        TaskObjective(0),
        config,
        hooks=[warm],
        seed=0,
        device=CPU,
        workdir=tmp_path / "a",
    )
    clustering = cluster(flat(parameters), 0.6, 0.1)
    assign(parameters, clustering.values)
    before = flat(parameters)
    table = PullTable.build(clustering.codebook, 5.0, "relative", GAMMA_0)
    hook = HoldFixed(parameters, clustering.fixed, clustering.values, table, 0.4)
    fit(
        module,
        digits,
        TaskObjective(0),
        config,
        hooks=[hook],
        seed=0,
        device=CPU,
        workdir=tmp_path / "b",
    )
    after = flat(parameters)
    fixed = clustering.fixed
    assert torch.equal(before[fixed].view(torch.int32), after[fixed].view(torch.int32))
    assert (before[~fixed] != after[~fixed]).float().mean() > 0.9


def test_the_pull_pulls(model: ModelState, digits: Data, tmp_path: Path) -> None:
    """With the regulariser the unfixed weights end nearer to the centroids than without."""
    distances = []
    for ratio in (0.0, 5.0):
        module = model.build()
        parameters = fixable_parameters(module, include_norm=False)
        clustering = cluster(flat(parameters), 0.3, 0.2)
        assign(parameters, clustering.values)
        table = PullTable.build(clustering.codebook, 5.0, "relative", GAMMA_0)
        hook = HoldFixed(parameters, clustering.fixed, clustering.values, table, ratio)
        config = TrainConfig(
            epochs=4,
            batch_size=30,
            lr=2e-3,
            lr_scaling="unscaled",
            warmup=0,
            augment="none",
            optimizer="adam",
        )
        fit(
            module,
            digits,
            TaskObjective(0),
            config,
            hooks=[hook],
            seed=0,
            device=CPU,
            workdir=tmp_path / str(ratio),
        )
        distances.append(float(pull(flat(parameters)[~clustering.fixed], table)))
    assert distances[1] < 0.95 * distances[0]


def test_schedule(
    model: ModelState, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[float, float, float]] = []

    def spy(weights: Tensor, fraction: float, allowed: float, **options: Any) -> Any:
        calls.append((fraction, allowed, options["zero_distance"]))
        return cluster(weights, fraction, allowed, **options)

    monkeypatch.setattr(wfn_module, "cluster", spy)
    stage = Wfn(
        percentages=(0.5, 0.9, 1.0),
        fixing_epochs=0,
        distance_allowed=0.1,
        zero_distance=0.01,
    )
    ctx = context(digits, tmp_path)
    result = stage.run(model, ctx)
    assert calls == [
        (0.5, pytest.approx(0.3), 0.01),
        (0.9, pytest.approx(0.2), 0.01),
        (1.0, pytest.approx(0.1), 0.01),
    ]
    with torch.device("meta"):
        names = list(fixable_parameters(result.arch.build(), include_norm=False))
    values = torch.cat([result.weights[n].reshape(-1) for n in names])
    assert len(values.unique()) == ctx.reported["codebook_size"] < 120
    assert set(result.weights) == set(model.weights)
    norms = [n for n in model.weights if ".bn" in n or n.startswith("bn")]
    assert all(torch.equal(result.weights[n], model.weights[n]) for n in norms)
    orders = {k: v for k, v in ctx.reported.items() if k.startswith("order_")}
    assert sum(orders.values()) == values.numel()
    assert ctx.reported["fixed_fraction"] == 1.0


def test_resumed_at_any_iteration_it_is_the_same(
    model: ModelState, digits: Data, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "percentages": (0.4, 0.8, 1.0),
        "fixing_epochs": 1,
        "distance_allowed": 0.05,
        "lr": 1e-3,
        "batch_size": 40,
        "augment": {"preset": "none"},
    }
    whole = Wfn(**options).run(model, context(digits, tmp_path / "whole"))
    for k in (1, 2):
        first = Wfn(**options, last_iteration=k).run(
            model, context(digits, tmp_path / f"first-{k}")
        )
        rest = Wfn(**options, first_iteration=k).run(
            first, context(digits, tmp_path / f"rest-{k}")
        )
        assert rest.hash() == whole.hash()
    with pytest.raises(ValueError, match="first_iteration 2 and last_iteration 2"):
        Wfn(**options, first_iteration=2, last_iteration=2)


def test_include_norm_fixes_them_too(
    model: ModelState, digits: Data, tmp_path: Path
) -> None:
    stage = Wfn(
        percentages=(1.0,), fixing_epochs=0, include_norm=True, distance_allowed=0.1
    )
    result = stage.run(model, context(digits, tmp_path))
    affine = torch.cat(
        [
            v
            for n, v in result.weights.items()
            if "bn" in n and n.endswith((".weight", ".bias"))
        ]
    )
    codebook = torch.cat(
        [v.reshape(-1) for n, v in result.weights.items() if "conv" in n]
    ).unique()
    assert torch.isin(affine, torch.cat([codebook, affine.unique()])).all()
    everything = torch.cat([codebook, affine, *linear_values(result)]).unique()
    assert len(everything) < 200
    assert measure_static(result, 32)["unique_values"] == len(everything)
    values = layer_rows(result)[-1]
    assert isinstance(values, ValuesRow)
    assert values.values == everything.tolist()
    assert sum(values.counts) == sum(p.numel() for p in result.build().parameters())


def linear_values(state: ModelState) -> list[torch.Tensor]:
    return [v.reshape(-1) for n, v in state.weights.items() if n.startswith("linear")]


@pytest.mark.parametrize("bad", [(0.0, 1.0), (0.9, 0.5), (0.5, 1.5)])
def test_bad_percentages_are_refused(bad: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"fractions in \(0, 1\] that do not fall"):
        Wfn(percentages=bad)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_uniform_grid(bits: int) -> None:
    weights = torch.randn(500, generator=torch.Generator().manual_seed(0))
    quantised = uniform_grid(weights, bits)(weights)
    levels = 2 ** (bits - 1) - 1
    step = weights.abs().max().item() / levels
    assert len(quantised.unique()) <= 2 * levels + 1
    np.testing.assert_allclose(
        quantised.numpy(), np.round(weights.numpy() / step) * step, rtol=1e-6, atol=1e-7
    )
    assert (quantised - weights).abs().max() <= step / 2 + 1e-6
    assert torch.equal(uniform_grid(torch.zeros(3), bits)(weights[:3]), torch.zeros(3))


def test_kmeans_is_a_fixed_point_of_lloyd() -> None:
    values = torch.randn(
        400, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    centroids = kmeans(values, 7)
    owner = (values[:, None] - centroids).abs().argmin(1)
    for k in range(len(centroids)):
        assert centroids[k].item() == pytest.approx(values[owner == k].mean().item())
    assert torch.equal(nearest(values, centroids), centroids[owner])
    assert torch.equal(
        kmeans(torch.tensor([2.0, 2.0]), 4), torch.tensor([2.0], dtype=torch.float64)
    )


@pytest.mark.parametrize(("scope", "most"), [("layer", 4), ("network", 4)])
def test_codebooks_have_their_size(
    model: ModelState, digits: Data, tmp_path: Path, scope: Any, most: int
) -> None:
    result = KmeansQuant(clusters=4, scope=scope).run(model, context(digits, tmp_path))
    tensors = [v for n, v in result.weights.items() if "conv" in n or "linear" in n]
    assert all(len(v.unique()) <= most for v in tensors)
    together = len(torch.cat([v.reshape(-1) for v in tensors]).unique())
    assert together <= 4 if scope == "network" else together > 4


def test_baselines_refuse_nothing_to_quantise(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quant_baselines, "shared_on_meta", lambda _: nn.Identity())
    arch = make_arch("resnet20_cifar", num_classes=10, image_size=32, args={"width": 2})
    with pytest.raises(ValueError, match="no Linear or Conv"):
        UniformQuant().check(arch, digits.info)
    assert math.isclose(UniformQuant().bits, 8)


def test_unfixed_weights_make_up_for_the_fixed_ones() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))
    images = torch.randn(300, 12) @ torch.randn(12, 12)
    with torch.no_grad():
        logits = module(images)
    rules = FixRules(fractions=(0.6, 1.0), distance_allowed=0.2)
    moved = {}
    for layerwise in (False, True):
        copied = copy.deepcopy(module)
        fixing = Fixing(copied, rules)
        for fixed_part in (0.6, 1.0):
            clustering = fixing.fix_more([images] if layerwise else None)
            values = torch.cat([p.detach().reshape(-1) for p in copied.parameters()])
            assert torch.equal(values, clustering.values)
            held = clustering.fixed
            assert float(held.float().mean()) == pytest.approx(fixed_part, abs=0.01)
            assert torch.equal(
                values[held], clustering.codebook[clustering.assignments[held].long()]
            )
            assert bool((clustering.assignments[~held] == -1).all())
        with torch.no_grad():
            moved[layerwise] = float((copied(images) - logits).square().mean())
    assert moved[True] < 0.9 * moved[False]
