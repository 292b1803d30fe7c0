"""What is changed of a written graph's quantisers, on graphs made by hand."""

import numpy as np
import pytest

from compress.runtimes.integer_nodes import without_signs
from compress.runtimes.interface import OnnxBased
from compress.runtimes.registry import runtime

ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")

STEPS = np.array([0.5, 0.25, 0.125], np.float32)
WEIGHT = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)
IMAGES = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)


def quantised_product() -> "ir.Model":
    """Images as int8, times a weight that is stored with zero points of its own."""

    def stored(name: str, values: np.ndarray) -> "ir.Value":
        return ir.Value(
            name=name,
            shape=ir.Shape(values.shape),
            type=ir.TensorType(ir.DataType.from_numpy(values.dtype)),
            const_value=ir.tensor(values, name=name),
        )

    images = ir.Input("images", ir.Shape((2, 4)), ir.TensorType(ir.DataType.FLOAT))
    step, zero = stored("step", np.float32(0.02)), stored("zero", np.int8(-3))
    weight, steps = stored("weight", WEIGHT), stored("steps", STEPS)
    zeros = stored("zeros", np.array([0, 1, -2], np.int8))
    integers = ir.node("QuantizeLinear", [images, step, zero])
    integers.outputs[0].type = ir.TensorType(ir.DataType.INT8)
    real = ir.node("DequantizeLinear", [integers.outputs[0], step, zero])
    real_weight = ir.node("DequantizeLinear", [weight, steps, zeros], {"axis": 1})
    product = ir.node("MatMul", [real.outputs[0], real_weight.outputs[0]])
    product.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [images],
        [product.outputs[0]],
        nodes=[integers, real, real_weight, product],
        initializers=[step, zero, weight, steps, zeros],
        opset_imports={"": 18},
    )
    return ir.Model(graph, ir_version=10)


def computed(model: "ir.Model") -> np.ndarray:
    file = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"images": IMAGES})[0]
    return found


def test_integers_of_activations_are_counted_from_0_and_weights_stay() -> None:
    model = quantised_product()
    before = computed(model)
    without_signs(model)
    types = {name: each.dtype for name, each in model.graph.initializers.items()}
    assert types["zeros"] == types["weight"] == ir.DataType.INT8
    assert types["zero.unsigned"] == ir.DataType.UINT8
    assert "zero" not in types
    np.testing.assert_array_equal(computed(model), before)


@pytest.mark.parametrize(
    ("name", "kept"), [("onnxruntime", False), ("openvino", True), ("tensorrt", True)]
)
def test_who_takes_integers_with_signs(name: str, kept: bool) -> None:
    """OpenVINO is faster with them, and TensorRT takes no others."""
    model = quantised_product()
    before = computed(model)
    chosen = runtime(name)
    assert isinstance(chosen, OnnxBased)
    chosen.rewrite(model)
    assert ("zero" in model.graph.initializers) == kept
    np.testing.assert_array_equal(computed(model), before)
