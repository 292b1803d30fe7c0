"""Trials of two workers under TorchTrainer: one group for all tests, since starting one
takes seconds.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import ray
from ray.train.v2.api import data_parallel_trainer
from ray.util.placement_group import PlacementGroup

from analysis.contract import CLASSES_FILE, LAYERS_FILE
from sweeps.check import check_spec
from sweeps.drive.driver import run_sweep
from sweeps.drive.room import trials_at_once
from sweeps.run.record import trial_records
from sweeps.spec.load import spec_from
from sweeps.spec.model import Resources
from sweeps.spec.yaml_text import SpecError
from sweeps.trial.worker_group import GroupShape, WorkerGroup, WorkersDied
from trainers.training.distributed import RankFailed, from_rank_0, rank, world_size

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
Emit = Callable[[dict[str, Any]], None]
TWO = GroupShape(workers=2, cpus_per_worker=1, gpus_per_worker=0)


@pytest.fixture(scope="module")
def group(
    ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerGroup]:
    # Ray Train asks a dashboard whether a group's controller lives; where there is none, as here,
    # it asks on for 40 s, and whoever ends a group before waits 12 s for that to end
    name = "PlacementGroupCleanerCallback"
    with pytest.MonkeyPatch.context() as patch:
        before = getattr(data_parallel_trainer, name)
        patch.setattr(data_parallel_trainer, name, partial(before, stop_timeout=0.1))
        found = WorkerGroup(TWO, str(tmp_path_factory.mktemp("group")), (ValueError,))
        yield found
        found.close()


@pytest.fixture
def cores_come_back(ray_session: None) -> Iterator[None]:
    """Free the cores of groups whose process Tune has killed.

    On a cluster Ray Train does that, by what the dashboard tells; this Ray has none.
    """
    yield
    for group_id in ray.util.placement_group_table():
        left = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id)))
        ray.util.remove_placement_group(left)


def whoami(payload: Any, emit: Emit) -> list[Any]:
    for step in range(3):
        emit({"step": step, "payload": payload})
    return [rank(), world_size(), os.getpid(), from_rank_0(os.getpid())]


def refuse(payload: Any, emit: Emit) -> None:
    raise ValueError("not this one")


def refuse_on_one_rank(payload: Any, emit: Emit) -> None:
    if rank() == 1:
        raise KeyError("only here")


def die(payload: Any, emit: Emit) -> None:
    if rank() == 1:
        os._exit(3)
    from_rank_0("waits for the dead")


def test_one_group_serves_many_jobs(group: WorkerGroup) -> None:
    seen: list[Any] = []
    first = group.run(whoami, "a", seen.append)
    assert first[:2] == [0, 2]
    assert seen == [{"step": step, "payload": "a"} for step in range(3)]
    assert group.run(whoami, "b", lambda event: None) == first


def test_errors_and_stops_leave_the_group_usable(group: WorkerGroup) -> None:
    process = group.run(whoami, "a", lambda event: None)[2]
    with pytest.raises(RankFailed, match="not this one") as caught:
        group.run(refuse, None, lambda event: None)
    assert caught.value.deterministic
    assert caught.value.details["type"] == "ValueError"
    assert "in refuse" in caught.value.details["traceback"]
    with pytest.raises(RankFailed, match="only here"):
        group.run(refuse_on_one_rank, None, lambda event: None)
    seen = []

    def stop_at_the_second(event: dict[str, Any]) -> None:
        seen.append(event)
        if len(seen) == 2:
            raise SystemExit(0)

    with pytest.raises(SystemExit):
        group.run(whoami, "a", stop_at_the_second)
    assert len(seen) == 2
    assert group.alive
    assert group.run(whoami, "a", lambda event: None)[2] == process


def trial_counting_shards(payload: Any, emit: Emit) -> tuple[dict[str, Any], int]:
    """The work of a trial, and how many models it split over the workers."""
    from sweeps.trial import workers
    from trainers.training import parallel

    with patch.object(parallel, "shard", wraps=parallel.shard) as shard:
        return workers._job(payload, emit), shard.call_count


def test_a_trial_is_split_over_its_workers(
    group: WorkerGroup, tmp_path: Path, data_cache: Path, raw: dict[str, Any]
) -> None:
    train = {"epochs": 1, "batch_size": 30, "warmup": 0, "augment": {"preset": "none"}}
    plan = {
        "trial_id": "00000",
        "number": 0,
        "replicate": 0,
        "seed": 3,
        "draw": {},
        "configuration": {},
        "source": raw["source"],
        "data": raw["data"],
        "stages": [{"name": "finetune", "kind": "finetune", "config": train}],
        "measure": {"latency": False},
    }
    found = {}
    for strategy in ("ddp", "fsdp"):
        site = {
            "run": str(tmp_path),
            "cache": str(tmp_path / "_cache"),
            "data_cache": str(data_cache),
            "workers": 2,
            "strategy": strategy,
        }
        events: list[Any] = []
        result, shards = group.run(trial_counting_shards, (plan, site), events.append)
        assert shards == (strategy == "fsdp")
        assert [event["row"]["cached"] for event in events] == [False, False]
        found[strategy] = result["metrics"]
    for name in ("accuracy", "loss", "num_params"):
        assert found["fsdp"][name] == pytest.approx(found["ddp"][name], rel=1e-4)


def test_a_dead_worker_is_told(group: WorkerGroup) -> None:
    with pytest.raises(WorkersDied):
        group.run(die, None, lambda event: None)
    assert not group.alive


def test_trials_of_two_workers_are_recorded(
    cores_come_back: None, tmp_path: Path, raw: dict[str, Any]
) -> None:
    raw |= {
        "storage": str(tmp_path),
        "resources": {"workers": 2},
        "search": raw["search"] | {"trials": 2},
    }
    outcome = run_sweep(check_spec(spec_from(raw)))
    found = list(trial_records(outcome.folder))
    assert [r.status for r in found] == ["complete"] * 2
    assert [r.machine.world_size for r in found if r.machine is not None] == [2, 2]
    assert all((r.folder / LAYERS_FILE).is_file() for r in found)
    for record in found:
        rows = json.loads((record.folder / CLASSES_FILE).read_text())["classes"]
        right = sum(row["images"] * (row["accuracy"] or 0) for row in rows)
        mean = right / sum(row["images"] for row in rows)
        assert mean == pytest.approx(record.outcome.metrics["accuracy"])
    assert not (outcome.folder / "workers").exists()


def test_room_is_counted_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 3.0, "memory": 7e9}},
        {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 1.0, "memory": 2e9}},
    ]
    monkeypatch.setattr(
        ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 64.0}}]
    )
    assert trials_at_once(Resources(workers=1, cpus_per_worker=2)) == 2
    assert trials_at_once(Resources(workers=3, cpus_per_worker=1)) == 2
    assert trials_at_once(Resources(workers=1, gpus_per_worker=1 / 3)) == 3
    assert trials_at_once(Resources(memory_gb=3)) == 2
    with pytest.raises(
        SpecError,
        match=r"3 x \(2 CPUs, 0 GPUs\), each within a node; the cluster has room for 2",
    ):
        trials_at_once(Resources(workers=3, cpus_per_worker=2))


def test_batches_must_divide_by_the_workers(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw["stages"]["finetune"]["batch_size"] = 33
    raw["resources"] = {"workers": 2}
    with pytest.raises(
        SpecError, match=r"stages\.finetune: batch_size 33 does not divide by 2 workers"
    ):
        check_spec(spec_from(raw))
