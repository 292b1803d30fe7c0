"""What is taken from torch's ONNX exporter beyond its documented interface; a test fails when it
moves. Exports then take longer, and nothing else changes.
"""

import copy
import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def operators_read_once() -> Iterator[None]:
    """Exports inside share the table of operators of this process.

    torch builds it anew for each export, which is a fifth of the time of a small model's. It leaves
    out operators that are not there yet (torchao's bring their library along), so that a table is
    shared only while no operator is added.
    """
    try:
        module = importlib.import_module("torch.onnx._internal.exporter._registration")
        registry = module.ONNXRegistry
        before = registry.from_torchlib
        operators = len(torch._C._dispatch_get_all_op_names())
    except (ImportError, AttributeError):
        yield
        return
    registry.from_torchlib = functools.partial(_copied, _reader(before, operators))
    try:
        yield
    finally:
        registry.from_torchlib = before


@functools.lru_cache(maxsize=1)
def _reader(read: Callable[..., Any], operators: int) -> Callable[..., Any]:
    return functools.lru_cache(maxsize=2)(read)


def _copied(read: Callable[..., Any], **options: Any) -> Any:
    found = copy.copy(read(**options))
    # an export adds its own forms of operators
    found.functions = {name: list(forms) for name, forms in found.functions.items()}
    return found
