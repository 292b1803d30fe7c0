"""Tar shards of WebDataset: members that differ in their suffix alone are one sample.

    000017.jpg  000017.cls  000017.json

An index of the members is made when a shard is opened, so that images are read in any order
without being unpacked.
"""

import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from trainers.config import DataConfig
from trainers.data.assemble import Split, assemble
from trainers.data.classes import joined, plain_labels
from trainers.data.columns import LABEL_NAMES
from trainers.data.decoding import PLAIN, Decoding, decode, suffixes
from trainers.data.parts import Dataset, Labels, file_hash, spread
from trainers.data.shards import find_shards, root_folder
from trainers.files import parse_json, why_not_the_file

BLOCK_BYTES = 512  # of a tar


class Member(NamedTuple):
    """Where a file lies in a shard, in bytes."""

    offset: int
    size: int


class Sample(NamedTuple):
    """A sample's name and its members by suffix, lower case, without the first dot."""

    key: str
    members: dict[str, Member]


@dataclass(frozen=True, eq=False)
class TarPart:
    """Images of tar `files`.

    Attributes:
        names: of the images: the number of the file, and the member's name.
        places: int64 (N, 3): number of the file, offset and size in bytes.
        labels: int64 (N,).
    """

    files: tuple[Path, ...]
    names: tuple[str, ...]
    places: Labels
    labels: Labels
    decoding: Decoding = PLAIN

    def name(self, row: int) -> str:
        """The shard and the member."""
        return f"{self.files[self.places[row, 0]]} member {self.names[row]}"

    def images(self) -> Iterator[bytes]:
        """The bytes of every image in order."""
        return (image for _, image in self._encoded(range(len(self.labels))))

    def sample(self, most: int) -> Iterator[tuple[int, bytes]]:
        """(row, bytes) of all images, or of `most` at even distances."""
        return self._encoded(spread(len(self.labels), most))

    def read(self, row: int) -> Image.Image:
        """Image `row` as RGB.

        Raises:
            UnreadableImageError: it is damaged.
        """
        return decode(self.encoded(row), self.decoding)

    def encoded(self, row: int) -> bytes:
        """The bytes of image `row`."""
        return next(self._encoded([row]))[1]

    def content(self, cache_dir: Path) -> Iterator[bytes | memoryview]:
        """The shards' hashes, each remembered in `cache_dir` while size and time stay, and where
        the images lie in them.
        """
        for file in self.files:
            yield file_hash(file, cache_dir).encode()
        yield np.ascontiguousarray(self.places).data

    def _encoded(self, rows: Any) -> Iterator[tuple[int, bytes]]:
        opened: IO[bytes] | None = None
        number = -1
        try:
            for row in rows:
                wanted, offset, size = self.places[row].tolist()
                if opened is None or wanted != number:
                    if opened is not None:
                        opened.close()
                    opened, number = open(self.files[wanted], "rb"), wanted  # noqa: SIM115
                opened.seek(offset)
                yield row, opened.read(size)
        finally:
            if opened is not None:
                opened.close()


def open_webdataset(config: DataConfig) -> Dataset:
    """Tar shards below `root` (see `find_shards`).

    Raises:
        ValueError: the library `webdataset` is missing; a shard is damaged; a sample's image or
            label is not clear.
    """
    if find_spec("webdataset") is None:
        raise ValueError(
            "data.dataset webdataset needs the package webdataset: pip install"
            " 'compression-sweeps[webdataset]'"
        )
    root = root_folder(config)
    found = find_shards(root, config, ".tar")
    train = _read(found.train, config)
    train = replace(train, remarks=(*found.remarks, *train.remarks))

    def reader(files: tuple[Path, ...] | None) -> Callable[[], Split] | None:
        return None if files is None else lambda: _read(files, config)

    test, validation = reader(found.test), reader(found.validation)
    return assemble(config, str(root), train, test, validation)


def _read(files: tuple[Path, ...], config: DataConfig) -> Split:
    """The index and all labels of a split's shards."""
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    labels = []
    lost = 0
    for number, file in enumerate(files):
        found = index(file)
        with_image = []
        for sample in found:
            suffix = _image_suffix(sample, config, file)
            if suffix is None:
                lost += 1
                continue
            with_image.append(sample)
            names.append(f"{sample.key}.{suffix}")
            places.append((number, *sample.members[suffix]))
        if found and not with_image:
            seen = sorted({suffix for sample in found for suffix in sample.members})
            raise ValueError(
                f"{file}: no sample has an image; suffixes are {', '.join(seen[:10])}."
                " data.image_column names the one of the images"
            )
        labels.append(_labels(file, with_image, config))
    at = np.asarray(places, np.int64).reshape(-1, 3)
    remarks = [f"{lost} samples have no image and are left out."] if lost else []
    return Split(
        joined(labels),
        None,
        tuple(remarks),
        lambda rows, numbers: TarPart(
            files, tuple(names[row] for row in rows), at[rows], numbers
        ),
    )


def index(file: Path) -> list[Sample]:
    """The samples of a shard, grouped as the library `webdataset` groups them.

    Raises:
        ValueError: it is no tar, compressed, cut short or damaged; or the members of a sample
            do not stand together.
    """
    from webdataset.tariterators import group_by_keys

    try:
        members = list(_members(file))
        samples = [
            Sample(
                sample["__key__"],
                {k: v for k, v in sample.items() if isinstance(v, Member)},
            )
            for sample in group_by_keys(members)
        ]
    except (tarfile.TarError, OSError) as error:
        reason = file.is_file() and why_not_the_file(file)
        why = f"cannot be read as a tar without compression ({error}); fetch it again"
        raise ValueError(f"{file}: {reason or why}") from error
    except ValueError as error:  # a name that stands there twice
        raise ValueError(f"{file}: {error.args[0]}") from error
    counts = Counter(sample.key for sample in samples)
    if len(counts) < len(samples):
        [(twice, _)] = counts.most_common(1)
        raise ValueError(
            f"{file}: the files of a sample, such as {twice}.*, must stand one after the"
            " other; sort them by name before they are packed"
        )
    return samples


def _members(file: Path) -> Iterator[dict[str, Any]]:
    """The files in a tar, as `group_by_keys` takes them."""
    with tarfile.open(file, "r:") as archive:
        for member in archive:
            is_hidden = Path(member.name).name.startswith(".")
            if member.isfile() and not is_hidden:
                place = Member(member.offset_data, member.size)
                yield {"fname": member.name, "data": place, "__url__": str(file)}
        end = archive.offset
    with open(file, "rb") as raw:
        raw.seek(end)
        if raw.read(BLOCK_BYTES).strip(b"\0"):
            raise tarfile.ReadError(f"the header at byte {end} is damaged")


def _image_suffix(sample: Sample, config: DataConfig, file: Path) -> str | None:
    """The suffix of a sample's image; None where it has none.

    Raises:
        ValueError: there are several.
    """
    if config.image_column is not None:
        wanted = config.image_column.lower().lstrip(".")
        return wanted if wanted in sample.members else None
    found = [suffix for suffix in sample.members if f".{suffix}" in suffixes()]
    if len(found) > 1:
        raise ValueError(
            f"{file}: sample {sample.key} has several images: {', '.join(found)};"
            " data.image_column names the suffix that is meant"
        )
    return found[0] if found else None


# ------------------------------------------------------------------ labels


def _labels(
    file: Path, samples: list[Sample], config: DataConfig
) -> tuple[str, pa.Array]:
    """(place, labels) of a shard's samples."""
    suffix, key = _label_place(file, samples, config)
    place = f"{file}: label {key or f'.{suffix}'}"
    values: list[Any] = []
    with open(file, "rb") as raw:
        for sample in samples:
            member = sample.members.get(suffix)
            if member is None:
                values.append(None)
                continue
            raw.seek(member.offset)
            where = f"{file} member {sample.key}.{suffix}"
            values.append(_value(raw.read(member.size), key, where))
    texts = {str(value) for value in values if isinstance(value, str)}
    if key is None and all(text.lstrip("-").isdecimal() for text in texts):
        values = [None if value is None else int(value) for value in values]
    try:
        return place, plain_labels(pa.array(values), place)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{place} is of several kinds: {error}") from error


def _label_place(
    file: Path, samples: list[Sample], config: DataConfig
) -> tuple[str, str | None]:
    """(suffix of the member that holds the label, key in it where it is .json)."""
    seen = {suffix for sample in samples for suffix in sample.members}
    option = config.label_column
    if option is not None and option.lower().lstrip(".") in seen:
        return option.lower().lstrip("."), None
    if option is not None and "json" in seen:
        return "json", option
    if option is None:
        if "cls" in seen:
            return "cls", None
        if "json" in seen:
            return "json", _json_key(file, samples)
        if "txt" in seen:
            return "txt", None
    wanted = f"{option} or .json" if option else "cls, .json or .txt"
    raise ValueError(
        f"{file}: no sample has a label: a member .{wanted} is needed; suffixes are"
        f" {', '.join(sorted(seen)) or 'none'}"
    )


def _json_key(file: Path, samples: list[Sample]) -> str:
    """The only usual key of the first sample's .json."""
    first = next(sample for sample in samples if "json" in sample.members)
    offset, size = first.members["json"]
    with open(file, "rb") as raw:
        raw.seek(offset)
        values = _object(raw.read(size), f"{file} member {first.key}.json")
    found = [name for name in values if name.lower() in LABEL_NAMES]
    if len(found) != 1 and "label" not in found:
        raise ValueError(
            f"{file}: {first.key}.json has the keys {', '.join(values)}; data.label_column"
            " names the one of the label"
        )
    return "label" if "label" in found else found[0]


def _value(content: bytes, key: str | None, where: str) -> Any:
    """A label as text, or the value of a key of a JSON object; None where there is none."""
    if key is not None:
        return _object(content, where).get(key)
    try:
        return content.decode().strip() or None
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: a label must be text in UTF-8") from error


def _object(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = parse_json(content)
    except ValueError as error:
        raise ValueError(f"{where}: no JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: a JSON object is needed")
    return value
