"""From an image file to 8-bit RGB pixels, and why that fails.

What Pillow opens is read as torchvision's and timm's loaders read it: the first frame, transparency
dropped, not turned by EXIF. Images of more than 8 bits a channel are the exception: Pillow's own
conversion clips them to white. Here value v becomes 255 v / w, where w is the value of white.
"""

import functools
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from trainers.files import GIT_LFS

NOT_DECODED = frozenset(
    [
        "BUFR",
        "EPS",
        "GRIB",
        "HDF5",
        "IMT",
        "IPTC",
        "MCIDAS",
        "MPEG",
        "PDF",
        "SPIDER",
        "WMF",
        "XVTHUMB",
    ]
)
"""Formats that Pillow registers and that are not read: EPS runs Ghostscript on what the file
says, WMF needs Windows, the others are no images or are recognised by hardly anything.
"""
WHITE_LEVELS = (255, 4095, 65535)
"""What white can be in whole numbers of more than 8 bits: 8, 12 or 16 bits are used."""
WIDE_MODES = ("I", "F")
"""First letters of Pillow's modes of one channel with more than 8 bits."""

# Pillow warns of damaged metadata, and of images with half as many pixels as it refuses: in
# neither case has a user to do anything
for _category in (UserWarning, RuntimeWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")

_REDUCED_WHILE_DECODED = ("JPEG", "MPO")
_ORIENTATION = 0x0112
_PAGE = (b"<!doctype", b"<html", b"<?xml")
# what Pillow raises for a file that is damaged or is no image
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


REDUCTIONS = (8, 4, 2, 1)
"""Factors by which a JPEG can be reduced while it is decoded, which saves most of the work."""
Size = tuple[int, int]
"""Width and height in px."""


class UnreadableImageError(Exception):
    """A file that is damaged or holds no image. Its text says why, without the name."""


@dataclass(frozen=True)
class Decoding:
    """How images become pixels.

    Attributes:
        upright: turn an image as its EXIF orientation says.
        white: value of white by first letter of Pillow's mode: I of whole numbers of more
            than 8 bits, F of real numbers. A mode that is missing has 65,535 or 1.
    """

    upright: bool = False
    white: Mapping[str, float] = field(default_factory=dict)

    def level(self, kind: str) -> float:
        """The value of white by the first letter of a mode."""
        return self.white.get(kind, 1.0 if kind == "F" else 65535.0)

    def key(self) -> dict[str, object]:
        """What decides the pixels beyond the default; empty for the default."""
        upright = {"upright": True} if self.upright else {}
        return upright | ({"white": dict(self.white)} if self.white else {})


PLAIN = Decoding()


@dataclass(frozen=True)
class Header:
    """What the header of an image file tells: size in px, Pillow's mode, EXIF orientation."""

    size: Size
    mode: str
    orientation: int


@functools.cache
def formats() -> tuple[str, ...]:
    """Names of the formats that are read, the usual ones first."""
    Image.init()
    usual = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
    known = [name for name in Image.ID if name not in NOT_DECODED]
    return tuple(sorted(known, key=lambda name: name not in usual))


@functools.cache
def suffixes() -> frozenset[str]:
    """Lower-case suffixes, with the dot, of the formats that are read."""
    known = {*formats(), "MPO"}  # opened as JPEG
    return frozenset(
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in known
    )


def header(encoded: bytes | Path, decoding: Decoding = PLAIN) -> Header:
    """What the header tells, without the pixels; the size is that of the decoded image.

    Raises:
        UnreadableImageError: as `decode`, as far as the header shows it.
    """
    try:
        with _opened(encoded) as image:
            orientation = _orientation(image)
            width, height = image.size
            turned = decoding.upright and orientation >= 5
            return Header(
                (height, width) if turned else (width, height), image.mode, orientation
            )
    except _DAMAGED as error:
        raise UnreadableImageError(_reason(encoded, error)) from error


def decode(encoded: bytes | Path, decoding: Decoding = PLAIN) -> Image.Image:
    """An image file, or its bytes, as RGB.

    Raises:
        UnreadableImageError: it is damaged, no image, has more pixels than Pillow allows, or
            holds values that are not finite.
    """
    image, _ = decode_reduced(encoded, decoding, lambda size: 1)
    return image


def decode_reduced(
    encoded: bytes | Path, decoding: Decoding, reduction: Callable[[Size], int]
) -> tuple[Image.Image, Size]:
    """As `decode`, but a JPEG may be smaller by a factor; and the size that it has in full.

    Args:
        reduction: the factor for an image of this full size, one of `REDUCTIONS`.

    Raises:
        UnreadableImageError: as `decode`.
    """
    try:
        with _opened(encoded) as image:
            turned = decoding.upright and _orientation(image) >= 5
            width, height = image.size
            full = (height, width) if turned else (width, height)
            if image.format in _REDUCED_WHILE_DECODED:
                factor = reduction(full)
                image.draft(image.mode, (width // factor, height // factor))
            image.load()
            upright = ImageOps.exif_transpose(image) if decoding.upright else image
            return to_rgb(upright, decoding), full
    except _DAMAGED as error:
        raise UnreadableImageError(_reason(encoded, error)) from error


def wide_values(encoded: bytes | Path) -> NDArray | None:
    """The values (H, W) of an image of more than 8 bits as they are stored; None of another.

    Raises:
        UnreadableImageError: as `decode`.
    """
    try:
        with _opened(encoded) as image:
            return np.asarray(image) if image.mode[0] in WIDE_MODES else None
    except _DAMAGED as error:
        raise UnreadableImageError(_reason(encoded, error)) from error


def white_of(largest: float, mode: str) -> float:
    """The value of white where the largest value of a whole set of images is known.

    Real numbers up to 1 have 1. Others, and whole numbers, have the first of 255, 4,095
    and 65,535 that is not exceeded, or the next power of two less one.
    """
    if mode[0] == "F" and largest <= 1:
        return 1.0
    for level in WHITE_LEVELS:
        if largest <= level:
            return float(level)
    return float(2 ** int(np.ceil(np.log2(largest + 1))) - 1)


def to_rgb(image: Image.Image, decoding: Decoding = PLAIN) -> Image.Image:
    """Any of Pillow's modes as 8-bit RGB; transparency is dropped, what is transparent keeps its
    colour.
    """
    if image.mode[0] in WIDE_MODES:
        return Image.fromarray(_scaled(image, decoding)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("P", "PA", "LA"):
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(image: Image.Image, decoding: Decoding) -> NDArray[np.uint8]:
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    white = decoding.level(image.mode[0])
    return np.rint(np.clip(values * (255 / white), 0, 255)).astype(np.uint8)


def _opened(encoded: bytes | Path) -> Image.Image:
    file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    return Image.open(file, formats=formats())


def _orientation(image: Image.Image) -> int:
    """1 to 8 of EXIF; 1 where there is none, or it is damaged."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGED:
        return 1
    return value if value in range(1, 9) else 1


def _reason(encoded: bytes | Path, error: BaseException) -> str:
    """Why an image cannot be read, in words that need no knowledge of Pillow."""
    if isinstance(error, PermissionError):
        return "cannot be opened: permission denied"
    if isinstance(error, FileNotFoundError):
        link = isinstance(encoded, Path) and encoded.is_symlink()
        return "a link that leads nowhere" if link else "not there"
    if isinstance(error, OSError) and error.strerror is not None:
        return f"cannot be opened: {error.strerror.lower()}"
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"more than the {most:,} pixels that an image may have"
    start = _start(encoded)
    if not start:
        return "empty: 0 bytes"
    if start.startswith(GIT_LFS):
        return "a Git LFS pointer instead of the image: run `git lfs pull`"
    if start.lstrip().lower().startswith(_PAGE):
        return "a web page or XML instead of an image"
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that Pillow reads"
    return f"damaged: {error or type(error).__name__}"


def _start(encoded: bytes | Path) -> bytes:
    if isinstance(encoded, bytes):
        return encoded[:64]
    try:
        with open(encoded, "rb") as file:
            return file.read(64)
    except OSError:  # named by the first error already
        return b"?"
