"""Real process groups: two processes for all tests, gloo between them, results back as JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import worker

ROOT = Path(__file__).parent.parent.parent
Ranks = Callable[..., list[Any]]


class _Group:
    """The processes of one group; starting them costs an import of torch each."""

    def __init__(self, world: int, folder: Path) -> None:
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, worker.__file__, str(rank), str(world), str(folder)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(world)
        ]

    def run(self, folder: Path) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{folder}\n")
            process.stdin.flush()
        for process in self.processes:
            assert process.stdout is not None
            while (line := process.stdout.readline()) != "done\n":
                assert line, f"a process of the group ended: {process.poll()}"

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """`ranks(script, world)`: runs the script in `world` processes; each calls `give(value)`
    once; all values. One process is this one.
    """
    groups: dict[int, _Group] = {}

    def run(script: str, world: int = 2) -> list[Any]:
        folder = tmp_path_factory.mktemp(f"world-{world}")
        (folder / "script.py").write_text(script)
        if world == 1:
            worker.run(folder / "script.py", 0, 1)
        else:
            if world not in groups:
                groups[world] = _Group(world, tmp_path_factory.mktemp("group"))
            groups[world].run(folder)
        errors = [path.read_text() for path in sorted(folder.glob("rank-*.error"))]
        if errors:  # the ranks need not stand at the same collective any more
            groups.pop(world).end()
        assert not errors, "\n".join(errors)
        names = [f"rank-{rank}.json" for rank in range(world)]
        return [json.loads((folder / name).read_text()) for name in names]

    yield run
    for group in groups.values():
        group.end()
