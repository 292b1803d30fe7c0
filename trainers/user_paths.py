"""Paths as users write them in configurations: `~`, environment variables, folders of models."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ValidationInfo

from trainers.files import expanded

MAY_BE_GONE = "may_be_gone"
"""Key of pydantic's validation context: whoever reads an old configuration sets it, so that files
that were there once need not be there now.
"""
LOCAL_FOLDER = "local-dir:"
"""How timm's names of models in a folder begin."""


def _expand(value: Any, info: ValidationInfo) -> Any:
    """A path with `~` and environment variables replaced; what was read once stays as it is."""
    may_be_gone = (info.context or {}).get(MAY_BE_GONE, False)
    if may_be_gone or not isinstance(value, str | Path):
        return value
    text = expanded(str(value))
    return Path(text) if isinstance(value, Path) else text


UserPath = Annotated[Path, BeforeValidator(_expand)]
"""A path in which `~` is the home folder and `$NAME` an environment variable."""
UserText = Annotated[str, BeforeValidator(_expand)]
"""A name, URI or path; what looks like a path in it is expanded as in `UserPath`."""


def local_folder(value: str) -> str:
    """timm's `local-dir:FOLDER` with an absolute folder, since trials work elsewhere."""
    if not value.startswith(LOCAL_FOLDER):
        return value
    folder = Path(expanded(value.removeprefix(LOCAL_FOLDER))).absolute()
    return f"{LOCAL_FOLDER}{folder}"


def _saved_model(value: str) -> str:
    """The name of a model; that of a folder is made absolute."""
    return value if value == "source" else absolute_folder(value)


def absolute_folder(value: str) -> str:
    """A name; that of a folder is made absolute, since trials work elsewhere."""
    return str(Path(value).absolute()) if Path(value).is_dir() else value


ModelName = Annotated[
    UserText, AfterValidator(local_folder), AfterValidator(_saved_model)
]
"""A model by its name, or a folder that holds one."""
