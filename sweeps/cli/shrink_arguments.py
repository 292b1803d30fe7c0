"""Arguments and options of `sweeps shrink`."""

from pathlib import Path
from typing import Annotated

import typer

_GOAL = "The goal: at least one"
_LOSS = "What may be lost"
_DEPLOYED = "How the file is executed"
_SEARCH = "The search"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=(
            "a file of weights (safetensors, .pth), a folder with a model, or a name:"
            " timm's, or hf-hub:OWNER/NAME"
        ),
    ),
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="FOLDER",
        help=(
            "class folders, Parquet, the name of a data set, or a YAML file with a"
            " spec's section `data`"
        ),
    ),
]
Architecture = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="what a file is: resnet18"),
]
Latency = Annotated[
    str | None,
    typer.Option(
        help="at most: 5ms, or 0.5x of the source's",
        metavar="AMOUNT",
        rich_help_panel=_GOAL,
    ),
]
Throughput = Annotated[
    str | None,
    typer.Option(
        help="at least, images a second: 200/s, or 2x",
        metavar="AMOUNT",
        rich_help_panel=_GOAL,
    ),
]
Bytes = Annotated[
    str | None,
    typer.Option(
        "--bytes",
        help="of the file at most: 2MB, or 0.25x",
        metavar="AMOUNT",
        rich_help_panel=_GOAL,
    ),
]
Macs = Annotated[
    str | None,
    typer.Option(
        help="multiply-accumulates of an image: 200M, or 0.5x",
        metavar="AMOUNT",
        rich_help_panel=_GOAL,
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        help="at the peak of a pass: 50MB, or 0.5x",
        metavar="AMOUNT",
        rich_help_panel=_GOAL,
    ),
]
Fastest = Annotated[
    bool, typer.Option("--fastest", help="as fast as it can", rich_help_panel=_GOAL)
]
Smallest = Annotated[
    bool,
    typer.Option("--smallest", help="as few bytes as it can", rich_help_panel=_GOAL),
]
MaxLoss = Annotated[
    str,
    typer.Option(
        "--max-loss",
        help="of the metric, against the source: 1%, 0.01",
        metavar="AMOUNT",
        rich_help_panel=_LOSS,
    ),
]
Metric = Annotated[
    str,
    typer.Option(
        help="accuracy, auroc, balanced_accuracy, f1_macro, …",
        metavar="NAME",
        rich_help_panel=_LOSS,
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        help="of deployment: openvino, onnxruntime, torch, …",
        metavar="RUNTIME",
        rich_help_panel=_DEPLOYED,
    ),
]
Batch = Annotated[
    int, typer.Option(min=1, help="images of a pass there", rich_help_panel=_DEPLOYED)
]
Threads = Annotated[
    int, typer.Option(min=1, help="of the CPU there", rich_help_panel=_DEPLOYED)
]
Hours = Annotated[
    float, typer.Option(help="for the search: 1, 0.25", rich_help_panel=_SEARCH)
]
Seed = Annotated[
    int, typer.Option(min=0, help="of the search", rich_help_panel=_SEARCH)
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="print the plan and its seconds; run nothing",
        rich_help_panel=_SEARCH,
    ),
]
Cluster = Annotated[
    str,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        help="of a Ray cluster, host:port or auto; default: this machine",
        rich_help_panel=_SEARCH,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="the folder to make; default: ./shrunk"),
]
