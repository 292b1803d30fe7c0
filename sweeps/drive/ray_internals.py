"""Private doors of Ray; `tests/sweeps/test_internals.py` has a test for each."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray._private import auto_init_hook, parameter, services
from ray._private import worker as driver_worker
from ray.air.execution._internal import RayActorManager
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.execution import class_cache, tune_controller
from ray.tune.utils.object_cache import _ObjectCache

_PRELOADED = "RAY_preload_python_modules"


@contextlib.contextmanager
def in_own_process_groups() -> Iterator[None]:
    """The processes that Ray starts inside are in process groups of their own.

    A signal to the driver's group (Ctrl-C, a closed terminal, `timeout`, `docker stop`) then
    reaches the driver alone, which ends the trials in order.
    """
    if os.name == "nt":  # Ray does so by itself there
        yield
        return
    before = services.ConsolePopen
    # a type checker takes it for a class alone
    services.ConsolePopen = functools.partial(before, process_group=0)  # type: ignore
    try:
        yield
    finally:
        services.ConsolePopen = before  # type: ignore[misc]


@contextlib.contextmanager
def without_idle_processes() -> Iterator[None]:
    """A Ray that starts inside has neither autoscaler nor log monitor, nor an API server.

    A private one cannot grow, forwards no logs, and has no dashboard. Each of the three is a
    Python process, whose imports would take half a second from the first trials, and whose end
    Ray awaits.
    """
    before, api_server = parameter.RayParams, services.start_api_server
    wanted: dict[str, Any] = {"no_monitor": True, "include_log_monitor": False}
    # a type checker takes it for a class alone
    parameter.RayParams = functools.partial(before, **wanted)  # type: ignore
    services.start_api_server = lambda *args, **options: ("", None)
    try:
        yield
    finally:
        parameter.RayParams = before  # type: ignore[misc]
        services.start_api_server = api_server


@contextlib.contextmanager
def with_variables(given: Mapping[str, str]) -> Iterator[None]:
    """The environment has these variables inside, for processes that start there."""
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def waiting_with(modules: Sequence[str], folder: Path, threads: int) -> Iterator[None]:
    """The processes that a Ray has waiting, if it starts inside, have imported these modules.

    They are imported from `folder`, where this process has them from: Ray says so to its processes
    too late for this. For the same reason `threads` is said here: some libraries read it while they
    are imported. What the user's environment says stays. A module that is not found is no error.
    """
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    variables = {
        _PRELOADED: os.environ.get(_PRELOADED, ",".join(modules)),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    with with_variables(variables):
        yield


@contextlib.contextmanager
def in_waiting_processes() -> Iterator[None]:
    """Trials that Tune starts inside take the processes that a private Ray has waiting for them.

    Tune asks for processes with variables of their own, which the waiting ones were started
    without; so those would be thrown away, and others started. A private Ray's processes inherit
    the driver's environment, and need none of it said again.
    """
    before = class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE = {}, set()
    try:
        yield
    finally:
        class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE = before


@contextlib.contextmanager
def tamed() -> Iterator[None]:
    """Inside, Ray speaks only when it is spoken to, and starts only when it is started.

    It would print what its own processes say of their death, whatever `log_to_driver` says, with
    terminal escapes and twenty lines of a log. And a call after its end would start another one.
    """
    before = driver_worker.print_to_stdstream, auto_init_hook.enable_auto_connect
    driver_worker.print_to_stdstream = lambda *args, **options: None
    auto_init_hook.enable_auto_connect = False
    try:
        yield
    finally:
        driver_worker.print_to_stdstream, auto_init_hook.enable_auto_connect = before


@contextlib.contextmanager
def kept_processes() -> Iterator[None]:
    """Tune keeps all processes of trials that ended inside, as long as the search hands out more.

    Of several trials that end before the next ones are drawn it would keep the process of one,
    and start others for seconds. All trials of a sweep hold the same resources, so that each
    process that is kept is one that the next trial takes.
    """

    class Cache(_ObjectCache):
        def cache_object(self, key: Any, obj: Any) -> bool:
            self._cached_objects[key].append(obj)
            self._num_cached_objects += 1
            return True

        def flush_cached_objects(
            self, force_all: bool = False
        ) -> Generator[Any, None, None]:
            if force_all:
                yield from super().flush_cached_objects(force_all=True)

    before = tune_controller._ObjectCache
    tune_controller._ObjectCache = Cache  # type: ignore[misc]
    try:
        yield
    finally:
        tune_controller._ObjectCache = before  # type: ignore[misc]


@contextlib.contextmanager
def deaths_of_processes(note: Callable[[Exception], None]) -> Iterator[None]:
    """Whatever ends a trial's process inside fails that one trial, and no more.

    Tune knows two kinds of errors that come out of a trial's process. A kill by Ray's memory
    monitor is neither of them, and would end Tune with all its trials.

    Args:
        note: hears why, before Tune handles it.
    """

    class Manager(RayActorManager):
        def _actor_task_failed(self, tracked_actor_task: Any, exception: Any) -> None:
            note(exception)
            if not isinstance(exception, RayActorError | RayTaskError):
                exception = RayActorError(error_msg=str(exception))
            super()._actor_task_failed(tracked_actor_task, exception)

        def _actor_start_failed(self, tracked_actor: Any, exception: Any) -> None:
            note(exception)
            super()._actor_start_failed(tracked_actor, exception)

    before = tune_controller.RayActorManager
    tune_controller.RayActorManager = Manager  # type: ignore[misc]
    try:
        yield
    finally:
        tune_controller.RayActorManager = before  # type: ignore[misc]
