"""Fixtures that all tests share: a data cache of this session, tiny configs, one Ray."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.nursery import Nursery
from trainers.config import AugmentConfig, DataConfig, TrainConfig
from trainers.data.splits import Data, load_data
from trainers.torchvision_internals import declare_missing_operators

torch.set_num_threads(1)  # bits depend on the number of threads
declare_missing_operators()  # before a test imports timm or torchvision by itself
os.environ.pop("COLUMNS", None)  # processes of pytest-xdist have 80; a pipe has none


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported stays to the end: no collection of garbage need look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded images of this session; Ray's workers find it by the environment."""
    folder = tmp_path_factory.mktemp("data-cache")
    os.environ["SWEEPS_DATA_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where trials of this session wait for one another's measurements, and for no others'."""
    folder = tmp_path_factory.mktemp("node")
    os.environ["SWEEPS_NODE_FOLDER"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def digits_config() -> DataConfig:
    return DataConfig(dataset="digits", limit=160, limit_test=60, val_fraction=0.25)


@pytest.fixture(scope="session")
def digits(digits_config: DataConfig, data_cache: Path) -> Data:
    """120 training, 40 validation and 60 test images of 32 px."""
    return load_data(digits_config, data_cache)


@pytest.fixture
def quick_train() -> TrainConfig:
    """Three epochs of three steps, dropout-free augmentation on, no warm-up."""
    return TrainConfig(
        epochs=3,
        batch_size=40,
        lr=1e-3,
        lr_scaling="unscaled",
        warmup=0,
        augment=AugmentConfig(preset="flip"),
    )


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery | None]:
    """What starts Ray's workers with their imports done; None where processes are not forked."""
    if sys.platform != "linux":
        yield None
        return
    found = Nursery(tmp_path_factory.mktemp("nursery"))
    yield found
    found.close()


_RAY: list[str] = []
"""The address of the session's Ray, once it is started."""


@pytest.fixture(scope="session")
def ray_session(nursery: Nursery | None) -> Iterator[None]:
    """One two-core Ray for the whole session."""
    import ray
    from ray._private import auto_init_hook

    from sweeps.drive.cluster import start_ray

    if nursery is not None:
        nursery.use()
    # without a Ray a call would look for one that ran here once, and end this process
    auto_init_hook.enable_auto_connect = False
    start_ray(2, 1)
    _RAY.append(ray.get_runtime_context().gcs_address)
    yield
    _RAY.clear()
    ray.shutdown()


@pytest.fixture(autouse=True)
def ray_goes_on() -> Iterator[None]:
    """A test that ends the session's Ray fails, and not whatever test needs it next."""
    yield
    if _RAY:
        import ray

        assert ray.is_initialized(), "this test has shut down the session's Ray"
        assert ray.get_runtime_context().gcs_address == _RAY[0]
