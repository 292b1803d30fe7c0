"""Faults of what holds a run, for `chaos.py`: a disk that is full, an object store that fails."""

import contextlib
import json
import os
import random
import shutil
import time

from chaos_faults import Fault, Scene
from chaos_s3 import Store
from chaos_sweep import MISTAKE, begun


class DiskFull(Fault):
    """The disk of the run is full, but for some bytes, at random moments; needs root."""

    name = "disk full"
    per_round = 4

    def set_up(self, scene: Scene) -> None:
        disk = scene.folder / "disk"
        disk.mkdir()
        code = os.system(f"mount -t tmpfs -o size=24m tmpfs {disk}")
        if code != 0:
            raise RuntimeError("a small file system cannot be mounted here")
        scene.set_up(disk / "runs")

    def disturb(self, scene: Scene, moment: random.Random) -> None:
        ballast = scene.folder / "disk" / "ballast"
        for _ in range(self.per_round):
            count = begun(scene.run)
            driver = scene.start()
            if moment.random() < 0.8:
                scene.wait_until(driver, lambda now=count: begun(scene.run) > now)
            time.sleep(moment.uniform(0, 2))
            if driver.code() is not None:
                break
            free = shutil.disk_usage(scene.folder / "disk").free
            left = moment.choice((0, 4096, 16384, 65536, 262144))
            with contextlib.suppress(OSError), open(ballast, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(4096, free - left))
            code = driver.wait()
            scene.hit()
            ballast.unlink(missing_ok=True)
            if code not in (0, MISTAKE) or "Traceback" in driver.said():
                scene.problems.append(f"exit code {code}: {driver.said()[-600:]}")

    def clean_up(self, scene: Scene) -> None:
        os.system(f"umount -l {scene.folder / 'disk'}")


class BadStore(Fault):
    """The run lies in an object store that answers with 500, loses answers, or stalls; every other
    time the driver is killed meanwhile.
    """

    name = "object store fails and stalls"
    per_round = 3

    def set_up(self, scene: Scene) -> None:
        self.orders = scene.folder / "store.json"
        self.store = Store(self.orders, scene.seed)
        os.environ.update(
            AWS_ACCESS_KEY_ID="chaos",
            AWS_SECRET_ACCESS_KEY="chaos",
            AWS_DEFAULT_REGION="us-east-1",
            AWS_EC2_METADATA_DISABLED="true",
            SWEEPS_MIRROR=str(scene.folder / "mirror"),
        )
        scene.environment = {k: v for k, v in os.environ.items() if "AWS" in k}
        scene.set_up(self.store.uri)

    def disturb(self, scene: Scene, moment: random.Random) -> None:
        for number in range(self.per_round):
            driver = scene.start()
            count = begun(scene.run)
            scene.wait_until(driver, lambda now=count: begun(scene.run) > now)
            if driver.code() is not None:
                break
            share = moment.choice((0.05, 0.3, 1.0))
            kind = moment.choice(("fail", "lose", "stall"))
            order = {kind: share, "seconds": moment.uniform(1, 8)}
            self.orders.write_text(json.dumps(order))
            time.sleep(moment.uniform(1, 8))
            scene.hit()
            if number % 2:
                driver.kill()
            self.orders.unlink()
            code = driver.wait()
            scene.notes.append(f"{order}: exit code {code}")
            if "Traceback" in driver.said():
                scene.problems.append(driver.said()[-600:])

    def clean_up(self, scene: Scene) -> None:
        self.store.close()
