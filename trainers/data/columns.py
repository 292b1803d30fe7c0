"""Which column of a table holds the images and which the labels; how the classes are called."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from trainers.config import DataConfig
from trainers.data.image_cells import holds_images, is_text
from trainers.files import parse_json

_IMAGE_NAMES = ("image", "img")
_PATH_NAMES = (*_IMAGE_NAMES, "path", "file", "file_name", "filename", "filepath")
LABEL_NAMES = (
    *("label", "labels", "fine_label", "coarse_label", "class_label", "label_id"),
    *("target", "targets", "class", "classes", "class_id", "category", "y", "cls"),
)


@dataclass(frozen=True)
class Columns:
    """Columns of a table: `label` is None where none is found, `names` where no class is named."""

    image: str
    label: str | None
    names: tuple[str, ...] | None
    remarks: tuple[str, ...]


def columns_of(
    schema: pa.Schema, config: DataConfig, place: str, *, training: bool
) -> Columns:
    """The columns that `config` names, or the only ones that can be meant.

    Columns that Hugging Face `datasets` marks as Image and ClassLabel come first, then types and
    usual names.

    Args:
        place: the file or data set, for messages.
        training: labels must be there; those of a test part may be missing.

    Raises:
        ValueError: no image column; no label column; several candidates; a column that is
            named is not there.
    """
    features = _features(schema)
    remarks: list[str] = []
    image = config.image_column or _image_column(schema, features, place, remarks)
    label = config.label_column or _label_column(
        schema, features, image, place, remarks
    )
    for option, name in (("image_column", image), ("label_column", label)):
        if name is not None and name not in schema.names:
            raise ValueError(
                f"{place}: data.{option} {name!r} is no column; columns are"
                f" {', '.join(schema.names)}"
            )
    kind = schema.field(image).type
    if not holds_images(kind) and not is_text(kind):
        raise ValueError(
            f"{place}: column {image!r} holds {kind}, and no images (bytes, a path, or"
            " pixels as whole numbers 0..255)"
        )
    if label is None and training:
        raise ValueError(
            f"{place}: no column has the name of labels (label, target, …); columns are"
            f" {', '.join(schema.names)}. data.label_column names one"
        )
    names = features.get(label or "", {}).get("names")
    return Columns(image, label, tuple(names) if names else None, tuple(remarks))


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Column → what `datasets` says of it; {} where it did not write the file."""
    try:
        meta = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
    except ValueError:
        return {}
    info = meta.get("info") if isinstance(meta, dict) else None
    features = info.get("features") if isinstance(info, dict) else None
    found = features if isinstance(features, dict) else {}
    return {key: value for key, value in found.items() if isinstance(value, dict)}


def _of_type(features: dict[str, Any], kind: str, schema: pa.Schema) -> list[str]:
    return [
        name
        for name, feature in features.items()
        if feature.get("_type") == kind and name in schema.names
    ]


def _image_column(
    schema: pa.Schema, features: dict[str, Any], place: str, remarks: list[str]
) -> str:
    found = _of_type(features, "Image", schema) or [
        field.name for field in schema if holds_images(field.type)
    ]
    found = found or [
        field.name
        for field in schema
        if is_text(field.type) and field.name.lower() in _PATH_NAMES
    ]
    if not found:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise ValueError(
            f"{place}: no column holds images: a struct column with a field 'bytes', or"
            f" bytes, is needed; columns are {columns}. data.image_column names one"
        )
    usual = [name for name in found if name.lower() in _IMAGE_NAMES]
    return _only(found, usual, "image", place, remarks)


def _label_column(
    schema: pa.Schema,
    features: dict[str, Any],
    image: str,
    place: str,
    remarks: list[str],
) -> str | None:
    found = _of_type(features, "ClassLabel", schema) or [
        name for name in schema.names if name.lower() in LABEL_NAMES and name != image
    ]
    if not found:
        return None
    usual = [name for name in found if name == "label"]
    if set(found) == {"fine_label", "coarse_label"}:
        usual = ["fine_label"]
    elif usual and not _of_type(features, "ClassLabel", schema):
        usual = found
    return _only(found, usual, "label", place, remarks)


def _only(
    found: Sequence[str],
    usual: Sequence[str],
    what: str,
    place: str,
    remarks: list[str],
) -> str:
    """The only one of `found`, or the only `usual` one of them."""
    if len(found) == 1:
        return found[0]
    if len(usual) != 1:
        raise ValueError(
            f"{place}: several columns can be the {what}: {', '.join(found)};"
            f" data.{what}_column names the one that is meant"
        )
    others = ", ".join(repr(name) for name in found if name != usual[0])
    remarks.append(
        f"Column {usual[0]!r} is the {what}, {others} not; data.{what}_column picks"
        " another."
    )
    return usual[0]
