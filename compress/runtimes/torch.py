"""PyTorch itself: eager, and through torch.compile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.measure.options import RuntimeOptions
from compress.runtimes.interface import Floats, Runtime, Session
from compress.runtimes.passes import timed_pass
from trainers.models.arch import ModelState


class SessionModule(nn.Module):
    """A model that a runtime has loaded, as a module: images (B, C, S, S) on any device → the
    runtime's logits float32 (B, classes) there. It has no weights and no gradients.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def forward(self, images: Tensor) -> Tensor:
        logits = self._session.run(images.float().cpu().numpy())
        return torch.from_numpy(logits).to(images.device)


class Eager(Runtime):
    """The module, operator by operator."""

    name = "torch"
    title = "PyTorch"
    file = "model.safetensors"
    devices = ("cpu", "cuda")

    def write(
        self,
        state: ModelState,
        folder: Path,
        image_size: int,
        options: RuntimeOptions,
        notes: Mapping[str, str] | None = None,
    ) -> Path:
        state.save(folder)
        return folder / self.file

    def write_module(
        self,
        module: nn.Module,
        inputs: Tensor,
        folder: Path,
        options: RuntimeOptions,
        notes: Mapping[str, str],
    ) -> Path:
        raise NotImplementedError("a module alone has no description to be rebuilt by")

    def load(
        self, file: Path, options: RuntimeOptions, device: str = "cpu"
    ) -> TorchSession:
        return self._session(ModelState.load(file.parent).build(), options, device)

    def session_of(
        self,
        module: nn.Module,
        inputs: Tensor,
        options: RuntimeOptions,
        device: str = "cpu",
    ) -> TorchSession:
        return self._session(module, options, device)

    def _session(
        self, module: nn.Module, options: RuntimeOptions, device: str
    ) -> TorchSession:
        return TorchSession(module, options, device)


class Compiled(Eager):
    """The module, compiled by torch.compile (TorchInductor)."""

    name = "torch_compile"
    title = "torch.compile"

    def check(self, options: RuntimeOptions, device: str = "cpu") -> None:
        super().check(options, device)
        compiler = os.environ.get("CXX", "g++")
        if device == "cpu" and not (shutil.which(compiler) or shutil.which("clang++")):
            raise ValueError(
                "runtime torch_compile needs a C++ compiler, and there is no"
                f" {compiler}; install one, or name it in CXX"
            )

    def _session(
        self, module: nn.Module, options: RuntimeOptions, device: str
    ) -> TorchSession:
        return TorchSession(module, options, device, compiled=True)


class TorchSession(Session):
    """See `Session`. The module is cast and moved in place; `compiled` says how it is called."""

    def __init__(
        self,
        module: nn.Module,
        options: RuntimeOptions,
        device: str,
        *,
        compiled: bool = False,
    ) -> None:
        super().__init__(options)
        self.compiled = compiled
        self._device = torch.device(device)
        self._dtype = getattr(torch, options.precision)
        self.module: Any = module.eval().to(self._device, self._dtype)
        if compiled:
            self.module = torch.compile(self.module, dynamic=False)

    @property
    def precision(self) -> str:
        types = {p.dtype for p in self.module.parameters() if p.is_floating_point()}
        return str(types.pop() if len(types) == 1 else self._dtype).rpartition(".")[2]

    def infer(self, batch: Floats) -> Floats:
        images = torch.from_numpy(batch).to(self._device, self._dtype)
        with torch.inference_mode(), self._threads():
            output = self.module(images)
        logits = output[0] if isinstance(output, tuple) else output
        found: Floats = logits.float().cpu().numpy()
        return found

    def timed_pass(self, images: Floats) -> Callable[[], float]:
        batch = torch.from_numpy(np.ascontiguousarray(images))
        timed = timed_pass(
            self.module, batch.to(self._device, self._dtype), self._device
        )

        def with_threads() -> float:
            with torch.inference_mode(), self._threads():
                return timed()

        return with_threads

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """As many as the options say; the setting is one of the whole process."""
        before = torch.get_num_threads()
        if self.options.threads in (None, before):
            yield
            return
        torch.set_num_threads(self.options.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
