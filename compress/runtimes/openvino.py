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
        _number_in_order(model)
        for key, value in notes.items():
            model.set_rt_info(value, ["model_info", key])
        openvino.save_model(
            model,
            str(folder / self.file),
            compress_to_fp16=options.precision == "float16",
        )
        return folder / self.file

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
