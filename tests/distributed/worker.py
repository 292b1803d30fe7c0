"""One rank of a process group that runs script after script: python worker.py RANK WORLD FOLDER.

For each folder named on a line of the standard input, `script.py` in it is run with the names
`rank`, `world`, `folder` and `give`; what it gives goes to `rank-<rank>.json`, a failure to
`rank-<rank>.error`. A line on the standard output says that it ended.
"""

import json
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run(script: Path, rank: int, world: int) -> None:
    """Run one script and write down what it gives."""
    folder = script.parent

    def give(value: Any) -> None:
        (folder / f"rank-{rank}.json").write_text(json.dumps(value))

    names = {"rank": rank, "world": world, "folder": folder, "give": give}
    exec(compile(script.read_text(), str(script), "exec"), names)


def main() -> None:
    rank, world = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(Path(sys.argv[3]) / "rendezvous").as_uri(),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    for line in sys.stdin:
        folder = Path(line.strip())
        try:
            run(folder / "script.py", rank, world)
        except Exception:  # noqa: BLE001 (whatever it is, the test that waits shows it)
            (folder / f"rank-{rank}.error").write_text(traceback.format_exc())
        print("done", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
