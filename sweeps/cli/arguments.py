"""Arguments and options that several commands have."""

from typing import Annotated

import typer

from sweeps.cli import completion
from sweeps.run.folder import full_trial_id

SpecArgument = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="a YAML file or the name of a preset (`sweeps presets`)",
        autocompletion=completion.specs,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="changes of the spec: search.trials=24 stages.finetune.lr=1e-3",
    ),
]
Tiny = Annotated[bool, typer.Option("--tiny", help="the preset's tiny CPU variant")]
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="a run folder, a name under runs/, or a URI",
        autocompletion=completion.runs,
    ),
]
TrialArgument = Annotated[
    str,
    typer.Argument(
        metavar="TRIAL",
        parser=full_trial_id,
        help="a trial's id, for example 00007; 7 will do",
        autocompletion=completion.trials,
    ),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        help=(
            "a plugin that you trust, a .py file or a module; may be given several times."
            " A run folder never loads one by itself"
        ),
    ),
]
