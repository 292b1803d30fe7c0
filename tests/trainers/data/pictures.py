"""Small pictures in files, for the tests of readers."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

LEVELS = {"dark": 25, "light": 225}


def grey(level: int, seed: int = 0, size: tuple[int, int] = (8, 8)) -> Image.Image:
    """An RGB image of about this level, with noise: one of each seed."""
    noise = np.random.default_rng([level, seed]).integers(-9, 10, (size[1], size[0], 3))
    return Image.fromarray(np.clip(level + noise, 0, 255).astype(np.uint8))


def encoded(red: int, format: str = "PNG") -> bytes:
    """The bytes of an image of 8 x 8 px and this level of red."""
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (red, 255 - red, 7)).save(buffer, format)
    return buffer.getvalue()


def class_folders(
    root: Path,
    names: Sequence[str] = ("dark", "light"),
    test: str | None = "val",
    size: tuple[int, int] = (8, 8),
) -> Path:
    """Six training images a class, and two test images, as `root/train/CLASS/K.png`."""
    for part, seeds in (("train", range(6)), (test, range(6, 8))):
        if part is None:
            continue
        for name in names:
            (root / part / name).mkdir(parents=True)
            for seed in seeds:
                picture = grey(LEVELS.get(name, 99), seed, size)
                picture.save(root / part / name / f"{seed}.png")
    return root


def written(
    root: Path, write: Callable[[int, Path], None], suffix: str = ".png"
) -> Path:
    """Class folders whose every file is written anew by `write(level, file)`."""
    for file in sorted(root.rglob("*.png")):
        file.unlink()
        write(LEVELS[file.parent.name], file.with_suffix(suffix))
    return root
