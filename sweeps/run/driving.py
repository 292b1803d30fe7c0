"""Who drives a run, and the wish that it stop: two small files in the run folder, so that any
node sees them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from analysis.contract import DRIVER_FILE, STOP_FILE
from sweeps.run.record import now
from sweeps.spec.yaml_text import SpecError
from trainers.files import write_atomic
from trainers.lease import Lease, LeaseHeldError

_HEARTBEAT_SECONDS = 2.0
_SILENCE_SECONDS = 10.0
"""A driver that is not heard of for so long is dead."""


def request_stop(run: Path) -> None:
    """Ask the run's driver to start no more trials.

    Raises:
        SpecError: nobody drives it.
    """
    if _lease(run).owner() is None:
        raise SpecError(f"{run}: no sweep runs there; nothing to stop")
    write_atomic(run / STOP_FILE, now().encode())


def stop_requested(run: Path) -> bool:
    """Whether somebody asked the driver to start no more trials."""
    return (run / STOP_FILE).exists()


def withdraw_stop(run: Path) -> None:
    """Let the run's driver start trials again, if it has not ended yet."""
    (run / STOP_FILE).unlink(missing_ok=True)


def is_driven(run: Path) -> bool:
    """Whether a driver is alive, as far as this machine can tell."""
    owner = _lease(run).owner()
    if owner is None or owner.is_gone():
        return False
    try:
        last_beat = (run / DRIVER_FILE).stat().st_mtime
    except FileNotFoundError:
        return False
    return time.time() - last_beat < 3 * _SILENCE_SECONDS


def driver_line(run: Path) -> str | None:
    """Who drives a run, or since when the driver of an unended one is gone; None where no driver
    is known of.

    The clocks of this machine and of the file server may differ by `_SILENCE_SECONDS`.
    """
    owner = _lease(run).owner()
    if owner is None:
        return None
    try:
        last_beat = (run / DRIVER_FILE).stat().st_mtime
    except FileNotFoundError:
        return None
    if is_driven(run):
        since = _local_time(datetime.fromisoformat(owner.since).timestamp())
        return f"driven by process {owner.pid} on {owner.host} since {since}"
    return (
        f"driver gone since {_local_time(last_beat)} (process {owner.pid} on"
        f" {owner.host}); `sweeps resume {run}` goes on"
    )


def _local_time(seconds: float) -> str:
    """Hour and minute of today, else the date too, in this machine's time zone."""
    moment = datetime.fromtimestamp(seconds).astimezone()
    is_today = moment.date() == datetime.now().astimezone().date()
    return moment.strftime("%H:%M" if is_today else "%Y-%m-%d %H:%M")


def refuse_second_driver(run: Path) -> None:
    """Remove what a killed driver left: at once where its process is seen to be gone, else when it
    stays silent.

    Raises:
        SpecError: another driver is alive.
    """
    if not (run / DRIVER_FILE).exists():
        return
    try:
        _lease(run).clear()
    except LeaseHeldError as error:
        raise _is_driven(run, error) from error


@contextlib.contextmanager
def driving(run: Path) -> Iterator[Callable[[], str | None]]:
    """Be the run's only driver; an earlier wish to stop is forgotten.

    Yields:
        Says who drives instead, as a sentence; None while it is this process. A process that slept
        for too long is taken for dead, and must leave the run alone when it wakes.

    Raises:
        SpecError: another driver is alive.
    """
    lease = _lease(run)
    with contextlib.ExitStack() as stack:
        try:
            me = stack.enter_context(lease.held())
        except LeaseHeldError as error:
            raise _is_driven(run, error) from error

        def successor() -> str | None:
            owner = lease.owner()
            if owner is None or owner.token == me.token:
                return None
            return (
                f"{run}: this process was stopped or asleep for so long that process"
                f" {owner.pid} on {owner.host} took the run over, at {owner.since}; it"
                " goes on there"
            )

        (run / STOP_FILE).unlink(missing_ok=True)
        try:
            yield successor
        finally:
            if successor() is None:
                (run / STOP_FILE).unlink(missing_ok=True)


def _lease(run: Path) -> Lease:
    return Lease(
        run / DRIVER_FILE,
        heartbeat_seconds=_HEARTBEAT_SECONDS,
        silence_seconds=_SILENCE_SECONDS,
    )


def _is_driven(run: Path, error: LeaseHeldError) -> SpecError:
    owner = error.owner
    return SpecError(
        f"{run}: is being run by process {owner.pid} on {owner.host}, since"
        f" {owner.since}; wait for it, or `sweeps stop {run}`"
    )
