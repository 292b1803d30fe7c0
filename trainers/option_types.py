"""What options share: their class, and types of paths as users write them, names of models,
durations, shares.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
)

from trainers.files import expanded


class Config(BaseModel):
    """A frozen configuration that rejects unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


MAY_BE_GONE = "may_be_gone"
"""Key of pydantic's validation context: whoever reads an old configuration sets it, so that files
that were there once need not be there now.
"""
LOCAL_FOLDER = "local-dir:"
"""How timm's names of models in a folder begin."""


def _expand(value: Any, info: ValidationInfo) -> Any:
    """A path with `~` and environment variables replaced; what was read once stays as it is."""
    may_be_gone = (info.context or {}).get(MAY_BE_GONE, False)
    if may_be_gone or not isinstance(value, str | Path):
        return value
    text = expanded(str(value))
    return Path(text) if isinstance(value, Path) else text


UserPath = Annotated[Path, BeforeValidator(_expand)]
"""A path in which `~` is the home folder and `$NAME` an environment variable."""
UserText = Annotated[str, BeforeValidator(_expand)]
"""A name, URI or path; what looks like a path in it is expanded as in `UserPath`."""


def _local_folder(value: str) -> str:
    """timm's `local-dir:FOLDER` with an absolute folder, since trials work elsewhere."""
    if not value.startswith(LOCAL_FOLDER):
        return value
    folder = Path(expanded(value.removeprefix(LOCAL_FOLDER))).absolute()
    return f"{LOCAL_FOLDER}{folder}"


def _saved_model(value: str) -> str:
    """The name of a model; that of a folder is made absolute."""
    return value if value == "source" else _absolute_folder(value)


def _absolute_folder(value: str) -> str:
    """A name; that of a folder is made absolute, since trials work elsewhere."""
    return str(Path(value).absolute()) if Path(value).is_dir() else value


SetName = Annotated[UserText, AfterValidator(_absolute_folder)]
"""A data set by its name, or a folder that holds one."""
SourceName = Annotated[str, AfterValidator(_local_folder)]
"""A model by its name."""
ModelName = Annotated[
    UserText, AfterValidator(_local_folder), AfterValidator(_saved_model)
]
"""A model by its name, or a folder that holds one."""

Strategy = Literal["ddp", "fsdp"]
"""What each of several workers holds of a model: all of it, or a part."""

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(epochs?|steps?|%)\s*$")


def _check_duration(value: float | str) -> float | str:
    if isinstance(value, str):
        match = _DURATION.match(value)
        if match is None:
            raise ValueError(
                f"a duration is a number of epochs, 'N steps' or 'N%'; got {value!r}"
            )
        if match[2] == "%" and float(match[1]) > 100:
            raise ValueError(f"a duration in percent is at most 100%; got {value!r}")
    elif value < 0:
        raise ValueError(f"a duration is not negative; got {value}")
    return value


Duration = Annotated[float | str, AfterValidator(_check_duration)]
"""Epochs as a number, or "N epochs", "N steps", "N%" (of the whole fit)."""


def duration_in_steps(
    duration: float | str, steps_per_epoch: int, total_steps: int
) -> int:
    """A duration as a number of optimiser steps, rounded."""
    if not isinstance(duration, str):
        return round(duration * steps_per_epoch)
    match = _DURATION.match(duration)
    assert match is not None, duration
    amount, unit = float(match[1]), match[2]
    if unit == "%":
        return round(total_steps * amount / 100)
    return (
        round(amount * steps_per_epoch) if unit.startswith("epoch") else round(amount)
    )


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if low > high:
        raise ValueError(
            f"the first number is the smaller one; write [{high:g}, {low:g}]"
        )
    return value


Share = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1."""

Shares = Annotated[tuple[Share, Share], AfterValidator(_ascending)]
"""A range of shares: from 0 to 1, the smaller number first."""

Deviation = Annotated[float, Field(gt=0)]


def _as_word(value: Any) -> Any:
    """YAML reads a bare yes or no as true or false."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


YesOrNo = Annotated[Literal["auto", "yes", "no"], BeforeValidator(_as_word)]
"""Yes, no, or what fits."""
