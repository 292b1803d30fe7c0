"""The stage cache, with real processes that race, die and leave things behind."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from compress.cache import Artifact, StageCache
from trainers.leftovers import tag
from trainers.models.arch import Arch, ModelState

ARCH = Arch("resnet_cifar", "resnet20_cifar", {"num_classes": 2, "width": 2})
KEY = "k" * 64


def artifact(seed: int = 0) -> Artifact:
    return Artifact(
        ModelState.initialised(ARCH, seed), 1.5, {"m": 1}, [{"epoch": 0, "loss": 0.25}]
    )


def build_slowly(
    root: Path,
    log: Path,
    seconds: float,
    heartbeat: float = 0.05,
    silence: float = 30.0,
) -> None:
    def build(workdir: Path) -> Artifact:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        return artifact()

    StageCache(root, heartbeat_seconds=heartbeat, silence_seconds=silence).get_or_build(
        KEY, build
    )


def start(*args: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(
        target=build_slowly, args=args
    )
    process.start()
    return process


def test_round_trip_and_hit(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    built, hit = cache.get_or_build(KEY, lambda workdir: artifact())
    again, hit_again = cache.get_or_build(
        KEY, lambda workdir: pytest.fail("built twice")
    )
    assert (hit, hit_again) == (False, True)
    assert again.model.hash() == built.model.hash()
    assert (again.seconds, again.metrics, again.rows) == (
        1.5,
        {"m": 1},
        [{"epoch": 0, "loss": 0.25}],
    )
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "work") == [KEY]


@pytest.mark.parametrize("file", ["model.safetensors", "model.json", "stage.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_noticed_and_rebuilt(tmp_path: Path, file: str, damage: str) -> None:
    cache = StageCache(tmp_path)
    cache.get_or_build(KEY, lambda workdir: artifact())
    path = tmp_path / KEY / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        digit = next(
            i
            for i in range(len(content) - 40, 0, -1)
            if file.endswith("safetensors") or chr(content[i]).isdigit()
        )
        content[digit] = content[digit] ^ 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    assert cache.load(KEY) is None
    rebuilt, hit = cache.get_or_build(KEY, lambda workdir: artifact())
    assert not hit
    assert rebuilt.model.hash() == artifact().model.hash()
    assert cache.load(KEY) is not None


def test_failure_is_not_cached(tmp_path: Path) -> None:
    def fails(workdir: Path) -> Artifact:
        (workdir / "progress").write_text("half")
        raise RuntimeError("no")

    cache = StageCache(tmp_path)
    with pytest.raises(RuntimeError, match="no"):
        cache.get_or_build(KEY, fails)
    assert cache.load(KEY) is None
    assert not (tmp_path / f"{KEY}.lease").exists()
    seen: list[str] = []

    def resumes(workdir: Path) -> Artifact:
        seen.append((workdir / "progress").read_text())
        return artifact()

    assert cache.get_or_build(KEY, resumes)[1] is False
    assert seen == ["half"]
    assert not cache.workdir(KEY).exists()


def test_racing_processes_build_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start(tmp_path / "cache", log, 0.5) for _ in range(4)]
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert len(log.read_text().split()) == 1


def test_a_killed_builders_lease_is_taken_over(tmp_path: Path) -> None:
    log = tmp_path / "log"
    victim = start(tmp_path / "cache", log, 60)
    while not log.exists():
        time.sleep(0.02)
    os.kill(victim.pid or 0, signal.SIGKILL)
    victim.join()
    begun = time.monotonic()
    build_slowly(tmp_path / "cache", log, 0)
    assert time.monotonic() - begun < 5  # not the 30 s of a lease from another host
    assert len(log.read_text().split()) == 2


def test_what_a_killed_builder_left_is_removed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    builder = start(tmp_path, log, 60.0)
    while not log.exists():
        time.sleep(0.01)
    assert builder.pid is not None
    lease = tmp_path / f"{KEY}.lease"
    name = f".{KEY}.{tag()}.tmp".replace(f"-{os.getpid()}-", f"-{builder.pid}-")
    halves = [tmp_path / name, tmp_path / "fits" / name]
    for half in halves:
        half.mkdir(parents=True)
    cache = StageCache(tmp_path)
    cache.clean()
    assert all(half.exists() for half in halves)
    assert lease.exists()
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    cache.clean()
    assert not any(half.exists() for half in halves)
    assert not lease.exists()
    assert cache.workdir(KEY).exists()  # a checkpoint from which the next one goes on


def test_a_silent_lease_of_another_host_goes_stale(tmp_path: Path) -> None:
    tmp_path.joinpath(f"{KEY}.lease").write_text(
        json.dumps({"host": "elsewhere", "pid": 1, "token": "t", "beat": 3})
    )
    begun = time.monotonic()
    build_slowly(tmp_path, tmp_path / "log", 0, silence=0.5)
    assert 0.4 < time.monotonic() - begun < 10
    assert StageCache(tmp_path).load(KEY) is not None


def test_publishing_twice_keeps_the_first(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    cache.publish(KEY, artifact(0))
    cache.publish(KEY, artifact(1))
    loaded = cache.load(KEY)
    assert loaded is not None
    assert loaded.model.hash() == artifact(0).model.hash()
    assert len(list(tmp_path.iterdir())) == 1


def test_model_state_is_never_shared_with_the_module(tmp_path: Path) -> None:
    state = ModelState.initialised(ARCH, 0)
    before = state.hash()
    module = state.build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert state.hash() == before
