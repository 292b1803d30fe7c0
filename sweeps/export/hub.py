"""Uploading an exported folder to Hugging Face's hub."""

import re
from importlib.util import find_spec
from pathlib import Path

from compress.runtimes.errors import check_installed

_SCHEME = "hf://"


def model_of(address: str) -> str:
    """The OWNER/NAME of hf://OWNER/NAME, once it is sure that it can be uploaded to.

    Raises:
        ValueError: another form, or huggingface_hub is missing.
    """
    name = address.removeprefix(_SCHEME)
    if name == address or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"--push: {address!r} is not of the form hf://OWNER/NAME")
    missing = [m for m in ("huggingface_hub",) if find_spec(m) is None]
    check_installed("--push", missing, "deploy")
    return name


def upload(folder: Path, name: str) -> str:
    """Upload a folder to a model of the hub, which is made (private) where there is none.

    Credentials and endpoint are those of huggingface_hub (HF_TOKEN, HF_ENDPOINT).

    Returns:
        The commit's address.

    Raises:
        ValueError: the hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi, ModelCard
    from huggingface_hub.errors import HfHubHTTPError

    ModelCard.load(folder / "README.md")  # its front matter is what the hub reads
    hub = HfApi()
    try:
        hub.create_repo(name, exist_ok=True, private=True)
        commit = hub.upload_folder(repo_id=name, folder_path=folder)
    except HfHubHTTPError as error:
        raise ValueError(f"--push hf://{name}: {error}") from error
    return str(commit.commit_url)
