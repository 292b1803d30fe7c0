"""OpenVINO."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from compress.measure.options import RuntimeOptions
from compress.runtimes.errors import first_line
from compress.runtimes.interface import (
    INTEGERS,
    Floats,
    OnnxBased,
    Session,
    num_threads,
    type_of,
)
from trainers.files import write_atomic

_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_NAMES = {v: k for k, v in _TYPES.items()} | {"i8": INTEGERS, "u8": INTEGERS}
_PRODUCTS = ("Convolution", "FullyConnected", "MatMul", "Deconvolution")
"""Kinds of layers whose type tells in what a model is computed."""


class OpenVino(OnnxBased):
    """OpenVINO's intermediate representation: an .xml file and its weights beside it."""

    name = "openvino"
    title = "OpenVINO"
    file = "model.xml"
    needs = ("openvino", *OnnxBased.needs)
    extra = "deploy"

    def convert(
        self,
        onnx_file: Path,
        folder: Path,
        options: RuntimeOptions,
        notes: Mapping[str, str],
    ) -> Path:
        """The notes become the model's `rt_info`."""
        import openvino

        # `openvino.convert_model` does the same, and sends a report of its use
        model = _core().read_model(str(onnx_file))
        _simplify(model)
        _pack_four_bits(model)
        _number_in_order(model)
        for key, value in notes.items():
            model.set_rt_info(value, ["model_info", key])
        file = folder / self.file
        openvino.save_model(
            model,
            str(file),
            compress_to_fp16=options.precision == "float16",
        )
        text = file.read_text(encoding="utf-8")
        write_atomic(file, re.sub(r">\s+<", "><", text).encode())
        return file

    def rewrite(self, model: Any) -> None:
        from compress.runtimes.integer_nodes import for_openvino

        for_openvino(model)

    def load_onnx(
        self, onnx_file: Path, options: RuntimeOptions, device: str = "cpu"
    ) -> OpenVinoSession:
        return self.load(onnx_file, options)

    def load(
        self, file: Path, options: RuntimeOptions, device: str = "cpu"
    ) -> OpenVinoSession:
        return OpenVinoSession(file, options)


@cache
def _core() -> Any:
    """The only `openvino.Core` of this process, which is never given back.

    Each has a stack of its own for signals. Where two of them end in the order in which they began,
    the thread is left with the first one's, whose memory is gone: then the next signal that Python
    handles, as Ctrl-C or the end of a child, is a segmentation fault (OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


def _simplify(model: Any) -> None:
    """Do once what OpenVINO else does each time that it compiles the model: fold constants, and let
    a quantiser be one node. The file is smaller: of an int8 ResNet-56 the .xml by more than half.
    """
    from openvino._offline_transformations import apply_moc_transformations

    apply_moc_transformations(model, cf=False)
    for node in model.get_ordered_ops():
        if node.get_type_name() == "FakeQuantize":
            _share_limits(node)
        if node.get_type_name() not in ("Parameter", "Result"):
            _forget_names(node)


def _forget_names(node: Any) -> None:
    """Forget what ONNX called the outputs of a node, but those of the model."""
    for output in node.outputs():
        readers = {
            each.get_node().get_type_name() for each in output.get_target_inputs()
        }
        if "Result" not in readers:
            output.set_names(set())


def _share_limits(node: Any) -> None:
    """Let the limits of a quantiser's outputs be those of its inputs where they are the same."""
    for taken, given in ((1, 3), (2, 4)):
        first, second = (node.input_value(i).get_node() for i in (taken, given))
        if _same_constants(first, second):
            node.input(given).replace_source_output(node.input_value(taken))


def _same_constants(first: Any, second: Any) -> bool:
    kinds = {each.get_type_name() for each in (first, second)}
    return kinds == {"Constant"} and np.array_equal(first.data, second.data)


def _pack_four_bits(model: Any) -> None:
    """Store weights whose integers need 4 bits in 4 bits. They become integers of 8 bits when the
    model is loaded, and kernels for these multiply them: read as real numbers at once, they would
    be multiplied as such.
    """
    from openvino import Tensor, Type, opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convert":
            continue
        weight = node.input_value(0).get_node()
        if weight.get_type_name() != "Constant" or weight.get_element_type() != Type.i8:
            continue
        values = weight.data
        if values.size == 0 or values.min() < -8 or values.max() > 7:
            continue
        packed = _packed(values)
        tensor = Tensor(packed, weight.shape, Type.i4)
        small = opset13.constant(tensor, shared_memory=False)
        small.set_friendly_name(weight.get_friendly_name())
        node.input(0).replace_source_output(opset13.convert(small, "i8").output(0))


def _packed(values: Any) -> Any:
    """Integers from -8 to 7, two in a byte, the first in its lower half; uint8 ((n + 1) // 2)."""
    halves = values.astype(np.uint8).reshape(-1) & 0xF
    halves = np.append(halves, np.zeros(len(halves) % 2, np.uint8))
    return halves[0::2] | halves[1::2] << 4


def _number_in_order(model: Any) -> None:
    """Let what has no name of its own be called by its place in the model. OpenVINO calls it by
    how many nodes the process has made, so that the same model's files would differ.
    """
    for index, node in enumerate(model.get_ordered_ops()):
        kind = node.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{kind}_{index}")


class OpenVinoSession(Session):
    """See `Session`."""

    def __init__(self, file: Path, options: RuntimeOptions) -> None:
        super().__init__(options)
        core = _core()
        try:
            model = core.read_model(str(file))
            shape = model.input(0).get_partial_shape()
            shape[0] = options.batch_size
            model.reshape(shape)
            self._compiled = core.compile_model(model, "CPU", self._settings())
        except RuntimeError as error:
            raise ValueError(f"runtime openvino: {first_line(error)}") from error
        self._request = self._compiled.create_infer_request()

    def _settings(self) -> dict[str, Any]:
        return {
            "INFERENCE_NUM_THREADS": num_threads(self.options),
            "NUM_STREAMS": 1,
            # without it, float32 is computed as bfloat16 where the processor has that
            "INFERENCE_PRECISION_HINT": _TYPES[self.options.precision],
            # two sessions that pin their threads would share the first cores
            "ENABLE_CPU_PINNING": False,
        }

    @cached_property
    def precision(self) -> str:
        hint = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        products = {
            kernel: count
            for kernel, count in self.kernels().items()
            if kernel.startswith(_PRODUCTS)
        }
        return type_of(products, _NAMES, hint)

    def infer(self, batch: Floats) -> Floats:
        self._request.infer([batch], share_inputs=True)
        return np.array(self._request.get_output_tensor(0).data)

    def timed_pass(self, images: Floats) -> Callable[[], float]:
        import openvino

        request = self._compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(images)))

        def by_wall_clock() -> float:
            begin = perf_counter()
            request.infer()
            return 1000 * (perf_counter() - begin)

        return by_wall_clock

    def kernels(self) -> dict[str, int]:
        found = Counter[str]()
        for operation in self._compiled.get_runtime_model().get_ops():
            info = operation.get_rt_info()
            kind, of = (info[k].astype(str) for k in ("layerType", "runtimePrecision"))
            if kind not in ("Const", "Input", "Output"):
                found[f"{kind} {of}"] += 1
        return dict(found)
