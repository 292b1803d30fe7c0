"""Faults of a machine, for `chaos.py`: its memory runs out (on Linux, as root), its clock is set
anew.
"""

import contextlib
import ctypes
import datetime
import os
import random
import sys
import time
from pathlib import Path

from chaos_faults import Fault, Scene
from chaos_stage import MEMORY_ORDER
from chaos_sweep import Driver, begun, trial_processes

from trainers.files import write_atomic
from trainers.processes import process_exists

_MEMINFO = Path("/proc/meminfo")
_MOST_MIB, _HOG_MIB = 2048, 2400
"""What all trials may hold; what one takes."""
_NEW_MOUNTS, _BIND, _PRIVATE = 0x20000, 0x1000, 0x44000
"""Of Linux's unshare(2) and mount(2): CLONE_NEWNS, MS_BIND, MS_REC | MS_PRIVATE."""


def _machine_mib() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20


class OutOfMemory(Fault):
    """A trial takes more memory than Ray's threshold allows, and Ray kills it.

    Ray sees a machine on which only the trials' processes hold memory, so that what else runs here
    has no part in it: its own `/proc/meminfo` is put in place of the kernel's.
    """

    name = "trial killed for memory"
    per_round = 5
    on_cluster = False
    epoch_seconds = 0.5

    def set_up(self, scene: Scene) -> None:
        super().set_up(scene)
        self.file = scene.folder / "meminfo"
        self._tell([])
        scene.prepare = self._replace_meminfo
        scene.environment = {
            "RAY_memory_usage_threshold": f"{_MOST_MIB / _machine_mib():.4f}",
            "RAY_memory_monitor_refresh_ms": "100",
        }

    def disturb(self, scene: Scene, moment: random.Random) -> None:
        driver = scene.start()
        order = scene.folder / MEMORY_ORDER
        for _ in range(self.per_round):
            scene.wait_until(driver, lambda: bool(trial_processes(scene.run)))
            time.sleep(moment.uniform(0, 1.5))
            order.write_text(str(_HOG_MIB))
            taken = order.with_suffix(".taken")
            if not scene.wait_until(driver, taken.exists):
                break
            if self._until_one_dies(scene, driver):
                scene.hit()
            taken.unlink()
        order.unlink(missing_ok=True)
        scene.expect(driver, 0)

    def _until_one_dies(self, scene: Scene, driver: Driver) -> bool:
        """Tell Ray what the trials hold until it has killed one; whether it did."""
        pids = list(trial_processes(scene.run).values())

        def dies() -> bool:
            time.sleep(0.02)
            self._tell(pids)
            return not all(process_exists(pid) for pid in pids)

        try:
            return bool(pids) and scene.wait_until(driver, dies, 12)
        finally:
            self._tell([])

    def _tell(self, pids: list[int]) -> None:
        """Write the memory that processes hold as that of the machine, into the same file."""
        held = 0
        for pid in pids:
            with contextlib.suppress(OSError):
                resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
                held += (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
        total = _machine_mib() * 1024
        free = max(0, total - held // 1024)
        changed = {"MemTotal": total, "MemFree": free, "MemAvailable": free}
        changed |= dict.fromkeys(("Buffers", "Cached", "Shmem", "SReclaimable"), 0)
        lines = []
        for line in _MEMINFO.read_text().splitlines():
            name = line.partition(":")[0]
            lines.append(f"{name}: {changed[name]} kB" if name in changed else line)
        # one write, so that a reader sees the old or the new
        text = "\n".join(lines).encode().ljust(2000)
        handle = os.open(self.file, os.O_WRONLY | os.O_CREAT)
        os.pwrite(handle, text, 0)
        os.close(handle)

    def _replace_meminfo(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        steps = (
            libc.unshare(_NEW_MOUNTS),
            libc.mount(b"none", b"/", None, _PRIVATE, None),
            libc.mount(
                str(self.file).encode(), str(_MEMINFO).encode(), None, _BIND, None
            ),
        )
        if any(steps):
            raise OSError(ctypes.get_errno(), "/proc/meminfo cannot be replaced here")


class ClockSteps(Fault):
    """The driver's clock is set forward or back, by seconds or by days, while trials run, whose
    processes keep the right time, as those of other nodes do; every third time the driver is killed
    then. Monotonic clocks go on, as the kernel has it.
    """

    name = "driver's clock set anew"
    per_round = 6
    epoch_seconds = 0.5

    def set_up(self, scene: Scene) -> None:
        super().set_up(scene)
        self.file = scene.folder / "clock"
        self._set(0)
        scene.prepare = lambda: _shift_clock(self.file)

    def disturb(self, scene: Scene, moment: random.Random) -> None:
        driver = scene.start()
        for number in range(self.per_round):
            count = begun(scene.run)
            scene.wait_until(driver, lambda now=count: begun(scene.run) > now)
            time.sleep(moment.uniform(0, 1.5))
            if driver.code() is not None:
                break
            seconds = moment.choice((-864_000, -3_600, -40, 40, 3_600, 864_000))
            self._set(seconds)
            scene.notes.append(f"{seconds:+} s")
            time.sleep(0.5)
            scene.hit()
            if number % 3 == 2:
                driver.kill()
                driver = scene.start()
        scene.expect(driver, 0)

    def _set(self, seconds: int) -> None:
        write_atomic(self.file, str(seconds).encode())


def _shift_clock(file: Path) -> None:
    """Let Python's wall clocks in this process run ahead by as many seconds as a file says."""
    real_time, real_ns, real_class = time.time, time.time_ns, datetime.datetime

    class _OfInstances(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real_class)

    class Shifted(real_class, metaclass=_OfInstances):  # type: ignore[misc, valid-type]
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return real_class.now(tz) + datetime.timedelta(
                seconds=int(file.read_text())
            )

    shifted = {
        real_time: lambda: real_time() + int(file.read_text()),
        real_ns: lambda: real_ns() + int(file.read_text()) * 10**9,
        real_class: Shifted,
    }
    ours = ("analysis", "compress", "sweeps", "trainers")
    for title, module in list(sys.modules.items()):
        for name in ("time", "time_ns", "datetime"):
            there = getattr(module, "__dict__", {}).get(name)
            # not the class in modules of others: Ray sends such classes to the trials
            is_kept = there is real_class and title.partition(".")[0] not in ours
            if callable(there) and there in shifted and not is_kept:
                setattr(module, name, shifted[there])
