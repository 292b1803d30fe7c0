"""Doors of other libraries that they do not promise to keep where they are: each test fails when
its door moves, before a sweep does.
"""

import inspect
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import ray.tune
from ray._private import auto_init_hook, node, parameter, services, worker
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import class_cache, tune_controller
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from sweeps.drive import cluster, ray_internals
from sweeps.search.optuna_internals import (
    enqueue_again,
    enqueued_parameters,
    sampler_notes,
)
from sweeps.search.study import contains


def test_optuna_keeps_what_was_enqueued() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"x": 0.25}, user_attrs={"number": 3})
    (waiting,) = study.get_trials()
    assert enqueued_parameters(waiting) == {"x": 0.25}
    trial = study.ask()
    trial.suggest_float("x", 0.0, 1.0)
    trial.suggest_float("y", 0.0, 1.0)
    drawn = study.ask()
    drawn.suggest_float("x", 0.0, 1.0)
    asked, free = study.get_trials()
    assert enqueued_parameters(asked) == {"x": 0.25}
    assert enqueued_parameters(free) is None


def test_a_trial_that_is_enqueued_again_counts_as_drawn() -> None:
    sampler = optuna.samplers.NSGAIISampler(population_size=2, seed=0)
    study = optuna.create_study(sampler=sampler)
    for value in range(3):
        trial = study.ask()
        trial.suggest_float("x", 0.0, 1.0)
        if value < 2:
            study.tell(trial, value)
    lost = study.get_trials()[-1]
    notes = sampler_notes(lost)
    assert list(notes.values()) == [1], "NSGA-II notes the generation"
    enqueue_again(study, lost.params, notes, {"number": 2})
    again = study.ask()
    assert again.suggest_float("x", 0.0, 1.0) == lost.params["x"]
    found = study.get_trials()[-1]
    assert sampler_notes(found) == notes
    assert found.user_attrs == {"number": 2}


def test_distributions_contain_what_they_give() -> None:
    stepped = optuna.distributions.FloatDistribution(0.1, 0.7, step=0.3)
    assert [contains(stepped, x) for x in (0.1, 0.4, 0.5, 0.7)] == [1, 1, 0, 1]
    free = optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
    assert [contains(free, x) for x in (1e-4, 5e-3, 0.1)] == [True, True, False]
    whole = optuna.distributions.IntDistribution(2, 8, step=3)
    assert [contains(whole, x) for x in (2, 5, 6, 8, 11)] == [1, 1, 0, 1, 0]
    named = optuna.distributions.CategoricalDistribution(("a", None, 1.5))
    assert [contains(named, x) for x in ("a", None, 1.5, "b")] == [1, 1, 1, 0]


def test_tune_asks_a_stopper_at_every_step_and_tells_a_searcher_of_every_end() -> None:
    """What `sweeps.drive.tune_adapter` builds on, by the names of the methods that Tune calls."""
    assert callable(ray.tune.Stopper.stop_all)
    for name in ("suggest", "on_trial_complete", "save", "restore"):
        assert callable(getattr(Searcher, name))
    for name in (
        "on_trial_start",
        "on_trial_result",
        "on_trial_recover",
        "on_step_end",
    ):
        assert callable(getattr(ray.tune.Callback, name))
    assert callable(FIFOScheduler.on_trial_result)


def test_ray_starts_its_processes_through_one_door() -> None:
    before = services.ConsolePopen
    with ray_internals.in_own_process_groups():
        process = services.ConsolePopen(["sleep", "60"], preexec_fn=lambda: None)
        assert os.getpgid(process.pid) != os.getpgid(0)
        process.kill()
        process.wait()
    assert services.ConsolePopen is before
    assert "process = ConsolePopen(" in inspect.getsource(services.start_ray_process)


def test_ray_starts_no_process_that_has_nothing_to_do() -> None:
    before = parameter.RayParams, services.start_api_server
    with ray_internals.without_idle_processes():
        _, process = services.start_api_server(False, raise_on_failure=False)
        assert process is None
        found = parameter.RayParams()
        found.update_if_absent(include_log_monitor=True)  # as a node does
        assert found.no_monitor
        assert found.include_log_monitor is False
    assert (parameter.RayParams, services.start_api_server) == before
    given = "ray_params = ray._private.parameter.RayParams("
    assert given in inspect.getsource(worker.init)
    started = inspect.getsource(node.Node)
    assert "if not self._ray_params.no_monitor:" in started
    assert "if self._ray_params.include_log_monitor:" in started
    assert "ray._private.services.start_api_server(" in started
    assert "if process_info is not None:" in inspect.getsource(
        node.Node.start_api_server
    )


def test_tune_keeps_the_processes_of_all_trials_that_ended() -> None:
    assert "self._actor_cache = _ObjectCache(" in inspect.getsource(tune_controller)
    with ray_internals.kept_processes():
        cache = tune_controller._ObjectCache(may_keep_one=True)
    for process in ("first", "second"):
        assert cache.cache_object("resources", process)
    assert list(cache.flush_cached_objects()) == []
    assert cache.pop_cached_object("resources") == "first"
    assert list(cache.flush_cached_objects(force_all=True)) == ["second"]
    assert cache.num_cached_objects == 0


def test_tune_asks_for_processes_as_they_wait() -> None:
    cache = class_cache._ActorClassCache()
    own = cache.get(type("Own", (), {}))._default_options["runtime_env"]
    with ray_internals.in_waiting_processes():
        waiting = cache.get(type("Waiting", (), {}))._default_options["runtime_env"]
    assert own["env_vars"]
    assert not waiting


def test_processes_can_import_while_they_wait(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with ray_internals.waiting_with(["ray.tune", "json"], tmp_path, 3):
        changed = {k: v for k, v in os.environ.items() if before.get(k) != v}
    assert dict(os.environ) == before
    assert changed == {
        "RAY_preload_python_modules": "ray.tune,json",
        "OMP_NUM_THREADS": "3",
        "PYTHONPATH": f"{tmp_path}{os.pathsep}/elsewhere",
    }
    # Ray passes it on: the session's was started so
    arguments = ray.get(ray.remote(num_cpus=0)(lambda: sys.argv).remote())
    assert f"--worker-preload-modules={','.join(cluster.OF_TRIALS)}" in arguments


def test_trials_keep_the_memory_that_they_free(ray_session: None) -> None:
    def environment() -> dict[str, str]:
        return dict(os.environ)

    found = ray.get(ray.remote(num_cpus=0)(environment).remote())
    assert found["MALLOC_ARENA_MAX"] == "1"
    assert found["MALLOC_MMAP_MAX_"] == "0"
    assert int(found["MALLOC_TRIM_THRESHOLD_"]) > 10**9
    assert "MALLOC_MMAP_MAX_" not in os.environ


def test_memory_is_kept_as_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    with cluster.keeping_freed_memory():
        assert os.environ["MALLOC_MMAP_MAX_"] == "65536"
        assert os.environ["MALLOC_ARENA_MAX"] == "1"
    assert os.environ["MALLOC_MMAP_MAX_"] == "65536"
    assert "MALLOC_ARENA_MAX" not in os.environ


def test_ray_prints_and_starts_through_doors_that_can_be_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auto_init_hook, "enable_auto_connect", True)
    assert "print_to_stdstream(" in inspect.getsource(worker.listen_error_messages)
    assert "enable_auto_connect" in inspect.getsource(auto_init_hook.auto_init_ray)
    with ray_internals.tamed():
        worker.print_to_stdstream({"lines": ["x"]}, ignore_prefix=False)
        assert not auto_init_hook.enable_auto_connect
    assert auto_init_hook.enable_auto_connect


def test_tune_takes_what_ends_a_process_for_a_failure_of_its_trial() -> None:
    heard: list[Exception] = []
    with ray_internals.deaths_of_processes(heard.append):
        manager = tune_controller.RayActorManager(SimpleNamespace())
        failures: list[Exception] = []
        actor = SimpleNamespace(
            actor_id=1, _on_error=lambda actor, error: failures.append(error)
        )
        task = SimpleNamespace(_tracked_actor=actor, _on_error=None)
        manager._cleanup_actor = lambda tracked_actor: None  # type: ignore[method-assign]
        killed = OutOfMemoryError(
            "Task was killed due to the node running low on memory"
        )
        manager._actor_task_failed(task, killed)
    assert heard == [killed]
    assert isinstance(failures[0], RayActorError)
    assert "RayActorManager(" in inspect.getsource(tune_controller.TuneController)
