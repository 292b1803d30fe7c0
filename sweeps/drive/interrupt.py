"""Ctrl-C, a closed terminal, and the signal with which a machine asks that a process end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, ClassVar, NoReturn

INTERRUPTED = 130
"""Exit code after Ctrl-C, SIGTERM or SIGHUP: what ran is recorded, the command goes on."""


def ending_signals() -> tuple[signal.Signals, ...]:
    """SIGINT, SIGTERM, and where there is one SIGHUP unless it is ignored (`nohup`)."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return tuple(numbers)


def leave_at_once() -> NoReturn:
    """End the process here and now, as if it had been killed: 130, and nothing is taken down.

    An exception amid Ray's own code, which is C++ for the most part, ends some processes by a
    segmentation fault instead. What a killed driver leaves, the next one takes up.
    """
    with contextlib.suppress(OSError, RuntimeError):
        print("\nended at once; the same command goes on from here", file=sys.stderr)
        sys.stderr.flush()
    os._exit(INTERRUPTED)


class Interrupt:
    """The first Ctrl-C, SIGTERM or SIGHUP asks that trials end; a second Ctrl-C ends at once: by a
    KeyboardInterrupt, or where the process is ours, by `leave_at_once`.

    SIGTERM and SIGHUP may be repeated: `timeout` sends each twice, systemd sends both. Outside
    the main thread, where signals cannot be taken, it does nothing.

    Args:
        doing: what is done once it was asked, said to the user then.

    Attributes:
        seen: whether it was asked.
        is_our_process: whether nobody but the command line runs here, as no notebook does.
    """

    is_our_process: ClassVar[bool] = False

    def __init__(self, doing: str = "stopping the running trials") -> None:
        self.seen = False
        self._doing = doing
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in ending_signals():
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *rest: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Around the start of Ray, which takes SIGTERM for itself and exits with its number."""
        try:
            yield
        except SystemExit as error:
            if error.code != signal.SIGTERM:
                raise
            self.seen = True
        finally:
            for number in self._before:
                signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        if self.seen:
            if number != signal.SIGINT:
                return
            if Interrupt.is_our_process:
                leave_at_once()
            raise KeyboardInterrupt
        self.seen = True
        again = " (again: at once)" if number == signal.SIGINT else ""
        said = f"\n{self._doing}{again}"
        # the terminal may be gone, or the signal have come amid another print
        with contextlib.suppress(OSError, RuntimeError):
            print(said, file=sys.stderr, flush=True)


@contextlib.contextmanager
def decided() -> Iterator[None]:
    """Around what comes after a sweep, which takes seconds: asked to end, a process whose exit code
    is known has nothing to stop, and ends with this code.
    """
    before = ignore_endings()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_in_peace() -> None:
    """Before the end of our process, whose exit code is known: taking down a process that has used
    Ray takes seconds, in which SIGTERM and SIGHUP change nothing, and a Ctrl-C ends it at once.
    """
    ignore_endings()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))


def ignore_endings() -> dict[signal.Signals, Any]:
    """From here on SIGTERM and SIGHUP change nothing; the handlers until now.

    Outside the main thread, where signals cannot be taken, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [n for n in ending_signals() if n != signal.SIGINT]
    return {number: signal.signal(number, signal.SIG_IGN) for number in numbers}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Tune's own words on the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
