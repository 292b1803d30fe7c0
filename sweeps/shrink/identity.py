"""What a search is of, beyond the command: a model's weights and a section of data, which may be
others under the same name. The spec that a search begins with notes both.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from sweeps.shrink.look import WEIGHTS, data_section
from sweeps.shrink.request import Request
from sweeps.spec.yaml_text import SpecError
from trainers.files import sha256_file

_DATA = "The data are:"
_MODEL = "The model's files have SHA-256:"


def notes(request: Request) -> list[str]:
    """Lines for the spec's head; weights with a name of timm's have none."""
    weights = _weights(request)
    of_model = [] if weights is None else [f"{_MODEL} {weights}."]
    return [*of_model, f"{_DATA} {_data(request)}."]


def refuse_changed(request: Request, written: str, path: Path) -> None:
    """Refuse to go on with another model or other data; a spec without notes is taken as it is.

    Args:
        written: the text of the spec, with single spaces.
        path: of the spec.

    Raises:
        SpecError: one of them has changed since, and which.
    """
    if _MODEL in written and f"{_MODEL} {_weights(request)}." not in written:
        raise SpecError(
            f"MODEL: the weights of {request.model} have changed since {path} was written, so"
            f" that its results in {request.folder} are of another model; choose another"
            " folder with -o, or put the weights back"
        )
    if _DATA not in written:
        return
    data = _data(request)
    if f"{_DATA} {' '.join(data.split())}." not in written:
        raise SpecError(
            f"--data: what {request.data} says has changed since {path} was written, so that"
            f" its results in {request.folder} are of other data; it is {data} now. Choose"
            f" another folder with -o, or go on with the data of then: sweeps run {path}"
        )


def _data(request: Request) -> str:
    return json.dumps(data_section(request.data), sort_keys=True, default=str)


def _weights(request: Request) -> str | None:
    """Of a file, or of a folder's weights and descriptions; None of a name."""
    path = Path(request.model).expanduser()
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        return None
    files = [f for f in sorted(path.iterdir()) if f.suffix in (*WEIGHTS, ".json")]
    each = [f"{f.name} {sha256_file(f)}" for f in files if f.is_file()]
    return hashlib.sha256("\n".join(each).encode()).hexdigest()
