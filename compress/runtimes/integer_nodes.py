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
