"""timm, importable beside any build of torchvision; all code here takes it from this file.

Importing timm takes some two seconds, mostly for torchvision, so files that can do without it
import this one inside the function that needs it.
"""

from trainers.torchvision_internals import declare_missing_operators

declare_missing_operators()  # before timm imports torchvision

import timm  # noqa: E402
import timm.data  # noqa: E402
import timm.layers  # noqa: E402
import timm.models  # noqa: E402
import timm.optim  # noqa: E402
import timm.scheduler  # noqa: E402
import timm.utils  # noqa: E402

__all__ = ["timm"]
