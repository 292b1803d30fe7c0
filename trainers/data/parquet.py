"""Parquet shards as Hugging Face `datasets`, pandas or pyarrow write them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainers.config import DataConfig
from trainers.data.assemble import Split, assemble
from trainers.data.classes import joined, plain_labels
from trainers.data.columns import columns_of
from trainers.data.image_cells import (
    FindFile,
    check_there,
    finder,
    images_in,
    is_text,
    outside,
)
from trainers.data.parts import Dataset, Labels, Pixels, file_hash
from trainers.data.shards import find_shards, root_folder
from trainers.files import why_not_the_file
from trainers.words import one_line

BATCH = 256  # rows in memory at a time
SAMPLE = 2_000  # images that are looked at before all are read
SAMPLE_BYTES = 64 << 20
BUFFER_BYTES = 1 << 20  # else all pages of a row group are in memory


@dataclass(frozen=True, eq=False)
class ParquetPart:
    """Images of Parquet `files`.

    Attributes:
        columns: the image column of each file.
        rows: those that belong to the part, counted over all files, int64 (N,), ascending.
        labels: int64 (N,).
        root: folder that paths in the image columns may start from.
    """

    files: tuple[Path, ...]
    columns: tuple[str, ...]
    rows: Labels
    labels: Labels
    root: Path

    def name(self, row: int) -> str:
        """The image's file and its row there."""
        at = int(self.rows[row])
        for file in self.files:
            rows = pq.read_metadata(file).num_rows
            if at < rows:
                break
            at -= rows
        return f"{file} row {at}"

    def images(self) -> Iterator[bytes | Path | Pixels]:
        """Some rows are in memory at a time; an absent image is b""."""
        start = 0
        for file, column in zip(self.files, self.columns, strict=True):
            find = finder(file.parent, self.root)
            for cells in _cells(file, column):
                end = start + len(cells)
                first, last = np.searchsorted(self.rows, [start, end])
                if last - first < len(cells):
                    cells = cells.take(pa.array(self.rows[first:last] - start))
                yield from images_in(cells, find)
                start = end

    def sample(self, most: int) -> Iterator[tuple[int, bytes | Path | Pixels]]:
        """(row, image) of the first rows of every file: at least one of each; in all about
        `most`, `SAMPLE` or `SAMPLE_BYTES`, whichever is least.
        """
        each = -(-min(most, SAMPLE) // len(self.files))
        start = 0
        for file, column in zip(self.files, self.columns, strict=True):
            with _opened(file) as parquet:
                end = start + parquet.metadata.num_rows
            first, last = np.searchsorted(self.rows, [start, end]).tolist()
            chosen = self.rows[first : min(last, first + each)] - start
            find = finder(file.parent, self.root)
            size = 0
            for row, image in _at(file, column, chosen, find):
                yield first + row, image
                size += len(image) if isinstance(image, bytes) else 0
                if size > SAMPLE_BYTES // len(self.files):
                    break
            start = end

    def content(self, cache_dir: Path) -> Iterator[bytes | memoryview]:
        """The files' hashes, each remembered in `cache_dir` while size and time stay; which rows,
        where some are left out; sizes of images that lie in files of their own.
        """
        for file in self.files:
            yield file_hash(file, cache_dir).encode()
        if len(self.rows) < sum(pq.read_metadata(file).num_rows for file in self.files):
            yield self.rows.tobytes()
        for file, column in zip(self.files, self.columns, strict=True):
            for image in _without_bytes(file, column, self.root):
                if image:
                    yield f"{image.stat().st_size}\n".encode()


def open_parquet(config: DataConfig) -> Dataset:
    """Shards below `root`, in any layout of the Hugging Face Hub (see `find_shards`).

    Raises:
        ValueError: a shard is damaged or missing; columns or labels are not clear.
    """
    root = root_folder(config)
    found = find_shards(root, config, ".parquet")
    train = _read(found.train, config, root, training=True)
    train = replace(train, remarks=(*found.remarks, *train.remarks))

    def reader(files: tuple[Path, ...] | None) -> Callable[[], Split] | None:
        return (
            None
            if files is None
            else lambda: _read(files, config, root, training=False)
        )

    test, validation = reader(found.test), reader(found.validation)
    return assemble(config, str(root), train, test, validation)


def _read(
    files: tuple[Path, ...], config: DataConfig, root: Path, *, training: bool
) -> Split:
    """Footers and all labels of a split's shards; that no image is missing."""
    found = []
    for file in files:
        with _opened(file) as parquet:
            schema = parquet.schema_arrow
        found.append(columns_of(schema, config, str(file), training=training))
    names = {columns.names: file for columns, file in zip(found, files, strict=True)}
    names.pop(None, None)
    if len(names) > 1:
        places = " and ".join(str(file) for file in list(names.values())[:2])
        raise ValueError(
            f"{places} name the classes differently; write all shards alike, or give"
            " data.class_names"
        )
    images = tuple(columns.image for columns in found)
    remarks = [remark for columns in found for remark in columns.remarks]
    if len(set(images)) > 1:
        remarks.append(
            f"The image column is not called alike in all shards: {', '.join(images)}."
        )
    for file, image in zip(files, images, strict=True):
        _check_bytes(file, image, root, config.max_unreadable)
    labels = [
        _labels(file, columns.label) for file, columns in zip(files, found, strict=True)
    ]
    return Split(
        joined(labels),
        next(iter(names), None),
        tuple(remarks),
        lambda rows, numbers: ParquetPart(files, images, rows, numbers, root),
    )


def _labels(file: Path, column: str | None) -> tuple[str, pa.Array]:
    """(place, labels) of a shard; none of its rows has a label where `column` is None."""
    with _opened(file) as parquet:
        if column is None:
            return str(file), pa.nulls(parquet.metadata.num_rows, pa.int64())
        values = parquet.read(columns=[column]).column(column)
    place = f"{file}: column {column!r}"
    return place, plain_labels(values, place)


def _check_bytes(file: Path, column: str, root: Path, max_unreadable: int) -> None:
    """Refuse rows that hold neither an image nor the path of one that is there."""
    found = list(_without_bytes(file, column, root))
    if None in found:
        with _opened(file) as parquet:
            total = parquet.metadata.num_rows
        check_there(found, total, f"{file}: column {column!r}", max_unreadable)


def _without_bytes(file: Path, column: str, root: Path) -> Iterator[Path | None]:
    """The files of images that the shard does not hold itself; None for a row without any."""
    with _opened(file) as parquet:
        is_path = is_text(parquet.schema_arrow.field(column).type)
        if not is_path and _null_count(parquet.metadata, column) == 0:
            return
    find = finder(file.parent, root)
    for cells in _cells(file, column):
        yield from outside(cells, find)


def _null_count(metadata: pq.FileMetaData, column: str) -> int:
    """Rows without bytes, as the footer counts them (0 where it does not)."""
    total = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for at in range(row_group.num_columns):
            chunk = row_group.column(at)
            if chunk.path_in_schema in (column, f"{column}.bytes"):
                facts = chunk.statistics
                total += facts.null_count if facts and facts.has_null_count else 0
    return total


def _at(
    file: Path, column: str, rows: Labels, find: FindFile
) -> Iterator[tuple[int, bytes | Path | Pixels]]:
    """(position in `rows`, image) of ascending rows of a file; no row after them is read."""
    start = done = 0
    for cells in _cells(file, column, rows=min(BATCH // 8, len(rows)) or 1):
        if done == len(rows):
            return
        last = int(np.searchsorted(rows, start + len(cells)))
        chosen = cells.take(pa.array(rows[done:last] - start))
        yield from enumerate(images_in(chosen, find), done)
        start, done = start + len(cells), last


def _cells(file: Path, column: str, rows: int = BATCH) -> Iterator[pa.Array]:
    """The image column, some rows at a time."""
    with _opened(file) as parquet:
        for batch in parquet.iter_batches(batch_size=rows, columns=[column]):
            yield batch.column(0)


@contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    """A shard; whatever is wrong with it is told with its name.

    Raises:
        ValueError: it is damaged, or none.
    """
    try:
        with pq.ParquetFile(
            file, buffer_size=BUFFER_BYTES, pre_buffer=False
        ) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        reason = file.is_file() and why_not_the_file(file)
        said = one_line(error)
        raise ValueError(
            f"{file}: {reason or f'cannot be read as Parquet ({said}); fetch it again'}"
        ) from error
