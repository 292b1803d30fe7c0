"""Quantisers as ONNX's own nodes: QuantizeLinear and DequantizeLinear, which runtimes fuse with
their neighbours into kernels for integers.

    with onnx_nodes() as table:
        torch.onnx.export(..., custom_translation_table=table)

writes any model; of one without quantisers nothing changes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from trainers.models.quantised import Operators, computing_by, dequantise, quantise


@contextmanager
def onnx_nodes() -> Iterator[dict[Callable[..., Any], Callable[..., Any]]]:
    """Quantised models in this block compute by operators that the table translates."""
    operators, table = _operators()
    with computing_by(operators):
        yield table


def for_onnxruntime(model: Any) -> None:
    """Let ONNX Runtime find what it computes in integers, and nothing else.

    OpenVINO finds it as the exporter writes it, where integers with signs are faster: of a ViT of
    width 96 by a tenth.

    Args:
        model: an `onnx_ir.Model`; changed in place.
    """
    lay_out_weights(model)
    without_signs(model)
    keep_in_float(model)


def lay_out_weights(model: Any) -> None:
    """Store the integers of a Linear as (in, out), the order in which they are multiplied.

    The exporter writes (out, in) and a Transpose behind the DequantizeLinear, past which ONNX
    Runtime does not see a product of integers.

    Args:
        model: an `onnx_ir.Model`; changed in place.
    """
    import onnx_ir as ir

    for node in list(model.graph):
        source = node.inputs[0].producer() if node.op_type == "Transpose" else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        integers, steps = source.inputs[:2]
        if integers is None or integers.const_value is None:
            continue
        values = integers.const_value.numpy().T.copy()
        turned = ir.Value(
            name=f"{integers.name}.T_{node.name}", const_value=ir.tensor(values)
        )
        turned.type, turned.shape = integers.type, ir.Shape(values.shape)
        model.graph.register_initializer(turned)
        real = ir.node("DequantizeLinear", [turned, steps], {"axis": 1})
        model.graph.insert_before(node, real)
        real.outputs[0].name = f"{turned.name}.real"
        ir.convenience.replace_all_uses_with(node.outputs[0], real.outputs[0])
        model.graph.remove(node, safe=True)
        if not source.outputs[0].uses():
            model.graph.remove(source, safe=True)
            if not integers.uses():
                del model.graph.initializers[integers.name]


def without_signs(model: Any) -> None:
    """Count integers of activations from 0: int8 with zero point z becomes uint8 with z + 128,
    which computes the same.

    ONNX Runtime makes integers of a convolution or a sum only where what goes in and what comes
    out have one type (after a ReLU it is uint8), and its products are faster in uint8.

    Args:
        model: an `onnx_ir.Model`; changed in place.
    """
    import onnx_ir as ir

    made: dict[str, ir.Value] = {}
    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if (
            node.op_type == "DequantizeLinear"
            and node.inputs[0].const_value is not None
        ):
            continue  # a weight, which others than us may store with zero points
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        if zero is None or zero.const_value is None or zero.dtype != ir.DataType.INT8:
            continue
        if zero.name not in made:
            moved = (zero.const_value.numpy().astype(int) + 128).astype("uint8")
            made[zero.name] = ir.Value(
                name=f"{zero.name}.unsigned",
                shape=zero.shape,
                type=ir.TensorType(ir.DataType.UINT8),
                const_value=ir.tensor(moved),
            )
            model.graph.register_initializer(made[zero.name])
        node.replace_input_with(2, made[zero.name])
        if node.op_type == "QuantizeLinear":
            node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
        if not zero.uses():
            del model.graph.initializers[zero.name]


def keep_in_float(model: Any) -> None:
    """Put a Clip without limits before each product of a real weight with integers that were made
    real. ONNX Runtime else rounds the weight, with one step for all channels, where a quantiser
    follows the product, too.

    Args:
        model: an `onnx_ir.Model`; changed in place.
    """
    import onnx_ir as ir

    for node in list(model.graph):
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        value, weight = node.inputs[:2]
        source = value.producer()
        if source is None or source.op_type != "DequantizeLinear":
            continue
        if weight.const_value is None:
            continue
        clip = ir.node("Clip", [value])
        clip.outputs[0].name = f"{value.name}.for_{node.name}"
        clip.outputs[0].type, clip.outputs[0].shape = value.type, value.shape
        model.graph.insert_before(node, clip)
        node.replace_input_with(0, clip.outputs[0])


@lru_cache(maxsize=1)
def _operators() -> tuple[Operators, dict[Callable[..., Any], Callable[..., Any]]]:
    from onnxscript import opset18

    # nobody differentiates a written model: what is registered is the computation alone
    @torch.library.custom_op("compression_sweeps::quantise", mutates_args=())
    def pass_quantiser(value: Tensor, step: Tensor, zero_point: Tensor) -> Tensor:
        return quantise(value, step, zero_point)

    @torch.library.custom_op("compression_sweeps::dequantise", mutates_args=())
    def real_weight(integers: Tensor, steps: Tensor) -> Tensor:
        return dequantise(integers, steps)

    @pass_quantiser.register_fake
    def _(value: Tensor, step: Tensor, zero_point: Tensor) -> Tensor:
        return torch.empty_like(value)

    @real_weight.register_fake
    def _(integers: Tensor, steps: Tensor) -> Tensor:
        return torch.empty_like(integers, dtype=steps.dtype)

    def quantise_node(value: Any, step: Any, zero_point: Any) -> Any:
        integers = opset18.QuantizeLinear(value, step, zero_point)
        return opset18.DequantizeLinear(integers, step, zero_point)

    def dequantise_node(integers: Any, steps: Any) -> Any:
        return opset18.DequantizeLinear(integers, steps, axis=0)

    operators = Operators(
        torch.ops.compression_sweeps.quantise, torch.ops.compression_sweeps.dequantise
    )
    return operators, {
        torch.ops.compression_sweeps.quantise.default: quantise_node,
        torch.ops.compression_sweeps.dequantise.default: dequantise_node,
    }
