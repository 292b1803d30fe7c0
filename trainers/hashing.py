"""Which values of a config enter a hash, now that it has options that it did not always have."""

from collections.abc import Collection
from typing import Any, Literal

from pydantic import BaseModel


class Later:
    """Marks an option that came after its class was published (`Annotated[bool, LATER]`).

    At its default it does not enter a hash, so that what earlier versions computed counts on.
    """


LATER = Later()


def values_to_hash(
    config: BaseModel,
    *,
    mode: Literal["python", "json"] = "python",
    exclude: Collection[str] = (),
) -> dict[str, Any]:
    """The values of a config that decide its hash: all but the `LATER` ones at their default.

    Args:
        mode: as in pydantic's `model_dump`.
        exclude: further fields to leave out.
    """
    left_out: dict[str, Any] = _unchanged(config) | dict.fromkeys(exclude, True)
    return config.model_dump(mode=mode, exclude=left_out)


def _unchanged(config: BaseModel) -> dict[str, Any]:
    """The `LATER` fields that have their default, of nested configs too: `exclude` of pydantic's
    `model_dump`.
    """
    found: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if LATER in field.metadata and value == field.get_default():
            found[name] = True
        elif isinstance(value, BaseModel):
            found |= {name: inner} if (inner := _unchanged(value)) else {}
    return found
