"""Whether a process of this host is there."""

import os
import sys
from typing import Any


def process_exists(pid: int) -> bool:
    """Whether a process of this number runs on this host, whoever owns it."""
    if sys.platform == "win32":
        return _windows_process_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists and belongs to somebody else
        return True
    return True


def _windows_process_exists(pid: int) -> bool:
    """`os.kill` would end the process on Windows, so the system is asked about it instead."""
    import ctypes

    kernel32: Any = getattr(ctypes, "windll").kernel32  # noqa: B009 (only Windows has it)
    query_limited_information, still_active = 0x1000, 259
    handle = kernel32.OpenProcess(query_limited_information, False, pid)
    if not handle:
        access_denied = 5
        return kernel32.GetLastError() == access_denied
    try:
        code = ctypes.c_ulong()
        known = kernel32.GetExitCodeProcess(handle, ctypes.byref(code))
        return not known or code.value == still_active
    finally:
        kernel32.CloseHandle(handle)
