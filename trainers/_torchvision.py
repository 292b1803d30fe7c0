"""Make torchvision importable beside a torch of another build (CUDA torchvision, CPU torch).

timm imports torchvision, and torchvision's import fails with "operator torchvision::nms does not
exist" when its compiled library cannot load. None of its compiled operators (all for detection) is
used here, so the missing names are declared without a kernel: calling one still raises.
"""

import re
import sys

import torch

_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
_libraries: list[torch.library.Library] = []  # declarations live as long as their Library object


def import_torchvision() -> None:
    """Import torchvision, declaring the compiled operators that this build lacks.

    Raises:
        RuntimeError: torchvision fails to import for any other reason.
    """
    for _ in range(16):
        try:
            import torchvision  # noqa: F401

            return
        except RuntimeError as error:
            missing = _MISSING.search(str(error))
            if missing is None:
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{missing[1]}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
            _libraries.append(library)
            for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    raise RuntimeError("torchvision does not import; reinstall torch and torchvision together")
