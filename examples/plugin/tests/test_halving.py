"""What compression-sweeps promises of every stage holds for this one."""

from compress.testing import check_stage
from halving import Halve


def test_halve() -> None:
    check_stage(Halve(fraction=0.5))
