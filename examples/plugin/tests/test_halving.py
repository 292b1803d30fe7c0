"""What compression-sweeps promises of every stage holds for this one."""

from halving import Halve

from compress.testing import check_stage


def test_halve() -> None:
    check_stage(Halve(fraction=0.5))
