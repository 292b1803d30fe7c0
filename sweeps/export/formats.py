"""A trial's model as files that others can run: safetensors, ONNX, OpenVINO, ExecuTorch, TensorRT,
TorchScript, torch.export, or our coded file.

Every export is loaded again by its own runtime and compared with the model's logits before
it is left behind.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.codec.file import decode, encode
from compress.measure.options import (
    MeasureConfig,
    RuntimeOptions,
)
from compress.measure.through_runtime import recognised_by
from compress.runtimes.errors import check_installed, first_line
from compress.runtimes.onnx_file import quiet
from compress.runtimes.registry import runtime
from sweeps.export.card import About, write_card
from sweeps.export.difference import example_images, largest_difference
from sweeps.export.models import trial_model
from sweeps.export.preprocessing import FILE as SCRIPT_FILE
from sweeps.export.preprocessing import notes_of, script
from sweeps.run.record import named_record
from sweeps.spec.yaml_text import did_you_mean
from trainers import plugins
from trainers.config import DataConfig
from trainers.data.info import DataInfo
from trainers.data.splits import Data, data_info, load_data
from trainers.files import default_data_cache
from trainers.models.arch import ModelState

SAFETENSORS_FILE = "model.safetensors"
TORCHSCRIPT_FILE = "model.pt"
TORCH_EXPORT_FILE = "model.pt2"
PACKED_FILE = "model.wfn"


@dataclass(frozen=True)
class Format:
    """How a model is written to a folder, and run from there.

    Attributes:
        file: the file that holds the model.
        write: (model, its module in eval mode, images (2, C, S, S), folder).
        run: (folder, images (B, C, S, S)) → logits (B, classes), by the format's own runtime.
        usage: Python that loads the model, for the card.
        library: what loads the model, as Hugging Face's hub names it.
        needs: modules without which the format can be neither written nor run.
        extra: the extra of this distribution that installs them.
        options: how the file's runtime executes it, if one of ours does.
    """

    file: str
    write: Callable[[ModelState, nn.Module, Tensor, Path], None]
    run: Callable[[Path, Tensor], Tensor]
    usage: str
    library: str = "compression-sweeps"
    needs: tuple[str, ...] = ()
    extra: str | None = None
    options: RuntimeOptions | None = None


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        folder: where it is.
        files: in that folder.
        difference: the largest that was seen of a logit.
        accuracy: the share of the validation images that the file recognises, if that was asked.
    """

    folder: Path
    files: list[Path]
    difference: float
    accuracy: float | None = None


def export(
    run: Path,
    trial_id: str,
    format_name: str,
    out: Path,
    *,
    image_size: int | None = None,
    licence: str | None = None,
    verify: bool = False,
) -> Exported:
    """Write a complete trial's model and its card (`README.md`) to the folder `out`, whole
    or not at all. A file that a runtime executes has the precision and the batch size in which the
    trial was measured there.

    Args:
        format_name: a key of `exporters()`.
        image_size: side of the square that the model sees, px; default: as in the trial.
        licence: SPDX identifier of the weights' licence, for the card.
        verify: pass the trial's validation part through the file.

    Raises:
        ValueError: no such format or trial, a package that the format needs is missing, the
            image size cannot be told, `out` holds something already, the model cannot be
            exported so, the export computes otherwise, or it cannot be verified.
    """
    form = _format(format_name)
    _check_installed(format_name, form)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out}: exists and is not an empty folder; give another with -o"
        )
    state = trial_model(run, trial_id)
    plan = named_record(run, trial_id).plan
    data = _to_verify(format_name, form, plan.data) if verify else None
    size = image_size or _image_size(state, plan.data)
    notes = notes_of(plan.data, size, _info_of(plan.data))
    options = measured_options(form, plan.measure)
    with _beside(out) as folder:
        difference = write_model(
            state,
            format_name,
            folder,
            image_size=size,
            title=f"trial {trial_id}",
            notes=notes,
            options=options,
        )
        accuracy = None
        if data is not None and options is not None:
            session = runtime(options.runtime).load(folder / form.file, options)
            accuracy = recognised_by(session, data).share
        about = About(format_name, form.library, form.usage, options, licence)
        shape = ("batch", state.arch.args.get("in_chans", 3), size, size)
        write_card(folder, run, trial_id, state, about, shape, difference, accuracy)
    return Exported(out, sorted(out.iterdir()), difference, accuracy)


def measured_options(form: Format, measure: MeasureConfig) -> RuntimeOptions | None:
    """How a trial's model was measured in a format's runtime; the format's own options where it
    was not.
    """
    own = form.options
    if own is None:
        return None
    same = [o for o in measure.runtimes.values() if o.runtime == own.runtime]
    return same[0] if same else own


def _to_verify(format_name: str, form: Format, config: DataConfig) -> Data:
    """The data that an exported file is verified with.

    Raises:
        ValueError: no runtime of ours executes this format, or the data are not here.
    """
    if form.options is None:
        known = ", ".join(name for name, f in exporters().items() if f.options)
        raise ValueError(
            f"--verify: no runtime executes {format_name}; formats that can be verified:"
            f" {known}"
        )
    data = load_data(config, default_data_cache())
    if not data.size("val"):
        raise ValueError("--verify: the trial has no validation part")
    return data


def write_model(
    state: ModelState,
    format_name: str,
    folder: Path,
    *,
    image_size: int,
    title: str = "the model",
    notes: dict[str, str] | None = None,
    options: RuntimeOptions | None = None,
) -> float:
    """Write a model's file to `folder`, which exists, and compare what it computes.

    Args:
        format_name: a key of `exporters()`.
        image_size: side of the square that the model sees, px.
        title: what errors call the model.
        notes: the preprocessing, for a file that a runtime executes.
        options: of that runtime; default: the format's.

    Returns:
        The largest difference of a logit.

    Raises:
        ValueError: no such format, a package that it needs is missing, the model cannot be
            written so, or the file computes otherwise.
    """
    form = _format(format_name)
    _check_installed(format_name, form)
    channels = state.arch.args.get("in_chans", 3)
    module = state.build()
    images = example_images(2, channels, image_size)
    if form.options is not None and (notes is not None or options is not None):
        form = _of_runtime(options or form.options, form.usage, form.library, notes)
    _write(form, state, module, images, folder, title)
    precision = "float32" if form.options is None else form.options.precision
    return largest_difference(
        form.run, module, folder, channels, image_size, format_name, precision
    )


def _info_of(data: DataConfig) -> DataInfo | None:
    """What the data are like; None where they are not here."""
    try:
        return data_info(data)
    except (ValueError, OSError):
        return None


def _format(name: str) -> Format:
    known = exporters()
    if name not in known:
        raise ValueError(
            f"there is no export format {name!r}; {did_you_mean(name, known)}valid:"
            f" {', '.join(known)}"
        )
    return known[name]


def _write(
    form: Format,
    state: ModelState,
    module: nn.Module,
    images: Tensor,
    folder: Path,
    title: str,
) -> None:
    """Write the model's file. Raises ValueError where the format cannot hold this model."""
    try:
        with quiet():
            form.write(state, module, images, folder)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        NotImplementedError,
    ) as error:
        raise ValueError(
            f"{title} cannot be exported as {form.file}: {first_line(error)}; try"
            " another format"
        ) from error


def _image_size(state: ModelState, data: DataConfig) -> int:
    """Pixels of the trial's images: what the model was built for, what the data were
    resized to, or what they are.
    """
    size = state.arch.args.get("img_size") or data.image_size
    if size:
        return int(size[0] if isinstance(size, list) else size)
    try:
        return data_info(data).image_size
    except (ValueError, OSError) as error:
        raise ValueError(
            "the image size is not in the record and the data are not here; give"
            f" --image-size ({error})"
        ) from None


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` by one rename when all went well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        folder.chmod(0o755)
        yield folder
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_installed(name: str, form: Format) -> None:
    missing = [module for module in form.needs if find_spec(module) is None]
    check_installed(f"export to {name}", missing, form.extra or "")


def _write_safetensors(
    state: ModelState, module: nn.Module, images: Tensor, folder: Path
) -> None:
    state.save(folder)


def _run_safetensors(folder: Path, images: Tensor) -> Tensor:
    with torch.no_grad():
        return ModelState.load(folder).build()(images)


def _write_packed(
    state: ModelState, module: nn.Module, images: Tensor, folder: Path
) -> None:
    encode(state, folder / PACKED_FILE)


def _run_packed(folder: Path, images: Tensor) -> Tensor:
    with torch.no_grad():
        return decode(folder / PACKED_FILE).build()(images)


def _write_torchscript(
    state: ModelState, module: nn.Module, images: Tensor, folder: Path
) -> None:
    with torch.no_grad():
        # what a module keeps from its first pass is no fault; the logits are compared later
        torch.jit.trace(module, images, check_trace=False).save(
            str(folder / TORCHSCRIPT_FILE)
        )


def _run_torchscript(folder: Path, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.jit.load(str(folder / TORCHSCRIPT_FILE))(images)


def _write_torch_export(
    state: ModelState, module: nn.Module, images: Tensor, folder: Path
) -> None:
    program = torch.export.export(
        module, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, folder / TORCH_EXPORT_FILE)


def _run_torch_export(folder: Path, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.export.load(folder / TORCH_EXPORT_FILE).module()(images)


def _of_runtime(
    options: RuntimeOptions,
    usage: str,
    library: str,
    notes: dict[str, str] | None = None,
) -> Format:
    """The format of the file that a runtime executes.

    Args:
        notes: go into the file, and into a script beside it that follows them.
    """
    chosen = runtime(options.runtime)

    def write(
        state: ModelState, module: nn.Module, images: Tensor, folder: Path
    ) -> None:
        chosen.write(state, folder, images.shape[-1], options, notes)
        text = None if notes is None else script(options, notes)
        if text is not None:
            (folder / SCRIPT_FILE).write_text(text, encoding="utf-8")

    def run(folder: Path, images: Tensor) -> Tensor:
        session = chosen.load(folder / chosen.file, options)
        return torch.from_numpy(session.run(images.numpy()))

    return Format(
        chosen.file, write, run, usage, library, chosen.needs, chosen.extra, options
    )


EXPORTERS: dict[str, Format] = {
    "safetensors": Format(
        SAFETENSORS_FILE,
        _write_safetensors,
        _run_safetensors,
        "from pathlib import Path\nfrom trainers.models.arch import ModelState\n\nmodel"
        ' = ModelState.load(Path(".")).build()  # eval mode',
    ),
    "onnx": _of_runtime(
        RuntimeOptions(runtime="onnxruntime", batch_size=1),
        "import onnxruntime\n\nsession ="
        ' onnxruntime.InferenceSession("model.onnx")\nlogits = session.run(["logits"],'
        ' {"images": images})[0]',
        library="onnx",
    ),
    "openvino": _of_runtime(
        RuntimeOptions(runtime="openvino", batch_size=1),
        'import openvino\n\nmodel = openvino.compile_model(\n    "model.xml", "CPU",'
        ' {"INFERENCE_PRECISION_HINT": "f32"}  # or as it was measured\n)\nlogits ='
        " model(images)[0]",
        library="openvino",
    ),
    "executorch": _of_runtime(
        RuntimeOptions(runtime="executorch", batch_size=1),
        "from executorch.runtime import Runtime\n\nprogram ="
        ' Runtime.get().load_program("model.pte")\nlogits ='
        ' program.load_method("forward").execute([images])[0]',
        library="executorch",
    ),
    "tensorrt": _of_runtime(
        RuntimeOptions(runtime="tensorrt", batch_size=1),
        "import tensorrt\n\nengine ="
        " tensorrt.Runtime(tensorrt.Logger()).deserialize_cuda_engine(\n   "
        ' open("model.plan", "rb").read()\n)',
        library="tensorrt",
    ),
    "torchscript": Format(
        TORCHSCRIPT_FILE,
        _write_torchscript,
        _run_torchscript,
        'import torch\n\nmodel = torch.jit.load("model.pt")',
        library="pytorch",
    ),
    "torch_export": Format(
        TORCH_EXPORT_FILE,
        _write_torch_export,
        _run_torch_export,
        'import torch\n\nmodel = torch.export.load("model.pt2").module()',
        library="pytorch",
    ),
    "packed": Format(
        PACKED_FILE,
        _write_packed,
        _run_packed,
        "from pathlib import Path\nfrom compress.codec.file import decode\n\nmodel ="
        ' decode(Path("model.wfn")).build()  # eval mode',
    ),
}
"""Our export formats by name."""


def exporters() -> dict[str, Format]:
    """Every export format by name: ours and those of plugins.

    Raises:
        ValueError: a plugin takes a name of ours, or offers something else.
    """
    return plugins.merged(
        plugins.EXPORTERS,
        EXPORTERS,
        fits=lambda value: isinstance(value, Format),
        rule="a sweeps.export.formats.Format",
    )
