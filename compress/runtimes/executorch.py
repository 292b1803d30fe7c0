"""ExecuTorch, with the kernels of XNNPACK."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.measure.options import RuntimeOptions
from compress.runtimes.errors import first_line
from compress.runtimes.interface import (
    Floats,
    Runtime,
    Session,
    num_threads,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainers.models.arch import Arch


class ExecuTorch(Runtime):
    """A program for phones and other small machines, for batches of exactly one size."""

    name = "executorch"
    title = "ExecuTorch"
    file = "model.pte"
    needs = ("executorch",)
    extra = "executorch"
    precisions = ("float32",)

    def check_model(self, arch: Arch) -> None:
        if arch.builder == "int8":
            raise ValueError(
                "runtime executorch: models of stage int8 are not offered, they would be"
                " computed in float32; use onnxruntime or openvino, or leave out the stage"
            )

    def write_module(
        self,
        module: nn.Module,
        inputs: Tensor,
        folder: Path,
        options: RuntimeOptions,
        notes: Mapping[str, str],
    ) -> Path:
        """The notes become methods of the program that return them."""
        from compress.runtimes.onnx_file import EXPORT_ERRORS, quiet

        try:
            with quiet():
                program = _lowered(module, inputs, notes)
        except EXPORT_ERRORS as error:
            raise ValueError(
                f"the model cannot be written for ExecuTorch: {first_line(error)}"
            ) from error
        with (folder / self.file).open("wb") as file:
            program.write_to_file(file)
        return folder / self.file

    def load(
        self, file: Path, options: RuntimeOptions, device: str = "cpu"
    ) -> ExecuTorchSession:
        return ExecuTorchSession(file, options)


def _lowered(module: nn.Module, inputs: Tensor, notes: Mapping[str, str]) -> Any:
    """The program of a module, as many operators as possible given to XNNPACK."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
        XnnpackPartitioner,
    )
    from executorch.exir import to_edge_transform_and_lower

    exported = torch.export.export(module, (inputs,))
    edge = to_edge_transform_and_lower(
        exported, partitioner=[XnnpackPartitioner()], constant_methods=dict(notes)
    )
    return edge.to_executorch()


class ExecuTorchSession(Session):
    """See `Session`."""

    def __init__(self, file: Path, options: RuntimeOptions) -> None:
        from executorch.runtime import Runtime as Library

        super().__init__(options)
        # the program must outlive its method
        self._program = Library.get().load_program(file)
        method = self._program.load_method("forward")
        assert method is not None, "a program that we wrote has this method"
        self._method = method
        size = method.metadata.input_tensor_meta(0).sizes()[0]
        if size != options.batch_size:
            raise ValueError(
                f"runtime executorch: the file is for batches of {size}, not of"
                f" {options.batch_size}; write one for that batch size"
            )

    @property
    def precision(self) -> str:
        """ExecuTorch does not tell; it is offered for float32 alone."""
        return self.options.precision

    def infer(self, batch: Floats) -> Floats:
        import torch

        found: Floats = np.array(self._run([torch.from_numpy(batch)])[0])
        return found

    def timed_pass(self, images: Floats) -> Callable[[], float]:
        import torch

        inputs = [torch.from_numpy(np.ascontiguousarray(images))]

        def by_wall_clock() -> float:
            begin = perf_counter()
            self._run(inputs)
            return 1000 * (perf_counter() - begin)

        return by_wall_clock

    def _run(self, inputs: list[Tensor]) -> Any:
        from compress.runtimes.executorch_internals import set_threads

        set_threads(num_threads(self.options))
        return self._method.execute(inputs)
