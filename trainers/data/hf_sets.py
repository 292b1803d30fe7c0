"""Image classification sets through the library `datasets` of Hugging Face: of the Hub, of a local
folder (imagefolder, Parquet, …), or of one that `save_to_disk` wrote.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from trainers.config import DataConfig
from trainers.data.assemble import Split, assemble
from trainers.data.classes import plain_labels
from trainers.data.columns import columns_of
from trainers.data.decoding import PLAIN, Decoding, decode
from trainers.data.image_cells import check_there, finder, images_in, outside
from trainers.data.parts import (
    Dataset,
    Labels,
    Pixels,
    files_hash,
    spread,
)
from trainers.data.shards import WORDS, root_folder, split_named
from trainers.files import default_data_cache, sha256_file, write_atomic
from trainers.words import one_line

BATCH = 256  # rows in memory at a time
STREAM_SAMPLE = 256  # images of a stream that are looked at before all are read
_OF_SAVE_TO_DISK = ("dataset_dict.json", "state.json")


@dataclass(frozen=True, eq=False)
class HubPart:
    """Images of a split that lies in memory-mapped Arrow files.

    Attributes:
        cells: a `datasets.Dataset` of the image column alone, in Arrow's format.
        rows: those that belong to the part, int64 (N,), ascending.
        labels: int64 (N,).
        place: what messages call the split.
    """

    cells: Any
    rows: Labels
    labels: Labels
    place: str
    decoding: Decoding = PLAIN

    def name(self, row: int) -> str:
        """The split and the image's row there."""
        return f"{self.place} row {self.rows[row]}"

    def images(self) -> Iterator[bytes | Path | Pixels]:
        """Some rows are in memory at a time; an absent image is b""."""
        for start in range(0, len(self.rows), BATCH):
            yield from _images(_column(self.cells[self.rows[start : start + BATCH]]))

    def sample(self, most: int) -> Iterator[tuple[int, bytes | Path | Pixels]]:
        """(row, image) of all rows, or of `most` at even distances."""
        for row in spread(len(self.rows), most):
            yield row, self.encoded(row)

    def read(self, row: int) -> Image.Image:
        """Image `row` as RGB.

        Raises:
            UnreadableImageError: it is damaged.
        """
        image = self.encoded(row)
        if isinstance(image, np.ndarray):
            return Image.fromarray(image.transpose(1, 2, 0))
        return decode(image, self.decoding)

    def encoded(self, row: int) -> bytes | Path | Pixels:
        """The cell of image `row`."""
        return next(_images(_column(self.cells[[int(self.rows[row])]])))

    def content(self, cache_dir: Path) -> Iterator[bytes | memoryview]:
        """A hash of all images, remembered in `cache_dir` while the Arrow files stay."""
        files = [Path(file["filename"]) for file in self.cells.cache_files]
        rows = hashlib.sha256(self.rows.tobytes()).hexdigest()
        kind = f"{self.cells.column_names} {rows}"
        if files and next(_outside(self.cells), None) is None:
            digest = files_hash(files, kind, lambda: _hash(self.images()), cache_dir)
        else:
            digest = _hash(self.images())
        yield digest.encode()


@dataclass(frozen=True, eq=False)
class StreamPart:
    """Images of a split that come in order from the Hub, or from local files.

    Attributes:
        cells: a `datasets.IterableDataset` of the image column alone, in Arrow's format.
        rows: those that belong to the part, int64 (N,), ascending.
        labels: int64 (N,).
        files: addresses of the files that the split is in; those on the Hub hold the commit.
        place: what messages call the split.
    """

    cells: Any
    rows: Labels
    labels: Labels
    files: tuple[str, ...]
    place: str

    def name(self, row: int) -> str:
        """The split and the image's row there."""
        return f"{self.place} row {self.rows[row]}"

    def images(self) -> Iterator[bytes | Path | Pixels]:
        """Some rows are in memory at a time; an absent image is b""."""
        start = 0
        with _refused(self.place):
            for table in self.cells.iter(BATCH):
                cells = _column(table)
                end = start + len(cells)
                first, last = np.searchsorted(self.rows, [start, end])
                yield from _images(cells.take(pa.array(self.rows[first:last] - start)))
                start = end

    def sample(self, most: int) -> Iterator[tuple[int, bytes | Path | Pixels]]:
        """(row, image) of the first images: all before another comes through the network."""
        return islice(enumerate(self.images()), min(most, STREAM_SAMPLE))

    def content(self, cache_dir: Path) -> Iterator[bytes | memoryview]:
        """Which rows of which files: hashes of local files, addresses of those on the Hub, whose
        commit stands for their content. Where no file is known, the images are hashed.
        """
        yield self.rows.tobytes()
        local = [Path(file) for file in self.files if "://" not in file]
        yield "\n".join(file for file in self.files if "://" in file).encode()
        if local:
            yield files_hash(local, "", lambda: _hash_files(local), cache_dir).encode()
        if not self.files:
            yield _hash(self.images()).encode()


class _Source(NamedTuple):
    """A split as `datasets` opens it.

    Attributes:
        data: a Dataset, or an IterableDataset where it is a stream.
        files: addresses of the files of a stream.
    """

    data: Any
    files: tuple[str, ...]


def open_hf(config: DataConfig) -> Dataset:
    """The set that `data.name`, or the folder `data.root`, names.

    Raises:
        ValueError: the library `datasets` is missing; no such set, subset or split; the Hub
            cannot be reached; columns or labels are not clear.
    """
    datasets = _library()
    place = _place(config)
    with _refused(place):
        splits = _splits(datasets, config, place)
    train, test, validation = _chosen(config, place, splits)

    def reader(name: str) -> Callable[[], Split]:
        where, is_train = f"{place} split {name}", name == train
        return lambda: _read(config, where, splits[name], training=is_train)

    return assemble(
        config,
        place,
        reader(train)(),
        reader(test) if test else None,
        reader(validation) if validation else None,
    )


def _library() -> Any:
    """The package `datasets`, silent.

    Raises:
        ValueError: it is not installed.
    """
    found = find_spec("datasets")
    if found is None or found.origin is None:  # a folder called datasets is no library
        raise ValueError(
            "data.dataset hf needs the package datasets: pip install"
            " 'compression-sweeps[hf]'"
        )
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    return datasets


def _place(config: DataConfig) -> str:
    """A repository's name, or the path of a local folder.

    Raises:
        ValueError: neither `data.name` nor `data.root` is given, or both; no such folder.
    """
    if (config.name is None) == (config.root is None):
        raise ValueError(
            "data.dataset 'hf' needs either data.name, a repository of the Hugging Face"
            " Hub such as uoft-cs/cifar10, or data.root, a local folder"
        )
    if config.name is None:
        return str(root_folder(config))
    if config.name.startswith((".", "/", "~")) and not Path(config.name).is_dir():
        raise ValueError(f"data.name {config.name}: no such folder")
    return config.name


def _splits(
    datasets: Any, config: DataConfig, place: str
) -> dict[str, Callable[[], _Source]]:
    """Split → what opens it; where an option is an expression such as train[:80%], that too."""
    if any((Path(place) / name).is_file() for name in _OF_SAVE_TO_DISK):
        for option in ("subset", "revision", "streaming"):
            if getattr(config, option):
                raise ValueError(
                    f"save_to_disk wrote it, and data.{option} does not apply"
                )
        saved = datasets.load_from_disk(place)
        found = saved if isinstance(saved, Mapping) else {"train": saved}
        return {name: partial(_Source, split, ()) for name, split in found.items()}
    builder = datasets.load_dataset_builder(
        place, config.subset, revision=config.revision
    )
    if config.streaming:
        files = builder.config.data_files or {}
        return {
            str(name): partial(_Source, data, tuple(map(str, files.get(name, ()))))
            for name, data in builder.as_streaming_dataset().items()
        }
    builder.download_and_prepare()
    options = (config.train_split, config.test_split)
    expressions = [option for option in options if option and "[" in option]
    if expressions:
        _check_apart(datasets, builder, config)

    def prepared(name: str) -> _Source:
        return _Source(builder.as_dataset(split=name), ())

    names = [*builder.info.splits, *expressions]
    return {name: partial(prepared, name) for name in names}


def _check_apart(datasets: Any, builder: Any, config: DataConfig) -> None:
    """Refuse expressions such as train[:80%] and train[70%:] that share images."""
    lengths = {name: split.num_examples for name, split in builder.info.splits.items()}
    options = (config.train_split or "train", config.test_split or "test")
    train, test = (
        datasets.ReadInstruction.from_spec(option).to_absolute(lengths)
        if "[" in option or option in lengths
        else []
        for option in options
    )
    for one in train:
        for other in test:
            shared = min(one.to, other.to) - max(one.from_, other.from_)
            if one.splitname == other.splitname and shared > 0:
                raise ValueError(
                    f"data.train_split {options[0]!r} and data.test_split {options[1]!r} share"
                    f" {shared} images; change one"
                )


def _chosen(
    config: DataConfig, place: str, splits: Iterable[str]
) -> tuple[str, str | None, str | None]:
    """Names of the training, test and validation splits.

    Raises:
        ValueError: a split that an option names, or any for training, is not there.
    """
    names = list(splits)
    usual = {word: [n for n in names if split_named(n) == word] for word in WORDS}
    for option in (config.train_split, config.test_split):
        if option is not None and option not in names:
            raise ValueError(
                f"{place}: there is no split {option!r}; splits are {', '.join(names)}"
            )
    train = usual["train"] if config.train_split is None else [config.train_split]
    if not train and len(names) == 1 and config.test_split is None:
        train = names
    if len(train) != 1:
        raise ValueError(
            f"{place}: which split to train on is not clear; splits are"
            f" {', '.join(names)}. data.train_split and data.test_split name them"
        )
    if config.test_split is not None:
        if config.test_split == train[0]:
            raise ValueError(
                f"data.test_split {train[0]!r} is data.train_split, too; the test part"
                " has images of its own"
            )
        return train[0], config.test_split, None
    test, validation = (
        next((name for name in usual[word] if name != train[0]), None)
        for word in ("test", "validation")
    )
    return train[0], test, validation


def _read(
    config: DataConfig, place: str, split: Callable[[], _Source], *, training: bool
) -> Split:
    """Columns and all labels of a split, and whether every image is there."""
    with _refused(place):
        source = split()
    data, files, features = source.data, source.files, source.data.features
    if features is None:
        raise ValueError(
            f"{place}: its columns are not known; data.streaming must be off"
        )
    columns = columns_of(features.arrow_schema, config, place, training=training)
    cells = data.select_columns([columns.image]).with_format("arrow")
    if columns.label is None:
        labels = pa.nulls(sum(map(len, _batches(cells))), pa.int64())
    else:
        with _refused(place):
            read = _remembered(columns.label, source)
        labels = plain_labels(read, f"{place}: column {columns.label!r}")
    if not config.streaming:
        found = list(_outside(cells))
        check_there(
            found,
            len(cells),
            f"{place}: column {columns.image!r}",
            config.max_unreadable,
        )
    kind = partial(StreamPart, files=files) if config.streaming else HubPart
    return Split(
        labels,
        columns.names,
        columns.remarks,
        lambda rows, numbers: kind(cells=cells, rows=rows, labels=numbers, place=place),
    )


def _remembered(column: str, source: _Source) -> pa.ChunkedArray:
    """A column; of files on the Hub it is kept in the data cache, under the commit."""
    note = None
    if source.files and all("@" in file and "://" in file for file in source.files):
        key = hashlib.sha256("\0".join([column, *source.files]).encode()).hexdigest()
        note = default_data_cache() / "labels" / f"{key[:32]}.parquet"
        if note.is_file():
            return pq.read_table(note).column(0)
    chosen = source.data.select_columns([column]).with_format("arrow")
    read = pa.chunked_array(list(_batches(chosen)))
    if note is not None:
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table({column: read}), buffer)
        write_atomic(note, buffer.getvalue().to_pybytes())
    return read


def _batches(data: Any) -> Iterator[pa.Array]:
    """The only column of a data set in Arrow's format, some rows at a time."""
    for table in data.iter(BATCH):
        yield _column(table)


def _column(table: pa.Table) -> pa.Array:
    column = table.column(0).combine_chunks()
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _outside(cells: Any) -> Iterator[Path | None]:
    """The files of images that the Arrow files do not hold."""
    for chunk in _batches(cells):
        yield from outside(chunk, finder())


def _images(cells: pa.Array) -> Iterator[bytes | Path | Pixels]:
    """The images of a column; those in archives or on a server are read by `datasets`."""
    if pa.types.is_struct(cells.type):
        paths = cells.field("path").to_pylist()
        if any(path and "://" in path for path in paths):
            cells = _library().Image().embed_storage(cells)
    return images_in(cells, finder())


def _hash(images: Iterable[bytes | Path | Pixels]) -> str:
    """Hex SHA-256 of the images: of a file its name and size, of others their bytes."""
    digest = hashlib.sha256()
    for image in images:
        if isinstance(image, Path):
            digest.update(f"{image.name} {image.stat().st_size}\n".encode())
        else:
            piece = image if isinstance(image, bytes) else image.tobytes()
            digest.update(f"{len(piece)}\n".encode() + piece)
    return digest.hexdigest()


def _hash_files(files: Iterable[Path]) -> str:
    return hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()


@contextmanager
def _refused(place: str) -> Iterator[None]:
    """What `datasets` refuses, on one line with the name of the set.

    Raises:
        ValueError: in place of whatever it raises.
    """
    from datasets.exceptions import DatasetsError

    try:
        yield
    except ConnectionError as error:
        raise ValueError(
            f"data.name {place!r}: the Hugging Face Hub cannot be reached; check the"
            " connection, set HF_HUB_OFFLINE=1 to use what its cache holds, or give a local"
            " folder as data.root"
        ) from error
    except (DatasetsError, OSError, RuntimeError, ValueError, KeyError) as error:
        cause = error.__cause__ or error
        said = one_line(cause) or type(cause).__name__
        raise ValueError(f"data set {place!r} cannot be read: {said}") from error
