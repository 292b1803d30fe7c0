"""From a file to RGB pixels: every mode, and every reason why there are none."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainers.data.decoding import (
    Decoding,
    UnreadableImageError,
    decode,
    header,
    suffixes,
    to_rgb,
    white_of,
    wide_values,
)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def level(image: Image.Image) -> int:
    assert image.mode == "RGB"
    red, green, blue = np.asarray(image)[1, 1].tolist()
    assert red == green == blue or max(red, green, blue) - min(red, green, blue) <= 2
    return int(green)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = Image.new("L", (4, 4), 255 if mode == "1" else 200).convert("RGB")
    if mode in ("P", "PA"):
        grey = grey.quantize(2)
    expected = 255 if mode == "1" else 200
    assert abs(level(to_rgb(grey.convert(mode))) - expected) <= 1


def test_lab_and_premultiplied_alpha() -> None:
    assert level(to_rgb(Image.new("LAB", (2, 2), (255, 128, 128)))) >= 254
    assert level(to_rgb(Image.new("LA", (2, 2), (90, 255)).convert("La"))) == 90


@pytest.mark.parametrize("transparency", [0, bytes([0, 128])])
def test_transparency_is_dropped(transparency: int | bytes) -> None:
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert to_rgb(clear).getpixel((0, 0)) == (10, 20, 30)
    palette = Image.new("RGB", (2, 2), (70, 70, 70)).quantize(2)
    assert level(decode(encoded(palette, transparency=transparency))) == 70


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_dark_images_of_16_bits_are_dark(form: str) -> None:
    for value, expected in ((200, 1), (40_000, 156), (65_535, 255)):
        wide = encoded(Image.fromarray(np.full((3, 3), value, np.uint16)), form)
        assert level(decode(wide)) == expected
    twelve = encoded(Image.fromarray(np.full((3, 3), 2048, np.uint16)), form)
    assert level(decode(twelve, Decoding(white={"I": 4095}))) == 128


@pytest.mark.parametrize(
    ("values", "white", "expected"),
    [
        (np.int32(200), {"I": 255}, 200),
        (np.int32(-5), {"I": 255}, 0),
        (np.int32(1_000_000_000), {"I": 2**31 - 1}, 119),
        (np.float32(0.5), {}, 128),
        (np.float32(7), {}, 255),
        (np.float32(100), {"F": 255}, 100),
    ],
)
def test_whole_and_real_numbers_are_scaled(
    values: Any, white: dict[str, float], expected: int
) -> None:
    image = Image.fromarray(np.full((3, 3), values))
    assert level(decode(encoded(image, "TIFF"), Decoding(white=white))) == expected


def test_big_endian_16_bits(tmp_path: Path) -> None:
    values = np.full((3, 3), 40_000, ">u2")
    image = Image.frombytes("I;16B", (3, 3), values.tobytes())
    image.save(tmp_path / "big.tif")
    assert level(decode(tmp_path / "big.tif")) == 156
    found = wide_values(tmp_path / "big.tif")
    assert found is not None
    assert found.max() == 40_000


@pytest.mark.parametrize(
    ("largest", "mode", "white"),
    [
        (0, "I", 255),
        (255, "I", 255),
        (3600, "I;16", 4095),
        (40_000, "I", 65_535),
        (70_000, "I", 2**17 - 1),
        (0.9, "F", 1),
        (200.5, "F", 255),
    ],
)
def test_white_follows_from_the_largest_value(
    largest: float, mode: str, white: float
) -> None:
    assert white_of(largest, mode) == white


def test_the_first_frame_counts() -> None:
    first, second = (Image.new("RGB", (4, 4), (k, k, k)) for k in (40, 240))
    for form in ("GIF", "TIFF", "WEBP", "PNG"):
        frames = encoded(first, form, save_all=True, append_images=[second])
        assert abs(level(decode(frames)) - 40) <= 1


def test_exif_turns_images_where_it_is_asked_to() -> None:
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    file = encoded(image, "JPEG", exif=exif)
    assert decode(file).size == header(file).size == (6, 4)
    assert header(file).orientation == 6
    upright = Decoding(upright=True)
    assert decode(file, upright).size == header(file, upright).size == (4, 6)


def test_suffixes_are_those_that_pillow_reads() -> None:
    assert suffixes() >= {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".tif", ".mpo"}
    assert suffixes().isdisjoint((".eps", ".pdf", ".h5", ".mpg", ".svg", ".txt"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty: 0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"plain text", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (encoded(Image.new("RGB", (9, 9)))[:45], "damaged"),
        (encoded(Image.new("RGB", (64, 64)), "JPEG")[:-300], "damaged"),
        (encoded(Image.new("1", (14_000, 14_000))), "178,956,970 pixels"),
        (
            encoded(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"),
            "not finite",
        ),
    ],
)
def test_the_reason_is_told(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    for source in (content, tmp_path / "x.png"):
        with pytest.raises(UnreadableImageError, match=reason):
            decode(source)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    (tmp_path / "self.png").symlink_to("self.png")
    reasons = {
        "broken.png": "a link that leads nowhere",
        "self.png": "cannot be opened: too many levels",
        "gone.png": "not there",
    }
    for name, reason in reasons.items():
        for function in (decode, header, wide_values):
            with pytest.raises(UnreadableImageError, match=reason):
                function(tmp_path / name)


@pytest.mark.filterwarnings("ignore")
def test_no_damage_gets_through() -> None:
    """Whatever Pillow raises for bytes that were changed is an unreadable image."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (24, 24, 3)).astype(np.uint8))
    forms = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "TGA", "DDS"]
    unreadable = 0
    for form in forms:
        whole = np.frombuffer(encoded(picture, form), np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            where = rng.integers(0, min(len(whole), 120), 6)
            damaged[where] = rng.integers(0, 256, 6)
            try:
                decode(damaged.tobytes(), Decoding(upright=True))
            except UnreadableImageError:
                unreadable += 1
    assert unreadable > 100
