"""Make torchvision importable beside a torch of another build (CUDA torchvision, CPU torch).

timm imports torchvision, and torchvision's import fails with "operator torchvision::nms does not
exist" when its compiled library cannot load. None of its compiled operators (all for detection) is
used here, so the missing names are declared without a kernel: calling one still raises.
"""

import re
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
_libraries: list[object] = []  # declarations live as long as their Library object


def import_torchvision() -> ModuleType:
    """Import torchvision, declaring the compiled operators that this build lacks.

    Raises:
        RuntimeError: torchvision fails to import for any other reason.
    """
    import torch

    for _ in range(16):
        try:
            import torchvision

            return torchvision
        except RuntimeError as error:
            missing = _MISSING.search(str(error))
            if missing is None:
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(
                f"{missing[1]}(Tensor boxes, Tensor scores, float threshold) -> Tensor"
            )
            _libraries.append(library)
            for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    raise RuntimeError(
        "torchvision does not import; reinstall torch and torchvision together"
    )


class _Imported(Loader):
    """Hands over a module that is imported already."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: it has run."""


class _Mender(MetaPathFinder):
    """Takes the first import of torchvision, whoever asks for it, and leaves."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        module = import_torchvision()
        return ModuleSpec(
            name, _Imported(module), origin=module.__file__, is_package=True
        )


def mend_on_import() -> None:
    """Arrange for torchvision's first import to be mended; imports nothing itself."""
    if "torchvision" not in sys.modules and not any(
        isinstance(f, _Mender) for f in sys.meta_path
    ):
        sys.meta_path.insert(0, _Mender())
