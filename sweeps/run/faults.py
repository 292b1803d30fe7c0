"""What ends a trial early: errors, as they are raised and as records keep them."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those behind it: what it was raised from or after, here or in a process of
    Ray's.
    """
    seen: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        found = left.pop(0)
        if isinstance(found, BaseException) and found not in seen:
            seen.append(found)
            yield found
            left += [getattr(found, "cause", None), found.__cause__, found.__context__]


def innermost(error: BaseException) -> BaseException:
    """The error that `error` was raised from, here or in a process of Ray's; else `error`."""
    while True:
        cause = getattr(error, "cause", None) or error.__cause__
        if not isinstance(cause, BaseException):
            return error
        error = cause


def is_storage_fault(error: BaseException) -> bool:
    """Whether a disk is full or read-only, which is no trial's fault and no retry mends.

    Libraries wrap such errors in their own types, and then keep only the system's text.
    """
    full = os.strerror(errno.ENOSPC)
    return any(
        isinstance(found, StorageFaultError)
        or (isinstance(found, OSError) and found.errno in _FULL)
        or full in str(found)
        for found in causes(error)
    )


class RecordTakenError(Exception):
    """Another process has ended this attempt or begun a new one; this process's part is over."""


class StorageFaultError(Exception):
    """A disk is full or read-only. The trial is interrupted, and no other need start."""


class TrialError(BaseModel):
    """Why a trial failed or was interrupted: a part of its record."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: str
    message: str
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException | TrialError | str) -> TrialError:
        """From an exception; a text is what the driver says of a process that has died.

        Colours of a terminal, which some libraries put into their messages, are left out.
        """
        details = getattr(error, "details", None)
        if isinstance(error, TrialError):
            found = error.model_dump()
        elif isinstance(error, str):
            found = {"type": "ProcessDied", "message": error}
        elif details is not None:  # it was raised in another process
            found = details
        else:
            text = "".join(traceback.format_exception(error))
            message = str(error) or type(error).__name__
            found = {"type": type(error).__name__, "message": message}
            found["traceback"] = text
        return cls(**{key: _COLOURS.sub("", text) for key, text in found.items()})
