"""Stages from the plain values of a spec or a plan."""

import difflib
from typing import Any

from compress.pipeline import STAGES
from compress.stage import Stage
from sweeps.spec.load import validated
from sweeps.spec.yaml_text import SpecError


def build_stage(kind: str, config: dict[str, Any], place: str) -> Stage:
    """A stage from plain values.

    Raises:
        SpecError: no such stage, or a config that it refuses.
    """
    if kind not in STAGES:
        close = difflib.get_close_matches(kind, STAGES, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise SpecError(
            f"{place}: no stage {kind!r}; {hint}valid stages: {', '.join(STAGES)} (or"
            " give `stage: KIND`)"
        )
    return validated(STAGES[kind], config, place)
