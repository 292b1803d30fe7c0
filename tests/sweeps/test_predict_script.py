"""The script beside an exported file makes of an image what training makes of it."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from compress.measure.options import RuntimeOptions
from sweeps.export.preprocessing import FILE as SCRIPT_FILE
from sweeps.export.preprocessing import notes_of, script
from trainers.config import DataConfig
from trainers.data.augment import EvalTransform
from trainers.data.decoding import Decoding, decode
from trainers.data.info import DataInfo
from trainers.timm_internals import eval_transform

PICTURES = ["turned.jpg", "wide.png", "real.tiff", "palette.png", "clear.png"]


def write_pictures(folder: Path) -> None:
    """A photo that lies on its side, and files that are no 8-bit RGB."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels).resize((54, 40), Image.Resampling.BILINEAR)
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation of an upright phone
    photo.save(folder / "turned.jpg", exif=exif)
    grey = np.asarray(photo.convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 15).save(folder / "wide.png")
    Image.fromarray(grey.astype(np.float32) / 255).save(folder / "real.tiff")
    photo.convert("P").save(folder / "palette.png", transparency=3)
    photo.convert("LA").save(folder / "clear.png")


def of_script(
    notes: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], np.ndarray]:
    """The function of a written `predict.py` that makes a file the model's input."""
    meta = SimpleNamespace(custom_metadata_map=notes)
    session = SimpleNamespace(
        get_modelmeta=lambda: meta, run=lambda names, given: [np.zeros((1, 2))]
    )
    fake = SimpleNamespace(InferenceSession=lambda path: session)
    text = script(RuntimeOptions(runtime="onnxruntime", batch_size=1), notes)
    assert text is not None
    file = folder / SCRIPT_FILE
    file.write_text(text)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "onnxruntime", fake)  # type: ignore[arg-type]
        patched.setattr(sys, "argv", [str(file), str(folder / "turned.jpg")])
        prepare: Callable[[Path], np.ndarray] = runpy.run_path(str(file))["prepare"]
    return prepare


@pytest.mark.parametrize("is_upright", [False, True])
def test_script_reads_files_as_training_does(
    is_upright: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path)
    data = DataConfig(dataset="digits", image_size=32, exif_rotation=is_upright)
    decoding = Decoding(is_upright, {"I": 4095.0})
    info = DataInfo(2, 32, 1, ("a", "b"), decoding=decoding)
    prepare = of_script(notes_of(data, 32, info), tmp_path, monkeypatch)
    normalise = EvalTransform(data, 32, torch.device("cpu")).normalise
    for name in PICTURES:
        seen = eval_transform(data, 32)(decode(tmp_path / name, decoding))
        expected = normalise(torch.as_tensor(np.asarray(seen))[None])[0].numpy()
        np.testing.assert_allclose(prepare(tmp_path / name), expected, atol=1e-5)
    turned, stored = (
        np.asarray(decode(tmp_path / "turned.jpg", Decoding(upright)))
        for upright in (True, False)
    )
    assert turned.shape != stored.shape


def test_script_refuses_what_nobody_says_how_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the data it is not known which value was white."""
    write_pictures(tmp_path)
    data = DataConfig(dataset="digits", image_size=32)
    prepare = of_script(notes_of(data, 32, None), tmp_path, monkeypatch)
    with pytest.raises(OSError, match="more than 8 bits, and which value is white"):
        prepare(tmp_path / "wide.png")
    assert prepare(tmp_path / "palette.png").shape == (3, 32, 32)
