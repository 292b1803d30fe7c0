"""What the images of a data set are, seen from their headers: sizes, modes, what is unreadable.

Of a large part some images are looked at, spread evenly, the same ones in every process.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from trainers.config import DataConfig
from trainers.data.decoding import (
    WIDE_MODES,
    Decoding,
    Header,
    UnreadableImageError,
    decode,
    header,
    white_of,
    wide_values,
)
from trainers.data.info import named
from trainers.data.parts import ArrayPart, Dataset, Part, Pixels, Sampled, spread

IN_MEMORY_PX = 96
LARGE_PX = 224  # what a model sees of large images unless the config says otherwise
SMALLEST_PX = 4  # of `data.image_size`
MOST_HEADERS = 10_000
"""Images of a part whose headers are read, in a quarter of a second from a local disk."""
MOST_IN_ORDER = 2_000
"""As `MOST_HEADERS`, of a part that gives its images only in order."""
MOST_PIXELS = 24_000_000
"""Pixels of a part that a check decodes, half a second of one core."""
WIDE_IMAGES = (32, 200)
"""Least and most training images of more than 8 bits that are decoded to find the value of
white; in between as many as have `MOST_PIXELS`.
"""
CHUNK = 256  # encoded images in memory at a time
THREADS = 8  # headers wait for the disk, not for a core
_LISTED = 4

T = TypeVar("T")
Size = tuple[int, int]
Encoded = bytes | Path | Pixels


@dataclass(frozen=True)
class Seen:
    """Of the images of one part that were looked at.

    Attributes:
        looked: their number.
        sizes: (width, height) in px → images.
        wide: first letter of Pillow's mode → rows, of the modes with more than 8 bits.
        turned: images whose EXIF asks for a rotation.
        unreadable: row → name and reason of each that is not readable by its header.
    """

    looked: int
    sizes: Counter[Size]
    wide: dict[str, list[int]] = field(default_factory=dict)
    turned: int = 0
    unreadable: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspected:
    """What an inspection of a data set found, and what follows from it.

    Attributes:
        parts: name → what was seen of it.
        decoding: how its images become pixels.
        remarks: what a user must know of that, in sentences.
    """

    parts: dict[str, Seen]
    decoding: Decoding
    remarks: tuple[str, ...]

    @property
    def sizes(self) -> Counter[Size]:
        """(width, height) in px → images, of all parts."""
        return sum((seen.sizes for seen in self.parts.values()), Counter())

    @property
    def small_side(self) -> int | None:
        """Side in px where all images are squares of one size that fit in memory."""
        if len(self.sizes) != 1:
            return None
        [(width, height)] = self.sizes
        return width if width == height <= IN_MEMORY_PX else None


class Unreadable(NamedTuple):
    """Images that cannot be read and are left out.

    Attributes:
        rows: of each part, by its name.
        remarks: a sentence that names some of them; none where there are none.
    """

    rows: dict[str, tuple[int, ...]]
    remarks: tuple[str, ...]


def inspect(dataset: Dataset, config: DataConfig) -> Inspected:
    """Look at the headers of a data set's images.

    Raises:
        ValueError: no image of a part is readable; `in_memory: yes` for images that are not squares
            of one size.
    """
    decoding = Decoding(upright=config.exif_rotation)
    parts = {name: _look(part, decoding) for name, part in dataset.parts().items()}
    for name, seen in parts.items():
        if seen.looked and not seen.sizes:
            raise none_readable(name, len(seen.unreadable), [*seen.unreadable.values()])
    white, remarks = _white(dataset.train, parts, config)
    remarks += _exif_remark(parts, config)
    found = Inspected(parts, Decoding(config.exif_rotation, white), tuple(remarks))
    sizes = found.sizes
    if config.in_memory == "yes" and (len(sizes) > 1 or any(w != h for w, h in sizes)):
        raise ValueError(
            "data.in_memory yes needs square images of one size: the images are"
            f" {_told(sizes)}; set data.in_memory to no"
        )
    return found


def image_size(config: DataConfig, found: Inspected) -> tuple[int, str, list[str]]:
    """(side in px that the model sees, where it comes from, remarks).

    `data.image_size` decides. Without it, squares of one size up to 96 px are taken as
    they are, and images of which most are larger are seen at 224 px.

    Raises:
        ValueError: no size follows from the images.
    """
    sizes = found.sizes
    side = config.image_size
    if side is not None:
        same = set(sizes) == {(side, side)}
        remark = f"The images are {_told(sizes)}; the model sees {side} px, from data.image_size."
        return side, "data.image_size", [] if same else [remark]
    small = found.small_side
    if small is not None and small >= SMALLEST_PX:
        return small, "the images", []
    shorter = np.sort(np.repeat([min(size) for size in sizes], list(sizes.values())))
    median = int(shorter[len(shorter) // 2])
    if median > IN_MEMORY_PX:
        remark = (
            f"The images are {_told(sizes)}; the model sees {LARGE_PX} px, which is the"
            f" default where most images are larger than {IN_MEMORY_PX} px, unless"
            " data.image_size is given."
        )
        return LARGE_PX, "the default for large images", [remark]
    raise ValueError(
        f"data.image_size is needed: the images are {_told(sizes)}, and a size follows only"
        f" from squares of one size of {SMALLEST_PX} to {IN_MEMORY_PX} px; set it, for"
        f" example data.image_size={max(median, SMALLEST_PX)}"
    )


def decoded_bytes(dataset: Dataset, found: Inspected) -> int | None:
    """Of all images as they are stored: `limit` chooses among them later."""
    if len(found.sizes) != 1:
        return None
    [(width, height)] = found.sizes
    images = sum(len(part.labels) for part in dataset.parts().values())
    return 3 * width * height * images if width == height else None


def check_decodes(
    dataset: Dataset, found: Inspected, max_unreadable: int
) -> Unreadable:
    """Decode an image of each kind, and as many more as are quickly decoded.

    Returns:
        The unreadable images that are allowed, as far as they were seen.

    Raises:
        ValueError: more images than `max_unreadable` are unreadable, by their header or when
            they are decoded, or every one of a part or of a training class; names them.
    """
    parts = dataset.parts()
    bad = {name: dict(found.parts[name].unreadable) for name in parts}
    for name, part in parts.items():
        check_unreadable(_all_of(bad), max_unreadable)
        if isinstance(part, ArrayPart):
            continue
        chosen = _to_decode(_sample(part), found.parts[name])
        tried, damaged = 0, {}
        for row, reason in _mapped(
            lambda image: _unreadable(image, found.decoding), chosen
        ):
            tried += 1
            if reason is not None:
                damaged[row] = f"{part.name(row)} ({reason})"
        if tried and len(damaged) == tried:
            raise none_readable(name, len(part.labels), [*damaged.values()])
        bad[name] |= damaged
    unreadable = _all_of(bad)
    check_unreadable(unreadable, max_unreadable)
    _check_classes(dataset, list(bad["train"]))
    remark = (
        f"Images that cannot be read, left out as data.max_unreadable allows:"
        f" {_few(unreadable)}."
    )
    rows = {name: tuple(of_part) for name, of_part in bad.items()}
    return Unreadable(rows, (remark,) if unreadable else ())


def _all_of(bad: dict[str, dict[int, str]]) -> list[str]:
    return [name for of_part in bad.values() for name in of_part.values()]


def _check_classes(dataset: Dataset, bad: list[int]) -> None:
    """Refuse a training class of which no image is readable."""
    labels = dataset.train.labels
    classes = len(dataset.class_names)
    counts = np.bincount(labels, minlength=classes)
    lost = np.flatnonzero(
        (counts > 0) & (np.bincount(labels[bad], minlength=classes) == counts)
    )
    if len(lost):
        names = named(tuple(dataset.class_names[k] for k in lost))
        raise ValueError(
            f"no training image of {names} can be read; repair the images or remove the class"
        )


def check_unreadable(names: Sequence[str], limit: int) -> None:
    """Raises ValueError naming the unreadable images when there are more than `limit`."""
    if len(names) > limit:
        raise ValueError(
            f"unreadable images: {len(names)}, and data.max_unreadable allows {limit}:"
            f" {_few(names)}. Repair or remove them, or raise data.max_unreadable"
        )


def none_readable(part: str, count: int, names: Sequence[str]) -> ValueError:
    """The error that no image of a part can be read."""
    shown = f": {_few(names)}" if names else ""
    return ValueError(
        f"the {part} part has no readable image among its {count:,}{shown}; repair them or"
        " give others"
    )


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.4g}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (" …" if len(names) > _LISTED else "")


# ------------------------------------------------------------------ headers


def _look(part: Part, decoding: Decoding) -> Seen:
    if isinstance(part, ArrayPart):
        height, width = part.pixels.shape[2:]
        return Seen(len(part.labels), Counter({(width, height): len(part.labels)}))
    looked, turned = 0, 0
    sizes: Counter[Size] = Counter()
    wide: dict[str, list[int]] = {}
    unreadable: dict[int, str] = {}
    for row, found in _mapped(lambda image: _header(image, decoding), _sample(part)):
        looked += 1
        if isinstance(found, str):
            unreadable[row] = f"{part.name(row)} ({found})"
            continue
        sizes[found.size] += 1
        turned += found.orientation != 1
        if found.mode[0] in WIDE_MODES:
            wide.setdefault(found.mode[0], []).append(row)
    return Seen(looked, sizes, wide, turned, unreadable)


def _sample(part: Part) -> Iterator[tuple[int, Encoded]]:
    if isinstance(part, Sampled):
        return iter(part.sample(MOST_HEADERS))
    return islice(enumerate(part.images()), MOST_IN_ORDER)


def _header(image: Encoded, decoding: Decoding) -> Header | str:
    """The header, or why there is none."""
    if isinstance(image, np.ndarray):
        return Header((image.shape[2], image.shape[1]), "RGB", 1)
    try:
        return header(image, decoding)
    except UnreadableImageError as error:
        return str(error)


def _mapped(
    function: Callable[[Any], T], rows: Iterable[tuple[int, Encoded]]
) -> Iterator[tuple[int, T]]:
    """(row, what `function` makes of its image), in order."""
    rows = iter(rows)
    with ThreadPoolExecutor(THREADS) as pool:
        while chunk := list(islice(rows, CHUNK)):
            images = [image for _, image in chunk]
            yield from zip(
                (row for row, _ in chunk), pool.map(function, images), strict=True
            )


# ------------------------------------------------------------------ pixels


def _to_decode(
    rows: Iterable[tuple[int, Encoded]], seen: Seen
) -> Iterator[tuple[int, Encoded]]:
    """Evenly spread rows with `MOST_PIXELS` together, and one of each suffix."""
    total = sum(width * height * count for (width, height), count in seen.sizes.items())
    every = max(1, -(-total // MOST_PIXELS))
    kinds: set[str] = set()
    for number, (row, image) in enumerate(rows):
        kind = image.suffix.lower() if isinstance(image, Path) else ""
        if number % every == 0 or kind not in kinds:
            yield row, image
            kinds.add(kind)


def _unreadable(image: Encoded, decoding: Decoding) -> str | None:
    """Why an image cannot be decoded; None if it can."""
    if isinstance(image, np.ndarray):
        return None
    try:
        decode(image, decoding)
    except UnreadableImageError as error:
        return str(error)
    return None


def _white(
    train: Part, parts: dict[str, Seen], config: DataConfig
) -> tuple[dict[str, float], list[str]]:
    """(value of white by first letter of the mode, remarks); from training images alone."""
    kinds = {kind for seen in parts.values() for kind in seen.wide}
    white: dict[str, float] = {}
    remarks = []
    for kind in sorted(kinds):
        what = "real numbers" if kind == "F" else "whole numbers of more than 8 bits"
        if config.white_level is not None:
            white[kind], origin = config.white_level, "from data.white_level"
        else:
            low, high = _range(train, parts["train"], kind)
            white[kind] = white_of(high, kind)
            origin = f"as they reach {_number(high)}; data.white_level sets another"
            if low < 0:
                origin += (
                    f"; they begin at {_number(low)}, and what is below 0 is black"
                )
        remarks.append(
            f"Images that hold {what} are read with {_number(white[kind])} as white ({origin})."
        )
    return white, remarks


def _range(train: Part, seen: Seen, kind: str) -> tuple[float, float]:
    """(least, largest) value of training images of a mode, spread evenly; 0 of none."""
    rows = seen.wide.get(kind, [])
    pixels = sum(w * h * count for (w, h), count in seen.sizes.items())
    mean = max(1, pixels // max(1, sum(seen.sizes.values())))
    least, most = WIDE_IMAGES
    chosen = {
        rows[i] for i in spread(len(rows), min(most, max(least, MOST_PIXELS // mean)))
    }
    wanted = ((row, image) for row, image in _sample(train) if row in chosen)
    found = [ends for _, ends in _mapped(_ends, wanted) if ends is not None]
    return min((low for low, _ in found), default=0.0), max(
        (high for _, high in found), default=0.0
    )


def _ends(image: Encoded) -> tuple[float, float] | None:
    """(least, largest) finite value of an image of more than 8 bits; None if it has none."""
    if isinstance(image, np.ndarray):
        return None
    try:
        values = wide_values(image)
    except UnreadableImageError:
        return None
    if values is None:
        return None
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else None


def _exif_remark(parts: dict[str, Seen], config: DataConfig) -> list[str]:
    turned = sum(seen.turned for seen in parts.values())
    if not turned or config.exif_rotation:
        return []
    looked = sum(seen.looked for seen in parts.values())
    return [
        f"{turned:,} of {looked:,} images ask by EXIF to be turned; they are read as stored,"
        " as torchvision and timm do, unless data.exif_rotation is true."
    ]


def _told(sizes: Counter[Size]) -> str:
    """Sizes in a sentence: each of few with its number, else the range."""
    if len(sizes) == 1:
        [(width, height)] = sizes
        return f"{width} x {height} px"
    if len(sizes) <= _LISTED:
        return "of different sizes: " + ", ".join(
            f"{width} x {height} px ({count:,})"
            for (width, height), count in sizes.most_common()
        )
    widths, heights = zip(*sizes, strict=True)
    return (
        f"of different sizes: {min(widths)} to {max(widths)} px wide,"
        f" {min(heights)} to {max(heights)} px high"
    )
