"""How images reach an exported model: facts for its file, and a script that follows them."""

from __future__ import annotations

import json

from compress.measure.options import RuntimeOptions
from trainers.config import DataConfig
from trainers.data.augment import resize_before_crop
from trainers.data.decoding import WIDE_MODES
from trainers.data.info import DataInfo

FILE = "predict.py"


def notes_of(
    data: DataConfig, image_size: int, info: DataInfo | None
) -> dict[str, str]:
    """The preprocessing as JSON texts by name, for a file's metadata.

    `upright` says whether images are turned as their EXIF orientation says; `white` has the value
    of white in images of more than 8 bits by the first letter of Pillow's mode. `resize_to` is the
    side in pixels before the central square of `image_size` is cut out; `resize` says whether the
    shorter side becomes it or both do.

    Args:
        info: what the data are like; None where they are not here, so that neither the names of
            classes nor white are known.
    """
    white = {} if info is None else {k: info.decoding.level(k) for k in WIDE_MODES}
    facts = {
        "upright": data.exif_rotation,
        "white": white,
        "image_size": image_size,
        "resize_to": resize_before_crop(image_size, data.crop_fraction),
        "resize": data.resize,
        "interpolation": data.interpolation,
        "mean": data.mean,
        "std": data.std,
        "class_names": [] if info is None else list(info.class_names),
    }
    return {name: json.dumps(value) for name, value in facts.items()}


LOADERS = {
    "onnxruntime": """import onnxruntime

session = onnxruntime.InferenceSession(here / "model.onnx")
notes = session.get_modelmeta().custom_metadata_map
run = lambda images: session.run(None, {"images": images})[0]
""",
    "openvino": """import openvino

model = openvino.Core().read_model(here / "model.xml")
notes = model.get_rt_info("model_info").value
compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "PRECISION"})
run = lambda images: compiled(images)[0]
""",
    "executorch": """import torch
from executorch.runtime import Runtime

program = Runtime.get().load_program(here / "model.pte")
call = lambda name, *values: program.load_method(name).execute(list(values))[0]
notes = {name: call(name) for name in program.method_names - {"forward"}}
run = lambda image: call("forward", torch.from_numpy(image).repeat(BATCH, 1, 1, 1)).numpy()
""",
}
"""Runtime → Python that gives the file's `notes` and a function `run` for one image."""

_OPENVINO_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}

_SCRIPT = '''"""The classes of images: python predict.py IMAGE..."""
import json, sys
from pathlib import Path
import numpy as np
from PIL import Image, ImageOps
here = Path(__file__).parent
{loader}
notes = {{name: json.loads(notes[name]) for name in {names}}}
filter = Image.Resampling[notes["interpolation"].upper()]

def decode(path):
    image = Image.open(path)
    if notes["upright"]:
        image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # more than 8 bits, which Pillow would clip
        if image.mode[0] not in notes["white"]:
            raise OSError("it has more than 8 bits, and which value is white is not known")
        values = np.asarray(image, float) * (255 / notes["white"][image.mode[0]])
        if not np.isfinite(values).all():
            raise OSError("it holds values that are not finite")
        image = Image.fromarray(np.rint(np.clip(values, 0, 255)).astype("u1"))
    return image.convert("RGB")

def prepare(path):
    image = decode(path)
    side, to, size = min(image.size), notes["resize_to"], notes["image_size"]
    shape = [to, to] if notes["resize"] == "warp" else [to * n // side for n in image.size]
    image = image.resize(shape, filter)
    left, top = (round((n - size) / 2) for n in image.size)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32)
    return (((pixels / 255 - notes["mean"]) / notes["std"]).transpose(2, 0, 1)).astype("f4")

if not sys.argv[1:]:
    sys.exit(__doc__)
failed = 0
for path in sys.argv[1:]:
    try:
        pixels = prepare(path)
    except OSError as error:
        print(f"{{path}}: not read: {{error}}", file=sys.stderr)
        failed = 1
        continue
    best = int(run(pixels[None])[0].argmax())
    print(path, (notes["class_names"] or {{best: best}})[best])
if failed:
    sys.exit(1)
'''


def script(options: RuntimeOptions, notes: dict[str, str]) -> str | None:
    """The text of `predict.py` for a file of that precision and batch size; None for a runtime
    without one.
    """
    if options.runtime not in LOADERS:
        return None
    loader = LOADERS[options.runtime].rstrip()
    loader = loader.replace('PRECISION"', f'{_OPENVINO_TYPES[options.precision]}"')
    loader = loader.replace("BATCH", str(options.batch_size))
    return _SCRIPT.format(loader=loader, names=tuple(notes))
