"""How a sweep ends that does not come to its end: signals, what dies under it, and what is said."""

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from sweeps.check import check_spec
from sweeps.cli.run import _tell
from sweeps.cli.terminal import _LastingStream, lasting_output
from sweeps.drive import cluster, driver, tune_run
from sweeps.drive.deaths import death_of
from sweeps.drive.driver import SweepResult, run_sweep
from sweeps.drive.interrupt import Interrupt, decided, ending_signals
from sweeps.drive.room import concurrent_trials
from sweeps.drive.trial_events import TrialEvents
from sweeps.drive.tune_run import Lost, Pulse, TuneRun
from sweeps.run.faults import TrialError, innermost, is_storage_fault
from sweeps.run.folder import full_trial_id
from sweeps.run.plan import Site, TrialPlan
from sweeps.run.record import TrialRecord
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import SpecError
from sweeps.trial.attempt import run_trial
from sweeps.trial.execute import Execution
from tests.sweeps.helpers import begin, plan, records, searcher, site
from tests.sweeps.test_driver import does_nothing

# --- signals


@pytest.mark.parametrize("number", ending_signals())
def test_the_first_signal_asks_and_only_ctrl_c_insists(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in ending_signals()}
    with Interrupt() as interrupt:
        os.kill(os.getpid(), number)
        time.sleep(0)
        assert interrupt.seen
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        else:
            os.kill(os.getpid(), number)  # `timeout` sends it twice
            time.sleep(0.01)
    assert {each: signal.getsignal(each) for each in before} == before


def test_a_signal_after_the_end_changes_no_exit_code() -> None:
    """The driver is told to end while it prints what came of the sweep, and while it goes."""
    before = {each: signal.getsignal(each) for each in ending_signals()}
    with decided():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    assert {each: signal.getsignal(each) for each in before} == before
    leaves = "import atexit, os, signal; from sweeps.cli.main import main; "
    for number, code in (("SIGTERM", 0), ("SIGINT", 130)):
        late = f"atexit.register(os.kill, os.getpid(), signal.{number}); main()"
        words = [sys.executable, "-c", leaves + late, "--version"]
        assert subprocess.run(words, check=False).returncode == code


def test_a_second_ctrl_c_ends_our_process_at_once() -> None:
    """Nothing that Ray does in the meantime sees an exception, and nothing is taken down."""
    code = """
import atexit, os, signal
from sweeps.drive.interrupt import Interrupt
Interrupt.is_our_process = True
atexit.register(print, "taken down")
with Interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    print("goes on", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("goes on still", flush=True)
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stdout == "goes on\n"
    assert done.stderr.splitlines()[-1].startswith("ended at once; the same command")


def test_nohup_stays_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
        assert not interrupt.seen
    finally:
        signal.signal(signal.SIGHUP, before)


def test_rays_own_handler_of_sigterm_does_not_end_the_driver() -> None:
    with Interrupt() as interrupt:
        with interrupt.kept():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        assert interrupt.seen
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def test_output_outlives_its_reader() -> None:
    reader, writer = os.pipe()
    with open(writer, "w", buffering=1) as stream:
        os.close(reader)
        lasting = _LastingStream(stream)
        assert lasting.write("nobody reads this\n") == 18
        lasting.flush()
        assert lasting.encoding == stream.encoding
    with lasting_output():
        assert not sys.stdout.isatty()


# --- Tune beside the main thread


class StillPulse(Pulse):
    """A Ray of which something is lost, or nothing."""

    def __init__(self, lost: str | None = None) -> None:
        self.said = lost

    def lost(self) -> Lost | None:
        return None if self.said is None else Lost(self.said, is_head=True)


def tune(monkeypatch: pytest.MonkeyPatch, lost: str | None = None) -> TuneRun:
    monkeypatch.setattr(tune_run, "Pulse", lambda: StillPulse(lost))
    monkeypatch.setattr(tune_run, "_REFUSED_SECONDS", 0.1)
    monkeypatch.setattr(tune_run, "_ENDING_SECONDS", 0.2)
    return TuneRun(lambda: False)


def test_what_tune_raises_is_raised_by_who_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fit() -> None:
        raise RuntimeError("Caught unexpected exception")

    with pytest.raises(RuntimeError, match="unexpected"):
        tune(monkeypatch).wait(fit)


def test_a_hook_that_raises_ends_the_run_with_its_own_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tune(monkeypatch)

    def fit() -> None:
        with run.guarded():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        while not run.wants_end():
            time.sleep(0.01)

    with pytest.raises(OSError, match="No space left"):
        run.wait(fit)


@pytest.mark.parametrize("lost", [None, "Ray's head process (GCS) does not answer"])
def test_a_run_that_hangs_is_given_up(
    monkeypatch: pytest.MonkeyPatch, lost: str | None
) -> None:
    run, release = tune(monkeypatch, lost), threading.Event()
    run.interrupted = lambda: True
    begun = time.monotonic()
    if lost is None:
        run.wait(release.wait)
    else:
        with pytest.raises(driver.RayLostError, match="does not answer") as raised:
            run.wait(release.wait)
        assert raised.value.ends_process
    assert time.monotonic() - begun < 5
    assert run.is_over
    release.set()


def test_a_head_whose_port_is_closed_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of this machine after its patience, and one that answers is not."""
    monkeypatch.setattr(tune_run, "_REFUSED_SECONDS", 0.05)
    monkeypatch.setattr(tune_run, "_PULSE_SECONDS", 0.01)
    pulse = Pulse.__new__(Pulse)
    pulse._own_host, pulse._next, pulse._silent_since = "127.0.0.1", 0.0, {}
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = head.getsockname()
        pulse._ports = {tune_run._HEAD: address}
        assert pulse.lost() is None
    time.sleep(0.02)
    assert pulse.lost() is None
    time.sleep(0.06)
    lost = pulse.lost()
    assert lost is not None
    assert lost.is_head
    assert lost.said.endswith(
        f"(GCS) at 127.0.0.1:{address[1]} does not answer any more"
    )


def test_a_run_of_somebody_else_now_ends_and_hears_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tune(monkeypatch)
    assert not run.is_over
    run.superseded = lambda: True
    assert run.is_over
    assert run.wants_end()


@pytest.mark.parametrize(("retries", "status"), [(0, "failed"), (2, "interrupted")])
def test_a_trial_that_is_given_up_before_its_retries_are_spent_runs_again(
    raw: dict[str, Any], tmp_path: Path, retries: int, status: str
) -> None:
    search = searcher(raw, tmp_path, max_failures=retries)
    record = begin(search)
    quiet: Any = SimpleNamespace(
        ended=lambda record: None, know=lambda objectives: None
    )
    events = TrialEvents(search.storage, search, None, quiet, quiet)
    events.ended(record.trial_id, died=True)
    assert records(tmp_path)[record.trial_id].status == status
    assert events.given_up == ([record.trial_id] if retries else [])


def test_a_kill_for_memory_leaves_one_trial_fewer_at_a_time(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the attempt and is no failure of the trial; alone, a trial fails as ever."""
    search = searcher(raw, tmp_path)
    names = [begin(search).trial_id for _ in range(3)]
    quiet: Any = MagicMock()
    for running, fitted in ((3, 2), (1, None)):
        events = TrialEvents(search.storage, search, None, quiet, quiet)
        for name in names[:running]:
            events.started(name)
        events.process_failed(OutOfMemoryError("Task was killed"))
        assert events.fitted == fitted
        assert events.is_ending() == (fitted is not None)
    monkeypatch.setattr("sweeps.drive.room.trials_at_once", lambda wanted: 3)
    assert concurrent_trials(search.spec) == 3
    assert concurrent_trials(search.spec, most=2) == 2


# --- why a process died


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OutOfMemoryError("Task was killed"), "OutOfMemory", "almost no memory left"),
        (NodeDiedError("gone"), "NodeDied", "its node died"),
        (RayActorError(), "ProcessDied", "died 2 times; out of memory?"),
        (
            RayTaskError(
                "f",
                "Traceback",
                ModuleNotFoundError("No module named 'x'"),
                "p",
                1,
                "h",
            ),
            "ModuleNotFoundError",
            "No module named 'x'",
        ),
    ],
)
def test_a_death_says_its_reason(error: Exception, kind: str, words: str) -> None:
    said = death_of(error).error(2)
    assert said.type == kind
    assert words in said.message
    assert ("out of memory?" in said.message) == (kind == "ProcessDied")


def test_errors_are_unwrapped_and_without_colours() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    wrapped = RuntimeError("Tune failed")
    wrapped.__cause__ = RayTaskError("f", "text", full, "p", 1, "h")
    assert is_storage_fault(wrapped)
    assert innermost(wrapped) is full
    assert not is_storage_fault(RuntimeError("no"))
    error = TrialError.of(ValueError("\x1b[36mray::f()\x1b[39m failed"))
    assert error.message == "ray::f() failed"
    assert TrialError.of(AssertionError()).message == "AssertionError"
    assert TrialError.of(error) == error


# --- attempts of the driver


def by_value() -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[does_nothing.__module__])


def fails_once(what: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """`what`, but its third call raises."""
    calls = 0

    def call(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error
        return what(*args, **options)

    return call


def test_an_error_in_a_hook_ends_one_attempt_and_no_sweep(
    raw: dict[str, Any],
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    by_value()
    broken = fails_once(TrialEvents.ended, KeyError("a bug"))
    monkeypatch.setattr(
        TrialEvents, "ended", lambda self, *a, **o: broken(self, *a, **o)
    )
    raw |= {"name": "tripped", "resources": {"concurrent": 1}}
    outcome = run_sweep(check_spec(spec_from(raw)), trial=does_nothing)
    assert (outcome.fault, outcome.interrupted) == (None, False)
    found = records(outcome.folder)
    assert [r.status for r in found.values()] == ["complete"] * 4
    assert len(outcome.report.read_bytes()) > 1000
    said = capsys.readouterr().out
    assert said.count("the search was ended by KeyError: 'a bug'; the trials") == 1


def test_attempts_in_vain_are_bounded(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Ray: it never starts."""
    tries = 0

    def start_ray(cpus: int | None, threads: int | None) -> None:
        nonlocal tries
        tries += 1
        raise driver.RayLostError("Ray did not start on this machine (no time)")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("sweeps.drive.cluster.start_ray", start_ray)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    outcome = run_sweep(check_spec(spec_from(raw | {"name": "unborn"})))
    assert tries == driver.MOST_IN_VAIN
    assert outcome.fault is not None
    assert outcome.fault.startswith("Ray did not start on this machine")
    assert outcome.report.exists()
    assert not (outcome.folder / "driver.json").exists()
    assert _tell(outcome) == 75
    assert _tell(SweepResult(outcome.folder, True, False, outcome.report)) == 130


def test_a_machine_without_shared_memory_is_refused_at_once(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "_SHARED_MEMORY", tmp_path / "none")
    with pytest.raises(
        SpecError, match=r"this machine has no shared memory \(/.*none\)"
    ):
        run_sweep(check_spec(spec_from(raw | {"name": "nowhere"})))


def test_a_ray_that_does_not_start_in_time_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init(*args: Any, **options: Any) -> None:
        assert options["logging_level"] > logging.ERROR
        raise Exception("The current node timed out during startup.\nIt may be\n busy.")

    ended: list[bool] = []
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: ended.append(True))
    with pytest.raises(driver.RayLostError) as raised:
        cluster.start_ray(1)
    assert ended == [True], "what has started of it is ended"
    assert str(raised.value).startswith(
        "Ray did not start on this machine (The current node timed out during startup. It"
        " may be busy.)"
    )
    assert not raised.value.ends_process


# --- what a trial gives


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_fails_the_trial(
    tmp_path: Path, value: float
) -> None:
    def work(plan: TrialPlan, site: Site, on_epoch: Any, on_stage: Any) -> Execution:
        return Execution({"accuracy": 0.5, "loss": value}, [], 1.0, 1.0, {})

    outcome = run_trial(plan(), site(tmp_path / "run", max_failures=3), work)
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert f"loss is {value}" in outcome.error.message
    record = TrialRecord.read(tmp_path / "run/trials/00000")
    assert record is not None
    assert record.attempts == 1  # the same bits would give the same


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("7", "00007"),
        ("0", "00000"),
        ("007-r1", "00007-r1"),
        ("00012", "00012"),
        ("123456", "123456"),
        ("best", "best"),
        ("-1", "-1"),
    ],
)
def test_a_trial_may_be_named_by_its_number(given: str, meant: str) -> None:
    assert full_trial_id(given) == meant
