"""Ray Tune's run, in a thread beside the driver's main one.

Tune waits for ever for a Ray that has died: calls to a lost head do not come back, and after a
minute Ray ends the whole process. So the main thread stays in charge: it takes signals, asks
whether Ray still answers, and goes on without Tune where that does not end in time.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import ray

from sweeps.drive.cluster import RayLostError

_HEAD = "Ray's head process (GCS)"
_RAYLET = "Ray's process on this machine (raylet)"
_LOOK_SECONDS = 0.1
_PULSE_SECONDS = 1.0
_REFUSED_SECONDS = 2.0
"""A port of this machine that refuses connections for so long belongs to a process that ended."""
_SILENT_SECONDS = 30.0
"""A node that cannot be reached for so long is lost. Ray ends our process after 60 s."""
_ENDING_SECONDS = 20.0
"""How long Tune may take to stop its trials."""


class Lost(NamedTuple):
    """What is lost, as a clause; and whether it is the cluster's head."""

    said: str
    is_head: bool


class Pulse:
    """Whether the processes answer that a driver cannot do without.

    They are the cluster's head (its GCS) and the raylet of this node. That something takes
    connections on their ports is asked, and not Ray, whose calls may never return.
    """

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        host, _, port = context.gcs_address.rpartition(":")
        here = next(n for n in ray.nodes() if n["NodeID"] == context.get_node_id())
        self._ports = {
            _HEAD: (host, int(port)),
            _RAYLET: (here["NodeManagerAddress"], int(here["NodeManagerPort"])),
        }
        self._own_host = here["NodeManagerAddress"]
        self._next = 0.0
        self._silent_since: dict[str, float] = {}

    def lost(self) -> Lost | None:
        """What is lost; None while all is well."""
        if time.monotonic() < self._next:
            return None
        for name, (host, port) in self._ports.items():
            try:
                socket.create_connection((host, port), timeout=_PULSE_SECONDS).close()
            except OSError:
                since = self._silent_since.setdefault(name, time.monotonic())
                is_here = host == self._own_host
                patience = _REFUSED_SECONDS if is_here else _SILENT_SECONDS
                if time.monotonic() - since >= patience:
                    said = f"{name} at {host}:{port} does not answer any more"
                    return Lost(said, name == _HEAD)
            else:
                self._silent_since.pop(name, None)
        self._next = time.monotonic() + _PULSE_SECONDS
        return None


class TuneRun:
    """One run of Tune, and what may end it before its time.

    Tune's hooks never raise: inside `guarded` their first error is kept and ends the run.

    Args:
        interrupted: asked whether the user has interrupted.
        superseded: asked whether another driver has taken the run over.

    Attributes:
        error: the first one that a hook raised.
    """

    def __init__(
        self,
        interrupted: Callable[[], bool],
        superseded: Callable[[], bool] = lambda: False,
    ) -> None:
        self.interrupted, self.superseded = interrupted, superseded
        self._is_over = False
        self.error: Exception | None = None
        self._lost: Lost | None = None
        self._raised: BaseException | None = None

    @property
    def is_over(self) -> bool:
        """Whether nobody listens to this run any more, so that its hooks do nothing."""
        return self._is_over or self.superseded()

    def wants_end(self) -> bool:
        """Whether Tune shall stop all trials."""
        return (
            self.is_over
            or self.error is not None
            or self._lost is not None
            or self.interrupted()
        )

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Keep what a hook raises: in Tune's hands it would lose its type and its place."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (raised again by `wait`)
            self.error = self.error or error

    def wait(self, fit: Callable[[], object]) -> None:
        """Run `fit` to its end, or to where it is given up.

        Raises:
            RayLostError: Ray has died.
            Exception: what a hook or `fit` raised.
        """
        pulse = Pulse()
        thread = threading.Thread(target=self._fit, args=(fit,), daemon=True)
        thread.start()
        try:
            self._watch(thread, pulse)
        finally:
            self._is_over = True
        if self._lost is not None:
            said, is_head = self._lost
            raise RayLostError(said, ends_process=is_head) from self.error
        if self.error is not None:
            raise self.error
        if self._raised is not None:
            raise self._raised

    def _fit(self, fit: Callable[[], object]) -> None:
        try:
            fit()
        except BaseException as error:  # noqa: BLE001 (raised again by `wait`)
            self._raised = error

    def _watch(self, thread: threading.Thread, pulse: Pulse) -> None:
        """Wait until Tune has ended; not much longer than it should once it is to end."""
        give_up_at: float | None = None
        while thread.is_alive():
            thread.join(_LOOK_SECONDS)  # signals are taken here
            if give_up_at is None and self.wants_end():
                give_up_at = time.monotonic() + _ENDING_SECONDS
            if self._lost is None:
                self._lost = pulse.lost()
                if self._lost is not None:
                    # Tune may hang for good; where it does not it needs a second or two
                    give_up_at = time.monotonic() + 2 * _REFUSED_SECONDS
            if give_up_at is not None and time.monotonic() > give_up_at:
                return
