"""Stages from the plain values of a spec or a plan."""

from collections.abc import Mapping

from pydantic import JsonValue

from compress.pipeline import stages
from compress.stage import Stage
from sweeps.spec.load import validated
from sweeps.spec.yaml_text import SpecError, did_you_mean


def build_stage(kind: str, config: Mapping[str, JsonValue], place: str) -> Stage:
    """A stage from plain values.

    Raises:
        SpecError: no such stage, or a config that it refuses.
    """
    known = stages()
    if kind not in known:
        hint = did_you_mean(kind, known)
        raise SpecError(
            f"{place}: there is no stage {kind!r}; {hint}valid stages: {', '.join(known)} (or"
            " give `stage: KIND`)"
        )
    return validated(known[kind], config, place)
