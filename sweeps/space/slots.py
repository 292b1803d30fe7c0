"""Slots: entries of `stages` of the form `{one_of: {alternative: config, sub-pipeline or null}}`.

A sub-pipeline is `{stages: {name: config, ...}}`: several stages in the place of one, under
their own names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.spec.yaml_text import Tree


def is_slot(entry: Any) -> bool:
    return isinstance(entry, dict) and "one_of" in entry


def is_pipeline(config: Any) -> bool:
    """Whether an alternative of a slot is a sub-pipeline."""
    return isinstance(config, dict) and isinstance(config.get("stages"), dict)


def named_alternatives(
    options: Mapping[str, Any], wanted: str, following: str | None
) -> frozenset[str]:
    """The alternatives, not empty ones, that the part `wanted` of a path means; `following`
    is the part after it.

    `*` means the sub-pipelines with a stage of that name, or where there are none, every
    alternative of one stage.
    """
    if wanted != "*":
        return frozenset({wanted} if options.get(wanted) is not None else ())
    nested = frozenset(
        o
        for o, config in options.items()
        if is_pipeline(config) and following in config["stages"]
    )
    return nested or frozenset(
        o
        for o, config in options.items()
        if config is not None and not is_pipeline(config)
    )


def inside_alternative(config: Any, parts: Sequence[str]) -> list[str]:
    """Keys within an alternative's config for what follows it in a path."""
    return (
        ["stages", *parts]
        if is_pipeline(config) and parts and parts[0] != "stages"
        else list(parts)
    )


def chosen_stages(slot: str, entry: Mapping[str, Any], alternative: str) -> Tree:
    """The stages that a slot's alternative stands for: none, one under the slot's name, or
    a sub-pipeline's.
    """
    config = entry["one_of"][alternative]
    if config is None:
        return {}
    if is_pipeline(config):
        return dict(config["stages"])
    return {
        slot: {"stage": alternative, **config} if isinstance(config, dict) else config
    }
