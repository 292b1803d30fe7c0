"""A run that lies in object storage, copied to this machine to be read."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from analysis.contract import (
    BASELINE,
    NOTES_FOLDER,
    RUN_FILE,
    TABLES_FOLDER,
    TRIALS_FOLDER,
)

_READ = (RUN_FILE, TABLES_FOLDER, TRIALS_FOLDER, NOTES_FOLDER, BASELINE)


def local_copy(uri: str) -> Path:
    """The records and tables of the run at `uri`, in a folder that goes with this process.

    Args:
        uri: `s3://bucket/runs/NAME`, or of any store that PyArrow or fsspec reads; a query
            (`?endpoint_override=…`) stands at its end. Credentials come from the environment.

    Raises:
        ValueError: no such store, or it cannot be read.
    """
    try:
        store, root = _opened(uri)
        selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
        found = [f.path for f in store.get_file_info(selector) if f.is_file]
        name = PurePosixPath(root).name
        folder = Path(tempfile.mkdtemp(prefix="sweeps-run-")) / name
        atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
        folder.mkdir()
        for path in found:
            relative = PurePosixPath(path).relative_to(root)
            if relative.parts[0] in _READ:
                _copy(store, path, folder / relative)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{uri}: cannot be read: {error}") from error
    return folder


def _opened(uri: str) -> tuple[fs.FileSystem, str]:
    place, mark, query = uri.partition("?")
    uri = place.rstrip("/") + mark + query
    try:
        store, root = fs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid as refusal:
        try:
            import fsspec

            found, root = fsspec.core.url_to_fs(uri)
        except (ImportError, ValueError) as error:
            raise ValueError(
                f"{uri}: is no storage that can be read: {refusal}; {error}"
            ) from error
        store = fs.PyFileSystem(fs.FSSpecHandler(found))
    return store, root


def _copy(store: fs.FileSystem, path: str, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    fs.copy_files(
        path,
        str(to),
        source_filesystem=store,
        destination_filesystem=fs.LocalFileSystem(),
    )
