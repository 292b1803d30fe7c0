"""The faults that `chaos.py` knows, a small class each."""

import contextlib
import os
import random
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from chaos_ray import KeptCluster, Nursery
from chaos_sweep import (
    MISTAKE,
    TRIALS,
    Driver,
    Final,
    begun,
    checked,
    descendants,
    finals,
    half_written,
    readable_records,
    remove,
    spec,
    trial_processes,
)

from analysis.contract import REPORT_FILE
from sweeps.cli.terminal import TRY_AGAIN
from sweeps.drive.interrupt import INTERRUPTED
from sweeps.space.sweep import Sweep


@dataclass
class Scene:
    """A sweep, and what is around it.

    Attributes:
        folder: of this round.
        sweep: that is disturbed.
        cluster: a Ray that outlives drivers; None: each driver starts its own.
        seen: ended trials after each fault.
        prepare: is called in each driver before all else.
        hits: faults so far.
        starts: drivers so far.
        notes: what happened.
        problems: what should not have happened.
    """

    folder: Path
    seed: int
    nursery: Nursery
    cluster: KeptCluster | None
    sweep: Sweep = field(init=False)
    cache: Path = field(init=False)
    environment: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] = lambda: None
    seen: list[dict[str, Final]] = field(default_factory=list)
    hits: int = 0
    starts: int = 0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def set_up(self, storage: Path | str | None = None, **changes: Any) -> None:
        """Make the sweep, in this round's folder unless elsewhere."""
        place = storage or self.folder / "runs"
        self.sweep = checked(spec(place, self.seed, self.folder, **changes))
        self.cache = self.sweep.spec.cache_folder.absolute()

    @property
    def run(self) -> Path:
        return self.sweep.spec.run_folder.absolute()

    def start(self, sweep: Sweep | None = None, **environment: str) -> Driver:
        """A driver of the sweep."""
        self.starts += 1
        return Driver(
            sweep or self.sweep,
            self.folder / f"driver-{self.starts}.txt",
            self.nursery,
            self.cluster.address if self.cluster is not None else None,
            self.environment | environment,
            self.prepare,
        )

    def hit(self) -> None:
        """Note a fault, and what has ended by now."""
        self.hits += 1
        self.seen.append(finals(self.run))

    def expect(self, driver: Driver, *codes: int) -> None:
        """Wait for a driver's end; another exit code, and a traceback, are problems."""
        code, said = driver.wait(), driver.said()
        if code not in codes or "Traceback" in said:
            self.problems.append(f"exit code {code}: {said[-600:]}")

    def to_the_end(self, attempts: int = 6) -> None:
        """Start drivers until one comes to the end of the sweep."""
        for _ in range(attempts):
            driver = self.start()
            code = driver.wait()
            if code == 0:
                return
            said = f"exit code {code}: {driver.said()[-600:]}"
            # 75 asks for the same command again
            (self.notes if code == TRY_AGAIN else self.problems).append(said)
            self.seen.append(finals(self.run))
        raise AssertionError(f"no end after {attempts} starts: {said}")

    def wait_until(self, driver: Driver, met: Any, seconds: float = 60.0) -> bool:
        """Whether something came true before the driver ended."""
        give_up_at = time.monotonic() + seconds
        while driver.code() is None and time.monotonic() < give_up_at:
            if met():
                return True
            time.sleep(0.002)
        return False


def send(pid: int, number: signal.Signals) -> bool:
    """Whether there was such a process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


class Fault(ABC):
    """Something that happens to a sweep."""

    name: ClassVar[str]
    per_round: ClassVar[int] = 5
    """Faults in a round at most."""
    on_cluster: ClassVar[bool] = True
    nodes: ClassVar[int] = 1
    epoch_seconds: ClassVar[float] = 0.15
    """Longer where a sweep would end before so many faults."""

    @abstractmethod
    def disturb(self, scene: Scene, moment: random.Random) -> None:
        """Start drivers and let it happen; afterwards the sweep is brought to its end."""

    def set_up(self, scene: Scene) -> None:
        scene.set_up(epoch_seconds=self.epoch_seconds)

    def clean_up(self, scene: Scene) -> None:  # noqa: B027 (most have put nothing there)
        """Take away what `set_up` put there."""


class DriverKill(Fault):
    """SIGKILL of the driver: as it starts, while trials run, amid the publishing of an artifact, as
    tables are written. Half the time the trials' processes die with it, as with their machine.
    """

    name = "driver killed"
    per_round = 16
    epoch_seconds = 0.6

    def disturb(self, scene: Scene, moment: random.Random) -> None:
        for _ in range(self.per_round):
            driver = scene.start()
            self._wait(scene, driver, moment)
            if driver.code() is not None:
                return
            pids = trial_processes(scene.run).values() if moment.random() < 0.5 else ()
            driver.kill()
            for pid in pids:
                send(pid, signal.SIGKILL)
            scene.hit()

    def _wait(self, scene: Scene, driver: Driver, moment: random.Random) -> None:
        when = moment.choices(("start", "trials", "publishing", "end"), (1, 4, 3, 1))[0]
        if when == "end" and len(finals(scene.run)) < TRIALS // 2:
            when = "trials"
        before = begun(scene.run)
        if when == "start":
            give_up_at = time.monotonic() + moment.uniform(0, 6)
            scene.wait_until(driver, lambda: time.monotonic() > give_up_at)
            return
        if not scene.wait_until(driver, lambda: begun(scene.run) > before):
            return
        if when == "end":
            scene.wait_until(driver, lambda: len(finals(scene.run)) == TRIALS, 8)
        if when == "publishing":
            scene.wait_until(driver, lambda: any(half_written(scene.cache)), 4)
            return
        give_up_at = time.monotonic() + moment.uniform(0, 0.5 if when == "end" else 2.5)
        scene.wait_until(driver, lambda: time.monotonic() > give_up_at)


class LocalDriverKill(DriverKill):
    """The same where the driver has started Ray itself, which dies with it."""

    name = "driver with its own Ray killed"
    on_cluster = False
    per_round = 6


class TrialKill(Fault):
    """SIGKILL of a trial's process, every third time amid the publishing of an artifact."""

    name = "trial's process killed"
    per_round = 12
    epoch_seconds = 0.5

    def disturb(self, scene: Scene, moment: random.Random) -> None:
        driver = scene.start()
        for _ in range(self.per_round):
            if moment.random() < 0.33:
                scene.wait_until(driver, lambda: any(half_written(scene.cache)), 5)
            else:
                time.sleep(moment.uniform(0, 1))
            scene.wait_until(driver, lambda: bool(trial_processes(scene.run)))
            pids = list(trial_processes(scene.run).values())
            if driver.code() is not None or not pids:
                break
            if send(moment.choice(pids), signal.SIGKILL):
                scene.hit()
        scene.expect(driver, 0)


class NodeLoss(Fault):
    """A node of the cluster dies, and another one comes."""

    name = "node lost"
    per_round = 4
    epoch_seconds = 0.5
    nodes = 2

    def disturb(self, scene: Scene, moment: random.Random) -> None:
        assert scene.cluster is not None
        driver = scene.start()
        for _ in range(self.per_round):
            scene.wait_until(driver, lambda: bool(trial_processes(scene.run)))
            time.sleep(moment.uniform(0, 1.5))
            if driver.code() is not None:
                break
            scene.cluster.ask(f"lose {moment.randrange(2)}")
            scene.hit()
            scene.cluster.ask("add")
        scene.expect(driver, 0)


class Stopped(Fault):
    """SIGSTOP of a minute: the driver, a trial's process or Ray's raylet. While the driver is
    stopped, another one may be started: it takes the run over, and the first must give way.
    """

    name = "process stopped for a minute"
    per_round = 3
    on_cluster = False
    epoch_seconds = 3.0
    seconds: ClassVar[float] = 60.0

    def disturb(self, scene: Scene, moment: random.Random) -> None:
        driver = scene.start()
        targets = ("driver", "trial", "raylet", "driver, and another one is started")
        for number in range(self.per_round):
            scene.wait_until(driver, lambda: bool(trial_processes(scene.run)))
            time.sleep(moment.uniform(0, 1.5))
            who = targets[(scene.seed + number) % len(targets)]
            pid = self._pid(scene, driver, who)
            if pid is None or driver.code() is not None:
                break
            scene.notes.append(f"stopped: {who}")
            driver = self._stop(scene, driver, pid, "another" in who)
            scene.hit()
        scene.expect(driver, 0, TRY_AGAIN)

    def _stop(self, scene: Scene, driver: Driver, pid: int, takes_over: bool) -> Driver:
        """Stop a process for a minute; the driver that goes on then."""
        send(pid, signal.SIGSTOP)
        second = None
        try:
            time.sleep(15)
            if takes_over:
                second = scene.start()
            time.sleep(self.seconds - 15)
        finally:
            send(pid, signal.SIGCONT)
        if second is None:
            return driver
        scene.expect(driver, MISTAKE)
        return second

    def _pid(self, scene: Scene, driver: Driver, who: str) -> int | None:
        if who.startswith("driver"):
            return driver.pid
        if who == "trial":
            return next(iter(trial_processes(scene.run).values()), None)
        below = descendants(driver.pid)
        return next((pid for pid, name in below.items() if name == "raylet"), None)


class AskedToEnd(Fault):
    """SIGTERM, SIGHUP or SIGINT to the driver, to its process group, or to all processes below it,
    as systemd and Slurm send it. It ends in order: exit code, tables, report, no traceback.
    """

    name = "asked to end by a signal"
    on_cluster = False
    per_round = 4
    epoch_seconds = 0.6

    def disturb(self, scene: Scene, moment: random.Random) -> None:
        for _ in range(self.per_round):
            driver = scene.start()
            count = begun(scene.run)
            scene.wait_until(driver, lambda now=count: begun(scene.run) > now)
            time.sleep(moment.uniform(0, 2))
            if driver.code() is not None:
                return
            number = moment.choice((signal.SIGTERM, signal.SIGHUP, signal.SIGINT))
            below = list(descendants(driver.pid))
            to = moment.choice(("driver", "group", "all"))
            for pid in [driver.pid, *(below if to != "driver" else ())]:
                with contextlib.suppress(ProcessLookupError):
                    if to == "all" or os.getpgid(pid) == driver.pid:
                        os.kill(pid, number)
            code = driver.wait()
            scene.hit()
            self._check(scene, code, driver.said())

    def _check(self, scene: Scene, code: int, said: str) -> None:
        left = {record.status for record in readable_records(scene.run)}
        if code not in (0, INTERRUPTED) or "Traceback" in said or "running" in left:
            scene.problems.append(f"exit code {code}, {left}: {said[-300:]}")
        whole = (scene.run / REPORT_FILE).exists()
        if not whole or (scene.run / "driver.json").exists():
            scene.problems.append("no report, or a lease that is left")


class SecondDriver(Fault):
    """Two or three drivers are started at the same time, and one more while they run; one drives,
    and the others are refused. Then the one is killed and two are started at once.
    """

    name = "a second driver"
    per_round = 3

    def disturb(self, scene: Scene, moment: random.Random) -> None:
        for _ in range(self.per_round):
            count = begun(scene.run)
            drivers = []
            for _ in range(moment.choice((2, 2, 3))):
                drivers.append(scene.start())
                time.sleep(moment.choice((0.0, 0.0, 0.2, 1.0)))
            give_up_at = time.monotonic() + 60
            while begun(scene.run) == count and time.monotonic() < give_up_at:
                if all(each.code() is not None for each in drivers):
                    break
                time.sleep(0.01)
            time.sleep(moment.uniform(0, 2.5))
            drivers.append(scene.start())
            drivers[-1].wait()
            scene.hit()
            living = [each for each in drivers if each.code() is None]
            codes = [each.code() for each in drivers]
            if len(living) > 1:
                scene.problems.append(f"{len(living)} drivers at a time")
            if any(code not in (None, 0, MISTAKE) for code in codes):
                scene.problems.append(f"exit codes {codes}")
            for each in living:
                each.kill()
            if len(finals(scene.run)) == TRIALS:
                return


class CacheDeleted(Fault):
    """The stage cache is deleted while trials use it."""

    name = "stage cache deleted"
    per_round = 6

    def disturb(self, scene: Scene, moment: random.Random) -> None:
        driver = scene.start()
        scene.wait_until(driver, lambda: begun(scene.run) > 0)
        for _ in range(self.per_round):
            if moment.random() < 0.4:
                scene.wait_until(driver, lambda: any(half_written(scene.cache)), 3)
            else:
                time.sleep(moment.uniform(0, 1.2))
            if driver.code() is not None:
                break
            remove(scene.cache)
            scene.hit()
        scene.expect(driver, 0)


class SharedCache(Fault):
    """Two runs of the same sweep at the same time on one cache, with trials killed in both."""

    name = "two runs on one cache"
    per_round = 6
    epoch_seconds = 0.5

    def disturb(self, scene: Scene, moment: random.Random) -> None:
        place = scene.folder / "runs"  # whose runs share a cache
        other = checked(
            spec(
                place,
                scene.seed,
                scene.folder,
                epoch_seconds=self.epoch_seconds,
                name="other",
            )
        )
        runs = (scene.run, other.spec.run_folder.absolute())
        drivers = [scene.start(), scene.start(other)]
        for _ in range(self.per_round):
            time.sleep(moment.uniform(0, 2))
            pids: list[int] = []
            while not pids and any(driver.code() is None for driver in drivers):
                pids = [p for run in runs for p in trial_processes(run).values()]
                time.sleep(0.02)
            if pids and send(moment.choice(pids), signal.SIGKILL):
                scene.hit()
        codes = [driver.wait() for driver in drivers]
        ends = [r.status for r in readable_records(runs[1])]
        if codes != [0, 0] or len(ends) != TRIALS or "failed" in ends:
            said = [driver.said()[-600:] for driver in drivers]
            scene.problems.append(f"exit codes {codes}, the other has {ends}: {said}")
