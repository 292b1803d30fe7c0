"""What is taken from torchvision beyond its documented interface; a test for each fails when it
moves.

- Its import asks for compiled operators. They lie in `_C.so` (from 0.29 on `_C_stable.so`) beside
  `__init__.py`, in a library that fits one build of torch (CPU, one version of CUDA). Beside
  another build the library does not load, and then `import torchvision` fails, and with it `import
  timm`, although neither needs those operators: they serve object detection. Declared without a
  kernel, they let the import pass; whoever calls one still gets an error. An operator that is
  declared before its library loads aborts the process, so the library is looked for first.
- Its data sets keep labels and file names in attributes of several names.
"""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

    for path in folder.glob("_C*"):
        if path.suffix in (".so", ".pyd", ".dylib"):
            try:
                torch.ops.load_library(str(path))
            except OSError:  # a library of another build: the operators stay missing
                return


def labels_of(dataset: Any) -> Sequence[int]:
    """The labels of a torchvision data set, in the order of its images."""
    for name in ("targets", "labels"):
        if hasattr(dataset, name):
            return getattr(dataset, name)
    return dataset._labels  # flowers102, pets, food101, dtd


def files_of(dataset: Any) -> Sequence[str | Path]:
    """The image files of a torchvision data set that is not kept as one array."""
    if hasattr(dataset, "samples"):  # eurosat
        return [path for path, _ in dataset.samples]
    if hasattr(dataset, "_image_files"):  # flowers102, food101, dtd
        return dataset._image_files
    return dataset._images  # pets
