"""Channels of models: which belong together, what they are worth, what stays, and the cut."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
)

from compress.channels import decide as decide_module
from compress.channels import latency as latency_module
from compress.channels import looking
from compress.channels.blocks import residual_blocks
from compress.channels.choice import Choice, GroupRule
from compress.channels.cost import Terms, macs, values
from compress.channels.decide import Decider, Decision, layout_of, share_between
from compress.channels.identities import Identities
from compress.channels.importance import (
    GradientMeter,
    activation,
    magnitude,
    normalised,
)
from compress.channels.latency import MeasuredCost, layers
from compress.channels.layout import Group, Layout
from compress.channels.looking import scores_of
from compress.channels.pruner import ChannelPruner
from compress.channels.stage import PruneChannels
from compress.channels.surgery import cut_state, difference, divergences
from compress.codec import decode, encode
from compress.measure.model import static_cost
from compress.selection.stage import WeightSelection
from compress.stage import Context
from compress.testing import tiny_data
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState, on_meta
from trainers.models.make import make_arch

QUICK = {
    "resnet20_cifar": 32,  # shortcuts that are padded
    "mobilenetv3_small_050": 32,  # depthwise convolutions, squeeze and excite
    "vit_tiny_patch16_224": 32,  # heads
}
FAMILIES = QUICK | {
    "res2net50_26w_4s": 32,  # splits of one size
    "resnext50_32x4d": 64,
    "seresnet50": 64,
    "skresnet18": 64,
    "resnest14d": 64,
    "regnety_004": 64,
    "densenet121": 64,
    "vgg11_bn": 64,
    "inception_v3": 96,
    "efficientnet_b0": 64,
    "mobilenetv2_100": 64,
    "mnasnet_100": 64,
    "ghostnet_100": 64,
    "rexnet_100": 64,  # sums over the first channels
    "shvit_s1": 64,  # splits by differences of sizes
    "dpn48b": 64,  # channels that are summed beside channels that are added
    "convnext_atto": 64,
    "swin_tiny_patch4_window7_224": 224,
    "deit_tiny_distilled_patch16_224": 64,
    "deit3_small_patch16_224": 64,
    "cait_xxs24_224": 64,
    "levit_128s": 224,
    "maxvit_tiny_tf_224": 224,
    "coatnet_0_rw_224": 224,
    "mobilevit_xxs": 64,
    "efficientformer_l1": 224,
    "efficientvit_b0": 64,
    "poolformer_s12": 64,
    "mixer_s32_224": 224,
    "resmlp_12_224": 64,
    "cspresnet50": 64,
    "darknet53": 64,
    "dla34": 64,
    "hrnet_w18_small": 64,
    "dm_nfnet_f0": 64,
    "xcit_nano_12_p16_224": 64,
    "repvgg_a0": 64,
    "edgenext_xx_small": 64,
    "vit_betwixt_patch16_rope_reg4_gap_256": 64,
    "convmixer_768_32": 64,
    "tiny_vit_5m_224": 224,
    "mobilenetv4_conv_small": 64,
    "pit_ti_224": 224,
}
EVERY = [
    pytest.param(name, size, marks=[] if name in QUICK else pytest.mark.slow)
    for name, size in FAMILIES.items()
]
SHALLOW: list[tuple[str, int, dict[str, Any]]] = [
    ("res2net50_26w_4s", 32, {"layers": [1] * 4, "channels": [8, 8, 16, 16]}),
    ("skresnet18", 32, {"layers": [1] * 4, "channels": [16, 16, 32, 32]}),
    ("densenet121", 32, {"block_config": [2, 2], "growth_rate": 8}),
    ("convnext_atto", 64, {"depths": [1] * 4, "dims": [8, 16, 16, 24]}),
    (
        "swin_tiny_patch4_window7_224",
        32,
        {"depths": [2, 2], "embed_dim": 32, "num_heads": [2, 4], "window_size": 4},
    ),
    (
        "levit_128s",
        64,
        {
            "embed_dim": [32, 48, 64],
            "key_dim": 8,
            "num_heads": [2, 3, 4],
            "depth": [1, 1, 1],
        },
    ),
    ("cait_xxs24_224", 32, {"depth": 2, "embed_dim": 48}),
    ("xcit_nano_12_p16_224", 32, {"depth": 2, "embed_dim": 64}),
    ("edgenext_xx_small", 64, {"depths": [1, 1, 2, 1]}),
    ("mobilevit_xxs", 64, {}),
    ("rexnet_100", 32, {"width_mult": 0.5, "depth_mult": 0.5}),
    ("resnet50_gn", 64, {"layers": [1] * 4, "channels": [32, 32, 64, 64]}),
]
"""Families of many operations, small: their full sizes are slow tests."""


def model_of(arch: Arch, seed: int = 0) -> ModelState:
    """Random weights in which norms and biases are no constants."""
    state = ModelState.initialised(arch, seed)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in state.weights.items():
        if value.is_floating_point() and value.ndim == 1:
            noise = torch.rand(value.shape, generator=generator)
            variance = name.endswith("running_var")
            value = noise + 0.5 if variance else value + 0.3 * noise
        weights[name] = value
    return ModelState(state.arch, weights, state.meta)


def some(layout: Layout, seed: int = 0) -> np.ndarray:
    """A random choice of what stays, 40 to 90 % of each group."""
    rng = np.random.default_rng(seed)
    keep = np.ones(layout.num_units, bool)
    for group in layout.groups:
        count = max(1, int(len(group.units) * rng.uniform(0.4, 0.9)))
        keep[group.units] = False
        keep[rng.choice(group.units, count, replace=False)] = True
    return keep


def checked_cut(model: ModelState, size: int) -> ModelState:
    """The model without a random choice of its units: smaller, and it computes what the masked
    one does.
    """
    layout = layout_of(model.arch, size)
    keep = some(layout)
    cut = cut_state(model, layout, keep)
    assert sum(map(torch.numel, cut.weights.values())) < 0.9 * sum(
        map(torch.numel, model.weights.values())
    )
    assert difference(model, layout, keep, cut, size) < 1e-5
    return cut


@pytest.mark.parametrize(("name", "size", "args"), SHALLOW)
def test_a_shallow_model_of_the_family_is_cut_alike(
    name: str, size: int, args: dict[str, Any]
) -> None:
    checked_cut(
        model_of(make_arch(name, num_classes=5, image_size=size, args=args)), size
    )


@pytest.mark.parametrize(("name", "size"), EVERY)
def test_the_cut_model_computes_what_the_masked_one_does(
    name: str, size: int, tmp_path: Path
) -> None:
    model = model_of(make_arch(name, num_classes=10, image_size=size))
    cut = checked_cut(model, size)
    cut.save(tmp_path)
    assert ModelState.load(tmp_path).hash() == cut.hash()
    if name in QUICK:
        return  # writing ONNX takes seconds
    from compress.measure.options import RuntimeOptions
    from compress.runtimes.registry import session

    options = RuntimeOptions(runtime="onnxruntime", batch_size=2, threads=1)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    found = session(cut, size, options).run(images.numpy())
    expected = cut.build()(images).detach().numpy()
    assert np.abs(found - expected).max() < 1e-4 * max(1, np.abs(expected).max())


def test_a_cut_model_is_cut_again() -> None:
    model = model_of(make_arch("resnet20_cifar", num_classes=10, image_size=32))
    for seed in range(2):
        layout = layout_of(model.arch, 32)
        keep = some(layout, seed)
        cut = cut_state(model, layout, keep)
        assert difference(model, layout, keep, cut, 32) < 1e-5
        assert cut.arch.dims["inner"]["builder"] == "resnet_cifar"
        model = cut


def test_a_cut_model_is_coded_and_selected_from(
    small: tuple[ModelState, Layout], tmp_path: Path
) -> None:
    model, layout = small
    cut = cut_state(model, layout, some(layout))
    coded = {
        name: value.round(decimals=1) if value.is_floating_point() else value
        for name, value in cut.weights.items()
    }
    few = replace(cut, weights=coded)
    encode(few, tmp_path / "model.bin")
    assert decode(tmp_path / "model.bin").hash() == few.hash()
    stage = WeightSelection()
    student = stage.check(cut.arch, INFO)
    ctx: Any = SimpleNamespace(
        seed=0,
        device=torch.device("cpu"),
        data=SimpleNamespace(info=INFO),
        report=lambda **_: None,
    )
    assert stage.run(cut, ctx).arch == student == cut.arch


def test_classifier_and_images_stay_whole() -> None:
    arch = make_arch("deit_tiny_distilled_patch16_224", num_classes=10, image_size=32)
    layout = layout_of(arch, 32)
    assert not {
        ("head.weight", 0),
        ("head.bias", 0),
        ("head_dist.weight", 0),
        ("patch_embed.proj.weight", 1),
    } & set(layout.rows)
    assert ("head.weight", 1) in layout.rows
    heads = [g for g in layout.groups if len(g.units) == 3]
    assert len(heads) == 12
    assert {place for place, _ in heads[0].axes} == {
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.qkv.bias",
        "blocks.0.attn.proj.weight",
    }


def test_what_cannot_be_cut_is_refused() -> None:
    small = {
        "layers": [1] * 4,
        "embed_dims": [16, 24, 24, 24],
        "hidden_sizes": [8] * 4,
    }
    arch = make_arch("sequencer2d_s", num_classes=10, image_size=64, args=small)
    with pytest.raises(ValueError, match="prune_channels cannot cut sequencer2d_s"):
        layout_of(arch, 64)  # recurrent layers


@pytest.mark.parametrize(
    "dims",
    [
        {"shapes": {"conv1.weight": [17, 3, 3, 3]}},
        {"shapes": {"conv1.weight": [8]}},
        {"shapes": {"nothing": [8]}},
        {"sizes": {"layer1.0": {"training": 1}}},
        {"sizes": {"layer1.0": {"stride": 2}}},
        {"sizes": {"nothing": {"stride": 1}}},
        {"dropped": ["layer9"]},
    ],
)
def test_a_cut_from_a_strangers_file_only_makes_smaller(
    dims: dict[str, object],
) -> None:
    inner = make_arch("resnet20_cifar", num_classes=10, image_size=32)
    found = {"inner": inner.to_json(), **dims}
    arch = Arch.from_json(Arch("cut", inner.name, inner.args, found).to_json())
    with pytest.raises(ValueError, match=r"the model has no|the tensor|the module"):
        on_meta(arch)


# ------------------------------------------------------------------ identities


def test_identities_follow_reshapes() -> None:
    ids = Identities()
    channels = ids.fresh(6)
    heads, dims = ids.split(channels, [2, 3])
    assert heads is not None
    assert dims is not None
    assert (ids.resolved(channels) == ids.merge([(2, heads), (3, dims)])).all()
    # the same axis, split once more, has the same heads
    again, _ = ids.split(channels, [2, 3])
    assert (ids.resolved(again) == ids.resolved(heads)).all()  # type: ignore[arg-type]
    # flattened with places and split off again
    flat = ids.merge([(6, channels), (4, None)])
    back, places = ids.split(flat, [6, 4])
    assert places is None
    assert (ids.resolved(back) == ids.resolved(channels)).all()  # type: ignore[arg-type]


def test_what_does_not_fit_together_stays() -> None:
    ids = Identities()
    channels = ids.fresh(12)
    ids.split(channels, [3, 4])
    ids.split(channels, [4, 3])
    assert (
        not ids.resolved(channels)[:, :1].all()
        or len(np.unique(ids.resolved(channels))) <= 8
    )
    constant = ids.fresh(2)
    ids.unify(constant, None)
    assert not ids.resolved(constant).any()


# ------------------------------------------------------------------ cost and choice


@pytest.fixture(scope="module")
def small() -> tuple[ModelState, Layout]:
    arch = make_arch("resnet20_cifar", num_classes=10, image_size=32, args={"width": 8})
    return model_of(arch), layout_of(arch, 32)


def test_estimated_costs_are_those_of_the_cut_model(
    small: tuple[ModelState, Layout],
) -> None:
    model, layout = small
    keep = some(layout)
    cut = cut_state(model, layout, keep)
    shares = np.array([[keep[group.units].mean() for group in layout.groups]])
    counted = static_cost(cut.arch, 32)
    assert macs(layout).of(shares)[0] == pytest.approx(1e9 * counted["gmacs"])
    parameters = dict(on_meta(model.arch).named_parameters())
    number = values(layout, dict.fromkeys(parameters, 1))
    assert number.of(shares)[0] == pytest.approx(counted["num_params"])


def separable(sizes: list[int], prices: list[float]) -> tuple[list[Group], Terms]:
    """Groups each of whose units has its own price."""
    units = np.arange(sum(sizes))
    parts = np.split(units, np.cumsum(sizes)[:-1])
    groups = [Group(str(i), part, ()) for i, part in enumerate(parts)]
    layout = Layout(len(units), tuple(groups), {}, {}, {}, (), ())
    terms = [(p, [part[:, None]]) for p, part in zip(prices, parts, strict=True)]
    return groups, Terms(layout, terms)


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_close_to_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [6, 5, 7]
    groups, cost = separable(sizes, rng.uniform(1, 3, 3).tolist())
    product = _Product(cost)  # outputs times inputs, as in a chain of layers
    scores = rng.exponential(size=18)
    ordered = [np.sort(scores[g.units])[::-1] for g in groups]
    for model in (cost, product):
        limit = 0.5 * float(model.of(np.ones((1, 3)))[0])
        best = 0.0
        for counts in itertools.product(*(range(1, n + 1) for n in sizes)):
            shares = np.array([counts]) / np.array(sizes)
            if model.of(shares)[0] <= limit:
                worth = sum(o[:n].sum() for o, n in zip(ordered, counts, strict=True))
                best = max(best, worth)
        choice = Choice(groups, [GroupRule(1, 1)] * 3, scores, model)
        keep = choice.to(limit)
        assert choice.cost_now() <= limit
        assert scores[keep].sum() >= 0.97 * best


class _Product:
    def __init__(self, terms: Terms) -> None:
        self.terms = terms

    def of(self, shares: np.ndarray) -> np.ndarray:
        return shares[:, 0] * shares[:, 1] + 2 * shares[:, 1] * shares[:, 2]


def test_floors_and_chunks_hold() -> None:
    groups, cost = separable([16, 8], [1.0, 1.0])
    scores = np.linspace(0, 1, 24)
    keep = Choice(groups, [GroupRule(6, 4), GroupRule(8, 1)], scores, cost).to(1.0)
    assert keep[:16].sum() == 8  # two chunks of four; a third would leave four
    assert keep[16:].all()
    assert keep[8:16].all()  # the most important ones


def test_what_stays_is_a_multiple() -> None:
    """The first chunk of 22 units is 6, so that 16, 8, … stay."""
    groups, cost = separable([22], [1.0])
    for limit, stays in ((21.9, 16), (16.0, 16), (15.9, 8), (7.9, 8)):
        choice = Choice(groups, [GroupRule(8, 8)], np.arange(22.0), cost)
        keep = choice.to(limit)
        assert keep.sum() == stays
        assert keep[22 - stays :].all()
        assert choice.cost_now() == pytest.approx(stays)


def test_whole_blocks_go_where_that_is_worth_more(
    small: tuple[ModelState, Layout],
) -> None:
    model, layout = small
    images = torch.randn(2, 3, 32, 32)
    blocks = residual_blocks(model.build(), layout, images)
    assert set(blocks) == {f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)} - {
        "layer2.0",
        "layer3.0",
    }
    scores = np.ones(layout.num_units)
    group = layout.groups[blocks["layer1.1"][0]]
    scores[group.units] = 1e-6
    rules = [GroupRule(max(1, len(g.units) // 2), 1) for g in layout.groups]
    cost = macs(layout)
    choice = Choice(layout.groups, rules, scores, cost, blocks=blocks)
    keep = choice.to(0.8 * choice.cost_now())
    assert choice.dropped == ["layer1.1"]
    cut = cut_state(model, layout, keep, choice.dropped)
    assert not any(name.startswith("layer1.1.") for name in cut.weights)
    assert difference(model, layout, keep, cut, 32, choice.dropped) < 1e-5
    again = layout_of(cut.arch, 32)
    other = cut_state(cut, again, some(again))
    assert static_cost(other.arch, 32)["gmacs"] < static_cost(cut.arch, 32)["gmacs"]


def test_latency_is_that_of_the_tables_and_linear_between(
    small: tuple[ModelState, Layout],
) -> None:
    model, layout = small
    found = layers(on_meta(model.arch).eval(), layout, (3, 32, 32))
    assert len(found) == 20
    assert found[1].shape.outputs == 8
    tables = [[[1.0, 2, 3], [2, 4, 6], [4, 8, 12]]] * len(found)
    nothing = Terms(layout, [(0.0, [])])
    cost = MeasuredCost(layout, found, tables, nothing, 0.0)
    ones = np.ones((1, len(layout.groups)))
    assert cost.of(ones)[0] == pytest.approx(20 * 12)
    # at half of all channels, layers with both ends cut take T(1/2, 1/2), others T(1, ·), T(·, 1)
    assert cost.of(ones / 2)[0] == pytest.approx(18 * 4 + 6 + 8)


def test_a_target_of_latency_is_met_where_it_is_measured(
    small: tuple[ModelState, Layout], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the layers promise is far from what the model takes: each counts a millisecond more."""

    def of_layers(modules: Any, options: Any, device: Any) -> Any:
        return np.array(
            [
                1 + module.weight.numel() * inputs[0, 0].numel() / 1e5
                for module, inputs in modules
            ]
        )

    def of_models(states: list[ModelState], size: int, *rest: Any) -> Any:
        return np.array([[static_cost(s.arch, size)["gmacs"] * 1e4] for s in states])

    monkeypatch.setattr(latency_module, "layer_times", of_layers)
    not_kept = latency_module._measured.__wrapped__
    monkeypatch.setattr(latency_module, "_measured", not_kept)
    monkeypatch.setattr(decide_module, "model_times", of_models)
    model, _ = small
    data = tiny_data(tmp_path / "data")
    context = Context(
        data, torch.device("cpu"), 1, tmp_path / "work", find_teacher=lambda *_: model
    )
    stage = PruneChannels.model_validate(
        {
            "target": {"latency": 0.5},
            "importance": "magnitude",
            "multiple": 1,
            "epochs": 0,
            "compensate": False,
        }
    )
    found = stage.run(model, context)
    (whole,), (cut,) = of_models([model, found], 32)
    assert 0.48 < cut / whole <= 0.51
    assert context.reported["channels_latency_ratio"] == pytest.approx(cut / whole)


def test_estimates_are_corrected_between_what_was_measured() -> None:
    assert share_between({}, 0.5) == 0.5
    assert share_between({0.5: 0.2}, 0.6) == pytest.approx(0.75)
    assert share_between({0.5: 0.2, 0.75: 0.7}, 0.6) == pytest.approx(0.7)
    assert share_between({0.5: 0.2, 0.75: 0.1}, 0.15) == pytest.approx(0.375)


# ------------------------------------------------------------------ importance


def slow_sums(
    module: nn.Module, layout: Layout, values_of: dict[str, Tensor], makers: bool
) -> np.ndarray:
    """Σ over the parameters of each unit, position by position."""
    total = np.zeros(layout.num_units)
    for (name, axis), rows in layout.rows.items():
        if name not in values_of:
            continue
        value = values_of[name]
        if makers and value.ndim in (2, 4) and axis != 0:
            continue
        for position, units in enumerate(rows):
            for unit in units[units >= 0]:
                total[unit] += float(value.select(axis, position).double().sum())
    return total


def test_importance_matches_slow_oracles(small: tuple[ModelState, Layout]) -> None:
    model, layout = small
    module = model.build()
    named = {name: p.detach() for name, p in module.named_parameters()}
    squares = slow_sums(
        module, layout, {n: p.square() for n, p in named.items()}, False
    )
    ones = slow_sums(
        module, layout, {n: torch.ones_like(p) for n, p in named.items()}, False
    )
    assert magnitude(module, layout) == pytest.approx(np.sqrt(squares / ones), rel=1e-5)

    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    meters = [GradientMeter(module, layout, kind) for kind in ("taylor", "hessian")]
    sums = []
    for _ in range(2):
        module.zero_grad()
        (module(images).square().mean() * 100).backward()
        for meter in meters:
            meter.add()
        products = {
            n: p.detach() * p.grad
            for n, p in module.named_parameters()
            if p.grad is not None
        }
        sums.append(slow_sums(module, layout, products, True))
        images = images.flip(0) * 2
    first, second = (meter.close() for meter in meters)
    assert first == pytest.approx(np.abs(sums).mean(0), rel=1e-4, abs=1e-7)
    assert second == pytest.approx(np.square(sums).mean(0), rel=1e-4, abs=1e-9)


def test_activation_importance_is_the_energy_of_the_next_layer() -> None:
    arch = make_arch(
        "vit_tiny_patch16_224",
        num_classes=10,
        image_size=32,
        args={"embed_dim": 16, "depth": 1, "num_heads": 2},
    )
    model, layout = model_of(arch), layout_of(arch, 32)
    module = model.build()
    images = torch.randn(3, 3, 32, 32)
    seen: list[Tensor] = []
    fc2 = module.get_submodule("blocks.0.mlp.fc2")
    handle = fc2.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    found = activation(module, layout, [images])
    module(images)
    handle.remove()
    group = next(g for g in layout.groups if g.name == "blocks.0.mlp.fc1.weight:0")
    weight: Tensor = fc2.weight  # type: ignore[assignment]
    expected = seen[-1].square().mean((0, 1)) * weight.square().sum(0)
    assert found[group.units] == pytest.approx(expected.detach().numpy(), rel=1e-4)


def test_isomorphic_groups_are_normalised_together(
    small: tuple[ModelState, Layout],
) -> None:
    _, layout = small
    scores = np.random.default_rng(0).random(layout.num_units) + 0.1
    inner = [
        g for g in layout.groups if "conv1.weight:0" in g.name and "layer" in g.name
    ]
    found = normalised(scores, layout, "isomorphic")
    units = np.concatenate([group.units for group in inner])
    assert found[units].mean() == pytest.approx(1)
    assert found[inner[0].units].mean() != pytest.approx(1)
    assert normalised(scores, layout, "mean")[inner[0].units].mean() == pytest.approx(1)


# ------------------------------------------------------------------ the stage's options

INFO = DataInfo(num_classes=10, image_size=32, num_train=100, num_val=10, num_test=10)


def test_excluded_layers_lose_nothing(small: tuple[ModelState, Layout]) -> None:
    _, layout = small
    stage = PruneChannels(exclude=["layer3.*"], floors={"layer2.*": 0.5}, least=0.1)
    for group, rule in zip(layout.groups, stage.rules(layout), strict=True):
        if any(name.startswith("layer3.") for name, _ in group.axes):
            assert rule.least == len(group.units)
        elif any(name.startswith("layer2.") for name, _ in group.axes):
            assert rule.least >= len(group.units) / 2


def test_check_says_what_is_wrong(small: tuple[ModelState, Layout]) -> None:
    model, _ = small
    with pytest.raises(ValueError, match="leave nothing to remove"):
        PruneChannels(target={"macs": 0.5}, exclude=["*"]).check(model.arch, INFO)
    with pytest.raises(ValueError, match="move it before the quantize stage"):
        PruneChannels().check(replace(model.arch, builder="int8"), INFO)
    with pytest.raises(ValueError, match=r"exclude: no layer .* is called 'head'"):
        PruneChannels(target={"macs": 0.5}, exclude=["head"]).check(model.arch, INFO)
    with pytest.raises(ValueError, match="blocks: whole blocks go in one step only"):
        PruneChannels(blocks=True, pruning="iterative")


def test_importance_of_a_model_that_keeps_biases_between_passes(tmp_path: Path) -> None:
    """LeViT keeps its attention's biases in eval mode: the mean over batches is that of models that
    see one batch each.
    """
    name, _, args = next(each for each in SHALLOW if each[0] == "levit_128s")
    model = model_of(make_arch(name, num_classes=10, image_size=32, args=args))
    layout = layout_of(model.arch, 32)
    data = tiny_data(tmp_path / "data")
    cpu = torch.device("cpu")
    ctx = Context(data, cpu, 1, tmp_path / "work", lambda *_: model)
    stage = PruneChannels.model_validate(
        {"importance_images": 24, "batch_size": 8, "label_smoothing": 0.0}
    )
    found = scores_of(model.build(), layout, stage, ctx)
    each = []
    for images, labels in ctx.batches(3, 8):
        module = model.build().eval()
        meter = GradientMeter(module, layout, "hessian")
        torch.nn.functional.cross_entropy(module(images), labels).backward()
        meter.add()
        each.append(meter.close())
    np.testing.assert_allclose(found, np.mean(each, 0), rtol=1e-3, atol=1e-12)


# ------------------------------------------------------------------ with blocks or without


def changed(model: ModelState, small: ModelState, images: Tensor) -> float:
    """Σ p log(p / q) over classes, mean over images and classes."""
    with torch.no_grad():
        logits = [each.build()(images).double() for each in (model, small)]
    p, q = (each - each.logsumexp(1, keepdim=True) for each in logits)
    return float((p.exp() * (p - q)).mean())


@pytest.mark.parametrize("idle_block", [True, False])
def test_blocks_go_where_that_changes_less(
    small: tuple[ModelState, Layout],
    idle_block: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Importance says in both cases that two blocks are worth nothing."""
    model, layout = small
    images = torch.randn(2, 3, 32, 32)
    blocks = residual_blocks(model.build(), layout, images)
    scores = np.ones(layout.num_units)
    weights = dict(model.weights)
    for path in ("layer1.1", "layer2.1"):
        for group in blocks[path]:
            scores[layout.groups[group].units] = 1e-6
        factor = 1e-3 if idle_block else 10.0  # of what they add to what they pass on
        weights[f"{path}.bn2.weight"] = factor * weights[f"{path}.bn2.weight"]
    weights["linear.weight"] = 0.01 * weights["linear.weight"]  # no class is certain
    model = replace(model, weights=weights)
    monkeypatch.setattr(looking, "scores_of", lambda *_: scores)
    ctx = Context(
        tiny_data(tmp_path / "data"),
        torch.device("cpu"),
        1,
        tmp_path / "work",
        find_teacher=lambda *_: model,
    )
    stage = PruneChannels.model_validate(
        {
            "target": {"macs": 0.7},
            "multiple": 1,
            "least": 0.5,
            "blocks": True,
            "epochs": 0,
            "compensate": False,
            "importance_images": 24,
        }
    )
    decisions = Decider(model, layout, stage, ctx).decide(scores)
    assert [bool(each.dropped) for each in decisions] == [False, True]
    assert all(each.meets_target for each in decisions)
    cuts = [cut_state(model, layout, each.keep, each.dropped) for each in decisions]
    images = torch.cat(list(ctx.images(24)))
    found = [changed(model, each, images) for each in cuts]
    batches = [images[:10], images[10:]]
    own = divergences(model, cuts, batches, torch.device("cpu"))
    assert own == pytest.approx(found, rel=1e-3, abs=1e-8)
    expected = cuts[int(np.argmin(found))]
    assert stage.run(model, ctx).arch == expected.arch
    assert expected is cuts[1 if idle_block else 0]


def test_a_cut_that_meets_the_target_comes_first(
    small: tuple[ModelState, Layout], tmp_path: Path
) -> None:
    """Also where the other one changed nothing."""
    model, layout = small
    data = tiny_data(tmp_path / "data")
    ctx = Context(data, torch.device("cpu"), 1, tmp_path / "work", lambda *_: model)
    keep = some(layout)
    cut = cut_state(model, layout, keep)
    missed = Decision(np.ones(layout.num_units, bool), (), 1.0, meets_target=False)
    met = Decision(keep, (), 0.5)
    found = PruneChannels()._better(model, [(missed, model), (met, cut)], ctx)
    assert found == (met, cut)


# ------------------------------------------------------------------ while training


def test_nothing_waits_for_values_inside_an_interval(
    small: tuple[ModelState, Layout],
) -> None:
    """Tensors without values: whoever asks for one (item, nonzero, a copy to NumPy) fails, as the
    decision at an interval's end does.
    """
    model, layout = small
    stage = PruneChannels(target={"macs": 0.5}, multiple=1)
    cost = macs(layout)
    limit = 0.5 * float(cost.of(np.ones((1, len(layout.groups))))[0])
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = model.arch.build().train()
        meter = GradientMeter(module, layout, "hessian")
        pruner = ChannelPruner(
            module, layout, stage.rules(layout), cost, [limit], 4, meter, "none"
        )
        pruner.keep = some(layout)
        pruner._mask()  # as after a first decision
        for step in (1, 2, 3):
            module(torch.randn(2, 3, 32, 32)).sum().backward()
            pruner.on_grads(step)
            pruner.on_step(step)
        assert pruner.intervals == 0
        with pytest.raises((RuntimeError, DataDependentOutputException)):
            pruner.on_step(4)
