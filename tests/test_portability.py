"""What Linux alone has is used nowhere that macOS or Windows must go.

Which files may name such things at all is in test_architecture.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ABSENT = ("fcntl", "resource", "pwd", "grp", "termios")
"""Standard modules that Windows lacks."""

AS_ELSEWHERE = f"""
import importlib, importlib.abc, os, pathlib, signal, sys

# libraries of others know their systems: they come before anything is taken away
from trainers.timm_library import timm  # and torchvision
import numpy, pandas, torch, ray.tune, ray.train, ray.train.torch, ray.util.queue
import ray.tune.schedulers, ray.tune.search, optuna, pyarrow, rich.live, moocore, filelock

for name in {ABSENT!r}:
    sys.modules[name] = None  # "import name" raises ImportError
for name in ("sched_getaffinity", "fork", "getuid", "getloadavg", "statvfs"):
    delattr(os, name)
for name in ("SIGUSR1", "SIGHUP", "SIGKILL", "SIGSTOP", "SIGALRM"):
    delattr(signal, name)

for top in ("analysis", "trainers", "compress", "sweeps"):
    for path in sorted(pathlib.Path(top).rglob("*.py")):
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        if not name.endswith("__main__"):
            importlib.import_module(name)

from trainers.machine import processor_name, usable_cores
assert usable_cores() == os.cpu_count()
assert processor_name()
"""


@pytest.mark.slow
def test_every_module_imports_without_what_linux_alone_has() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_ELSEWHERE], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_no_file_is_told_by_its_case_alone() -> None:
    """macOS and Windows take `Report.py` and `report.py` for one file."""
    listed = []
    for folder, folders, files in os.walk(ROOT):
        if Path(folder) == ROOT:
            folders[:] = [name for name in folders if name not in (".venv", ".git")]
        listed += [f"{folder}/{name}" for name in files]
    assert f"{ROOT}/README.md" in listed
    assert len(listed) == len({path.lower() for path in listed})
