"""What this machine is, asked in ways that Linux, macOS and Windows know."""

import ctypes
import os
import platform
import re
import sys
from functools import lru_cache
from pathlib import Path


def core_numbers() -> frozenset[int]:
    """Numbers of the cores that this process may use; Linux can give it fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(core_numbers())


_CONTAINER_MEMORY = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),  # cgroup v2
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),  # cgroup v1
)
"""Files of a container's limit and of what it uses, below /sys/fs/cgroup; file and key of the
part of the latter that is a cache of files, which the kernel gives back.
"""


def free_memory_bytes(root: Path = Path("/")) -> int | None:
    """Memory that processes may still take before others are swapped out or killed, a container's
    limit considered; None where the system does not say.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = dict(line.split(":", 1) for line in lines)
    if "MemAvailable" not in found:
        return None
    free = 1024 * int(found["MemAvailable"].split()[0])
    for limit, used, statistics, key in _CONTAINER_MEMORY:
        try:
            most = int((root / "sys/fs/cgroup" / limit).read_text())
            now = int((root / "sys/fs/cgroup" / used).read_text())
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
        cached = _statistic(root / "sys/fs/cgroup" / statistics, key)
        free = min(free, max(0, most - now + cached))
    return free


def _statistic(file: Path, key: str) -> int:
    """A number of a file with lines "KEY NUMBER"; 0 where there is none."""
    try:
        found = dict(line.split(maxsplit=1) for line in file.read_text().splitlines())
        return int(found.get(key, 0))
    except (OSError, ValueError):
        return 0


def give_back_memory() -> None:
    """Give memory that this process has freed back to the system, where its C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name != "nt" else None
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def processor_name() -> str:
    """The processor as its maker calls it: "AMD EPYC 7B13", "Apple M2"."""
    if sys.platform == "darwin":
        return _macos_processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if model is not None:
            return model[1].strip()
    return platform.processor() or platform.machine()


def _macos_processor() -> str:
    """The brand that the kernel reports; empty where it reports none."""
    libc = ctypes.CDLL(None)
    size = ctypes.c_size_t(256)
    text = ctypes.create_string_buffer(size.value)
    name = b"machdep.cpu.brand_string"
    failed = libc.sysctlbyname(name, text, ctypes.byref(size), None, ctypes.c_size_t(0))
    return "" if failed else text.value.decode(errors="replace").strip()
