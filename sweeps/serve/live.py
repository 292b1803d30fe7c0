"""One run on the live page: what it shows, kept up to date while somebody looks."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.contract import PLAN_FILE, Objective
from analysis.header import heading_of_run
from analysis.loading import Follower
from analysis.report.page import Content, assembled, content_of
from analysis.report.predictions import shown_predictions
from analysis.run import Run
from sweeps.drive.running import RunningTrial
from sweeps.drive.watch import Watch
from sweeps.run.driving import driver_line, is_driven, stop_requested
from sweeps.run.folder import trial_folder
from sweeps.run.requests import Request, read_requests
from trainers.files import read_json
from trainers.words import one_line

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_FETCHES = 30.0
"""Between two looks into a store."""
MOST_EPOCHS = 2_000
"""Last epochs of a running trial's stage that the page draws."""
SHOWN_REQUESTS = 8
"""Latest requests that the page lists."""


@dataclass(frozen=True)
class Edition:
    """The page's content at one time; `version` is another one for other content."""

    version: str
    content: Content
    answer: bytes
    """What the page fetches: JSON, compressed by gzip."""


class LiveRun:
    """Follows one run folder.

    Args:
        name: by which the server's addresses call it.
        folder: the run folder on this machine.
        fetch: brings the folder up to date from a store; None where it is the run's own. Such a
            copy takes no wishes.
    """

    def __init__(
        self, name: str, folder: Path, fetch: Callable[[], object] | None = None
    ) -> None:
        self.name, self.folder, self._fetch = name, folder, fetch
        self.watch = Watch(folder)
        self.changed = threading.Condition()
        self._follower = Follower(folder)
        self._building = threading.Lock()
        self._looking = threading.Lock()
        self._edition: Edition | None = None
        self._is_stale = True
        self._number = 0
        self._next_look = self._next_fetch = 0.0
        self._away: str | None = None
        self._said = b""
        self._run: Run | None = None
        self._objectives: Sequence[Objective] = ()
        self._title = f"{time.time_ns():x}"

    @property
    def heading(self) -> str:
        """What readers call it; its name distinguishes it from others that are called the same."""
        heading = heading_of_run(self.folder)
        return heading if heading == self.name else f"{heading} ({self.name})"

    @property
    def is_writable(self) -> bool:
        """Whether its driver would see a wish that is written into the folder."""
        return self._fetch is None

    def edition(self) -> Edition:
        """The content as it is now, or as it was before the last change while it is made anew.

        Raises:
            ValueError: the folder is no run.
        """
        self.look()
        if self._edition is None:
            self._rebuild()
        elif self._is_stale:
            threading.Thread(target=self._rebuild, daemon=True).start()
        assert self._edition is not None
        return self._edition

    def page(self, secret: str) -> bytes:
        """The whole page."""
        edition = self.edition()
        return assembled(edition.content, secret, edition.version).encode()

    def look(self) -> None:
        """Notice what has changed, unless somebody else has just looked."""
        if not self._looking.acquire(blocking=False):
            return
        try:
            if time.monotonic() < self._next_look:
                return
            self._fetch_if_due()
            changes = self.watch.look()
            self._is_stale |= changes.trials
            self._next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS
        finally:
            self._looking.release()
        if self._is_stale and self._edition is not None:
            threading.Thread(target=self._rebuild, daemon=True).start()
        self._tell()

    def _fetch_if_due(self) -> None:
        """Bring the folder up to date; a store that is away leaves it as it is."""
        if self._fetch is None or time.monotonic() < self._next_fetch:
            return
        try:
            self._fetch()
            self._away = None
        except (ValueError, OSError) as error:
            self._away = one_line(error)
        self._next_fetch = time.monotonic() + SECONDS_BETWEEN_FETCHES

    def _rebuild(self) -> None:
        """Make the content anew; one thread at a time, the others leave it to that one."""
        if not self._building.acquire(blocking=self._edition is None):
            return
        try:
            if not self._is_stale and self._edition is not None:
                return
            self._is_stale = False
            run = self._follower.load()
            self._run, self._objectives = run, run.objectives
            content = content_of(run, is_live=True)
            self._number += 1
            version = f"{self._title}-{self._number}"
            head = json.dumps({"version": version, "parts": content.parts})
            answer = f'{head[:-1]}, "data": {content.data}}}'
            packed = gzip.compress(answer.encode(), compresslevel=3)
            self._edition = Edition(version, content, packed)
        finally:
            self._building.release()
        self._tell()

    def _tell(self) -> None:
        """Wake those who wait for something new, if there is."""
        said = json.dumps(self.now()).encode()
        with self.changed:
            if said != self._said:
                self._said = said
                self.changed.notify_all()

    def heard(self, before: bytes, seconds: float) -> bytes:
        """What `now` says, as JSON, as soon as it is another than `before`, or after some time."""
        end = time.monotonic() + seconds
        while True:
            self.look()
            with self.changed:
                left = end - time.monotonic()
                if self._said != before or left <= 0:
                    return self._said
                self.changed.wait(min(left, SECONDS_BETWEEN_LOOKS))

    def now(self) -> dict[str, Any]:
        """What runs now, for the page."""
        running = self.watch.running.trials
        trials = [running[trial_id] for trial_id in sorted(running)]
        driven = is_driven(self.folder)
        requests = list(read_requests(self.folder).values())[-SHOWN_REQUESTS:]
        return {
            "version": None if self._edition is None else self._edition.version,
            "driven": driven,
            "writable": self.is_writable,
            "stopping": stop_requested(self.folder),
            "line": self._line(driven, len(trials)),
            "running": [self._running(trial) for trial in trials] if driven else [],
            "requests": [_request(request) for request in reversed(requests) if driven],
        }

    def _line(self, driven: bool, running: int) -> str:
        if self._away is not None:
            return (
                f"The store does not answer; this is what it held before. {self._away}"
            )
        said = driver_line(self.folder)
        if said is None:
            return "No driver is at work here: the sweep has ended, or runs where this cannot see."
        if not driven:
            return said[0].upper() + said[1:] + "."
        verb = "trial runs" if running == 1 else "trials run"
        count = f"{running} {verb}" if running else "No trial runs at the moment"
        stopping = ", and no more start" if stop_requested(self.folder) else ""
        return f"{count}{stopping}; {said}."

    def _running(self, trial: RunningTrial) -> dict[str, Any]:
        return {
            "id": trial.trial_id,
            "said": trial.said(self._objectives),
            "share": round(trial.share, 4),
            "stage": trial.row.get("stage"),
            "epochs": [
                {k: v for k, v in row.items() if isinstance(v, int | float)}
                for row in trial.curve[-MOST_EPOCHS:]
            ],
        }

    def predictions(self, trial_id: str) -> dict[str, Any]:
        """What a trial's predictions show, for its page alone.

        Raises:
            ValueError: the run has no such trial.
        """
        run = self._run
        if run is None or trial_id not in self.watch.folders:
            raise ValueError(f"{self.name}: has no trial {trial_id!r}")
        return shown_predictions(run, [trial_id], {trial_id: 0})

    def configuration(self, trial_id: str) -> str:
        """A trial's configuration as text to change: a line for each parameter.

        Raises:
            ValueError: the run has no such trial, or its plan cannot be read.
        """
        if trial_id not in self.watch.folders:
            raise ValueError(f"{self.name}: has no trial {trial_id!r}")
        plan = read_json(trial_folder(self.folder, trial_id) / PLAN_FILE) or {}
        found = plan.get("configuration")
        if not isinstance(found, dict):
            raise ValueError(f"{self.name}: trial {trial_id} has no plan")
        return "\n".join(f"{name}: {json.dumps(v)}" for name, v in found.items())


def _request(request: Request) -> dict[str, Any]:
    text = ", ".join(f"{k}: {v}" for k, v in request.configuration.items())
    return {
        "text": text or "whatever the sampler draws",
        "number": request.number,
        "refused": request.refused,
    }
