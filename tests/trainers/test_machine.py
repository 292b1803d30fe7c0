"""What this machine is, on files as Linux writes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.machine import free_memory_bytes

AVAILABLE = 1024 * 7_000_000
V2 = "memory.max", "memory.current"
V1 = "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"


def machine(root: Path, files: dict[str, str]) -> Path:
    """A root folder with 7 GB of available memory and these files of the container."""
    group = root / "sys/fs/cgroup"
    (group / "memory").mkdir(parents=True)
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(
        "MemTotal:  8000000 kB\nMemAvailable:  7000000 kB\nHugePages_Total:  0\n"
    )
    for name, text in files.items():
        (group / name).write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("names", "limit", "used", "free"),
    [
        (V2, "3000000000", "1000000000", 2_000_000_000),
        (V1, "3000000000", "1000000000", 2_000_000_000),
        (V2, "max", "1000000000", AVAILABLE),
        (V1, "9223372036854771712", "1000000000", AVAILABLE),  # no limit
        (V2, "3000000000", "3000000001", 0),
        (V1, "90000000000", "1000000000", AVAILABLE),
    ],
)
def test_free_memory_heeds_a_container_s_limit(
    tmp_path: Path, names: tuple[str, str], limit: str, used: str, free: int
) -> None:
    files = dict(zip(names, (limit, used), strict=True))
    assert free_memory_bytes(machine(tmp_path, files)) == free


def test_free_memory_without_containers_and_where_nothing_is_said(
    tmp_path: Path,
) -> None:
    assert free_memory_bytes(machine(tmp_path / "linux", {})) == AVAILABLE
    assert free_memory_bytes(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("names", "file", "key"),
    [
        (V2, "memory.stat", "inactive_file"),
        (V1, "memory/memory.stat", "total_inactive_file"),
    ],
)
def test_a_container_s_cache_of_files_is_free(
    tmp_path: Path, names: tuple[str, str], file: str, key: str
) -> None:
    files = dict(zip(names, ("3000000000", "2900000000"), strict=True))
    files[file] = f"anon 500000000\n{key} 1500000000\nactive_file 900000000"
    assert free_memory_bytes(machine(tmp_path, files)) == 1_600_000_000


_FREES = """
import sys
from trainers.machine import give_back_memory

def megabytes():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * 4096 / 1e6

before = megabytes()
block = [b"x" * 1_000_000 for _ in range(300)]
kept = b"x" * 1_000  # above the block: the heap cannot shrink from its end
del block
freed = megabytes()
give_back_memory()
print(freed - before, megabytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux and glibc")
def test_kept_memory_can_be_given_back() -> None:
    keeping = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    done = subprocess.run(
        [sys.executable, "-c", _FREES],
        env=os.environ | keeping,
        capture_output=True,
        text=True,
        check=True,
    )
    freed, given_back = map(float, done.stdout.split())
    assert freed > 250
    assert given_back < 50
