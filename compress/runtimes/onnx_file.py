"""ONNX files: what ONNX Runtime executes, and what OpenVINO and TensorRT read."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from compress.measure.options import Precision
from compress.runtimes.errors import first_line
from compress.runtimes.integer_nodes import onnx_nodes
from compress.runtimes.torch_onnx_internals import operators_read_once
from trainers.models.arch import ModelState
from trainers.seeding import derive_seed

INPUT, OUTPUT = "images", "logits"
"""Names of a written file's input and output."""
NEEDS = ("onnx", "onnxscript")
"""Modules that writing takes."""
MAX_ONNX_BYTES = 1_800_000_000
"""A larger ONNX model keeps its weights in a file beside it: one protobuf file holds less
than 2 GiB.
"""
EXPORT_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    NotImplementedError,
)
"""What exporters raise for a model that they cannot write."""


def example_images(state: ModelState, image_size: int, batch: int) -> Tensor:
    """Standard normal images (B, C, S, S), the same on every call."""
    generator = torch.Generator().manual_seed(derive_seed(batch, "export"))
    channels = state.arch.args.get("in_chans", 3)
    return torch.randn(batch, channels, image_size, image_size, generator=generator)


def write_onnx(
    module: nn.Module,
    inputs: Tensor,
    file: Path,
    notes: Mapping[str, str],
    precision: Precision = "float32",
    rewrite: Callable[[Any], None] = lambda model: None,
) -> None:
    """Write a module in eval mode, for any batch size.

    Args:
        inputs: float32 (B, ...), an example.
        notes: go into the file's `metadata_props`.
        precision: type of weights and products; images and logits stay float32.
        rewrite: changes the `onnx_ir.Model` for who will execute it.

    Raises:
        ValueError: an operator that ONNX cannot express.
    """
    if precision != "float32":
        module = _InPrecision(module, getattr(torch, precision))
    if len(inputs) < 2:  # an axis of 1 would be taken for a constant
        inputs = torch.cat([inputs, inputs])
    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    try:
        with (
            quiet(),
            sdpa_kernel(SDPBackend.MATH),
            SpelledAttention(),
            _not_in_place(module),
            operators_read_once(),
            onnx_nodes() as table,
        ):
            program = torch.onnx.export(
                module,
                (inputs,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                custom_translation_table=table,
            )
            assert program is not None, "with dynamo=True there is always one"
            rewrite(program.model)
            _forget_origins(program.model)
            program.model.metadata_props.update(notes)
            program.save(file, external_data=size > MAX_ONNX_BYTES)
    except EXPORT_ERRORS as error:
        raise ValueError(
            f"the model cannot be written as ONNX: {first_line(error)}"
        ) from error


def _forget_origins(model: Any) -> None:
    """Take out what the exporter notes at each node and value: source files of the machine, lines,
    modules. Of an int8 ResNet-56 that is a third of the file.

    Args:
        model: an `onnx_ir.Model`; changed in place.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)
    for graph in model.graphs():
        inside = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *inside):
            value.metadata_props.clear()


@contextmanager
def _not_in_place(module: nn.Module) -> Iterator[None]:
    """Let torch's activations leave their inputs as they are: one in place is taken apart into
    other operators while it is traced for any batch size, a tenth of a second for each of ReLU6,
    and put together again. The file is the same.
    """
    changed: list[Any] = [
        each
        for each in module.modules()
        if type(each).__module__.startswith("torch.nn.")
        and getattr(each, "inplace", False)
    ]
    for each in changed:
        each.inplace = False
    try:
        yield
    finally:
        for each in changed:
            each.inplace = True


class _InPrecision(nn.Module):
    """A module in another floating-point type, with images and logits in float32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module.to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(images.to(self.dtype))
        return logits.float()


class SpelledAttention(TorchFunctionMode):
    """Attention over more than one leading axis besides the heads (windows, mask units) as
    products and a softmax: the exporter's own form of it takes four axes.

    The memory layout of a result is that of the kernel which computes it, and what follows is
    traced for that layout; so the kernel must be the one that the exporter writes down
    (`SDPBackend.MATH`), whatever is fastest here.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is nn.functional.scaled_dot_product_attention and args[0].ndim != 4:
            return torch.ops.aten._scaled_dot_product_attention_math(
                *args, **(kwargs or {})
            )[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters warn and log much about their own insides."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
