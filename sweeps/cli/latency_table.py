"""`sweeps latency-table`: measure a table of block latencies on this machine."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from sweeps.cli.terminal import console

if TYPE_CHECKING:
    from trainers.models.arch import Arch

_DTYPES = ("float32", "bfloat16", "float16", "int8")


def latency_table(
    model: Annotated[
        str, typer.Option(help="a timm ViT or DeiT, revit, or a folder saved by us")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="the table, for example table.parquet")
    ],
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1")] = "cpu",
    batch: Annotated[int, typer.Option(min=1, help="images a pass")] = 64,
    dtype: Annotated[str, typer.Option(help=", ".join(_DTYPES))] = "float32",
    image_size: Annotated[
        int | None, typer.Option(min=1, help="pixels; default: the model's own")
    ] = None,
    num_classes: Annotated[int, typer.Option(min=1)] = 1000,
    args: Annotated[
        str, typer.Option(help='builder arguments as JSON: {"patch_size": 8}')
    ] = "{}",
    points: Annotated[
        str,
        typer.Option(
            help=(
                "grid points of dimensions, default embed=4,heads=3,qk=3,v=3,mlp=4;"
                " each at least 2"
            )
        ),
    ] = "",
    groups: Annotated[
        str,
        typer.Option(
            help="group sizes of the pruning, default embed=16,heads=2,qk=8,v=8,mlp=16"
        ),
    ] = "",
    rounds: Annotated[
        int, typer.Option(min=1, help="visits of each point, in random order")
    ] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="of the CPU's operators")
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="what executes the blocks: torch, openvino, …")
    ] = "torch",
    tf32: Annotated[
        bool, typer.Option(help="float32 products on CUDA may use TF32, as in training")
    ] = True,
) -> None:
    """Measure block latency over a grid of dimensions on this device, for pruning to a
    latency target.
    """
    _check_writable(out)
    counts, sizes = _numbers("--points", points), _numbers("--groups", groups)
    import torch

    where, types = _device(device), _dtype(dtype)
    if threads is not None:
        torch.set_num_threads(threads)
    table = _measured(
        _arch(model, image_size, num_classes, args),
        where,
        counts,
        sizes,
        batch_size=batch,
        rounds=rounds,
        tf32=tf32,
        runtime=_runtime(runtime),
        **types,
    )
    table.write(out)
    table.check_monotone()
    _print_summary(table, out)


def _check_writable(out: Path) -> None:
    """Find before minutes of work what `LatencyTable.write` would refuse."""
    if out.suffix != ".parquet":
        raise ValueError(f"{out}: a latency table is written as .parquet")
    if out.is_dir():
        raise ValueError(f"{out}: is a folder; name a file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"{out}: cannot be written ({error.strerror}); choose another place"
        ) from None


def _numbers(option: str, text: str) -> dict[str, int]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    if not all(name and value.isdecimal() for name, _, value in pairs):
        raise ValueError(f"{option} is a list like embed=4,mlp=6; got {text!r}")
    return {name: int(value) for name, _, value in pairs}


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(
            f"--device {name!r} is no device; valid: cpu, cuda, cuda:N"
        ) from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name!r}: only cpu and cuda can be timed")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name!r}: this machine has {torch.cuda.device_count()} CUDA"
            " devices"
        )
    return device


def _dtype(name: str) -> dict[str, Any]:
    """What `measure_table` is told about the type of weights and products."""
    if name not in _DTYPES:
        raise ValueError(f"--dtype {name!r}; valid: {', '.join(_DTYPES)}")
    if name != "int8":
        return {"dtype": name}
    from compress.int8.nncf_internals import check_installed
    from compress.int8.timing import in_integers

    check_installed()
    return {"quantiser": in_integers}


def _runtime(name: str) -> str:
    from compress.runtimes.registry import RUNTIMES

    if name not in RUNTIMES:
        raise ValueError(f"--runtime {name!r}; valid: {', '.join(RUNTIMES)}")
    return name


def _arch(model: str, image_size: int | None, num_classes: int, args: str) -> "Arch":
    from trainers.models.arch import ModelState
    from trainers.models.make import make_arch, own_image_size

    if Path(model).is_dir():
        return ModelState.load(Path(model)).arch
    try:
        given = json.loads(args)
    except json.JSONDecodeError as error:
        raise ValueError(f"--args is not JSON ({error}): {args}") from None
    if not isinstance(given, dict):
        raise ValueError(
            f'--args is a JSON object like {{"patch_size": 8}}; got {args}'
        )
    return make_arch(
        model,
        num_classes=num_classes,
        image_size=image_size or own_image_size(model),
        args=given,
    )


def _measured(
    arch: "Arch",
    device: Any,
    points: dict[str, int],
    groups: dict[str, int],
    **options: Any,
) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from compress.measure.table_measurement import default_grid, measure_table
    from trainers.models.from_timm import check_vit

    grid = default_grid(check_vit(arch), points=points, groups=groups)
    shown = "  ".join(
        f"{name} {', '.join(map(str, values))}" for name, values in grid.items()
    )
    console.print(f"[dim]grid[/]  {shown}", highlight=False, soft_wrap=True)
    columns = (
        TextColumn("measuring"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("")
        return measure_table(
            arch,
            device,
            grid=grid,
            on_point=lambda done, total: progress.update(
                task, completed=done, total=total
            ),
            **options,
        )


def _print_summary(table: Any, out: Path) -> None:
    mark = table.fingerprint
    largest = table.block[-1, -1, -1, -1, -1]
    threads = f", threads {mark.num_threads}" if mark.num_threads else ""
    console.print(
        f"{escape(str(out))}  {table.block.size} points on"
        f" {escape(mark.device_name)}{threads}, {mark.runtime}, batch"
        f" {mark.batch_size}, {mark.dtype},"
        f" {mark.num_tokens} tokens; largest block {largest:.3f} ms",
        highlight=False,
        soft_wrap=True,
    )
