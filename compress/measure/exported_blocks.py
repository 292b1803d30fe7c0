"""Blocks, stems and heads of any size in a runtime that executes files made of ONNX.

Each kind is exported once, at sizes that stand for themselves (`compress.runtimes.onnx_sizes`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.measure.options import RuntimeOptions
from compress.runtimes.interface import OnnxBased, Session
from compress.runtimes.onnx_file import write_onnx
from compress.runtimes.onnx_sizes import unique_sizes, write_resized

Job = tuple[Any, ...]
"""A block (embed, heads, qk, v, mlp), ("stem", embed), ("head", embed), or ("nothing", embed): a
call that computes nothing.
"""
Build = Callable[[Job], tuple[nn.Module, Tensor]]
Quantiser = Callable[[nn.Module, Tensor], nn.Module]
"""(module, its inputs) → the module in integers, as far as its latency goes."""


class ExportedBlocks:
    """Sessions of a runtime for blocks, stems and heads.

    Args:
        runtime: executes them.
        options: of the sessions.
        build: job → module on the CPU and its inputs.
        taken: sizes in the modules that are none of their dimensions: tokens, pixels, classes.
        quantiser: None: float.
    """

    def __init__(
        self,
        runtime: OnnxBased,
        options: RuntimeOptions,
        build: Build,
        taken: set[int],
        quantiser: Quantiser | None = None,
    ) -> None:
        self._runtime = runtime
        self._options = options
        self._build = build
        self._marks = unique_sizes(5, taken)
        self._quantiser = quantiser
        self._folder = tempfile.TemporaryDirectory()

    def session(self, job: Job) -> Session:
        """The runtime's session of a block, stem or head; its input is that of `build`."""
        place = Path(self._folder.name)
        template = place / f"{job[0] if isinstance(job[0], str) else 'block'}.onnx"
        mark = self._mark(job)
        if not template.exists():
            self._export(mark, template)
        resized = place / "resized.onnx"
        write_resized(template, _sizes(mark, job), resized)
        return self._runtime.load_onnx(resized, self._options)

    def _mark(self, job: Job) -> Job:
        if isinstance(job[0], str):
            return (job[0], self._marks[0])
        return tuple(self._marks)

    def _export(self, mark: Job, file: Path) -> None:
        # the writer traces, which inference mode does not allow
        with torch.inference_mode(False), torch.no_grad():
            module, inputs = self._build(mark)
            if self._quantiser is not None and mark[0] != "nothing":
                module = self._quantiser(module, inputs)
            precision = self._runtime.onnx_precision(self._options)
            write_onnx(module, inputs, file, {}, precision, self._runtime.rewrite)


def _sizes(mark: Job, job: Job) -> dict[int, int]:
    """What stands in the exported file → what the job has there."""
    if isinstance(job[0], str):
        return {mark[1]: job[1]}
    found = dict(zip(mark, job, strict=True))
    _, heads, qk, v, _ = mark
    _, own_heads, own_qk, own_v, _ = job
    return found | {heads * qk: own_heads * own_qk, heads * v: own_heads * own_v}
