"""ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.measure.options import Precision, RuntimeOptions
from compress.runtimes.errors import first_line
from compress.runtimes.interface import (
    INTEGERS,
    Floats,
    OnnxBased,
    Session,
    num_threads,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

_INTEGER_KERNELS = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "QAttention")
"""How the names of kernels that multiply integers begin."""


class OnnxRuntime(OnnxBased):
    """An ONNX file, executed by ONNX Runtime."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    file = "model.onnx"
    needs = ("onnxruntime", *OnnxBased.needs)
    extra = "export"
    precisions = ("float32", "float16")

    def write_module(
        self,
        module: nn.Module,
        inputs: Tensor,
        folder: Path,
        options: RuntimeOptions,
        notes: Mapping[str, str],
    ) -> Path:
        from compress.runtimes.onnx_file import write_onnx

        file = folder / self.file
        write_onnx(module, inputs, file, notes, options.precision, self.rewrite)
        return file

    def rewrite(self, model: Any) -> None:
        from compress.runtimes.integer_nodes import for_onnxruntime

        for_onnxruntime(model)

    def onnx_precision(self, options: RuntimeOptions) -> Precision:
        return options.precision

    def convert(
        self,
        onnx_file: Path,
        folder: Path,
        options: RuntimeOptions,
        notes: Mapping[str, str],
    ) -> Path:
        """It executes the file as it is; notes are written with the file."""
        return onnx_file

    def load(
        self, file: Path, options: RuntimeOptions, device: str = "cpu"
    ) -> OnnxRuntimeSession:
        return OnnxRuntimeSession(file, options)


class OnnxRuntimeSession(Session):
    """See `Session`."""

    def __init__(self, file: Path, options: RuntimeOptions) -> None:
        import onnxruntime

        super().__init__(options)
        # what the graph became is only told through a file
        with tempfile.TemporaryDirectory() as folder:
            optimised = Path(folder) / "optimised.onnx"
            settings = self._settings()
            settings.optimized_model_filepath = str(optimised)
            try:
                self._session = onnxruntime.InferenceSession(
                    str(file), settings, providers=["CPUExecutionProvider"]
                )
            except _refusals() as error:
                raise ValueError(f"runtime onnxruntime: {first_line(error)}") from error
            self._kernels, self._float = _read(optimised)
        self._input = self._session.get_inputs()[0].name

    def _settings(self) -> Any:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = num_threads(self.options)
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        # threads that wait busily after a pass would slow whatever is timed next
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        return settings

    @cached_property
    def precision(self) -> str:
        if any(kernel.startswith(_INTEGER_KERNELS) for kernel in self._kernels):
            return INTEGERS
        return self._float

    def infer(self, batch: Floats) -> Floats:
        found: Floats = self._session.run(None, {self._input: batch})[0]
        return found

    def kernels(self) -> dict[str, int]:
        return dict(self._kernels)


def _refusals() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises, which has no class of its own above it."""
    from onnxruntime.capi import onnxruntime_pybind11_state as raised

    kinds = [kind for kind in vars(raised).values() if isinstance(kind, type)]
    return tuple(kind for kind in kinds if issubclass(kind, Exception))


def _read(file: Path) -> tuple[Counter[str], str]:
    """Kernels of an optimised graph, and the floating-point type of most of its weights."""
    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph
    kernels = Counter(node.op_type for node in graph.node)
    weights = Counter[str]()
    for tensor in graph.initializer:
        name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        weights["float32" if name == "float" else name] += _values(tensor)
    floats = {k: n for k, n in weights.items() if "float" in k}
    return kernels, max(floats, key=lambda name: floats[name], default="float32")


def _values(tensor: Any) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count
