"""The front measured once more: chosen, in turns, beside the records, and read from there."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.contract import LATENCY_FILE, Objective
from analysis.fronts import front_and_rivals
from sweeps.drive import final_measurement
from sweeps.drive.final_measurement import measure_front
from sweeps.run.plan import write_plan
from sweeps.run.record import TrialRecord
from sweeps.run.storage import RunStorage
from sweeps.trial.final_latency import measure_in_turns
from tests.sweeps.helpers import plan, site
from trainers.files import read_json

OBJECTIVES = [Objective("accuracy", "max"), Objective("latency_ms", "min")]


def finished(run: Path, trial_id: str, **metrics: float) -> None:
    """A complete trial whose model is its source itself."""
    quick = {"latency": False, "batch_size": 2, "repeats": 5}
    found = plan(trial_id, number=int(trial_id), stages=(), measure=quick)
    folder = run / "trials" / trial_id
    write_plan(folder, found)
    TrialRecord.begin(folder, found).finish("complete", metrics=metrics)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    finished(run, "00000", accuracy=0.9, latency_ms=2.0)
    finished(run, "00001", accuracy=0.8, latency_ms=1.0)
    finished(run, "00002", accuracy=0.8, latency_ms=1.1)
    finished(run, "00003", accuracy=0.7, latency_ms=5.0)
    return run


def timed(ratio: float, reference_ms: float) -> dict[str, float]:
    """All times of a trial whose passes took that part of its source's."""
    ms = ratio * reference_ms
    return {
        "latency_ms": ms,
        "latency_p25_ms": 0.9 * ms,
        "latency_p75_ms": 1.1 * ms,
        "p95_latency_ms": 1.2 * ms,
        "latency_ratio": ratio,
        "reference_latency_ms": reference_ms,
        "throughput": 64_000 / ms,
    }


def test_rivals_would_be_on_the_front_with_a_little_less_latency() -> None:
    rows = pd.DataFrame(
        {
            "metric/accuracy": [0.9, 0.8, 0.8, 0.85, 0.7, np.nan],
            "metric/latency_ms": [2.0, 1.0, 1.2, 2.1, 5.0, 0.1],
        }
    )
    found = front_and_rivals(rows, OBJECTIVES, "latency_ms")
    assert list(found.index) == [0, 1, 3, 2]


@pytest.mark.parametrize(
    ("accuracy", "latency_ms", "expected"),
    [
        (0.85, 1.9, [0, 3]),  # 2.0 and 2.1 ms may turn out as 1.9
        (0.95, 1.0, [0, 1, 3, 2]),  # nothing is so accurate: what comes nearest
        (0.5, 0.9, [1]),
        (0.85, 0.5, [0, 1, 3, 2]),  # nothing is nearly so fast
    ],
)
def test_what_just_misses_a_bound_is_measured_again(
    accuracy: float, latency_ms: float, expected: list[int]
) -> None:
    """Its latency is off by as much as a rival's."""
    rows = pd.DataFrame(
        {
            "metric/accuracy": [0.9, 0.8, 0.8, 0.85, 0.7],
            "metric/latency_ms": [2.0, 1.0, 1.2, 2.1, 5.0],
        }
    )
    bounded = [
        Objective("accuracy", "max", accuracy),
        Objective("latency_ms", "min", latency_ms),
    ]
    assert list(front_and_rivals(rows, bounded, "latency_ms").index) == expected
    turned = rows.assign(**{"metric/throughput": 1000 / rows["metric/latency_ms"]})
    by_rate = [bounded[0], Objective("throughput", "max", 1000 / latency_ms)]
    assert list(front_and_rivals(turned, by_rate, "throughput").index) == expected


def test_models_take_turns_and_each_has_its_ratio(run: Path) -> None:
    found = measure_in_turns(["00000", "00001"], site(run))
    assert set(found["metrics"]) == {"00000", "00001"}
    for metrics in found["metrics"].values():
        assert metrics["latency_ratio"] == pytest.approx(1.0, abs=0.7)
        assert metrics["latency_repeats"] == found["rounds"]


class _Ray:
    """Runs a task at once, in this process."""

    exceptions = final_measurement.ray.exceptions

    def __init__(self, ends: bool = True) -> None:
        self.ends = ends
        self.calls = self.cancelled = 0

    def remote(self, **options: Any) -> Any:
        return lambda call: SimpleNamespace(remote=self._counted(call))

    def _counted(self, call: Any) -> Any:
        def counted(*args: Any) -> Any:
            self.calls += 1
            return call(*args)

        return counted

    def wait(self, tasks: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return (tasks, []) if self.ends else ([], tasks)

    def cancel(self, task: Any, force: bool) -> None:
        self.cancelled += 1

    def get(self, value: Any) -> Any:
        return value

    def nodes(self) -> list[Mapping[str, Any]]:
        return []


def test_what_is_measured_again_counts_and_both_are_kept(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = _Ray()
    monkeypatch.setattr(final_measurement, "ray", ray)

    def again(trial_ids: list[str], site: Any, prefixes: Any) -> dict[str, Any]:
        assert prefixes == [""]
        metrics = {name: {"latency_ms": 1.5} for name in trial_ids if name != "00002"}
        return {"host": "here", "alone": True, "rounds": 6, "metrics": metrics}

    monkeypatch.setattr(final_measurement, "measure_in_turns", again)
    noted: list[str] = []
    said = measure_front(RunStorage(run), site(run), OBJECTIVES, note=noted.append)
    assert noted == ["timing 3 models of the front once more, in turns"]
    assert said is not None
    assert "00002" in said
    file = read_json(run / "trials" / "00001" / LATENCY_FILE)
    assert file is not None
    assert file["together"] == ["00000", "00001", "00002"]
    trials = analysis.load(run).trials.set_index("trial_id")
    assert list(trials["metric/latency_ms"]) == [1.5, 1.5, 1.1, 5.0]
    assert trials["metric/search_latency_ms"].dropna().tolist() == [2.0, 1.0]
    assert not (run / "trials" / "00003" / LATENCY_FILE).exists()
    assert measure_front(RunStorage(run), site(run), OBJECTIVES[:1]) is None
    assert ray.calls == 1


def test_ctrl_c_ends_the_measurement_and_changes_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray, looks = _Ray(ends=False), iter([False, True, True])
    monkeypatch.setattr(final_measurement, "ray", ray)
    monkeypatch.setattr(final_measurement, "measure_in_turns", lambda *given: {})
    storage = RunStorage(run)
    said = measure_front(
        storage, site(run), OBJECTIVES, is_unwanted=lambda: next(looks)
    )
    assert said is not None
    assert "were not measured again (interrupted)" in said
    assert ray.cancelled == 1
    assert not list(run.rglob(LATENCY_FILE))


def test_the_baseline_is_measured_beside_the_front(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a trial that changed nothing would look faster or slower than its source."""
    found = plan("baseline", number=0, stages=())
    write_plan(run / "baseline", found)
    record = TrialRecord.begin(run / "baseline", found)
    record.finish("complete", metrics={"accuracy": 0.9, "latency_ms": 3.0})
    monkeypatch.setattr(final_measurement, "ray", _Ray())

    def again(trial_ids: list[str], site: Any, prefixes: Any) -> dict[str, Any]:
        metrics = {name: {"latency_ms": 1.5} for name in trial_ids}
        return {"host": "here", "alone": True, "rounds": 6, "metrics": metrics}

    monkeypatch.setattr(final_measurement, "measure_in_turns", again)
    assert measure_front(RunStorage(run), site(run), OBJECTIVES) is None
    baseline = analysis.load(run).baseline
    assert baseline is not None
    assert baseline.metrics["latency_ms"] == 1.5
    assert baseline.metrics["search_latency_ms"] == 3.0


def test_all_trials_are_given_in_one_time_of_their_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine was slower while the last trial was measured, and faster at the end."""
    run = tmp_path / "run"
    finished(run, "00000", accuracy=0.9, **timed(0.5, 2.0))
    finished(run, "00001", accuracy=0.8, **timed(0.25, 2.0))
    finished(run, "00002", accuracy=0.5, **timed(0.9, 3.0))
    monkeypatch.setattr(final_measurement, "ray", _Ray())

    def again(trial_ids: list[str], site: Any, prefixes: Any) -> dict[str, Any]:
        assert trial_ids == ["00000", "00001"]
        metrics = {"00000": timed(0.5, 1.8), "00001": timed(0.26, 1.8)}
        return {"host": "here", "alone": True, "rounds": 6, "metrics": metrics}

    monkeypatch.setattr(final_measurement, "measure_in_turns", again)
    assert measure_front(RunStorage(run), site(run), OBJECTIVES) is None
    trials = analysis.load(run).trials.set_index("trial_id")
    for trial_id, ratio in (("00000", 0.5), ("00001", 0.26), ("00002", 0.9)):
        for name, value in timed(ratio, 2.0).items():
            found = trials.loc[trial_id][f"metric/{name}"]
            assert found == pytest.approx(value), (trial_id, name)
    assert trials.loc["00002"]["metric/search_latency_ms"] == pytest.approx(2.7)


def test_a_damaged_file_is_a_problem_and_the_record_counts(run: Path) -> None:
    (run / "trials" / "00001" / LATENCY_FILE).write_text(
        '{"trial_id": "00001", "metrics": {"latency_ms": "fast"}}'
    )
    (run / "trials" / "00002" / LATENCY_FILE).write_text('{"trial_id": "00009"}')
    loaded = analysis.load(run)
    assert list(loaded.trials["metric/latency_ms"]) == [2.0, 1.0, 1.1, 5.0]
    assert len([p for p in loaded.problems if LATENCY_FILE in p]) == 2
