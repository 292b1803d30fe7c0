"""Low rank: factors against slow optima, ranks against all choices, and what the stage makes."""

from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.codec.file import decode_bytes, encode
from compress.compensation import Moments
from compress.low_rank import stage as stage_module
from compress.low_rank.factors import directions, factors
from compress.low_rank.latency import layer_latencies
from compress.low_rank.layers import LayerSize, factorable
from compress.low_rank.ranks import Option, choose, hull, rank_options
from compress.low_rank.stage import LowRank, low_rank_arch
from compress.measure.model import measure_static
from compress.measure.options import RuntimeOptions
from compress.pipeline import STAGES
from compress.runtimes.registry import session
from tests.compress.test_compensation import mixed
from tests.compress.test_nvit import TRAIN, context, prune, source
from trainers.data.splits import Data
from trainers.models.arch import Arch, ModelState, on_meta
from trainers.models.factored import factor
from trainers.models.make import make_arch


def random_layers(seed: int, count: int = 3) -> dict[str, list[Option]]:
    random = np.random.default_rng(seed)
    layers = {}
    for i in range(count):
        energies = np.sort(random.exponential(size=random.integers(2, 7)))[::-1]
        each = float(random.integers(1, 9))
        as_is = each * (len(energies) - float(random.random()))
        layers[f"layer{i}"] = rank_options(
            energies.tolist(),
            cost_of=lambda rank, each=each: rank * each,
            cost_as_is=as_is,
        )
    return layers


@pytest.mark.parametrize("seed", range(20))
def test_ranks_lose_least_of_all_choices_at_their_cost(seed: int) -> None:
    layers = random_layers(seed)
    everything = [
        (sum(o.cost for o in chosen), sum(o.loss for o in chosen))
        for chosen in product(*layers.values())
    ]
    costs = sorted(cost for cost, _ in everything)
    for share in (0.0, 0.2, 0.5, 0.8, 1.0):
        budget = costs[0] + share * (costs[-1] - costs[0])
        found = choose(layers, budget)
        assert found is not None
        cost = sum(option.cost for option in found.values())
        loss = sum(option.loss for option in found.values())
        assert cost <= budget * (1 + 1e-9)
        best = min(each for c, each in everything if c <= budget * (1 + 1e-9))
        # what is left between two steps of the walk is spent greedily: nearly the optimum
        assert best - 1e-9 <= loss <= best + 0.35
    assert choose(layers, costs[0] - 1e-6) is None


@pytest.mark.parametrize("seed", range(20))
def test_the_walk_along_hulls_is_the_optimum_at_each_of_its_steps(seed: int) -> None:
    layers = random_layers(seed)
    everything = [
        (sum(o.cost for o in chosen), sum(o.loss for o in chosen))
        for chosen in product(*layers.values())
    ]
    on_hulls = {name: hull(options) for name, options in layers.items()}
    slopes = sorted(
        (a.loss - b.loss) / (b.cost - a.cost)
        for points in on_hulls.values()
        for a, b in pairwise(points)
    )
    for price in [s * 1.0001 for s in slopes]:
        step = [
            min(options, key=lambda o: o.loss + price * o.cost)
            for options in layers.values()
        ]
        cost, loss = sum(o.cost for o in step), sum(o.loss for o in step)
        found = choose(layers, cost + 1e-9)
        assert found is not None
        assert sum(o.loss for o in found.values()) == pytest.approx(loss)
        assert loss == pytest.approx(
            min(each for c, each in everything if c <= cost + 1e-9)
        )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(9, 6), (6, 9)])
def test_factors_lose_least_of_what_the_layer_computes(
    inputs: int, outputs: int, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=bias)
    x = mixed(500, inputs)
    moments = Moments(inputs)
    moments.add(x)
    found = directions(layer, moments)
    with torch.no_grad():
        wanted = layer(x).double()
    total = (wanted - wanted.mean(0) if bias else wanted).square().sum() / len(x)
    assert float(found.energies.sum()) == pytest.approx(float(total), rel=1e-4)
    for rank in (1, 3, 5):
        parts = factors(found, rank)
        weight = parts["1.weight"] @ parts["0.weight"]
        shift = parts.get("1.bias", torch.zeros(outputs))
        error = (x.double() @ weight.T + shift - wanted).square().sum() / len(x)
        assert float(error) == pytest.approx(
            float(found.energies[rank:].sum()), rel=1e-4
        )
        torch.testing.assert_close(
            parts["0.weight"].norm(dim=1), parts["1.weight"].norm(dim=0)
        )
        # no weight of this rank does better: alternating least squares from random starts
        best = min(
            _alternating(x.double(), wanted, rank, bias, seed) for seed in (0, 1)
        )
        assert float(error) <= best * (1 + 1e-6)


def _alternating(x: Tensor, y: Tensor, rank: int, bias: bool, seed: int) -> float:
    """Least error of y by a product of two matrices, found slowly."""
    if bias:
        x, y = x - x.mean(0), y - y.mean(0)
    generator = torch.Generator().manual_seed(seed)
    right = torch.randn(rank, x.shape[1], generator=generator, dtype=torch.float64)
    inverse = torch.linalg.pinv(x)
    for _ in range(60):
        left = torch.linalg.lstsq(x @ right.T, y).solution.T
        right = torch.linalg.pinv(left) @ (inverse @ y).T
    return float((x @ right.T @ left.T - y).square().sum() / len(x))


def test_without_images_it_is_the_svd_of_the_weights() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 5, 1)
    found = directions(layer, None)
    u, s, vh = torch.linalg.svd(layer.weight.detach().flatten(1).double())
    parts = factors(found, 2)
    expected = u[:, :2] * s[:2] @ vh[:2]
    torch.testing.assert_close(parts["1.weight"] @ parts["0.weight"], expected)
    torch.testing.assert_close(parts["1.bias"], layer.bias.detach().double())


def test_only_what_pays_is_factored_and_counted() -> None:
    convnext = make_arch(
        "convnext_atto",
        num_classes=10,
        image_size=32,
        args={"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
    )
    sizes = factorable(convnext, 32, ["stages.3.*"])
    assert "head.fc" not in sizes
    assert not any("conv_dw" in path or path.startswith("stages.3") for path in sizes)
    found = sizes["stages.0.blocks.0.mlp.fc1"]
    assert found == (8, 32, 64, 4, True)
    assert found.cost_as_is("macs") == 64 * 8 * 32
    assert found.cost_of_rank("bytes") == 4 * 40
    shared = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    shared[1].weight = shared[0].weight
    with pytest.raises(ValueError, match="needed is a Linear or Conv2d"):
        factor(nn.Sequential(nn.LayerNorm(4)), {"0": 2})
    with pytest.raises(ValueError, match="rank 0"):
        factor(shared, {"0": 0})


@pytest.mark.parametrize("quantity", ["macs", "params", "bytes"])
def test_the_target_is_met_and_what_is_reported_holds(
    quantity: str, digits: Data, tmp_path: Path
) -> None:
    stage = LowRank.model_validate({"target": {quantity: 0.6}, "images": 40})
    state = source(patch_size=8)
    ctx = context(digits, tmp_path)
    small = stage.run(state, ctx)
    sizes = [measure_static(each, 32) for each in (state, small)]
    name = {"macs": "gmacs", "params": "num_params", "bytes": "model_bytes"}[quantity]
    ratio = sizes[1][name] / sizes[0][name]
    assert 0.55 < ratio <= 0.6
    assert ctx.reported["low_rank_cost_ratio"] == pytest.approx(ratio, rel=1e-6)
    ranks = small.arch.dims["ranks"]
    assert len(ranks) == ctx.reported["low_rank_layers"] > 0
    assert 0 < ctx.reported["low_rank_lost"] < 1  # type: ignore[operator]


def test_a_target_of_latency_is_met_where_it_is_measured(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With times that follow from sizes: whole models take twice what their layers save."""

    def layers(sizes: Any, options: Any, device: Any) -> Any:
        return {
            path: (
                size.cost_as_is("macs") / 1e4,
                lambda rank, size=size: rank * size.cost_of_rank("macs") / 1e4,
            )
            for path, size in sizes.items()
        }

    def models(states: list[ModelState], *rest: Any) -> list[float]:
        return [measure_static(state, 32)["gmacs"] * 1e5 * 0.5 + 20 for state in states]

    monkeypatch.setattr(stage_module, "layer_latencies", layers)
    monkeypatch.setattr(stage_module, "model_latencies", models)
    monkeypatch.setattr(stage_module, "liked_multiple", lambda *_: 1)
    state = source(patch_size=8)
    for target in ({"latency": 0.8}, {"latency_ms": 0.8 * models([state])[0]}):
        stage = LowRank.model_validate({"target": target, "images": 40})
        ctx = context(digits, tmp_path / "_".join(target))
        small = stage.run(state, ctx)
        ratio = models([small])[0] / models([state])[0]
        assert 0.7 < ratio <= 0.82
        assert ctx.reported["low_rank_latency_ratio"] == pytest.approx(ratio)
    ctx = context(digits, tmp_path / "out of reach")
    with pytest.raises(
        ValueError, match=r"0\.01 of the incoming model.s latency is out of"
    ):
        LowRank.model_validate({"target": {"latency": 0.01}, "images": 0}).run(
            state, ctx
        )
    assert not list(ctx.workdir.rglob("*.json"))


@pytest.mark.parametrize(
    ("given", "multiples"), [(None, {8}), (2, {2}), (5, {5})], ids=str
)
def test_ranks_are_multiples_of_what_the_runtime_takes_at_a_time(
    given: int | None,
    multiples: set[int],
    digits: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It likes 16, of which a layer of 16 to 31 directions has no two."""
    asked: list[Any] = []

    def liked(shapes: Any, *_: Any) -> int:
        asked.extend(shapes)
        return 16

    def layers(sizes: Any, *_: Any) -> Any:
        return {
            path: (size.cost_as_is("macs"), partial(size.cost, "macs"))
            for path, size in sizes.items()
        }

    def models(states: list[ModelState], *_: Any) -> list[float]:
        return [measure_static(state, 32)["gmacs"] * 1e9 for state in states]

    monkeypatch.setattr(stage_module, "layer_latencies", layers)
    monkeypatch.setattr(stage_module, "model_latencies", models)
    monkeypatch.setattr(stage_module, "liked_multiple", liked)
    state = source(patch_size=8, embed_dim=24)
    stage = LowRank.model_validate(
        {"target": {"latency": 0.8}, "images": 0, "rank_multiple": given}
    )
    ranks = stage.run(state, context(digits, tmp_path)).arch.dims["ranks"]
    assert ranks
    assert {rank % each for rank in ranks.values() for each in multiples} == {0}
    assert bool(asked) == (given is None)
    assert all(shape.kind == "linear" for shape in asked)


def test_layers_are_timed_as_they_are_and_as_products() -> None:
    size = LayerSize(32, 64, 16, 4, False)
    options = RuntimeOptions(batch_size=2, threads=1)
    found = layer_latencies({"a": size, "b": size}, options, torch.device("cpu"))
    whole_ms, of_rank = found["a"]
    assert whole_ms > 0
    times = [of_rank(rank) for rank in range(1, 33)]
    assert times == sorted(times)
    assert times[0] > 0


def test_full_rank_is_the_same_function(digits: Data, tmp_path: Path) -> None:
    """Of a model whose layers have low rank already nothing is lost."""
    state = source(patch_size=8)
    low = {
        name: value @ value.T[:, :3] @ value[:3]
        if "mlp" in name and value.ndim == 2
        else value
        for name, value in state.weights.items()
    }
    state = ModelState(state.arch, low)
    stage = LowRank(target={"macs": 0.7}, full_rank_layers=("*attn*",), images=40)  # type: ignore[arg-type]
    ctx = context(digits, tmp_path)
    small = stage.run(state, ctx)
    assert ctx.reported["low_rank_lost"] < 1e-6  # type: ignore[operator]
    images = next(ctx.images(5))
    with torch.inference_mode():
        torch.testing.assert_close(
            small.build()(images), state.build()(images), rtol=1e-3, atol=1e-3
        )


def test_it_composes_with_the_other_stages(digits: Data, tmp_path: Path) -> None:
    """Tokens merged or units pruned before it; trained, in integers, fixed and coded after it."""
    pruned, _ = prune(digits, tmp_path / "prune", source(patch_size=8))
    quick = {"target": {"macs": 0.9}, "images": 40}
    model = pruned
    for i, (kind, options) in enumerate(
        [
            ("token_merging", {"r": 2}),
            ("low_rank", quick),
            ("low_rank", {"target": {"params": 0.9}, "images": 0, "rank_multiple": 2}),
            ("finetune", TRAIN | {"epochs": 1, "warmup": 0}),
            ("uniform_quant", {"bits": 5}),
        ]
    ):
        stage = STAGES[kind].model_validate(options)
        predicted = stage.check(model.arch, digits.info)
        model = stage.run(model, context(digits, tmp_path / str(i)))
        assert predicted.builder == model.arch.builder
    assert decode_bytes(encode(model).content, "here").hash() == model.hash()
    module = on_meta(Arch.from_json(model.arch.to_json()))
    assert isinstance(module, nn.Module)
    with pytest.raises(ValueError, match="layers of low rank"):
        STAGES["token_merging"]().check(
            low_rank_arch(source().arch, {"blocks.0.mlp.fc1": 2}), digits.info
        )


@pytest.mark.slow
def test_exported_and_in_integers(digits: Data, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    quick = LowRank.model_validate({"target": {"macs": 0.6}, "images": 40})
    small = quick.run(source(patch_size=8), context(digits, tmp_path / "low"))
    integers = STAGES["int8"].model_validate({"images": 8})
    made = [small, integers.run(small, context(digits, tmp_path / "int8"))]
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for model, name in product(made, ("onnxruntime", "openvino")):
        runtime: Any = name
        run = session(model, 32, RuntimeOptions(runtime=runtime, batch_size=4))
        with torch.inference_mode():
            expected = model.build()(images).numpy()
        np.testing.assert_allclose(run.infer(images.numpy()), expected, atol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": {"latency": 0.5}, "latency": {"runtime": "tensorflow"}}, "runtime"),
        ({"target": {"macs": 0.05}}, "out of reach: with rank 1 in all .* it is 0"),
        ({"full_rank_layers": ["*"]}, "no Linear layer and no 1×1 convolution"),
    ],
)
def test_what_cannot_be_is_refused(
    options: dict[str, Any], message: str, digits: Data
) -> None:
    with pytest.raises(ValueError, match=message):
        LowRank.model_validate(options).check(source().arch, digits.info)
