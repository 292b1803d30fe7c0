"""Every runtime by its name, and the way from a model to a session."""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from compress.measure.options import RuntimeOptions
from compress.runtimes.interface import Runtime, Session

if TYPE_CHECKING:
    from trainers.models.arch import ModelState


class _Place(NamedTuple):
    """Where a runtime's class is; torch is not imported for the others."""

    module: str
    name: str


_PLACES = {
    "torch": _Place("torch", "Eager"),
    "torch_compile": _Place("torch", "Compiled"),
    "onnxruntime": _Place("onnxruntime", "OnnxRuntime"),
    "openvino": _Place("openvino", "OpenVino"),
    "executorch": _Place("executorch", "ExecuTorch"),
    "tensorrt": _Place("tensorrt", "TensorRt"),
}
RUNTIMES = tuple(_PLACES)
"""Names of all runtimes."""


def runtime(name: str) -> Runtime:
    """The runtime of this name, one of `RUNTIMES`."""
    place = _PLACES[name]
    found: type[Runtime] = getattr(
        import_module(f"compress.runtimes.{place.module}"), place.name
    )
    return found()


def session(
    state: ModelState,
    image_size: int,
    options: RuntimeOptions,
    workdir: Path | None = None,
    device: str = "cpu",
) -> Session:
    """Write a model's file, and load it.

    Args:
        image_size: side of the square images, pixels.
        workdir: where the file stays; default: it is not kept.
        device: kind of torch device.

    Raises:
        ValueError: the runtime is not installed, or cannot hold such a model.
    """
    if workdir is None:
        with tempfile.TemporaryDirectory() as folder:
            return session(state, image_size, options, Path(folder), device)
    chosen = runtime(options.runtime)
    chosen.check(options, device)
    workdir.mkdir(parents=True, exist_ok=True)
    file = chosen.write(state, workdir, image_size, options)
    return chosen.load(file, options, device)
