"""TensorRT. Nobody has tried it here: its tests stand on a stand-in of the library."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from compress.measure.options import Precision, RuntimeOptions
from compress.runtimes.interface import INTEGERS, Floats, OnnxBased, Session, type_of
from compress.runtimes.onnx_file import INPUT, OUTPUT
from compress.runtimes.passes import timed_call

_NAMES = {
    "Float": "float32",
    "FP32": "float32",
    "Half": "float16",
    "FP16": "float16",
    "BFloat16": "bfloat16",
    "BF16": "bfloat16",
    "Int8": INTEGERS,
}


class TensorRt(OnnxBased):
    """An engine for one kind of GPU and batches of exactly one size."""

    name = "tensorrt"
    title = "TensorRT"
    file = "model.plan"
    needs = ("tensorrt", *OnnxBased.needs)
    extra = "tensorrt"
    devices = ("cuda",)

    def onnx_precision(self, options: RuntimeOptions) -> Precision:
        # networks are strongly typed: each product is computed in the type that the file has
        return options.precision

    def convert(
        self,
        onnx_file: Path,
        folder: Path,
        options: RuntimeOptions,
        notes: Mapping[str, str],
    ) -> Path:
        """An engine has no room for notes."""
        import tensorrt

        log = tensorrt.Logger(tensorrt.Logger.ERROR)
        builder = tensorrt.Builder(log)
        typed = tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = builder.create_network(1 << int(typed))
        parser = tensorrt.OnnxParser(network, log)
        if not parser.parse_from_file(str(onnx_file)):
            raise ValueError(f"runtime tensorrt: {parser.get_error(0).desc()}")
        config = builder.create_builder_config()
        config.clear_flag(tensorrt.BuilderFlag.TF32)  # float32 means it
        config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED
        shape = (options.batch_size, *network.get_input(0).shape[1:])
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, shape, shape, shape)
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise ValueError("runtime tensorrt: no engine could be built of this model")
        (folder / self.file).write_bytes(bytes(plan))
        return folder / self.file

    def load(
        self, file: Path, options: RuntimeOptions, device: str = "cuda"
    ) -> TensorRtSession:
        return TensorRtSession(file, options, torch.device(device))


class TensorRtSession(Session):
    """See `Session`. Images and logits stay in two tensors of the GPU."""

    def __init__(
        self, file: Path, options: RuntimeOptions, device: torch.device
    ) -> None:
        import tensorrt

        super().__init__(options)
        log = tensorrt.Logger(tensorrt.Logger.ERROR)
        # the library must outlive the engine, and that its context
        self._library = tensorrt.Runtime(log)
        self._engine = self._library.deserialize_cuda_engine(file.read_bytes())
        if self._engine is None:
            raise ValueError(
                f"runtime tensorrt: {file.name} is no engine for this GPU and version of"
                " TensorRT; write it again"
            )
        self._device = device
        self._context = self._engine.create_execution_context()
        shape = (options.batch_size, *self._engine.get_tensor_shape(INPUT)[1:])
        self._context.set_input_shape(INPUT, shape)
        self._images = torch.empty(shape, device=device)
        self._logits = torch.empty(
            tuple(self._context.get_tensor_shape(OUTPUT)), device=device
        )
        self._context.set_tensor_address(INPUT, self._images.data_ptr())
        self._context.set_tensor_address(OUTPUT, self._logits.data_ptr())

    @cached_property
    def precision(self) -> str:
        return type_of(self.kernels(), _NAMES, self.options.precision)

    def infer(self, batch: Floats) -> Floats:
        self._images.copy_(torch.from_numpy(batch))
        self._execute()
        found: Floats = self._logits.cpu().numpy()
        return found

    def timed_pass(self, images: Floats) -> Callable[[], float]:
        batch = torch.from_numpy(np.ascontiguousarray(images))
        self._images.copy_(batch)
        return timed_call(self._execute, self._device)

    def kernels(self) -> dict[str, int]:
        import tensorrt

        inspector = self._engine.create_engine_inspector()
        form = tensorrt.LayerInformationFormat.JSON
        layers = json.loads(inspector.get_engine_information(form)).get("Layers", [])
        found = Counter[str]()
        for layer in layers:
            if isinstance(layer, dict) and layer.get("Outputs"):
                of = layer["Outputs"][0].get("Format/Datatype", "")
                found[f"{layer.get('LayerType', '?')} {of.rpartition(' ')[2]}"] += 1
        return dict(found)

    def _execute(self) -> None:
        self._context.execute_async_v3(_stream(self._device))


def _stream(device: torch.device) -> int:
    """The address of the stream on which torch copies images and logits."""
    return torch.cuda.current_stream(device).cuda_stream
