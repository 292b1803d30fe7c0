"""Models in integers: where quantisers act, what they compute, what runtimes execute."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress.codec.file import decode, encode
from compress.int8.fold import fold_norms
from compress.int8.nncf_internals import choose
from compress.int8.stage import Int8
from compress.runtimes.onnx_file import write_onnx
from compress.stage import Context
from compress.testing import tiny_data, tiny_models
from trainers.data.splits import Data
from trainers.models.arch import ModelState
from trainers.models.quantised import (
    IMAGES,
    OUTPUT,
    Place,
    QuantisedModel,
    QuantiserPlan,
    quantise,
    round_to_steps,
)

pytest.importorskip("nncf")


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


def test_runtimes_execute_integers(data: Data, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    state, _ = quantised(data, tmp_path, tiny_models(data)[1])
    module = state.build()
    images = torch.randn(4, 3, 32, 32)
    write_onnx(module, images, tmp_path / "model.onnx", {})
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    settings.log_severity_level = 3
    session = ort.InferenceSession(
        tmp_path / "model.onnx", settings, providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {"images": images.numpy()})[0]
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == 19
    assert "Conv" not in kinds
    wanted = module(images).detach().numpy()
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"float_layers": ["nothing.*"]}, "fits no layer"),
        ({"compile": True}, "cannot be compiled"),
        ({"four_bit_layers": ["head"], "four_bit_fraction": 0.5}, "give one of them"),
    ],
)
def test_refused(options: dict[str, Any], words: str, data: Data) -> None:
    vit = tiny_models(data)[0]
    with pytest.raises(ValueError, match=words):
        Int8(**options).check(vit.arch, data.info)
