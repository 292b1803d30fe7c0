"""More epochs of a stage go on from the end of fewer, to the same bits, where that is exact."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress.continuing import ITSELF, FinishedFits, why_from_start
from compress.finetune import Finetune
from compress.nvit.stage import Nvit
from tests.compress.test_pipeline import TRAIN, go, named
from trainers.config import DataConfig, TrainConfig
from trainers.remote import Remote
from trainers.training.checkpoint import CheckpointFolder
from trainers.training.optim import Schedule, make_optimizer, set_by_length

HORIZON: dict[str, Any] = TRAIN | {"warmup": "10%", "schedule_epochs": 4}


@pytest.mark.parametrize(
    "train", [HORIZON, TRAIN | {"schedule": "constant"}], ids=["cosine", "constant"]
)
def test_more_epochs_go_on_to_the_same_bits(
    train: dict[str, Any],
    tmp_path: Path,
    digits_config: DataConfig,
    data_cache: Path,
) -> None:
    def trained(folder: str, epochs: int, rows: list[Any] | None = None) -> Any:
        stage = named("train", "finetune", **train | {"epochs": epochs})
        note = (rows if rows is not None else []).append
        return go(tmp_path / folder, digits_config, data_cache, stage, on_epoch=note)

    whole_rows: list[dict[str, Any]] = []
    whole = trained("whole", 3, whole_rows)
    short = trained("parts", 1)
    assert short.model.hash() != whole.model.hash()
    rows: list[dict[str, Any]] = []
    longer = trained("parts", 3, rows)
    assert longer.model.hash() == whole.model.hash()
    assert longer.stages[0].key == whole.stages[0].key
    assert not longer.stages[0].cached
    assert longer.stages[0].seconds_full > sum(row["seconds"] for row in rows)
    assert [row["cached"] for row in rows] == [True, False, False]
    same = ("epoch", "train_loss", "accuracy", "lr")
    found, expected = (
        [[row[name] for name in same] for row in each] for each in (rows, whole_rows)
    )
    assert found == expected
    assert trained("parts", 1).stages[0].cached  # what was shorter stays


def test_damage_is_noticed_and_all_is_trained(
    tmp_path: Path,
    digits_config: DataConfig,
    data_cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def trained(folder: str, epochs: int) -> Any:
        stage = named("train", "finetune", **HORIZON | {"epochs": epochs})
        return go(tmp_path / folder, digits_config, data_cache, stage)

    key = trained("parts", 1).stages[0].key
    path = tmp_path / "parts" / "fits" / key / "0.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again = trained("parts", 2)
    assert "damaged checkpoints" in caplog.text
    assert again.model.hash() == trained("whole", 2).model.hash()
    assert not path.exists()


SHORT = TrainConfig(epochs=4, schedule_epochs=None, min_lr=1e-4, weight_decay=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"warmup": 1},
        {"warmup": "2 steps", "schedule": "constant"},
        {"warmup": "25%", "schedule": "constant"},
        {"warmup": 0, "schedule": "step", "decay_epochs": 2},
        {"warmup": 0, "schedule": "constant", "weight_decay_end": 0.5},
        {"warmup": 0, "schedule": "constant", "lr_noise": (0.2, 0.9)},
        {"warmup": "25%", "schedule_epochs": 9, "weight_decay_end": 0.5},
        {"warmup": 1, "cooldown_epochs": 1, "schedule_epochs": 9},
    ],
)
def test_what_depends_on_the_length_is_known(options: dict[str, Any]) -> None:
    """What the rule says is what the schedule does."""
    config = SHORT.model_copy(update=options)

    def rates(epochs: int) -> list[tuple[float, float]]:
        optimizer = make_optimizer(nn.Linear(2, 2), config)
        longer = config.model_copy(update={"epochs": epochs})
        schedule = Schedule(optimizer, longer, steps_per_epoch=3)
        found = []
        for step in range(12):
            schedule.after_step(step)
            found.append((schedule.lr, optimizer.param_groups[-1]["weight_decay"]))
        return found

    assert (rates(4) == rates(9)) == (set_by_length(config) is None)


def test_a_schedule_is_not_shorter_than_its_fit() -> None:
    config = SHORT.model_copy(update={"schedule_epochs": 3})
    with pytest.raises(ValueError, match=r"schedule_epochs 3 is less than .* 4 epochs"):
        Schedule(make_optimizer(nn.Linear(1, 1), config), config, 3)


def test_stages_that_look_at_their_length_begin_again() -> None:
    assert why_from_start(Nvit(latency="macs", schedule_epochs=300)) == ITSELF
    assert why_from_start(Finetune()) == "schedule: cosine"
    assert why_from_start(Finetune(schedule_epochs=300)) is None


def test_nodes_exchange_them(tmp_path: Path) -> None:
    remote = Remote((tmp_path / "bucket").as_uri())
    here, there = (FinishedFits(tmp_path / name, remote) for name in ("a", "b"))
    CheckpointFolder(tmp_path / "work" / "fit").save(2, {"x": torch.ones(1)})
    here.keep("short", tmp_path / "work")
    assert there.put_back(["long"], tmp_path / "other") == {}
    assert there.put_back(["long", "short"], tmp_path / "other") == {"fit": 2}
    state = CheckpointFolder(tmp_path / "other" / "fit").load()
    assert state is not None
    assert state["x"].item() == 1.0
