"""What every runtime does: write the file that is deployed, load it, run it, time it.

Nothing heavy is imported here, so that a process that only runs a file starts quickly.
"""

from __future__ import annotations

import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from compress.measure.options import Precision, RuntimeOptions
from compress.runtimes.errors import check_installed
from trainers.machine import usable_cores

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainers.models.arch import Arch, ModelState

Floats = npt.NDArray[np.float32]
INTEGERS = "int8"
"""What `Session.precision` says of a model whose products are computed in integers."""


class Session(ABC):
    """A model that a runtime has loaded.

    Attributes:
        options: as it was loaded.
    """

    def __init__(self, options: RuntimeOptions) -> None:
        self.options = options

    @property
    @abstractmethod
    def precision(self) -> str:
        """The type in which the runtime itself says that it computes: "float32", "bfloat16",
        "float16", or "int8" where integers are executed.
        """

    @abstractmethod
    def infer(self, batch: Floats) -> Floats:
        """The logits (B, classes) of exactly `options.batch_size` images."""

    def run(self, images: Floats) -> Floats:
        """The logits float32 (B, classes) of any number of images float32 (B, C, S, S).

        They pass in batches of `options.batch_size`; the last one is filled up with its last
        image.
        """
        size = self.options.batch_size
        found = []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            missing = size - len(batch)
            if missing:
                batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
            logits = self.infer(np.ascontiguousarray(batch))
            found.append(np.array(logits[: size - missing], np.float32))
        return np.concatenate(found)

    def timed_pass(self, images: Floats) -> Callable[[], float]:
        """A function that runs one pass of these `options.batch_size` images and returns its
        milliseconds.
        """
        batch = np.ascontiguousarray(images)

        def by_wall_clock() -> float:
            begin = time.perf_counter()
            self.infer(batch)
            return 1000 * (time.perf_counter() - begin)

        return by_wall_clock

    def kernels(self) -> dict[str, int]:
        """Which kernels the runtime chose, as "kind type", and how many of each; empty where
        it does not tell.
        """
        return {}


class Runtime(ABC):
    """One way to execute a model.

    Attributes:
        name: as in a spec and in `RUNTIMES`.
        title: as its makers write it.
        file: name of the file that it executes.
        needs: modules without which it can neither write nor run.
        extra: the extra of this distribution that installs them; empty: none does.
        precisions: floating-point types that it can be asked for.
        devices: kinds of torch devices on which it can be used.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    file: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "bfloat16", "float16")
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def missing(self) -> list[str]:
        """Modules that it needs and that are not installed."""
        return [module for module in self.needs if find_spec(module) is None]

    def check(self, options: RuntimeOptions, device: str = "cpu") -> None:
        """Refuse what this runtime cannot do here. Nothing of it is imported.

        Raises:
            ValueError: a module is missing, or it has no such precision or device.
        """
        check_installed(f"runtime {self.name}", self.missing(), self.extra)
        if options.precision not in self.precisions:
            raise ValueError(
                f"precision: runtime {self.name} does not compute in"
                f" {options.precision}; valid: {', '.join(self.precisions)}"
            )
        if device not in self.devices:
            raise ValueError(
                f"runtime {self.name} does not run on {device}; it runs on"
                f" {', '.join(self.devices)}"
            )

    def check_model(self, arch: Arch) -> None:  # noqa: B027 - most runtimes take every model
        """Refuse a model that this runtime cannot hold, as far as its architecture tells.

        Raises:
            ValueError: why, and what to do instead.
        """

    def write(
        self,
        state: ModelState,
        folder: Path,
        image_size: int,
        options: RuntimeOptions,
        notes: Mapping[str, str] | None = None,
    ) -> Path:
        """Write the file that is deployed into `folder`, which exists.

        Args:
            image_size: side of the square images, pixels.
            notes: facts that the file itself carries, such as its preprocessing; a format
                without room for them leaves them out.

        Raises:
            ValueError: this runtime cannot hold such a model.
        """
        from compress.runtimes.onnx_file import example_images

        self.check_model(state.arch)
        images = example_images(state, image_size, options.batch_size)
        return self.write_module(state.build(), images, folder, options, notes or {})

    @abstractmethod
    def write_module(
        self,
        module: nn.Module,
        inputs: Tensor,
        folder: Path,
        options: RuntimeOptions,
        notes: Mapping[str, str],
    ) -> Path:
        """Write a module in eval mode, which takes tensors like `inputs` (B, ...)."""

    @abstractmethod
    def load(self, file: Path, options: RuntimeOptions, device: str = "cpu") -> Session:
        """Load what `write` wrote.

        Raises:
            ValueError: the runtime does not take it with these options.
        """

    def session_of(
        self,
        module: nn.Module,
        inputs: Tensor,
        options: RuntimeOptions,
        device: str = "cpu",
    ) -> Session:
        """Write a module to a file that is not kept, and load it."""
        with tempfile.TemporaryDirectory() as folder:
            file = self.write_module(module, inputs, Path(folder), options, {})
            return self.load(file, options, device)


class OnnxBased(Runtime):
    """A runtime whose file is an ONNX file, or is made of one."""

    needs: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript")

    def write_module(
        self,
        module: nn.Module,
        inputs: Tensor,
        folder: Path,
        options: RuntimeOptions,
        notes: Mapping[str, str],
    ) -> Path:
        from compress.runtimes.onnx_file import write_onnx

        with tempfile.TemporaryDirectory() as place:
            onnx_file = Path(place) / "model.onnx"
            precision = self.onnx_precision(options)
            write_onnx(module, inputs, onnx_file, {}, precision, self.rewrite)
            return self.convert(onnx_file, folder, options, notes)

    def rewrite(self, model: Any) -> None:
        """Change an `onnx_ir.Model` into what this runtime executes best."""

    def onnx_precision(self, options: RuntimeOptions) -> Precision:
        """Of the ONNX file; most runtimes cast by themselves."""
        return "float32"

    @abstractmethod
    def convert(
        self,
        onnx_file: Path,
        folder: Path,
        options: RuntimeOptions,
        notes: Mapping[str, str],
    ) -> Path:
        """Write an ONNX file of `onnx_precision` as the runtime's own.

        Raises:
            ValueError: the runtime cannot take it.
        """

    def load_onnx(
        self, onnx_file: Path, options: RuntimeOptions, device: str = "cpu"
    ) -> Session:
        """Load an ONNX file, which need not stay."""
        with tempfile.TemporaryDirectory() as folder:
            file = self.convert(onnx_file, Path(folder), options, {})
            return self.load(file, options, device)


def num_threads(options: RuntimeOptions) -> int:
    """Threads of a session on the CPU: as its options say, else all cores that are usable."""
    return options.threads or usable_cores()


def type_of(
    kernels: Mapping[str, int], names: Mapping[str, Any], otherwise: str
) -> str:
    """The precision that kernels of "kind type" show.

    Args:
        names: type as the runtime writes it → as we do.
        otherwise: where no kernel tells.
    """
    types = {names.get(kernel.rpartition(" ")[2]) for kernel in kernels} - {None}
    if INTEGERS in types:
        return INTEGERS
    return otherwise if len(types) != 1 else str(types.pop())
