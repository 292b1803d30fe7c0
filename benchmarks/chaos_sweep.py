"""The sweep that `chaos.py` disturbs, its drivers, and what must hold of it in the end."""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from chaos_ray import Nursery
from chaos_stage import quality_of
from rich.console import Console

import analysis
from analysis.contract import ENDED, EPOCHS_FILE, TABLES_FOLDER
from compress.cache import Artifact
from sweeps.check import check_spec
from sweeps.cli.terminal import TRY_AGAIN, lasting_output
from sweeps.drive.interrupt import INTERRUPTED
from sweeps.drive.metrics import units
from sweeps.drive.progress import Progress
from sweeps.run.folder import trial_ids
from sweeps.run.record import TrialRecord, trial_records
from sweeps.search.refine import front_numbers
from sweeps.space.sweep import Sweep
from sweeps.spec.load import spec_from
from sweeps.spec.plugins import load_plugins, plugins_of
from sweeps.spec.yaml_text import SpecError
from trainers.files import read_json

CONFIGURATIONS, REPLICATES = 8, 2
TRIALS = CONFIGURATIONS * REPLICATES
EPOCHS = 3
NAME = "chaos"
MISTAKE, BROKEN = 2, 1
_WIDTHS = (8, 16, 24, 32)
_PLUGIN = Path(__file__).with_name("chaos_stage.py")


def spec(
    storage: Path | str,
    seed: int,
    orders: Path,
    *,
    epoch_seconds: float = 0.15,
    **changes: Any,
) -> dict[str, Any]:
    """TPE, moasha, replicates, a slot, two trials at a time.

    The best configuration of each width is named, so that the front is the same whatever the order
    in which trials end; of even seeds all others are drawn at random, so that they are, too.
    """
    dims = "stages.init.*.args.embed_dim"
    points = [
        {"stages.init": "fresh", dims: width, "stages.doze.lr": 0.3}
        for width in _WIDTHS[:-1]
    ]
    raw: dict[str, Any] = {
        "name": NAME,
        "storage": str(storage),
        "plugins": [str(_PLUGIN)],
        "source": {
            "model": "vit_tiny_patch16_224",
            "args": {"patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2},
        },
        "data": {
            "dataset": "digits",
            "limit": 60,
            "limit_test": 20,
            "val_fraction": 0.25,
        },
        "stages": {
            "warm_up": {
                "stage": "finetune",
                "epochs": 1,
                "batch_size": 15,
                "warmup": 0,
                "augment": "none",
            },
            "init": {
                "one_of": {
                    "selection": {"stage": "weight_selection"},
                    "fresh": {"stage": "random_init"},
                    "none": None,
                }
            },
            "doze": {
                "stage": "doze",
                "epochs": EPOCHS,
                "epoch_seconds": epoch_seconds,
                "orders": str(orders),
            },
        },
        "objectives": [
            {"metric": "quality", "mode": "max"},
            {"metric": "gmacs", "mode": "min"},
        ],
        "search": {
            "sampler": "tpe",
            "sampler_options": {"n_startup_trials": 100 if seed % 2 == 0 else 4},
            "trials": CONFIGURATIONS,
            "replicates": REPLICATES,
            "max_failures": 30,
            "early_stopping": {
                "scheduler": "moasha",
                "metric": "accuracy",
                "stage": "doze",
                "reduction_factor": 2,
            },
            "space": {
                dims: list(_WIDTHS[:-1]),
                "stages.doze.lr": {"low": 0.0001, "high": 1.0},
            },
            "points": [*points, {"stages.init": "none", "stages.doze.lr": 0.3}],
        },
        "measure": {"latency": False},
        "resources": {"cpus": 2, "concurrent": 2},
    }
    return raw | changes


def checked(raw: dict[str, Any]) -> Sweep:
    """The sweep of a spec, with its plugin loaded."""
    plugins = plugins_of(raw)
    load_plugins(plugins)
    return check_spec(spec_from(raw), local=False, plugins=plugins)


class Driver:
    """A process that drives a sweep; a fork, since its imports take longer than the sweep.

    Ray is imported in the fork: it draws from its random state already while it is imported, and
    forks that share that state draw the same ids. Two drivers of one cluster then make the same
    object, which ends one of them.

    Args:
        address: of the Ray to use; None starts one.
        environment: further variables, for it and all that it starts.
        prepare: is called in it before all else.
    """

    def __init__(
        self,
        sweep: Sweep,
        output: Path,
        nursery: Nursery,
        address: str | None = None,
        environment: dict[str, str] | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.output = output
        self._code: int | None = None
        assert "ray" not in sys.modules, "drivers would share their ids"
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            with open(output, "a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                os.environ.update(environment or {})
                nursery.use()
                prepare()
                code = _drive(sweep, file, address)
                file.flush()
                os._exit(code)

    def code(self) -> int | None:
        """Its exit code; None while it lives."""
        if self._code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self, seconds: float = 900.0) -> int:
        """Its exit code; an error after so long."""
        give_up_at = time.monotonic() + seconds
        while (code := self.code()) is None:
            if time.monotonic() > give_up_at:
                self.kill()
                raise AssertionError(f"a driver came to no end in {seconds:.0f} s")
            time.sleep(0.02)
        return code

    def kill(self) -> None:
        """SIGKILL, if it lives."""
        if self.code() is None:
            os.kill(self.pid, signal.SIGKILL)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def said(self) -> str:
        return self.output.read_text(errors="replace")


def _drive(sweep: Sweep, file: Any, address: str | None) -> int:
    """As `sweeps run` does it; its exit code, `BROKEN` after a traceback."""
    try:
        import ray

        from sweeps.drive.cluster import LOCAL, set_environment
        from sweeps.drive.driver import run_sweep

        if address is not None:
            set_environment()
            ray.init(address, log_to_driver=False, logging_level="ERROR")
        progress = Progress(sweep.spec.objectives, units(sweep), Console(file=file))
        with lasting_output():
            result = run_sweep(
                sweep,
                progress=progress,
                address=LOCAL if address is None else "auto",
                ship=False,
            )
        if result.fault is not None:
            print(result.fault, file=file)
            return TRY_AGAIN
        return INTERRUPTED if result.interrupted else 0
    except SpecError as error:
        print(f"error {error}", file=file)
        return MISTAKE
    except BaseException:  # noqa: BLE001 (the fork ends here)
        traceback.print_exc(file=file)
        return BROKEN


class Final(NamedTuple):
    """What an ended trial must never lose."""

    status: str
    ended: str | None
    token: str


def finals(run: Path) -> dict[str, Final]:
    """The ended trials of a run, now."""
    return {
        record.trial_id: Final(record.status, record.ended, record.token)
        for record in readable_records(run)
        if record.status in ENDED
    }


def readable_records(run: Path) -> list[TrialRecord]:
    """Records while others write them; none where the folder is just made or removed."""
    try:
        return list(trial_records(run))
    except (OSError, ValueError):
        return []


class Verdict(NamedTuple):
    """What became of a disturbed sweep: counts, all of which should be 0, and the front."""

    lost: int
    doubled: int
    rerun: int
    running: int
    torn: int
    wrong: int
    front: list[int]
    notes: list[str]


def verdict(
    sweep: Sweep, run: Path, cache: Path, seen: list[dict[str, Final]]
) -> Verdict:
    """Compare a sweep that came to its end with what was seen of it before.

    Args:
        seen: ended trials after each fault.
    """
    notes: list[str] = []
    records = {record.trial_id: record for record in trial_records(run)}
    ended = finals(run)
    bad = {k: v for k, v in ended.items() if v.status not in ("complete", "pruned")}
    lost = TRIALS - len(ended) + len(bad)
    if lost:
        notes.append(f"not there: {TRIALS - len(ended)}; {bad}")
    draws = Counter(json.dumps(r.plan.draw, sort_keys=True) for r in records.values())
    doubled = sum(max(0, count - REPLICATES) for count in draws.values())
    doubled += max(0, len(records) - TRIALS)
    rerun = 0
    for before in seen:
        changed = [k for k, final in before.items() if ended.get(k) != final]
        rerun = max(rerun, len(changed))
        notes += [f"{k}: {before[k]} became {ended.get(k)}" for k in changed]
    running = sum(record.status == "running" for record in records.values())
    wrong = sum(not _is_right(record, notes) for record in records.values())
    torn = list(_torn(run, cache))
    front = front_numbers(list(records.values()), sweep.spec.objectives, TRIALS)
    told = analysis.load(run)
    if len(told.trials) != len(records) or set(told.front()["number"]) != set(front):
        torn.append("tables differ from the records")
    return Verdict(
        lost, doubled, rerun, running, len(torn), wrong, sorted(front), notes + torn
    )


def _is_right(record: TrialRecord, notes: list[str]) -> bool:
    """Whether values and epochs are those that the configuration must give."""
    configuration = record.plan.configuration
    width = configuration.get("stages.init.*.args.embed_dim", _WIDTHS[-1])
    lr: Any = configuration["stages.doze.lr"]
    rows = [r["epoch"] for r in record.epochs() if r.get("stage") == "doze"]
    right = rows == list(range(1, len(rows) + 1))
    if record.status == "complete":
        quality = record.outcome.metrics.get("quality")
        right = (
            right and len(rows) == EPOCHS and quality == quality_of(lr, int(str(width)))
        )
    if not right:
        notes.append(f"{record.trial_id}: epochs {rows}, {record.outcome.metrics}")
    return right


def _torn(run: Path, cache: Path) -> Iterator[str]:
    """Names of files that are not whole."""
    for trial_id in trial_ids(run):
        folder = run / "trials" / trial_id
        for path in folder.glob("*.json"):
            if read_json(path) is None:
                yield str(path)
        epochs = folder / EPOCHS_FILE
        for line in epochs.read_text().splitlines() if epochs.exists() else ():
            try:
                json.loads(line)
            except ValueError:
                yield str(epochs)
    for path in (run / TABLES_FOLDER).rglob("*.parquet"):
        try:
            pq.read_table(path)
        except (OSError, ValueError):
            yield str(path)
    for path in cache.glob("[0-9a-f]*/stage.json"):
        try:
            Artifact.load(path.parent)
        except ValueError:
            yield str(path)


def half_written(cache: Path) -> list[Path]:
    """Folders of stages and of their checkpoints that get their name when they are whole."""
    hidden = [*cache.glob(".*.tmp"), *cache.glob("fits/.*.tmp")]
    return [path for path in hidden if path.is_dir()]


def litter(run: Path, cache: Path) -> list[str]:
    """What is left of processes that were killed: half artifacts, files to be renamed, leases."""
    left = [*half_written(cache), *cache.glob(".damaged-*"), *cache.glob("*.lease")]
    left += [*run.rglob(".*.tmp"), *run.glob(".probe-*"), *run.glob("driver.json")]
    return sorted(path.name for path in left)


def trial_processes(run: Path) -> dict[str, int]:
    """Running trials that have begun → the process of each."""
    return {
        record.trial_id: record.machine.pid
        for record in readable_records(run)
        if record.status == "running" and record.machine is not None
    }


def begun(run: Path) -> int:
    """Attempts of all trials."""
    return sum(record.attempts for record in readable_records(run))


def descendants(pid: int) -> dict[int, str]:
    """All processes below one → their names, from Linux's /proc."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # the fields after the name, which is in brackets: state, parent, …
            head, _, tail = status.read_text().rpartition(")")
            child = int(status.parent.name)
            names[child] = head.partition("(")[2]
            children.setdefault(int(tail.split()[1]), []).append(child)
    found = list(children.get(pid, []))
    for child in found:
        found.extend(children.get(child, []))
    return {child: names[child] for child in found}


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
