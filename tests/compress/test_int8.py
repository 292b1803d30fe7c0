"""Models in integers: where quantisers act, what they compute, what runtimes execute."""

from collections import Counter
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress.codec.file import decode, encode
from compress.int8.architectures import quantisable_layers
from compress.int8.fold import fold_norms
from compress.int8.nncf_internals import (
    Choice,
    _ours,
    choose,
    without_smoothed_classifier,
)
from compress.int8.readers import read_by_none_but, readers_of
from compress.int8.stage import Int8, _Calibration
from compress.measure.options import RuntimeOptions
from compress.pipeline import STAGES
from compress.runtimes.registry import session
from compress.stage import Context
from compress.testing import tiny_data, tiny_models
from compress.token_merging import TokenMerging
from tests.compress.cases import CASES
from tests.optional import needs
from trainers.data.splits import Data
from trainers.models.arch import ModelState
from trainers.models.make import make_arch
from trainers.models.quantised import (
    IMAGES,
    OUTPUT,
    Place,
    QuantisedModel,
    QuantiserPlan,
    quantise,
    round_to_steps,
)

pytestmark = needs("nncf")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return tiny_data(tmp_path_factory.mktemp("data"))


def quantised(
    data: Data, folder: Path, model: ModelState, **options: Any
) -> tuple[ModelState, dict[str, Any]]:
    context = Context(
        data, torch.device("cpu"), 1, folder, find_teacher=lambda *_: model
    )
    return Int8(images=16, **options).run(model, context), context.reported


def test_values_are_those_of_onnx() -> None:
    values = torch.tensor([-9.0, -0.26, 0.0, 0.24, 0.26, 200.0])
    step = torch.tensor(0.5)
    found = quantise(values, step, torch.tensor(2, dtype=torch.uint8))
    assert found.tolist() == [-1.0, -0.5, 0.0, 0.0, 0.5, 126.5]


def test_gradient_of_a_step_is_that_of_lsq() -> None:
    step = torch.tensor([0.5], requires_grad=True)
    weight = torch.tensor([[0.6, 9.0, -9.0]], requires_grad=True)
    (round_to_steps(weight, step, 4) * step).sum().backward()
    assert step.grad is not None
    assert weight.grad is not None
    # inside: round(w/s) - w/s = 1 - 1.2; clipped: the largest integers, 7 and -7
    assert step.grad.item() == pytest.approx(-0.2)
    assert weight.grad.tolist() == [[1, 0, 0]]


def test_a_place_is_one_call_of_one_function() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(torch.relu(x) + 0.3)

    plan = QuantiserPlan(points=((Place("", "relu", 1, 0), 0),), signed=(False,))
    model = QuantisedModel(Twice(), plan)
    assert model(torch.tensor([0.4])).item() == 1.0  # 0.7 at steps of 1
    assert QuantiserPlan.from_json(plan.to_json()) == plan


def test_folding_a_norm_changes_nothing() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)
    )
    for layer in module:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean)
            nn.init.uniform_(layer.weight)
    images = torch.randn(2, 3, 8, 8)
    wanted = module.eval()(images)
    assert fold_norms(module, images) == [
        ("0", "1")
    ]  # the second follows no convolution
    torch.testing.assert_close(module(images), wanted)


def test_places_of_nncf(data: Data) -> None:
    """The names that NNCF gives its hooks are read by us alone."""
    vit, resnet = (model.build() for model in tiny_models(data))
    images = torch.randn(2, 3, 32, 32)
    chosen = choose(resnet, [images], None)
    places = [place for group in chosen.groups for place in group]
    assert Place("", "relu", 0, OUTPUT) in places
    assert Place(*IMAGES, OUTPUT) in places
    assert {"conv1", "layer1.0.conv1", "linear"} <= set(chosen.weights)
    chosen = choose(vit, [images], 0.95)
    places = [place for group in chosen.groups for place in group]
    fc1 = Place("blocks.0.mlp.fc1", "linear", 0, 0)
    assert fc1 in places
    assert fc1 in [place for place, _ in chosen.scaled]


def test_blocks_in_a_list_are_told_apart(data: Data, tmp_path: Path) -> None:
    """NNCF calls the layers of all of them by one name."""
    args = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
    arch = make_arch(
        "vit_small_patch16_rope_224", num_classes=4, image_size=32, args=args
    )
    state, reported = quantised(
        data, tmp_path, ModelState.initialised(arch, 0), smooth_quant=0.5
    )
    assert reported["int8_layers"] == 10
    assert reported["int8_float_layers"] == 0
    plan = QuantiserPlan.from_json(state.arch.dims)
    rounded = {place.module for place, _ in plan.points}
    scaled = {place.module for place, _ in plan.scaled}
    for block in ("blocks.0", "blocks.1"):
        assert {f"{block}.attn.qkv", f"{block}.mlp.fc2"} <= rounded
        assert {f"{block}.attn.qkv", f"{block}.mlp.fc1"} <= scaled


def test_factors_of_merged_tokens_have_a_place(data: Data, tmp_path: Path) -> None:
    """They stand before calls that NNCF takes for the model's own, without a path."""
    teacher = partial(lambda model, *_: model, None)
    context = Context(data, torch.device("cpu"), 1, tmp_path, teacher)
    merged = TokenMerging(r=1).run(tiny_models(data)[0], context)
    state, _ = quantised(data, tmp_path, merged, smooth_quant=0.5)
    plan = QuantiserPlan.from_json(state.arch.dims)
    modules = dict(merged.build().named_modules())
    assert {place.module for place, _ in plan.points} <= {IMAGES[0], *modules}


def test_what_nncf_cannot_follow_is_refused_before_a_trial(data: Data) -> None:
    args = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8}
    arch = make_arch("eva02_tiny_patch14_224", num_classes=4, image_size=32, args=args)
    with pytest.raises(ValueError, match=r"NNCF, which chooses .* cannot follow"):
        Int8().check(arch, data.info)


def test_runtimes_execute_integers(data: Data, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    vit, resnet = tiny_models(data)
    batch = RuntimeOptions(runtime="onnxruntime", batch_size=4, threads=1)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kernels = {}
    for model in (vit, resnet):
        state, _ = quantised(data, tmp_path, model)
        deployed = session(state, 32, batch)
        kernels[model.arch.builder] = deployed.kernels()
        found = deployed.run(images.numpy())
        wanted = state.build()(images).detach().numpy()
        assert deployed.precision == "int8"
        assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
    assert kernels["resnet_cifar"]["QLinearConv"] == 19
    # of nine sums two have a padded shortcut
    assert kernels["resnet_cifar"]["QLinearAdd"] == 7
    assert "Conv" not in kernels["resnet_cifar"]
    assert (
        kernels["timm"]["MatMulIntegerToFloat"] == 8
    )  # four layers in each of two blocks


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_what_follows_an_activation_in_place_takes_integers(
    runtime: Any, data: Data, tmp_path: Path
) -> None:
    """NNCF names it `relu_`, as it is called inside torch's `relu`."""
    pytest.importorskip(runtime)
    arch = make_arch("resnet10t", num_classes=4, image_size=32)
    model = ModelState.initialised(arch, 0)
    layers = model.build().modules()
    assert any(isinstance(m, nn.ReLU) and m.inplace for m in layers)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.build().modules())
    state, _ = quantised(data, tmp_path, model)
    options = RuntimeOptions(runtime=runtime, batch_size=4, threads=1)
    deployed = session(state, 32, options)
    kernels = deployed.kernels()
    if runtime == "onnxruntime":
        assert kernels["QLinearConv"] == convolutions
        assert "Conv" not in kernels
    else:
        of_convolutions = [k for k in kernels if k.startswith("Convolution")]
        assert sum(kernels[k] for k in of_convolutions) == convolutions
        assert all(kernel.endswith((" u8", " i8")) for kernel in of_convolutions)


def test_what_is_computed_in_float_is_stored_in_integers(
    data: Data, tmp_path: Path
) -> None:
    """NNCF leaves squeeze-and-excitation in float; its weights need no more than a byte each."""
    for runtime in ("onnxruntime", "openvino"):
        pytest.importorskip(runtime)
    arch = make_arch("test_efficientnet", num_classes=4, image_size=32)
    model = ModelState.initialised(arch, 0)
    layers = {n: m for n, m in model.build().named_modules() if ".se.conv" in n}
    assert len(layers) == 4
    every = quantisable_layers(arch)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sizes = Counter[str]()
    for float_layers in ((), ("*.se.*",)):
        state, reported = quantised(data, tmp_path, model, float_layers=float_layers)
        assert reported["int8_layers"] == len(every) - 4 * len(float_layers)
        assert reported["int8_float_layers"] == 4
        kind = torch.float32 if float_layers else torch.int8
        assert {state.weights[f"inner.{n}.weight"].dtype for n in layers} == {kind}
        wanted = state.build()(images).detach().numpy()
        for runtime in ("onnxruntime", "openvino"):
            folder = tmp_path / f"{runtime}-{len(float_layers)}"
            options = RuntimeOptions(runtime=runtime, batch_size=4, threads=1)
            found = session(state, 32, options, folder).run(images.numpy())
            assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
            files = [path for path in folder.iterdir() if path.suffix != ".xml"]
            used = sum(path.stat().st_size for path in files)
            sizes[runtime] += used if float_layers else -used
    weights = sum(layer.weight.numel() for layer in layers.values())
    assert (
        min(sizes.values()) > 2 * weights
    )  # of three bytes each, without what a step needs


def test_a_quantiser_that_would_never_act_is_refused() -> None:
    place = Place("act1", "relu_", 0, OUTPUT)
    ours = {place[:3]: ("act1", "relu", 0)}
    assert _ours(place, ours, {"act1"}) == Place("act1", "relu", 0, OUTPUT)
    assert _ours(Place(*IMAGES, OUTPUT), {}, {}) == Place(*IMAGES, OUTPUT)
    assert (
        _ours(place, {}, {"block.act1"}) is None
    )  # shared, and called otherwise by NNCF
    with pytest.raises(ValueError, match="call 0 of relu_ in act1, which the model"):
        _ours(place, {}, {"act1"})


def test_openvino_keeps_weights_of_four_bits_in_four_bits(
    data: Data, tmp_path: Path
) -> None:
    """Half a byte for each; and the kernels are those of integers all the same."""
    openvino = pytest.importorskip("openvino")
    _, resnet = tiny_models(data)
    options = RuntimeOptions(runtime="openvino", batch_size=4, threads=1)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sizes, kernels = {}, {}
    for share in (0.0, 1.0):
        state, _ = quantised(data, tmp_path, resnet, four_bit_fraction=share)
        folder = tmp_path / f"{share}"
        deployed = session(state, 32, options, folder)
        kernels[share] = deployed.kernels()
        sizes[share] = (folder / "model.bin").stat().st_size
        wanted = state.build()(images).detach().numpy()
        found = deployed.run(images.numpy())
        assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
    weights = sum(
        module.weight.numel()
        for module in resnet.build().modules()
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))
    )
    assert sizes[0.0] - sizes[1.0] == pytest.approx(weights / 2, abs=50)
    assert kernels[0.0] == kernels[1.0]
    model = openvino.Core().read_model(str(tmp_path / "1.0" / "model.xml"))
    kinds = Counter(node.get_type_name() for node in model.get_ordered_ops())
    assert kinds["ShapeOf"] == 0
    # of each quantiser two limits, which its outputs share
    assert kinds["Constant"] <= 2 * kinds["FakeQuantize"] + 4 * 20 + 10


def test_a_layer_in_float_is_not_rounded_by_anyone(data: Data, tmp_path: Path) -> None:
    """Of the two the first reads images that nobody else reads, the second what others read,
    too; ONNX Runtime would round its weight.
    """
    pytest.importorskip("onnxruntime")
    _, resnet = tiny_models(data)
    layers = ["conv1", "layer1.0.conv1"]
    state, _ = quantised(data, tmp_path, resnet, float_layers=layers)
    plan = QuantiserPlan.from_json(state.arch.dims)
    assert Place(*IMAGES, OUTPUT) not in dict(plan.points)
    assert Place("", "relu", 0, OUTPUT) in dict(plan.points)
    options = RuntimeOptions(runtime="onnxruntime", batch_size=4, threads=1)
    deployed = session(state, 32, options)
    kernels = deployed.kernels()
    assert (kernels["QLinearConv"], kernels["Conv"]) == (17, 2)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wanted = state.build()(images).detach().numpy()
    assert (
        np.abs(deployed.run(images.numpy()) - wanted).max() < 0.1 * np.abs(wanted).max()
    )


def test_who_reads_a_value() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.a(x))
            return torch.cat([self.b(y), y])

    found = readers_of(Two().eval(), torch.randn(2, 2))
    images, relu = Place(*IMAGES, OUTPUT), Place("", "relu", 0, OUTPUT)
    assert found[images] == {"a"}
    assert found[relu] == {"b", ""}
    assert read_by_none_but({"a"}, [images], found)
    assert not read_by_none_but({"b"}, [relu], found)
    assert read_by_none_but({"a", "b"}, [Place("a", "linear", 0, 0), images], found)


def test_a_depthwise_convolution_takes_integers() -> None:
    """NNCF gives its input a step for each channel."""

    class Separable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.point, self.act = nn.Conv2d(3, 8, 1), nn.ReLU6()
            self.depth = nn.Conv2d(8, 8, 3, groups=8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.depth(self.act(self.point(x))))

    module = Separable()
    chosen = choose(module.eval(), [torch.randn(2, 3, 8, 8)], None)
    places = [place for group in chosen.groups for place in group]
    assert Place("act", "hardtanh", 0, OUTPUT) in places
    assert chosen.weights == ["point", "depth"]


def test_no_factors_before_a_classifier() -> None:
    """OpenVINO takes the wrong ones after a mean over positions."""
    vit = make_arch("vit_tiny_patch16_224", num_classes=3, image_size=32).build()
    weight = torch.ones(3, 192)
    factors = torch.full((192,), 4.0)
    head, other = (
        Place("head", "linear", 0, 0),
        Place("blocks.0.mlp.fc1", "linear", 0, 0),
    )
    chosen = Choice(
        [], ["head"], [(head, factors), (other, factors)], {"head.weight": weight / 4}
    )
    kept = without_smoothed_classifier(vit, chosen)
    assert [place for place, _ in kept.scaled] == [other]
    assert torch.equal(kept.state["head.weight"], weight)


def test_after_every_other_stage(data: Data, tmp_path: Path) -> None:
    """Selected, pruned, 2:4, fixed and rounded, then trained in integers."""
    state = tiny_models(data)[0]
    train = {"epochs": 1, "batch_size": 40, "lr": 1e-3, "warmup": 0}
    kinds = ("weight_selection", "nvit", "asp", "wfn", "uniform_quant", "int8")
    configs: dict[str, Any] = {kind: CASES[kind]["vit"] for kind in kinds}
    configs["nvit"] = CASES["nvit"]["vit"] | {"latency_target": 0.8}
    configs["wfn"] = CASES["wfn"]["vit"] | {"first_epoch": 0, "percentages": [1.0]}
    configs["int8"] = train | {"images": 8}
    for kind, config in configs.items():
        stage = STAGES[kind].model_validate(config)
        teacher = partial(lambda model, *_: model, state)
        ctx = Context(data, torch.device("cpu"), 1, tmp_path / kind, teacher)
        stage.check(state.arch, data.info)
        state = stage.run(state, ctx)
    assert state.arch.builder == "int8"
    for layer in state.meta["asp"]["layers"]:
        fours = state.weights[f"inner.{layer}.weight"].reshape(-1, 4)
        assert bool(((fours == 0).sum(1) >= 2).all()), layer


def test_a_limit_that_is_not_met_is_told(
    data: Data,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def always_changed(self: Any, state: Any, *, few: bool = False) -> Any:
        layers = len(state.arch.dims["weights"])
        return (
            0.5 if layers == 8 else 0.75,
            0.1,
        )  # 8 of 10 layers in integers is the best

    monkeypatch.setattr(_Calibration, "errors", always_changed)
    _, reported = quantised(data, tmp_path, tiny_models(data)[0], max_changed=0.01)
    assert reported["int8_max_changed_met"] == 0
    assert reported["int8_layers"] == 8
    assert "max_changed 0.01 is not reached" in caplog.text


def test_the_layers_that_help_most_stay_in_float(data: Data, tmp_path: Path) -> None:
    """Of three layers the best two by trying all pairs: at most twice their error."""
    _, resnet = tiny_models(data)
    errors = {}
    names = ["conv1", "layer1.0.conv1", "layer3.2.conv2"]
    for chosen in combinations(names, 2):
        _, reported = quantised(data, tmp_path, resnet, float_layers=list(chosen))
        errors[chosen] = reported["int8_logit_error"]
    _, reported = quantised(data, tmp_path, resnet, float_layer_count=2)
    assert reported["int8_float_layers"] == 2
    assert reported["int8_logit_error"] <= 2 * min(errors.values())
    layers = reported["int8_layers"] + 2
    _, reported = quantised(data, tmp_path, resnet, float_layer_count=100)
    assert reported["int8_layers"] == 1
    assert reported["int8_float_layers"] == layers - 1


def test_options(data: Data, tmp_path: Path) -> None:
    vit = tiny_models(data)[0]
    state, reported = quantised(
        data, tmp_path, vit, float_layers=["head"], four_bit_fraction=0.3
    )
    weights = dict(state.arch.dims["weights"])
    assert "head.weight" not in weights
    assert 4 in weights.values()
    assert 0.3 <= reported["int8_four_bit_fraction"] < 1
    assert reported["int8_float_layers"] == 1
    smallest = state.weights["inner.blocks.0.mlp.fc1.weight"].dtype
    assert smallest == torch.int8
    encode(state, tmp_path / "model.wfn")
    assert decode(tmp_path / "model.wfn").hash() == state.hash()
    assert (tmp_path / "model.wfn").stat().st_size < 0.5 * sum(
        tensor.nbytes for tensor in vit.weights.values()
    )
    _, reported = quantised(data, tmp_path, vit, max_changed=0.0)
    assert reported["int8_changed_fraction"] == 0
    assert reported["int8_max_changed_met"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"float_layers": ["nothing.*"]}, "fits no layer"),
        ({"compile": True}, "cannot be compiled"),
        ({"four_bit_layers": ["head"], "four_bit_fraction": 0.5}, "give one of"),
        ({"float_layer_count": 2, "max_changed": 0.1}, "give one of"),
    ],
)
def test_refused(options: dict[str, Any], words: str, data: Data) -> None:
    vit = tiny_models(data)[0]
    with pytest.raises(ValueError, match=words):
        Int8(**options).check(vit.arch, data.info)


def test_auxiliary_networks_are_refused(data: Data) -> None:
    vit = tiny_models(data)[0].arch
    for kind in ("sws", "tleg", "lets", "wave", "sweet"):
        stage = STAGES[f"{kind}_aux"].model_validate(CASES[f"{kind}_aux"]["vit"])
        with pytest.raises(ValueError, match=f"put {kind}_expand before int8"):
            Int8().check(stage.check(vit, data.info), data.info)
