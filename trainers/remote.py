"""Files of a run in object storage: `s3://`, `gs://`, `abfs://`, `hdfs://`, `file://`, or
any scheme of fsspec.

Object stores have no rename and no lock, so work happens in a local folder and whole files
are copied. A folder is complete when the file that was copied last is there.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from trainers.leftovers import is_leftover, tag
from trainers.words import one_line

if TYPE_CHECKING:
    from pyarrow import fs

_PROBE = ".probe-"

NO_STORAGE = {
    **dict.fromkeys(("http", "https", "ftp", "ftps", "sftp"), "is no object storage"),
    "memory": "keeps nothing between processes",
    "": "names no kind of storage",
}
"""Schemes that are no storage for a run → why."""


def is_uri(place: str) -> bool:
    """Whether `place` names remote storage rather than a folder."""
    return "://" in place


def child_uri(uri: str, *names: str) -> str:
    """The URI of what lies below `uri`; a query (`?endpoint_override=…`) stays at the end.

    >>> child_uri("s3://bucket/runs?scheme=http", "demo", "_cache")
    's3://bucket/runs/demo/_cache?scheme=http'
    """
    place, mark, query = uri.partition("?")
    return "/".join([place.rstrip("/"), *names]) + mark + query


def parent_uri(uri: str) -> tuple[str, str]:
    """The URI above `uri`, with its query, and the last name of `uri`.

    >>> parent_uri("s3://bucket/runs/demo?scheme=http")
    ('s3://bucket/runs?scheme=http', 'demo')
    """
    place, mark, query = uri.partition("?")
    above, _, name = place.rstrip("/").rpartition("/")
    return above + mark + query, name


class Remote:
    """A tree of files under one URI. Credentials come from the environment, as the store's
    own tools take them.
    """

    def __init__(self, uri: str) -> None:
        """Raises ValueError: no such scheme, or a malformed URI."""
        import pyarrow as pa
        from pyarrow import fs

        self.uri = child_uri(uri)
        scheme, _, place = self.uri.partition("://")
        why = NO_STORAGE.get(scheme.lower())
        if not place.partition("?")[0].strip("/"):
            why = "is followed by no bucket and no folder"
        if why is not None:
            raise ValueError(
                f"storage: {self.uri} cannot be written to: {scheme or '://'} {why}; give a"
                " folder, or s3://BUCKET/FOLDER, gs://, abfs://, hdfs://"
            )
        try:
            self._fs, self._root = fs.FileSystem.from_uri(self.uri)
        except pa.ArrowInvalid as refusal:
            self._fs, self._root = _by_fsspec(self.uri, refusal)
        except (OSError, pa.ArrowException) as error:
            said = one_line(error)
            raise ValueError(
                f"storage: {self.uri} cannot be reached: {said}; check address and rights"
            ) from error

    def _at(self, relative: str) -> str:
        return str(PurePosixPath(self._root) / relative)

    def check_writable(self) -> None:
        """Write and remove a small file; remove those that killed processes left.

        Raises:
            ValueError: the store refuses; says what it said.
        """
        import pyarrow as pa

        probe = self._at(f"{_PROBE}{tag()}")
        try:
            self._fs.create_dir(self._root, recursive=True)
            with self._fs.open_output_stream(probe) as stream:
                stream.write(b"probe")
            self._remove_probes()
            self._fs.delete_file(probe)
        except (OSError, pa.ArrowException) as error:
            said = one_line(error)
            raise ValueError(
                f"storage: {self.uri} cannot be written to: {said}; check address and rights"
            ) from error

    def _remove_probes(self) -> None:
        from pyarrow import fs

        found = self._fs.get_file_info(fs.FileSelector(self._root))
        probes = [info for info in found if info.base_name.startswith(_PROBE)]
        # this process has just written one of them
        now = max((info.mtime_ns or 0 for info in probes), default=0)
        for info in probes:
            age_seconds = (now - (info.mtime_ns or now)) / 1e9
            if is_leftover(info.base_name, age_seconds):
                with contextlib.suppress(FileNotFoundError):  # another was quicker
                    self._fs.delete_file(info.path)

    def files(self, relative: str = "") -> list[str]:
        """Paths of all files below `relative`, relative to the URI; none where there is no
        such folder.
        """
        from pyarrow import fs

        selector = fs.FileSelector(
            self._at(relative), recursive=True, allow_not_found=True
        )
        found = [
            info.path
            for info in self._fs.get_file_info(selector)
            if info.type == fs.FileType.File
        ]
        return sorted(
            str(PurePosixPath(path).relative_to(PurePosixPath(self._root)))
            for path in found
        )

    def exists(self, relative: str) -> bool:
        """Whether there is a file of that name."""
        from pyarrow import fs

        return self._fs.get_file_info(self._at(relative)).type == fs.FileType.File

    def existing(self, relatives: Sequence[str]) -> set[str]:
        """Those of these names that are files, asked for together."""
        from pyarrow import fs

        infos = self._fs.get_file_info([self._at(each) for each in relatives])
        return {
            relative
            for relative, info in zip(relatives, infos, strict=True)
            if info.type == fs.FileType.File
        }

    def upload(self, path: Path, relative: str) -> None:
        """Copy a file; on stores that have folders a reader may see a part of it."""
        from pyarrow import fs

        target = self._at(relative)
        self._fs.create_dir(str(PurePosixPath(target).parent), recursive=True)
        fs.copy_files(
            str(path.absolute()),
            target,
            source_filesystem=fs.LocalFileSystem(),
            destination_filesystem=self._fs,
        )

    def upload_folder(self, folder: Path, relative: str, last: str = "") -> None:
        """Copy the files below a folder, the one named `last` after all others."""
        paths = sorted(
            p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")
        )
        for path in sorted(paths, key=lambda p: p.name == last):
            self.upload(path, f"{relative}/{path.relative_to(folder).as_posix()}")

    def download(self, relative: str, path: Path) -> None:
        """Copy a file to `path`, where it appears whole."""
        from pyarrow import fs

        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{tag()}.tmp")
        try:
            fs.copy_files(
                self._at(relative),
                str(beside.absolute()),
                source_filesystem=self._fs,
                destination_filesystem=fs.LocalFileSystem(),
            )
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def delete_folder(self, relative: str) -> None:
        """Remove all files below `relative`; none need be there."""
        from pyarrow import fs

        if self._fs.get_file_info(self._at(relative)).type == fs.FileType.Directory:
            self._fs.delete_dir(self._at(relative))

    def download_missing(
        self, relative: str, folder: Path, skip: Sequence[str] = ()
    ) -> int:
        """Copy the files below `relative` that `folder` lacks, except those named in `skip`.

        Returns:
            How many files were copied.
        """
        count = 0
        for name in self.files(relative):
            inner = (
                PurePosixPath(name).relative_to(relative)
                if relative
                else PurePosixPath(name)
            )
            path = folder / inner
            if not path.exists() and inner.name not in skip:
                self.download(name, path)
                count += 1
        return count


def _by_fsspec(uri: str, refusal: Exception) -> "tuple[fs.FileSystem, str]":
    from pyarrow import fs

    try:
        import fsspec

        found, root = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"storage: {uri} is no storage that can be reached: {refusal}; {error}"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(found)), root
