"""The commands that give a trial's model away: export, pack, unpack."""

from pathlib import Path
from typing import Annotated

import typer

from sweeps.cli.arguments import Plugins, RunArgument, TrialArgument
from sweeps.cli.terminal import say


def export(
    run: RunArgument,
    trial: TrialArgument,
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            help=(
                "safetensors, onnx, openvino, executorch, tensorrt, torchscript, torch_export,"
                " packed, or that of a plugin"
            ),
        ),
    ] = "safetensors",
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="the folder to make; default: ./RUN-TRIAL-FORMAT"
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            min=1,
            help="side of the model's images, in pixels; default: that of the trial",
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="SPDX identifier of the weights' licence, for the model card",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="run the validation part through the file"),
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(
            "--push", metavar="hf://OWNER/NAME", help="upload the folder to that model"
        ),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Write a trial's model and a model card to a folder.

    What was written is loaded again and compared with the model before the folder appears.
    """
    from sweeps.export.formats import export as write
    from sweeps.export.hub import model_of, upload
    from sweeps.run.storage import find_run
    from sweeps.spec.plugins import load_plugins, read_plugins

    target_model = None if push is None else model_of(push)
    load_plugins(read_plugins(plugin or []))
    folder = find_run(run, to_read=True)
    target = out or Path(f"{folder.name}-{trial}-{format_name}")
    done = write(
        folder,
        trial,
        format_name,
        target,
        image_size=image_size,
        licence=licence,
        verify=verify,
    )
    for path in done.files:
        say(f"{path}  {path.stat().st_size:,} bytes")
    say(f"loaded again: logits differ by at most {done.difference:.2g}")
    if done.accuracy is not None:
        say(f"validation part through the file: accuracy {done.accuracy:.4f}")
    if target_model is not None:
        say(f"uploaded: {upload(target, target_model)}")


def pack(
    run: RunArgument,
    trial: TrialArgument,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="the coded file, for example model.wfn"),
    ],
) -> None:
    """Write a trial's model as an entropy-coded file."""
    from sweeps.export.models import pack as write
    from sweeps.run.storage import find_run

    size = write(find_run(run, to_read=True), trial, out)
    parts = (
        f"indices {size.index_bytes:,}, codebook {size.codebook_bytes:,}, other tensors"
        f" {size.tensor_bytes:,}, header {size.header_bytes:,}"
    )
    say(f"{out}  {size.total_bytes:,} bytes ({parts})")


def unpack(
    coded: Annotated[Path, typer.Argument(metavar="FILE", help="a coded file")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the safetensors file")],
) -> None:
    """Write a coded file's weights as safetensors, bit for bit."""
    from sweeps.export.models import unpack as write

    state = write(coded, out)
    say(f"{out}  {state.arch.name}, {len(state.weights)} tensors")
