"""Configurations that somebody asks a running sweep to try: a file each in the run folder.

    requests/0003.json   {"configuration": {...}, "asked": time, "number": null, "refused": null}

Who asks writes the file, from any machine that sees the run folder; the driver looks at the folder
whenever it needs a next configuration, and writes down which number each got, or why it got none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from analysis.contract import REQUESTS_FOLDER
from sweeps.run.record import now
from trainers.files import read_json, write_atomic

MOST_REQUESTS = 10_000


class Request(BaseModel):
    """One configuration that was asked for.

    Attributes:
        configuration: dotted parameter → value, as in `search.points`; the sampler draws what is
            not named.
        asked: when.
        number: of the configuration that it became; None while it waits.
        refused: why it is not tried.
    """

    model_config = ConfigDict(extra="ignore")

    configuration: dict[str, JsonValue]
    asked: str = ""
    number: int | None = None
    refused: str | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether the driver has not answered."""
        return self.number is None and self.refused is None


def ask_for(run: Path, configuration: Mapping[str, JsonValue]) -> str:
    """Ask the run's driver to try a configuration.

    Returns:
        Name of the request.

    Raises:
        ValueError: the run has too many requests already.
    """
    folder = run / REQUESTS_FOLDER
    folder.mkdir(exist_ok=True)
    request = Request(configuration=dict(configuration), asked=now())
    for number in range(len(read_requests(run)), MOST_REQUESTS):
        path = folder / f"{number:04d}.json"
        with contextlib.suppress(FileExistsError):
            path.touch(exist_ok=False)  # another page may take the same number
            write_request(run, path.stem, request)
            return path.stem
    raise ValueError(f"{folder}: holds {MOST_REQUESTS} requests; ask for no more")


def read_requests(run: Path) -> dict[str, Request]:
    """The requests of a run by name, in order; what is no request is left out."""
    found = {}
    for path in sorted((run / REQUESTS_FOLDER).glob("*.json")):
        content = read_json(path)
        with contextlib.suppress(ValidationError):
            if content is not None:
                found[path.stem] = Request.model_validate(content)
    return found


def write_request(run: Path, name: str, request: Request) -> None:
    """Write a request as it stands now."""
    text = request.model_dump_json(indent=1)
    write_atomic(run / REQUESTS_FOLDER / f"{name}.json", text.encode())
