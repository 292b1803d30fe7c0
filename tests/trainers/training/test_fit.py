"""The training loop: exact resume, accumulation, hooks, failures, schedules."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.config import AugmentConfig, EmaConfig, TrainConfig
from trainers.data.splits import Data
from trainers.models.arch import ModelState
from trainers.models.make import make_arch
from trainers.option_types import duration_in_steps
from trainers.training import distributed
from trainers.training.checkpoint import CheckpointFolder
from trainers.training.fit import (
    FitResult,
    Hook,
    NonFiniteLossError,
    fit,
    set_training,
)
from trainers.training.losses import TaskObjective
from trainers.training.optim import Schedule, make_optimizer

CPU = torch.device("cpu")
SHORT = TrainConfig(
    epochs=1, batch_size=64, warmup=0, augment=AugmentConfig(preset="none")
)


def tiny_vit(drop: float = 0.1, seed: int = 0) -> nn.Module:
    arch = make_arch(
        "vit_tiny_patch16_224",
        num_classes=10,
        image_size=32,
        args={
            "patch_size": 16,
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 2,
            "proj_drop_rate": drop,
        },
    )
    return ModelState.initialised(arch, seed).build()


def run(
    module: nn.Module, data: Data, config: TrainConfig, workdir: Path, **more: Any
) -> FitResult:
    objective = more.pop("objective", TaskObjective(config.label_smoothing))
    return fit(
        module, data, objective, config, seed=5, device=CPU, workdir=workdir, **more
    )


def bits(module: nn.Module) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in module.state_dict().items()}


class StopAfter(Hook):
    """Counts steps in its state; raises like a crash at one."""

    def __init__(self, crash_at: int | None = None, end_at: int | None = None) -> None:
        self.crash_at, self.end_at, self.steps = crash_at, end_at, 0

    def on_step(self, step: int) -> bool:
        self.steps += 1
        if step == self.crash_at:
            raise KeyboardInterrupt
        return step == self.end_at

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"ema": EmaConfig(decay=0.9, use=True)},
        {"schedule": "plateau"},
        {"optimizer": "momentum", "eps": None},
    ],
)
def test_killed_and_resumed_is_bitwise_uninterrupted(
    digits: Data, tmp_path: Path, extra: dict[str, Any]
) -> None:
    # DeiT's whole augmentation: every random number must come back
    augment = AugmentConfig()
    config = TrainConfig(
        epochs=4, batch_size=40, lr=1e-3, warmup="2 steps", augment=augment, **extra
    )
    whole, resumed = tiny_vit(), tiny_vit()
    expected = run(whole, digits, config, tmp_path / "whole", hooks=[StopAfter()])
    with pytest.raises(KeyboardInterrupt):
        # in the third epoch
        run(resumed, digits, config, tmp_path / "part", hooks=[StopAfter(crash_at=8)])
    # whatever weights the new process starts from
    again, hook = (
        tiny_vit(seed=9),
        StopAfter(),
    )
    result = run(again, digits, config, tmp_path / "part", hooks=[hook])
    assert bits(again) == bits(whole)
    assert hook.steps == result.steps == expected.steps == 12
    timings = {"seconds", "images_per_second", "steps_per_second"}
    strip = [
        [{k: v for k, v in row.items() if k not in timings} for row in r.rows]
        for r in (expected, result)
    ]
    assert strip[0] == strip[1]


def test_finished_fit_only_loads(
    digits: Data, tmp_path: Path, quick_train: TrainConfig
) -> None:
    first = tiny_vit()
    run(first, digits, quick_train, tmp_path)
    again, rows = tiny_vit(seed=3), []
    result = run(again, digits, quick_train, tmp_path, on_epoch=rows.append, hooks=[])
    assert bits(again) == bits(first)
    assert len(rows) == 3
    assert result.seconds == result.seconds_restored > 0


def test_seed_decides_everything(
    digits: Data, tmp_path: Path, quick_train: TrainConfig
) -> None:
    outcomes = []
    for i, global_seed in enumerate((0, 1)):
        torch.manual_seed(global_seed)  # must not matter
        module = tiny_vit()
        run(module, digits, quick_train, tmp_path / str(i))
        outcomes.append(bits(module))
    assert outcomes[0] == outcomes[1]
    other = tiny_vit()
    fit(
        other,
        digits,
        TaskObjective(0.1),
        quick_train,
        seed=6,
        device=CPU,
        workdir=tmp_path / "other",
    )
    assert bits(other) != outcomes[0]


def test_accumulation_keeps_the_global_batch(digits: Data, tmp_path: Path) -> None:
    """Batch 40 at once and as 4 × 10: the same gradient up to rounding (SGD: updates follow
    it linearly).
    """
    base = {
        "epochs": 1,
        "batch_size": 40,
        "lr": 0.1,
        "lr_scaling": "unscaled",
        "warmup": 0,
        "optimizer": "sgd",
        "augment": "none",
        "schedule": "constant",
    }
    modules = []
    for limit in (None, 10):
        module = tiny_vit(drop=0.0)
        result = run(
            module,
            digits,
            TrainConfig(**base, max_batch_per_worker=limit),
            tmp_path / str(limit),
        )
        assert result.steps == 3
        modules.append(module.state_dict())
    for name, value in modules[0].items():
        torch.testing.assert_close(
            value, modules[1][name], rtol=1e-4, atol=1e-6, msg=name
        )


@pytest.mark.parametrize(
    ("batch", "limit", "world", "expected"),
    [
        (512, None, 8, (64, 1)),
        (4096, 128, 8, (128, 4)),
        (512, 100, 2, (64, 4)),
        (6, 4, 1, (3, 2)),
    ],
)
def test_accumulation_is_derived(
    batch: int, limit: int | None, world: int, expected: tuple[int, int]
) -> None:
    config = TrainConfig(batch_size=batch, max_batch_per_worker=limit)
    micro, steps = config.accumulation(world)
    assert (micro, steps) == expected
    assert micro * steps * world == batch


def test_global_batch_must_divide() -> None:
    with pytest.raises(ValueError, match="10 does not divide by 3 workers"):
        TrainConfig(batch_size=10).accumulation(3)


def test_non_finite_loss_names_step_and_rate(
    digits: Data, tmp_path: Path, quick_train: TrainConfig
) -> None:
    calls = 0

    def objective(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        loss = nn.functional.cross_entropy(model(images), targets)
        return loss * (math.nan if calls == 5 else 1.0)

    with pytest.raises(NonFiniteLossError, match=r"nan at step 4, learning rate \d"):
        run(tiny_vit(), digits, quick_train, tmp_path, objective=objective)


def test_hooks_see_gradients_and_may_end_the_fit(
    digits: Data, tmp_path: Path, quick_train: TrainConfig
) -> None:
    module = tiny_vit()
    seen: list[str] = []

    class Watch(Hook):
        def on_loss(self, loss: Tensor, step: int) -> Tensor:
            seen.append("loss")
            return loss + 0 * sum(p.sum() for p in module.parameters())

        def on_grads(self, step: int) -> None:
            seen.append("grads")
            for p in module.patch_embed.parameters():  # type: ignore[union-attr]
                p.grad.zero_()

        def on_step(self, step: int) -> bool:
            assert all(p.grad is not None for p in module.parameters())
            seen.append("step")
            return step == 4

    before = module.patch_embed.proj.weight.clone()  # type: ignore[union-attr]
    config = quick_train.model_copy(update={"weight_decay": 0.0})
    result = run(module, digits, config, tmp_path, hooks=[Watch()])
    assert seen == ["loss", "grads", "step"] * 4
    assert result.steps == 4
    assert len(result.rows) == 2
    assert torch.equal(module.patch_embed.proj.weight, before)  # type: ignore[union-attr]
    # ended stays ended
    assert run(tiny_vit(), digits, config, tmp_path, hooks=[Watch()]).steps == 4


def test_training_learns(digits: Data, tmp_path: Path) -> None:
    config = TrainConfig(
        epochs=25,
        batch_size=20,
        lr=3e-3,
        lr_scaling="unscaled",
        warmup="10%",
        augment="none",
    )
    result = run(tiny_vit(drop=0.0), digits, config, tmp_path)
    assert result.rows[-1]["train_loss"] < 0.75 * result.rows[0]["train_loss"]
    assert result.rows[-1]["accuracy"] > 0.4  # chance is 0.1


def test_cosine_schedule_against_its_formula() -> None:
    module = nn.Linear(2, 2)
    config = TrainConfig(
        epochs=10,
        batch_size=256,
        lr=1e-3,
        min_lr=1e-5,
        warmup_lr=1e-6,
        warmup=2,
        weight_decay=0.1,
        weight_decay_end=0.02,
    )
    schedule = Schedule(make_optimizer(module, config), config, steps_per_epoch=10)
    for step in range(100):
        if step < 20:
            expected = 5e-7 + step * (5e-4 - 5e-7) / 20  # batch 256 is half of 512
        else:
            expected = 5e-6 + 0.5 * (5e-4 - 5e-6) * (1 + math.cos(math.pi * step / 100))
        assert schedule.lr == pytest.approx(expected, rel=1e-6), step
        decay = max(g["weight_decay"] for g in schedule.optimizer.param_groups)
        assert decay == pytest.approx(
            0.02 + 0.04 * (1 + math.cos(math.pi * step / 100))
        )
        schedule.after_step(step + 1)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1e-3] * 4), ("step", [1e-3, 1e-3, 1e-4, 1e-4])],
)
def test_other_schedules(schedule: str, expected: list[float]) -> None:
    config = TrainConfig(
        epochs=4,
        batch_size=512,
        lr=1e-3,
        warmup=0,
        schedule=schedule,
        decay_epochs=2,
        min_lr=0,
    )  # type: ignore[arg-type]
    made = Schedule(make_optimizer(nn.Linear(2, 2), config), config, steps_per_epoch=3)
    rates = []
    for epoch in range(4):
        rates.append(made.lr)
        made.after_step(3 * (epoch + 1))
    assert rates == pytest.approx(expected)


def test_warmup_longer_than_the_fit_is_refused(digits: Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"warmup .* must be shorter than the fit"):
        run(
            tiny_vit(), digits, TrainConfig(epochs=3, batch_size=40, warmup=5), tmp_path
        )


@pytest.mark.parametrize(
    ("duration", "steps"),
    [(5, 50), ("3 epochs", 30), ("7 steps", 7), ("10%", 20), (0.5, 5)],
)
def test_durations(duration: float | str, steps: int) -> None:
    assert duration_in_steps(duration, 10, 200) == steps


def test_unknown_optimizer_is_named(digits: Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="optimizer 'adamx'"):
        run(
            tiny_vit(),
            digits,
            TrainConfig(epochs=1, batch_size=40, warmup=0, optimizer="adamx"),
            tmp_path,
        )


def test_checkpoints_keep_the_newest_and_survive_damage(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    for epoch in (1, 2, 3):
        folder.save(epoch, {"epoch": epoch, "weights": torch.arange(5)})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "epoch-00002.pt",
        "epoch-00003.pt",
    ]
    newest = tmp_path / "epoch-00003.pt"
    newest.write_bytes(newest.read_bytes()[:100])  # cut short
    state = folder.load()
    assert state is not None
    assert state["epoch"] == 2


def test_checkpoints_never_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.mkdir, (tmp_path / "ran",))  # type: ignore[return-value]

    torch.save({"epoch": 1, "x": Evil()}, tmp_path / "epoch-00001.pt")
    assert CheckpointFolder(tmp_path).load() is None
    assert not (tmp_path / "ran").exists()


def test_bf16_and_channels_last_train(digits: Data, tmp_path: Path) -> None:
    module = ModelState.initialised(
        make_arch("resnet20_cifar", num_classes=10, image_size=32, args={"width": 4}), 0
    ).build()
    config = TrainConfig(
        epochs=1,
        batch_size=60,
        warmup=0,
        augment="flip",
        amp="bf16",
        channels_last=True,
    )
    result = run(module, digits, config, tmp_path)
    assert math.isfinite(result.rows[0]["train_loss"])
    assert all(
        v.dtype in (torch.float32, torch.int64) for v in module.state_dict().values()
    )


def test_workers_agree_only_where_there_is_something_to_decide(
    digits: Data,
    tmp_path: Path,
    quick_train: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class DecidesAtFive(Hook):
        def on_step(self, step: int) -> bool | None:
            return False if step == 5 else None

    asked: list[bool] = []

    def any_rank(flag: bool, device: torch.device) -> bool:
        asked.append(flag)
        return flag

    monkeypatch.setattr(distributed, "any_rank", any_rank)
    hooks = [Hook(), DecidesAtFive()]
    assert run(tiny_vit(), digits, quick_train, tmp_path, hooks=hooks).steps == 9
    assert asked == [False]


class Root(nn.Module):
    """Two heads while its root trains; dropout, BatchNorm and a child of its own beneath."""

    def __init__(self, distilled_training: bool) -> None:
        super().__init__()
        self.distilled_training = distilled_training
        self.inner = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))


@pytest.mark.parametrize("distilled", [True, False])
def test_layers_can_stay_in_eval_mode(distilled: bool) -> None:
    module = Root(distilled)
    set_training(module, train_mode=False)
    assert module.training == distilled
    assert not any(layer.training for layer in module.inner.modules())
    set_training(module, train_mode=True)
    assert all(layer.training for layer in module.modules())


def test_a_fit_in_eval_mode_draws_no_dropout_and_moves_no_statistics(
    digits: Data, tmp_path: Path, quick_train: TrainConfig
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.BatchNorm2d(3), nn.Dropout(0.9), nn.Flatten(), nn.Linear(3072, 10)
    )
    config = quick_train.model_copy(update={"train_mode": False})
    run(module, digits, config, tmp_path)
    norm = module[0]
    assert isinstance(norm, nn.BatchNorm2d)
    assert torch.equal(norm.running_mean, torch.zeros(3))  # type: ignore[arg-type]
    assert not torch.equal(norm.weight, torch.ones(3))


def test_recomputed_activations_change_no_bit(digits: Data, tmp_path: Path) -> None:
    """With dropout, whose masks are drawn again; and the model is handed back as it came."""
    seen = []
    for again in (False, True):
        module = tiny_vit()
        config = SHORT.model_copy(update={"grad_checkpointing": again})
        calls: list[int] = []
        module.blocks[0].register_forward_pre_hook(  # type: ignore[index, union-attr]
            lambda block, args, calls=calls: calls.append(1)
        )
        rows = run(module, digits, config, tmp_path / str(again)).rows
        assert not module.grad_checkpointing
        seen.append((len(calls), [row["train_loss"] for row in rows], bits(module)))
    assert seen[0][1:] == seen[1][1:]
    assert seen[1][0] > seen[0][0]


def test_models_that_cannot_recompute_are_named(digits: Data, tmp_path: Path) -> None:
    config = SHORT.model_copy(update={"grad_checkpointing": True})
    with pytest.raises(ValueError, match=r"grad_checkpointing: Linear cannot"):
        run(nn.Linear(2, 2), digits, config, tmp_path)
