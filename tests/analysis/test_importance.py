"""What decides: functional ANOVA over the configurations."""

from __future__ import annotations

import pytest

import analysis
from analysis.importance import importance


def test_importance_finds_what_decides(make_run):
    shares = {i.parameter: i for i in importance(analysis.load(make_run(trials=80)))}
    assert shares["init"].shares[0] == max(
        i.shares[0] for i in shares.values() if not i.conditional
    )
    assert shares["nvit.target"].shares[1] > 0.9
    assert shares["init.element_rule"].conditional
    assert 0 < shares["init.element_rule"].count < shares["init"].count
    for k in range(2):
        assert sum(
            i.shares[k] for i in shares.values() if not i.conditional
        ) == pytest.approx(1)
    assert importance(analysis.load(make_run("few", trials=8))) == []
