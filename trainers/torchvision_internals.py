"""Declare the compiled operators that torchvision's import asks for, where they cannot be loaded.

torchvision brings a compiled library that fits one build of torch (CPU, one CUDA version). Beside
another build the library does not load, and then `import torchvision` fails, and with it
`import timm`, although neither needs the operators in it: they serve object detection. Declared
without a kernel, they let the import pass; whoever calls one still gets an error.

Private to torchvision, and held by tests: where the library lies (`_C.*` beside `__init__.py`),
and which operators are registered without asking whether it was loaded.
"""

import importlib.util
import sys
from pathlib import Path

_ASKED_FOR = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[object] = []  # a declaration lives as long as its Library object


def declare_missing_operators() -> None:
    """Make `import torchvision` possible whatever build it is. Imports torch, not torchvision."""
    found = importlib.util.find_spec("torchvision")
    if _declared or "torchvision" in sys.modules or found is None or not found.origin:
        return
    import torch

    _load_compiled_library(Path(found.origin).parent)
    library = torch.library.Library("torchvision", "FRAGMENT")
    _declared.append(library)
    for name, schema in _ASKED_FOR.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)


def _load_compiled_library(folder: Path) -> None:
    """Load the operators if this build of torch can; torchvision would do the same later."""
    import torch

    for path in folder.glob("_C.*"):
        if path.suffix in (".so", ".pyd", ".dylib"):
            try:
                torch.ops.load_library(str(path))
            except OSError:  # a library of another build: the operators stay missing
                return
