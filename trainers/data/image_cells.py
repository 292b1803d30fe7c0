"""Images as columns of tables hold them: what kinds there are, and one image after the other.

struct<bytes, path>   Hugging Face `datasets`: the file's bytes, or where it lies
binary, list<uint8>   the file's bytes
string                where the file lies
lists of lists        pixels (H, W), (H, W, C) or (C, H, W) of whole numbers 0..255
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainers.data.parts import Pixels

FindFile = Callable[[str], Path | None]
"""The file that a text in the column means; None if there is none."""


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type holds images for certain (text may be anything)."""
    kind = _stored(kind)
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    if _is_list(kind) and _is_list(kind.value_type):
        return pa.types.is_integer(_leaf(kind))
    return is_binary(kind) or (_is_list(kind) and kind.value_type == pa.uint8())


def _stored(kind: pa.DataType) -> pa.DataType:
    """The type of the values of an extension's or a dictionary's column."""
    if isinstance(kind, pa.ExtensionType):
        kind = kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_binary(kind: pa.DataType) -> bool:
    """Whether values are bytes."""
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def is_text(kind: pa.DataType) -> bool:
    """Whether values are text."""
    kind = _stored(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
    )


def _leaf(kind: pa.DataType) -> pa.DataType:
    while _is_list(kind):
        kind = kind.value_type
    return kind


def images_in(column: pa.Array, find: FindFile) -> Iterator[bytes | Path | Pixels]:
    """Every image of a column in order; b"" where there is none."""
    column = _plain(column)
    kind = column.type
    if pa.types.is_struct(kind):
        blobs = column.field("bytes").to_pylist()
        at = kind.get_field_index("path")
        paths = column.field(at).to_pylist() if at >= 0 else [None] * len(blobs)
        for blob, path in zip(blobs, paths, strict=True):
            yield blob or _file(path, find)
    elif is_text(kind):
        for path in column.to_pylist():
            yield _file(path, find)
    elif is_binary(kind):
        for blob in column.to_pylist():
            yield blob or b""
    elif _is_list(kind.value_type):
        for row in column:
            yield _pixels(row)
    else:
        for row in column:
            yield b"" if row.values is None else row.values.to_numpy(False).tobytes()


def _plain(column: pa.Array) -> pa.Array:
    """The values themselves of an extension's or a dictionary's column."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column


def outside(cells: pa.Array, find: FindFile) -> Iterator[Path | None]:
    """The file of each image that a column does not hold itself; None where there is none."""
    cells = _plain(cells)
    blobs = cells.field("bytes") if pa.types.is_struct(cells.type) else cells
    if not is_text(blobs.type):
        cells = cells.filter(blobs.is_null())
    for image in images_in(cells, find):
        if isinstance(image, Path):
            yield image
        elif not len(image):
            yield None


def check_there(
    found: Sequence[Path | None], total: int, place: str, max_unreadable: int
) -> None:
    """Refuse images of which there are neither bytes nor a file.

    Args:
        found: as `outside` gives them.
        total: images of the column.
        place: file and column, for messages.

    Raises:
        ValueError: more than `max_unreadable` are missing.
    """
    absent = sum(file is None for file in found)
    if absent > max_unreadable:
        raise ValueError(
            f"{place}: {absent} of {total} rows hold no bytes of an image, and no path of"
            " a file that is there; embed the images in the shards, put the files where"
            " the paths say, or raise data.max_unreadable"
        )


def _file(path: str | None, find: FindFile) -> bytes | Path:
    """A file, or b"" where there is none."""
    return (find(path) if path else None) or b""


def _pixels(row: pa.Scalar) -> bytes | Pixels:
    """Nested lists as uint8 (3, H, W); b"" if they are no image."""
    values = row.values if row.is_valid else None
    shape = []
    while values is not None and _is_list(values.type):
        lengths = values.value_lengths().unique()
        if len(lengths) != 1 or not lengths[0].is_valid or not lengths[0].as_py():
            return b""  # rows of unequal length
        shape.append(lengths[0].as_py())
        values = values.flatten()
    if values is None or not len(values) or values.null_count:
        return b""
    numbers = values.to_numpy(False)
    if numbers.min() < 0 or numbers.max() > 255:
        return b""
    image = numbers.astype(np.uint8).reshape(-1, *shape)
    if image.ndim == 2:
        image = image[None]
    elif image.ndim == 3 and image.shape[2] in (1, 3, 4):
        image = image[:, :, :3].transpose(2, 0, 1)
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        return b""
    return np.ascontiguousarray(np.broadcast_to(image, (3, *image.shape[1:])))


def finder(*folders: Path) -> FindFile:
    """Finds files by a path that is absolute or starts from one of `folders` (none: where the
    process runs).
    """

    def find(path: str) -> Path | None:
        places = (folder / path for folder in folders or (Path(),))
        return next((place for place in places if place.is_file()), None)

    return find
