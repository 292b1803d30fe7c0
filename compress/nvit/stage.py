"""NViT (Yang et al., Global Vision Transformer Pruning with Hessian-Aware Saliency, CVPR 2023).

All structures of a ViT are pruned together, the least important first, where importance is
a second-order Taylor term less what the unit's latency is worth, until the estimated
latency meets a target; the zeroed model is then cut into a small dense one. The maths is in
`groups` (ranking), `importance`, `surgery` (masks and cut) and `cost` (latency).
"""

import hashlib
import json
import logging
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from compress.finetune import check_fit, task_objective, with_drop_rates
from compress.measure.latency_table import LatencyTable, num_threads
from compress.measure.options import Precision, RuntimeOptions
from compress.metrics import TEXT, Metric
from compress.nvit.cost import LatencyModel, MacsModel, ParamsModel
from compress.nvit.groups import GroupSizes, UnitLayout, block_table
from compress.nvit.measured import alternating, options_of
from compress.nvit.options import NvitOptions
from compress.nvit.pruner import Pruner, PruneRules
from compress.runtimes.interface import INTEGERS
from compress.stage import Context, Phase, Stage
from trainers.data.splits import DataInfo
from trainers.models.arch import Arch, ModelState
from trainers.models.parameters import BLOCK_DIMS
from trainers.training import distributed
from trainers.training.losses import KlObjective

_log = logging.getLogger(__name__)


@lru_cache(maxsize=2)
def _table_here(
    arch: str,
    device: torch.device,
    batch_size: int,
    dtype: Precision,
    tf32: bool,
    groups: GroupSizes,
    threads: int,
) -> LatencyTable:
    """A table measured now; the trials of one process share it, since it takes minutes."""
    from compress.measure.table_measurement import default_grid, measure_table

    model = Arch.from_json(json.loads(arch))
    _log.info(
        "nvit: measuring a latency table for %s at batch %d", model.name, batch_size
    )
    grid = default_grid(model.dims, groups=groups.model_dump())
    table = measure_table(
        model, device, batch_size=batch_size, dtype=dtype, tf32=tf32, grid=grid
    )
    table.check_monotone()
    return table


class Nvit(Stage, NvitOptions):
    """Prune a ViT or DeiT globally to a latency target, while it trains towards the
    unpruned model.
    """

    phase: ClassVar[Phase] = "prune"
    version: ClassVar[int] = 1
    finds_dims: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Yang et al., Global Vision Transformer Pruning with Hessian-Aware Saliency,"
        " CVPR 2023"
    )
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "latency_ratio_estimated",
            "estimated latency of the pruned model over that of the incoming one",
            "1",
        ),
        Metric(
            "pruned_units", "channels, heads, dimensions and hidden units removed", "1"
        ),
        Metric("prune_steps", "optimiser steps until pruning ended", "1"),
        Metric("stop_reason", "what ended pruning", TEXT),
        Metric(
            "pruned_ms_estimated",
            "latency of one batch of the pruned model, by the table",
            "ms",
            is_time=True,
        ),
        Metric(
            "pruned_ms_measured",
            "median time of one batch of the pruned model, on CUDA of the device alone",
            "ms",
            is_time=True,
        ),
        Metric(
            "unpruned_ms_measured",
            "median time of one batch of the incoming model, on CUDA of the device alone",
            "ms",
            is_time=True,
        ),
        Metric(
            "latency_ratio_measured",
            "pruned_ms_measured over unpruned_ms_measured",
            "1",
            is_time=True,
        ),
        Metric(
            "speedup_measured",
            "unpruned_ms_measured over pruned_ms_measured",
            "1",
            is_time=True,
        ),
        Metric(
            "not_faster",
            "1 where the pruned model was measured to be no faster, else 0",
            "1",
            is_time=True,
        ),
    )

    def teachers(self) -> list[tuple[str, Path | None]]:
        return (
            [(self.distill.teacher, self.distill.teacher_checkpoint)]
            if self.distill
            else []
        )

    def check(self, arch: Arch, data: DataInfo) -> Arch:
        """The architecture before pruning: what is left is at most this.

        Raises:
            ValueError: not a ViT, a fit shorter than an interval, groups too large, a table
                of other shapes.
        """
        from trainers.models.from_timm import dense_arch

        try:
            dense = dense_arch(arch)
        except ValueError as error:
            raise ValueError(
                f"{error}. The stages asp and wfn take other models"
            ) from error
        if any(dense.args.get("merge", ())):
            raise ValueError(
                "this model merges tokens, so that its blocks have different numbers of"
                " them; put token_merging after nvit"
            )
        check_fit(dense, self, data)
        images = min(self.images_per_epoch or data.num_train, data.num_train)
        steps = self.epochs * (images // self.batch_size)
        needed = self.interval_prune + (self.counting == "published")
        if steps < needed:
            raise ValueError(
                f"interval_prune: {self.epochs} epochs are {steps} steps, fewer than one"
                f" interval of {needed}, so that nothing would be pruned;"
                " raise epochs or lower interval_prune"
            )
        layout = UnitLayout.of(dense.dims, self.groups)
        if not bool((layout.sizes >= 2 * layout.groups).any()):
            raise ValueError(
                f"groups: {self.groups.model_dump()} leave nothing to prune in a model"
                f" of {dense.dims}; make them smaller"
            )
        if self.table is not None:
            blocks = block_table(layout.sizes).numpy()
            table = LatencyTable.read(self.table)
            table.check_covers(blocks, MacsModel.of(dense).num_tokens)
            self._share(table.model_ms(dense.dims["embed"], blocks[:, 1:]))
        return dense

    def _share(self, incoming_ms: float) -> float:
        """The target as a share of the incoming model's cost.

        Raises:
            ValueError: the incoming model already meets it.
        """
        if self.latency_target is not None:
            return self.latency_target
        assert self.target is not None
        share = self.target.limit(incoming_ms) / incoming_ms
        if share >= 1:
            raise ValueError(
                f"target: {self.target.describe()} is met by the incoming model, which"
                f" takes {incoming_ms:.3g} ms; lower it, or leave this stage out"
            )
        return share

    def run(self, model: ModelState, ctx: Context) -> ModelState:
        from compress.nvit.masked_vit import MaskedVit
        from trainers.models.from_timm import from_timm

        if "asp" in model.meta:
            raise ValueError(
                "pruning after `asp` would break its 2:4 pattern; put `asp` after `nvit`"
            )
        dense = from_timm(model)
        arch = with_drop_rates(dense.arch, self)
        student = MaskedVit.from_state(ModelState(arch, dense.weights)).to(ctx.device)
        latency, note = self._latency(dense.arch, ctx)
        layout = UnitLayout.of(dense.arch.dims, self.groups)
        blocks = block_table(layout.sizes).numpy()
        share = self._share(latency.model_ms(dense.arch.dims["embed"], blocks[:, 1:]))
        rules = self._rules(ctx.seed, share)
        images = partial(ctx.images, self.compensate_images)
        calibration = images if self.compensate else None
        pruner = Pruner(student, layout, latency, rules, ctx.device, calibration)
        objective = KlObjective(
            task_objective(self, self.distill, student, ctx),
            dense.build().to(ctx.device).requires_grad_(False),
            self.kl_loss_coeff,
            self.kl_tau,
            self.original_loss_coeff,
            active=lambda: pruner.pruned,
        )
        done = ctx.fit(student, objective, self, hooks=[pruner], name="prune")
        self._report(pruner, done.steps, ctx)
        small = pruner.dense(dense.arch)
        meta = {
            "stop_reason": pruner.stop_reason,
            "latency": note,
            "history": pruner.history,
        }
        small = ModelState(small.arch, small.weights, model.meta | {"nvit": meta})
        if self.measure:
            first = distributed.rank() == 0
            measured = self._measured(model, small, latency, ctx) if first else None
            ctx.report(**distributed.from_rank_0(measured))
        return small

    def _report(self, pruner: Pruner, steps: int, ctx: Context) -> None:
        """Report how pruning went; warn where it missed its target."""
        ratio = pruner.latency_ms() / pruner.dense_ms
        _log.info(
            "nvit: pruning ended (%s) at step %d, estimated cost %.3f of the incoming"
            " model's",
            pruner.stop_reason,
            steps,
            ratio,
        )
        if pruner.stop_reason != "latency_target":
            _log.warning(
                "nvit: pruning ended (%s) at %.3f of the incoming model's cost; the target"
                " is %.3f",
                pruner.stop_reason,
                ratio,
                pruner.rules.latency_target,
            )
        ctx.report(
            latency_ratio_estimated=ratio,
            pruned_units=pruner.num_pruned,
            prune_steps=steps,
            stop_reason=pruner.stop_reason,
        )

    def _rules(self, seed: int, share: float) -> PruneRules:
        shared = {
            name: getattr(self, name)
            for name in (
                "importance",
                "latency_regularization",
                "latency_unit",
                "importance_unit",
                "prune_per_iter",
                "counting",
                "interval_prune",
                "importance_reset",
                "importance_weights",
                "head_divisor",
                "budget",
                "student_eval",
                "norm_channels",
            )
        }
        return PruneRules(
            **shared,
            latency_target=share,
            momentum=self.importance_momentum,
            seed=seed,
        )

    def _latency(self, arch: Arch, ctx: Context) -> tuple[LatencyModel, dict[str, Any]]:
        """The model of latency, and what the result notes about it."""
        if self.latency != "measured":
            counted = MacsModel if self.latency == "macs" else ParamsModel
            return counted.of(arch), {"kind": self.latency}
        if self.table is not None:
            table = LatencyTable.read(self.table)
            table.warn_other_device(ctx.device)
        else:
            table = self._measured_table(arch, ctx)
        table = replace(table, below=self.table_below)
        digest = hashlib.sha256(table.block.tobytes()).hexdigest()
        fingerprint = asdict(table.fingerprint)
        if fingerprint["runtime"] == "torch":  # earlier versions did not note it
            del fingerprint["runtime"]
        return table, {
            "kind": "measured",
            "fingerprint": fingerprint,
            "sha256": digest,
        }

    def _measured_table(self, arch: Arch, ctx: Context) -> LatencyTable:

        def write(path: Path) -> None:
            _table_here(
                json.dumps(arch.to_json()),
                ctx.device,
                self.latency_batch,
                self.latency_dtype,
                self.tf32,
                self.groups,
                num_threads(ctx.device),
            ).write(path)

        return LatencyTable.read(ctx.write_once("latency.parquet", write))

    def _measured(
        self, model: ModelState, small: ModelState, latency: LatencyModel, ctx: Context
    ) -> dict[str, float]:
        """Latency of both models, passes alternating, in the table's runtime, at its batch and
        precision.
        """
        options = RuntimeOptions(
            batch_size=self.latency_batch, precision=self.latency_dtype
        )
        result: dict[str, float] = {}
        integers = False
        if isinstance(latency, LatencyTable):
            integers = latency.fingerprint.dtype == INTEGERS
            options = options_of(latency.fingerprint, options)
            blocks = np.array([small.arch.dims[name] for name in BLOCK_DIMS]).T
            result["pruned_ms_estimated"] = latency.model_ms(
                small.arch.dims["embed"], blocks
            )
        pruned_ms, incoming_ms = alternating(
            (small, model),
            ctx.data.info.image_size,
            options,
            ctx.device,
            integers=integers,
        )
        if pruned_ms >= incoming_ms:
            _log.warning(
                "nvit: the pruned model is not faster: %.2f ms a batch of %d, the"
                " incoming one %.2f ms",
                pruned_ms,
                options.batch_size,
                incoming_ms,
            )
        return result | {
            "pruned_ms_measured": pruned_ms,
            "unpruned_ms_measured": incoming_ms,
            "latency_ratio_measured": pruned_ms / incoming_ms,
            "speedup_measured": incoming_ms / pruned_ms,
            "not_faster": int(pruned_ms >= incoming_ms),
        }
