"""timm, imported when it is first used; all code here takes it from this file.

    from trainers.timm_library import timm

is cheap. Using it (`timm.layers.DropPath`) imports timm, which takes some two seconds, mostly for
torchvision. Before that the operators that torchvision's import asks for are declared, so that it
passes beside any build of torch. It is used to build models and optimisers, not in a forward pass:
torch.compile cannot follow it.
"""

from functools import lru_cache
from types import ModuleType
from typing import Any

from trainers.torchvision_internals import declare_missing_operators


class _Timm:
    """Stands for the package: every attribute is timm's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_import(), name)


@lru_cache(maxsize=1)
def _import() -> ModuleType:
    declare_missing_operators()
    import timm
    import timm.data
    import timm.layers
    import timm.models
    import timm.optim
    import timm.scheduler
    import timm.utils

    return timm


timm: Any = _Timm()
