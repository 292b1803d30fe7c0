"""What the live page takes: from the end of an epoch, and from the end of a trial, to what a page
is sent, with many ended trials in the folder and four running; and the processor while nothing
happens.

    python benchmarks/live_page.py [--trials 1000] [--folder DIR]

The trials are those of `analysis_scale.py`. A trial's end is told when its new content can be
fetched; drawing it takes the browser as long as a report does.
"""

import argparse
import http.client
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from analysis_scale import OBJECTIVES, write_trial

from sweeps.run.driving import driving
from sweeps.run.folder import trial_folder
from sweeps.run.plan import TrialPlan
from sweeps.run.record import TrialRecord
from sweeps.serve.guard import Guard
from sweeps.serve.live import LiveRun
from sweeps.serve.server import LiveServer

IDLE_SECONDS = 20.0


def begun(run: Path, number: int) -> TrialRecord:
    """A trial that runs from now on."""
    stage = {"name": "finetune", "kind": "finetune", "config": {"epochs": 20}}
    plan = TrialPlan.model_validate(
        {
            **{"trial_id": f"{number:05d}", "number": number, "replicate": 0},
            **{"seed": 0, "configuration": {}, "draw": {}, "stages": (stage,)},
            **{"source": {"model": "resnet20_cifar"}, "data": {}},
            "measure": {"latency": False},
        }
    )
    return TrialRecord.begin(trial_folder(run, plan.trial_id), plan)


class Listener:
    """A page that listens."""

    def __init__(self, server: LiveServer) -> None:
        self.last: dict[str, Any] = {}
        self._place = server.server_address[:2]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        connection = http.client.HTTPConnection(*self._place)
        connection.request("GET", "/run/big/events")
        answer = connection.getresponse()
        while line := answer.readline():
            if line.startswith(b"data:"):
                self.last = json.loads(line[5:])

    def wait(self, label: str, condition: Callable[[], bool]) -> None:
        """Print how long it takes until a condition holds."""
        begun, worked = time.perf_counter(), time.process_time()
        while not condition():
            time.sleep(0.01)
        wall, cpu = time.perf_counter() - begun, time.process_time() - worked
        print(f"{label:<40} {wall:6.2f} s, {cpu:6.2f} s of CPU", flush=True)

    def epochs(self) -> int:
        """Epochs that all running trials have ended."""
        return sum(len(trial["epochs"]) for trial in self.last.get("running", ()))


def measure(run: Path, first: int) -> None:
    """Print all figures."""
    server = LiveServer(("127.0.0.1", 0), [LiveRun("big", run)], Guard("127.0.0.1"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    records = [begun(run, first + i) for i in range(4)]
    page = Listener(server)
    page.wait("first content", lambda: bool(page.last))
    time.sleep(3)
    for epoch in range(5):
        row = {"stage": "finetune", "epoch": epoch, "accuracy": 0.5, "seconds": 1.0}
        records[0].add_epoch(row)
        page.wait("end of an epoch", lambda epoch=epoch: page.epochs() > epoch)
        time.sleep(1.3)
    for record in records[:3]:
        before = page.last["version"]
        record.finish("complete", metrics={"accuracy": 0.9, "latency_ms": 3.0})
        page.wait(
            "end of a trial", lambda before=before: page.last["version"] != before
        )
        time.sleep(3)
    begun_at, worked = time.perf_counter(), time.process_time()
    time.sleep(IDLE_SECONDS)
    share = (time.process_time() - worked) / (time.perf_counter() - begun_at)
    print(f"{'idle, with a page that listens':<40} {100 * share:6.2f} % of a core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = (args.folder or Path(temporary)) / "big"
        (run / "trials").mkdir(parents=True)
        rng = np.random.default_rng(0)
        header = {"schema": 1, "name": "big", "objectives": OBJECTIVES}
        header |= {"params": ["finetune.lr", "stage0.option_0"]}
        (run / "run.json").write_text(json.dumps(header))
        for number in range(args.trials):
            write_trial(run, number, 20, rng)
        with driving(run):
            measure(run, args.trials)


if __name__ == "__main__":
    main()
