"""Who drives a run, and the wish that it stop: two small files in the run folder, so that
any node sees them.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sweeps.run.record import now
from sweeps.spec.yaml_text import SpecError
from trainers.files import read_json, write_atomic

_BEAT_SECONDS = 2.0
_PATIENCE_SECONDS = 10.0  # a driver that is not heard of for so long is dead


def request_stop(run: Path) -> None:
    """Ask the run's driver to start no more trials.

    Raises:
        SpecError: nobody drives it.
    """
    if read_json(run / "driver.json") is None:
        raise SpecError(f"{run}: no sweep runs there; nothing to stop")
    write_atomic(run / "stop", now().encode())


def stop_requested(run: Path) -> bool:
    return (run / "stop").exists()


def refuse_second_driver(run: Path) -> None:
    """Remove what a killed driver left: at once where its process is seen to be gone, else
    when it stays silent.

    Raises:
        SpecError: another driver is alive.
    """
    path = run / "driver.json"
    _wait_for_silence(path)
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def driving(run: Path) -> Iterator[None]:
    """Be the run's only driver; an earlier wish to stop is forgotten.

    Raises:
        SpecError: another driver is alive.
    """
    path = run / "driver.json"
    refuse_second_driver(run)
    me = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "token": uuid.uuid4().hex,
        "since": now(),
        "beat": 0,
    }
    write_atomic(path, json.dumps(me).encode())
    (run / "stop").unlink(missing_ok=True)
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(path, me, ended), daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        if (read_json(path) or {}).get("token") == me["token"]:
            path.unlink(missing_ok=True)
        (run / "stop").unlink(missing_ok=True)


def _beat(path: Path, me: dict[str, Any], ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(_BEAT_SECONDS):
        beat += 1
        with contextlib.suppress(
            OSError
        ):  # a full disk is told where records are written
            write_atomic(path, json.dumps(me | {"beat": beat}).encode())


def _wait_for_silence(path: Path) -> None:
    first = read_json(path)
    if first is None or _is_gone(first):
        return
    # our own clock decides: clocks of nodes and of a file server differ
    since = time.monotonic()
    while time.monotonic() - since < _PATIENCE_SECONDS:
        seen = read_json(path)
        if seen is None or _is_gone(seen):
            return
        if seen != first:
            raise SpecError(
                f"{path.parent}: is being run by process {seen.get('pid')} on"
                f" {seen.get('host')}, since {seen.get('since')}; wait for it, or"
                f" `sweeps stop {path.parent}`"
            )
        time.sleep(0.1)


def _is_gone(driver: dict[str, Any]) -> bool:
    if driver.get("host") != socket.gethostname() or driver.get("pid") == os.getpid():
        return False
    try:
        os.kill(int(driver["pid"]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, KeyError, ValueError):
        return False
    return False
