"""The stage `nvit`: why it ends, what it keeps at zero, what it records, and what
fine-tuning adds.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.finetune import Finetune
from compress.measure import table_measurement
from compress.measure.latency_table import Fingerprint, LatencyTable
from compress.nvit import measured
from compress.nvit import stage as nvit_module
from compress.nvit.cost import MacsModel
from compress.nvit.groups import UnitLayout, block_table
from compress.nvit.masked_vit import MaskedVit
from compress.nvit.pruner import Pruner
from compress.nvit.stage import Nvit
from compress.nvit.surgery import MaskedLayerNorm, cut
from compress.stage import Context
from trainers.data.splits import Data
from trainers.models.arch import Arch, ModelState
from trainers.models.from_timm import dense_arch, from_timm
from trainers.models.make import make_arch
from trainers.models.parameters import DIMENSIONS
from trainers.training.losses import TaskObjective

CPU = torch.device("cpu")
TRAIN: dict[str, Any] = {
    "batch_size": 40,
    "lr": 1e-3,
    "lr_scaling": "unscaled",
    "augment": "none",
}
GROUPS = {"embed": 4, "heads": 1, "qk": 2, "v": 2, "mlp": 8}
QUICK: dict[str, Any] = TRAIN | {
    "latency": "macs",
    "measure": False,
    "latency_target": 0.7,
    "epochs": 12,
    "interval_prune": 1,
    "prune_per_iter": 96,
    "groups": GROUPS,
    "kl_loss_coeff": 100.0,
}


def source(name: str = "vit_tiny_patch16_224", **args: Any) -> ModelState:
    args = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2} | args
    return ModelState.initialised(
        make_arch(name, num_classes=10, image_size=32, args=args), 3
    )


def context(
    data: Data, workdir: Path, teacher: ModelState | None = None, seed: int = 11
) -> Context:
    def find(name: str, checkpoint: Path | None) -> ModelState:
        assert teacher is not None
        return teacher

    torch.manual_seed(seed)
    return Context(data, CPU, seed, workdir, find)


def prune(
    data: Data, workdir: Path, model: ModelState | None = None, **changes: Any
) -> tuple[ModelState, Context]:
    ctx = context(data, workdir)
    return Nvit(**QUICK | changes).run(model or source(), ctx), ctx


def dims_of(arch: Arch) -> np.ndarray:
    return block_table(
        UnitLayout.of(dense_arch(arch).dims, nvit_module.GroupSizes()).sizes
    ).numpy()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "latency_target"),
        ({"latency_target": 0.01, "budget": 100}, "budget"),
        ({"latency_target": 0.01, "prune_per_iter": 480}, "floors"),
        ({"latency_target": 0.01, "epochs": 1}, "epochs"),
    ],
)
def test_every_end_has_its_reason(
    changes: dict[str, Any], reason: str, digits: Data, tmp_path: Path
) -> None:
    result, ctx = prune(digits, tmp_path, **changes)
    note = result.meta["nvit"]
    assert note["stop_reason"] == ctx.reported["stop_reason"] == reason
    dims, whole = result.arch.dims, dense_arch(source().arch).dims
    units = [
        d["embed"] + sum(sum(d[name]) for name in DIMENSIONS[1:]) for d in (whole, dims)
    ]
    assert (
        ctx.reported["pruned_units"]
        == units[0] - units[1]
        == note["history"][-1]["units"]
    )
    model = MacsModel.of(result.arch)
    now, before = (
        model.model_ms(int(d[0, 0]), d[:, 1:])
        for d in (dims_of(result.arch), dims_of(source().arch))
    )
    assert (
        ctx.reported["latency_ratio_estimated"]
        == note["history"][-1]["latency_ratio"]
        == pytest.approx(now / before)
    )
    if reason == "latency_target":
        assert now / before <= 0.7
        assert all(row["latency_ratio"] > 0.7 for row in note["history"][:-1])
    if reason == "budget":
        assert 100 - max(GROUPS.values()) < units[0] - units[1] <= 100
    if reason == "floors":
        assert dims == {
            "embed": 4,
            "heads": [1, 1],
            "qk": [2, 2],
            "v": [2, 2],
            "mlp": [8, 8],
        }


def test_each_interval_is_recorded(digits: Data, tmp_path: Path) -> None:
    result, ctx = prune(
        digits,
        tmp_path,
        interval_prune=2,
        prune_per_iter=24,
        epochs=3,
        latency_target=0.1,
    )
    history = result.meta["nvit"]["history"]
    assert [row["step"] for row in history] == [2, 4, 6, 8]
    assert ctx.reported["prune_steps"] == 9
    assert {name: history[-1][name] for name in DIMENSIONS} == result.arch.dims
    # 24 / 16 groups an interval: 1, 2, 1, 2
    sizes = [GROUPS[name] for name in DIMENSIONS]

    def groups_left(row: dict[str, Any]) -> float:
        flat = [row["embed"], *(sum(row[name]) for name in DIMENSIONS[1:])]
        return sum(n / g for n, g in zip(flat, sizes, strict=True))

    left = [
        groups_left(dense_arch(source().arch).dims),
        *(groups_left(row) for row in history),
    ]
    assert np.diff(left).tolist() == [-1, -2, -1, -2]


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"]
)
def test_zeroed_units_stay_zero_and_the_cut_is_what_was_trained(
    name: str, digits: Data, tmp_path: Path
) -> None:
    stage = Nvit(
        **QUICK
        | {
            "epochs": 4,
            "interval_prune": 2,
            "clip_grad": 1.0,
            "latency_target": 0.1,
        }
    )
    state = from_timm(source(name))
    student, layout = (
        MaskedVit.from_state(state),
        UnitLayout.of(state.arch.dims, stage.groups),
    )
    pruner = Pruner(
        student, layout, MacsModel.of(state.arch), stage._rules(0, 0.1), CPU
    )
    # ends two steps after the last pruning, so that optimiser steps with momentum follow it
    context(digits, tmp_path).fit(
        student,
        TaskObjective(0.1),
        stage.model_copy(update={"epochs": 3}),
        hooks=[pruner],
    )
    assert pruner.history[-1]["step"] == 8
    removed, parts = 0, layout.split(pruner.keep)
    student_weights = student.state_dict()
    for b in range(2):
        assert not student_weights[f"blocks.{b}.mlp.fc1.weight"][~parts["mlp"][b]].any()
        assert not student_weights[f"blocks.{b}.mlp.fc2.weight"][
            :, ~parts["mlp"][b]
        ].any()
        assert (
            not student_weights[f"blocks.{b}.attn.v.bias"]
            .view(2, 16)[:, ~parts["v"][b]]
            .any()
        )
        assert (
            not student_weights[f"blocks.{b}.attn.k.weight"]
            .view(2, 16, 32)[:, ~parts["qk"][b]]
            .any()
        )
        removed += int((~parts["mlp"][b]).sum())
    assert not student_weights["pos_embed"][..., ~parts["embed"]].any()
    assert removed
    small = cut(
        ModelState.from_module(state.arch, student), layout, pruner.keep
    ).build()
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(
            small(images), student.eval()(images), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_masked_norm_by_one_kernel(device: str) -> None:
    """On a GPU it is torch's layer norm of the centred input, with other weights and eps;
    values and gradients at kept channels are those of a norm of these channels alone.
    """
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(48, generator=generator) < 0.6
    norm = MaskedLayerNorm(48, eps=1e-2).to(device)
    norm.set_keep(keep.to(device))
    small = torch.nn.LayerNorm(int(keep.sum()), eps=1e-2).to(device)
    with torch.no_grad():
        for mine, theirs in zip(norm.parameters(), small.parameters(), strict=True):
            theirs.copy_(torch.randn(len(theirs), generator=generator))
            mine.zero_()[keep] = theirs
    x = torch.randn(5, 7, 48, generator=generator).to(device).mul_(keep.to(device))
    x = (x + 0.5 * keep.to(device)).requires_grad_()
    cut_x = x.detach()[..., keep].requires_grad_()
    if device == "cpu":
        out = norm.of_centred((x - x.sum(-1, keepdim=True) / keep.sum()) * norm.keep)
    else:
        out = norm(x)
    expected = small(cut_x)
    torch.testing.assert_close(out[..., keep], expected, rtol=1e-4, atol=1e-5)
    assert not out[..., ~keep].any()
    pull = torch.randn(5, 7, 48, generator=generator).to(device)
    out.backward(pull)
    expected.backward(pull[..., keep])
    assert x.grad is not None
    torch.testing.assert_close(x.grad[..., keep], cut_x.grad, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(norm.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(mine.grad[keep], theirs.grad, rtol=1e-4, atol=1e-5)


def test_importances_differ_and_are_deterministic(digits: Data, tmp_path: Path) -> None:
    results = {
        kind: (
            prune(digits, tmp_path / kind, importance=kind, latency_regularization=1.0)[
                0
            ].arch.dims
        )
        for kind in ("nvit", "taylor", "magnitude", "random")
    }
    again, _ = prune(digits, tmp_path / "again", importance="random")
    assert again.arch.dims == results["random"]
    assert len({str(dims) for dims in results.values()}) == 4


def test_a_large_eta_takes_what_saves_most(digits: Data, tmp_path: Path) -> None:
    """With latency alone, the first group is that of the largest savings."""
    result, _ = prune(
        digits, tmp_path, latency_regularization=1e9, prune_per_iter=16, epochs=1
    )
    model, dims = MacsModel.of(dense_arch(source().arch)), dims_of(source().arch)
    saved = model.gradient(dims)
    groups = np.array([GROUPS[name] for name in DIMENSIONS])
    score = np.concatenate([[saved[:, 0].sum()], saved[:, 1:].max(0)]) * groups
    largest = DIMENSIONS[int(score.argmax())]
    first, whole = result.meta["nvit"]["history"][0], dense_arch(source().arch).dims
    assert [name for name in DIMENSIONS if first[name] != whole[name]] == [largest]


def test_eval_mode_and_kl_begin_with_the_first_pruning(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool, bool]] = []
    call = nvit_module.KlObjective.__call__

    def spy(self: Any, model: Any, images: Any, targets: Any) -> Any:
        seen.append((self.active(), model.training, model.blocks.training))
        return call(self, model, images, targets)

    monkeypatch.setattr(nvit_module.KlObjective, "__call__", spy)
    options = {
        "interval_prune": 2,
        "epochs": 2,
        "latency_target": 0.1,
        "drop_path": 0.2,
    }
    prune(digits, tmp_path / "a", **options)
    assert seen == [(False, True, True)] * 2 + [(True, True, False)] * 4
    seen.clear()
    prune(digits, tmp_path / "b", student_eval=False, **options)
    assert seen == [(False, True, True)] * 2 + [(True, True, True)] * 4


def test_stages_compose_and_take_two_teachers(digits: Data, tmp_path: Path) -> None:
    model = source("deit_tiny_distilled_patch16_224")
    cnn = ModelState.initialised(
        make_arch("resnet20_cifar", num_classes=10, image_size=32, args={"width": 4}), 0
    )
    distill = {"teacher": "source", "kind": "hard", "alpha": 0.5}
    stage = Nvit(**QUICK | {"distill": distill, "latency_target": 0.8})
    first = stage.run(model, context(digits, tmp_path / "1", cnn))
    second = stage.run(first, context(digits, tmp_path / "2", cnn))
    ratio = second.meta["nvit"]["history"][-1]["latency_ratio"]
    assert ratio <= 0.8
    assert stage.teachers() == [("source", None)]
    assert (
        second.arch.args == first.arch.args
    )  # the scale of the original head dimension, too
    tune = Finetune(
        epochs=1,
        warmup=0,
        distill=distill,
        kl_teacher="stage:teacher",
        kl_loss_coeff=10.0,
        **TRAIN,
    )
    assert tune.teachers() == [("source", None), ("stage:teacher", None)]
    tuned = tune.run(second, context(digits, tmp_path / "3", cnn))
    assert tuned.arch == second.arch
    assert tuned.meta == second.meta


def test_scratch_forgets_weights_and_keeps_the_shape(
    digits: Data, tmp_path: Path
) -> None:
    pruned, _ = prune(digits, tmp_path / "prune")
    stage = Finetune(epochs=0, scratch=True, warmup=0, **TRAIN)
    fresh = stage.run(pruned, context(digits, tmp_path / "a"))
    assert fresh.arch == pruned.arch
    assert all(
        torch.equal(fresh.weights[k], v)
        for k, v in ModelState.initialised(pruned.arch, 11).weights.items()
    )
    assert (
        Finetune(epochs=0, warmup=0, **TRAIN)
        .run(pruned, context(digits, tmp_path / "b"))
        .hash()
        == pruned.hash()
    )


# --- latency
# ------------------------------------------------------------


def table_of(arch: Arch, **changes: Any) -> LatencyTable:
    """Milliseconds that are the multiply-accumulates of a block, on a coarse grid up to
    this model's dimensions.
    """
    dims = dims_of(arch).max(0)
    axes = tuple(
        np.unique([max(1, size // 4), max(1, size // 2), size]) for size in dims
    )
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    model = MacsModel.of(dense_arch(arch))
    block = model.block_ms(grid.reshape(-1, 5)).reshape(grid.shape[:-1]) * 1000
    ends = np.zeros(len(axes[0]))
    fingerprint = Fingerprint(
        device_name="none", batch_size=2, dtype="float32", num_tokens=model.num_tokens
    )
    return LatencyTable(axes, block, ends, ends, replace(fingerprint, **changes))


def test_a_given_table_is_read_noted_and_refused_for_other_shapes(
    digits: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "table.parquet"
    table_of(source().arch).write(path)
    options = {"latency": "measured", "table": path}
    result, ctx = prune(digits, tmp_path / "work", **options)
    note = result.meta["nvit"]["latency"]
    assert (note["kind"], note["fingerprint"]["device_name"]) == ("measured", "none")
    assert "measured on none" in caplog.text
    now, before = (
        LatencyTable.read(path).model_ms(int(d[0, 0]), d[:, 1:])
        for d in (dims_of(result.arch), dims_of(source().arch))
    )
    assert ctx.reported["latency_ratio_estimated"] == pytest.approx(now / before)
    stage = Nvit(**QUICK | options)
    assert (
        stage.check(source().arch, digits.info).dims == dense_arch(source().arch).dims
    )
    with pytest.raises(ValueError, match="covers embed from 8 to 32, the model has 64"):
        stage.check(source(embed_dim=64).arch, digits.info)
    with pytest.raises(ValueError, match=r"5 tokens .* the model has 17"):
        stage.check(source(patch_size=8).arch, digits.info)


def test_latency_terms_are_finite_differences_of_the_table(digits: Data) -> None:
    """One unit fewer of a structure, everything else as it is; the embedding's over all blocks."""
    state = from_timm(source())
    table, stage = (
        table_of(state.arch),
        Nvit(**QUICK | {"latency_regularization": 0.01}),
    )
    layout = UnitLayout.of(state.arch.dims, stage.groups)
    pruner = Pruner(
        MaskedVit.from_state(state), layout, table, stage._rules(0, 0.1), CPU
    )
    pruner.keep[
        torch.randperm(layout.num_units, generator=torch.Generator().manual_seed(0))[
            :60
        ]
    ] = False
    counts = layout.counts(pruner.keep)
    scores = pruner.scores()  # no step was scored: the importance is 0
    now = table.block_ms(block_table(counts).numpy()).sum()
    checked = 0
    for s, count in enumerate(counts.tolist()):
        fewer = counts.clone()
        fewer[s] -= 1
        saved = (
            now - table.block_ms(block_table(fewer).numpy()).sum()
        ) / pruner.dense_ms
        if count < 2 * int(layout.groups[s]):
            saved = 0.0
        mine = scores[layout.structure == s]
        assert torch.allclose(
            mine, torch.full_like(mine, -0.01 * saved), rtol=1e-9, atol=1e-15
        )
        checked += saved > 0
    assert checked >= 5


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e6])
def test_shares_of_importance_forget_the_scale_of_the_loss(
    digits: Data, scale: float
) -> None:
    """I/ΣI − η · credit, ΣI over what is left; where no gradient was seen, credit alone."""
    state = from_timm(source())
    stage = Nvit(**QUICK | {"latency_regularization": 0.01, "importance_unit": "share"})
    layout = UnitLayout.of(state.arch.dims, stage.groups)

    def pruner() -> Pruner:
        made = Pruner(
            MaskedVit.from_state(state),
            layout,
            table_of(state.arch),
            stage._rules(0, 0.1),
            CPU,
        )
        made.keep[:24] = False
        return made

    seen = torch.rand(
        layout.num_units,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(0),
    )
    scored = pruner()
    scored.meter.add(scale * seen)
    scores, credit = scored.scores(), pruner().scores()  # the second saw no step
    assert torch.allclose(
        scores - credit, seen / seen[24:].sum(), rtol=1e-9, atol=1e-12
    )


def test_a_table_is_measured_once_and_survives_a_kill(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    nvit_module._table_here.cache_clear()

    def measured(arch: Arch, device: torch.device, **options: Any) -> LatencyTable:
        calls.append(options)
        return table_of(arch)

    monkeypatch.setattr(table_measurement, "measure_table", measured)
    monkeypatch.setattr(
        Context,
        "fit",
        lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt),
    )
    with pytest.raises(KeyboardInterrupt):
        prune(digits, tmp_path, latency="measured", latency_batch=7)
    monkeypatch.undo()
    monkeypatch.setattr(table_measurement, "measure_table", measured)
    result, _ = prune(digits, tmp_path, latency="measured", latency_batch=7)
    assert result.meta["nvit"]["stop_reason"] == "latency_target"
    prune(
        digits,
        tmp_path / "another trial",
        latency="measured",
        latency_batch=7,
        latency_target=0.8,
    )
    assert len(calls) == 1
    prune(digits, tmp_path / "another batch", latency="measured", latency_batch=6)
    assert len(calls) == 2
    nvit_module._table_here.cache_clear()
    assert calls[0]["batch_size"] == 7
    assert calls[0]["grid"]["mlp"][0] == 8


@pytest.mark.parametrize("slower", [False, True])
def test_both_models_are_measured_and_a_slower_one_is_named(
    slower: bool,
    digits: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[Any] = []

    def fake(modules: Any, images: torch.Tensor) -> list[float]:
        seen.extend([modules, images])
        with torch.inference_mode():
            assert all(module(images).shape == (6, 10) for module in modules)
        return [4.0, 2.0] if slower else [2.0, 3.0]

    monkeypatch.setattr(measured, "alternating_latency", fake)
    with caplog.at_level(logging.WARNING):
        _, ctx = prune(digits, tmp_path, measure=True, latency_batch=6)
    assert ctx.reported["speedup_measured"] == (0.5 if slower else 1.5)
    assert ctx.reported["latency_ratio_measured"] == pytest.approx(
        2.0 if slower else 2 / 3
    )
    assert ctx.reported["not_faster"] == int(slower)
    assert ("not faster" in caplog.text) == slower
    assert sum(p.numel() for p in seen[0][0].parameters()) < sum(
        p.numel() for p in seen[0][1].parameters()
    )


def test_a_real_measurement_gives_positive_times(digits: Data, tmp_path: Path) -> None:
    _, ctx = prune(digits, tmp_path, measure=True, latency_batch=2)
    assert ctx.reported["pruned_ms_measured"] > 0
    assert ctx.reported["unpruned_ms_measured"] > 0
    declared = {metric.name for metric in Nvit.metrics}
    assert declared == set(ctx.reported) | {"pruned_ms_estimated"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema": {"decay": 0.9}}, "ema: NViT does not keep averaged weights"),
        ({"table": Path("x.parquet")}, "with latency 'macs' no table is read"),
        ({"latency_unit": "seconds"}, "'seconds' needs latency 'measured'"),
        ({"latency_target": 1.0}, "less than 1"),
    ],
)
def test_options_that_do_not_fit_together(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Nvit(**QUICK | changes)


def test_models_and_fits_that_do_not_fit(digits: Data, tmp_path: Path) -> None:
    for changes, message in [
        (
            {"epochs": 2, "interval_prune": 7},
            "2 epochs are 6 steps, fewer than one interval of 7",
        ),
        (
            {"groups": {"embed": 17, "heads": 2, "qk": 9, "v": 9, "mlp": 65}},
            "leave nothing to prune",
        ),
        (
            {"table": tmp_path / "none.parquet", "latency": "measured"},
            "not a latency table",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            Nvit(**QUICK | changes).check(source().arch, digits.info)
    resnet = make_arch("resnet20_cifar", num_classes=10, image_size=32)
    with pytest.raises(ValueError, match="needed is a ViT or DeiT"):
        Nvit(**QUICK).check(resnet, digits.info)
    sparse = replace(source(), meta={"asp": {"pattern": "2:4", "layers": []}})
    with pytest.raises(ValueError, match="put `asp` after `nvit`"):
        prune(digits, tmp_path, sparse)
