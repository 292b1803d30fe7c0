"""A live page's server in a thread, and trials that a test lets go on."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeps.run.folder import trial_folder
from sweeps.run.record import TrialRecord
from sweeps.serve.guard import Guard
from sweeps.serve.live import LiveRun
from sweeps.serve.server import LiveServer
from tests.sweeps.helpers import plan


def begun(run: Path, trial_id: str) -> TrialRecord:
    """A trial that has just begun."""
    stages = ({"name": "finetune", "kind": "finetune", "config": {"epochs": 4}},)
    mine = plan(trial_id, number=int(trial_id), stages=stages)
    return TrialRecord.begin(trial_folder(run, trial_id), mine)


def epoch(record: TrialRecord, number: int) -> None:
    row = {"stage": "finetune", "epoch": number, "accuracy": 0.5 + number / 100}
    record.add_epoch(row | {"images_per_second": 100.0, "seconds": 2.0})


@contextmanager
def served(folder: Path, guard: Guard | None = None) -> Iterator[LiveServer]:
    server = LiveServer(
        ("127.0.0.1", 0), [LiveRun("demo", folder)], guard or Guard("127.0.0.1")
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asked(
    server: LiveServer, method: str, path: str, content: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)
    body = None if content is None else json.dumps(content)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, given)
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found
