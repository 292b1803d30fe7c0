"""Real process groups: a script on every rank, gloo between them, results back as JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
_BEGIN = """
import json, os, sys
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
torch.set_num_threads(1)
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world,
                            timeout=timedelta(seconds=120))
def give(value):
    (folder / f"rank-{rank}.json").write_text(json.dumps(value))
"""
_END = """
if world > 1:
    dist.destroy_process_group()
"""

Ranks = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """`ranks(script, world)`: runs the script in `world` processes; each calls
    `give(value)` once; all values.
    """

    def run(script: str, world: int = 2) -> list[Any]:
        folder = tmp_path_factory.mktemp(f"world-{world}")
        (folder / "script.py").write_text(_BEGIN + script + _END)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    str(folder / "script.py"),
                    str(rank),
                    str(world),
                    str(folder),
                ],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world)
        ]
        errors = [process.communicate(timeout=180)[1] for process in processes]
        assert all(p.returncode == 0 for p in processes), "\n".join(errors)
        return [
            json.loads((folder / f"rank-{rank}.json").read_text())
            for rank in range(world)
        ]

    return run
