"""Libraries that a test needs and that may be absent.

`pytest.importorskip` at the top of a file would import them in every process of the tests, whether
it runs that file or not.
"""

from importlib.util import find_spec

import pytest


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skips the tests where one of these packages is absent: `pytestmark = needs("nncf")`."""
    absent = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"needs {', '.join(absent)}")
