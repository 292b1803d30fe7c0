"""Ctrl-C while Tune runs."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any


class Interrupt:
    """First Ctrl-C (or SIGTERM): Tune ends its trials and `fit` returns. Second: at once.

    Outside the main thread, where signals cannot be taken, it does nothing.
    """

    def __init__(self) -> None:
        self.seen = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is not threading.main_thread():
            return self
        self._before = {
            s: signal.getsignal(s)
            for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        }
        signal.signal(signal.SIGUSR1, self._too_early)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return kind is not None and issubclass(kind, KeyboardInterrupt) and self.seen

    def _ask(self, number: int, frame: Any) -> None:
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True
        print(
            "\nstopping the running trials (again: at once)",
            file=sys.stderr,
            flush=True,
        )
        os.kill(
            os.getpid(), signal.SIGUSR1
        )  # Tune's own handler for it ends the experiment cleanly

    def _too_early(self, number: int, frame: Any) -> None:
        raise KeyboardInterrupt  # Tune has not put its handler in this one's place yet


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Tune's own words on the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
