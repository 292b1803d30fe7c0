"""The live page of runs: `sweeps serve`."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.cli.terminal import say

if TYPE_CHECKING:
    from sweeps.serve.live import LiveRun

DEFAULT_PORT = 8265


def serve(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="run folders, names under runs/ or URIs; a folder of runs stands for all of"
            " them; default: runs",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="address to listen on; other machines than this one then need a token",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", help="0: any that is free", min=0, max=65535)
    ] = DEFAULT_PORT,
    token: Annotated[
        bool,
        typer.Option(
            "--token",
            help="ask for a token here too: other users of this machine reach the port",
        ),
    ] = False,
) -> None:
    """The report as a page that grows while trials run, in a browser.

    Where a driver runs: stop, go on, and try a configuration. Ctrl-C ends it; the sweep goes on.
    """
    from sweeps.serve.guard import Guard
    from sweeps.serve.server import LiveServer

    found = live_runs(runs or ["runs"])
    try:
        server = LiveServer((host, port), found, Guard(host, needs_token=token))
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port}: {error.strerror}; give another --port, or 0"
        ) from error
    with server:
        say(f"{', '.join(run.name for run in found)}\n{server.address}")
        server.serve_forever()


def live_runs(given: list[str]) -> "list[LiveRun]":
    """The runs that were named.

    Raises:
        ValueError: one is neither a run nor a folder of runs.
    """
    from analysis.contract import RUN_FILE
    from sweeps.run.storage import find_run, local_run
    from sweeps.serve.live import LiveRun
    from trainers.remote import is_uri

    found: dict[str, LiveRun] = {}
    for text in given:
        below = sorted(Path(text).glob(f"*/{RUN_FILE}")) if not is_uri(text) else []
        if below and not (Path(text) / RUN_FILE).is_file():
            folders = [path.parent.absolute() for path in below]
        else:
            folders = [find_run(text, to_read=True)]
        for folder in folders:
            name, number = folder.name, 2
            while name in found:
                name, number = f"{folder.name} ({number})", number + 1
            fetch = functools.partial(local_run, text) if is_uri(text) else None
            found[name] = LiveRun(name, folder, fetch)
    return list(found.values())
