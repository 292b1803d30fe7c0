"""The metrics of a final model: described once, and given exactly where they exist."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress import metrics as metrics_module
from compress.evaluated import class_rows, recognised_images, shown_predictions
from compress.measure.options import MeasureConfig
from compress.metrics import (
    MEASUREMENTS,
    METRICS,
    TEXT,
    Conditions,
    FinalModel,
    Measurement,
    Metric,
    Value,
    existing_metrics,
    measure,
    missing_because,
    needs_quantized,
)
from compress.pipeline import STAGES
from compress.runtimes import onnxruntime
from compress.runtimes.interface import Floats
from trainers.data.splits import Data, Split, eval_batches
from trainers.models.arch import ModelState
from trainers.models.make import make_arch
from trainers.training import evaluate
from trainers.training.evaluate import Evaluation, evaluate_classes

QUICK = MeasureConfig(batch_size=2, warmup=0, repeats=3)


@pytest.fixture
def final(digits: Data) -> FinalModel:
    arch = make_arch("resnet20_cifar", num_classes=10, image_size=32, args={"width": 4})
    state = ModelState.initialised(arch, 0)
    return FinalModel(state, digits, torch.device("cpu"), QUICK, source=state)


def test_each_metric_is_described_once() -> None:
    of_model = [m for x in MEASUREMENTS.values() for m in x.metrics]
    of_stages = [m for stage in STAGES.values() for m in stage.metrics]
    assert len({m.name for m in of_model}) == len(of_model) == len(METRICS)
    assert not {m.name for m in of_model} & {m.name for m in of_stages}
    for metric in (*of_model, *of_stages):
        assert isinstance(metric, Metric)
        assert metric.description
        assert metric.unit
        assert not metric.description.endswith(".")
        assert metric.is_time or not metric.name.endswith("_ms")


def test_a_model_has_the_metrics_that_its_conditions_promise(final: FinalModel) -> None:
    final.state.weights.update(
        {name: value.round() for name, value in final.state.weights.items()}
    )
    found = measure(final, quantized=True)
    # 40 validation images do not show every class, so that there is no area under the curve
    without_meaning = {"auroc", "test_auroc"}
    assert set(existing_metrics(Conditions())) - set(found) <= without_meaning
    assert set(found) <= set(existing_metrics(Conditions()))
    for name, value in found.items():
        if METRICS[name].unit == TEXT:
            assert isinstance(value, str)
        else:
            assert math.isfinite(float(value))
    assert found["coded_ratio"] == found["model_bytes"] / found["coded_bytes"]
    assert found["peak_memory_mb"] > found["num_params"] * 4e-6


def test_without_their_condition_they_are_absent_and_say_why(final: FinalModel) -> None:
    final.options = QUICK.model_copy(update={"latency": False})
    found = measure(final, quantized=False)
    conditions = Conditions(latency=False, quantized=False)
    absent = set(existing_metrics(conditions)) - set(found)
    assert absent <= {"auroc", "test_auroc"}
    assert not {"latency_ms", "coded_bytes"} & set(found)
    assert missing_because("latency_ms", conditions) == "it needs measure.latency: true"
    assert "quantize stage" in str(missing_because("coded_bytes", conditions))
    assert "validation part" in str(
        missing_because("accuracy", Conditions(validation=False))
    )
    assert missing_because("accuracy", conditions) is None
    assert missing_because("no_such_metric", conditions) is None


def test_the_accuracies_of_the_classes_make_the_accuracy(final: FinalModel) -> None:
    found = measure(final, quantized=False)
    rows = class_rows(final)
    assert [row["class"] for row in rows] == list(final.data.class_names)
    assert [row["index"] for row in rows] == list(range(10))
    for prefix, size in (("", final.data.size("val")), ("test_", 60)):
        images = [row[f"{prefix}images"] for row in rows]
        shares = [row[f"{prefix}accuracy"] for row in rows]
        assert sum(images) == size
        assert [share is None for share in shares] == [n == 0 for n in images]
        right = sum(n * (share or 0) for n, share in zip(images, shares, strict=True))
        assert right / size == pytest.approx(found[f"{prefix}accuracy"])
    hits = recognised_images(final)
    assert set(hits) == {"accuracy", "runtime_accuracy", "test_accuracy"}
    for metric, each in hits.items():
        ones = bin(int(each["bits"], 16)).count("1")
        assert ones / each["images"] == pytest.approx(found[metric])


def test_each_split_is_evaluated_once(
    final: FinalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = []

    def counted(
        module: nn.Module, data: Data, split: Split, *rest: Any, **given: Any
    ) -> Evaluation:
        splits.append(split)
        return evaluate_classes(module, data, split, *rest, **given)

    monkeypatch.setattr(evaluate, "evaluate_classes", counted)
    final.data = replace(final.data, val=replace(final.data.val, rows=torch.empty(0)))
    measure(final, quantized=False)
    assert splits == ["test"]
    assert {row["images"] for row in class_rows(final)} == {None}
    assert sum(row["test_images"] for row in class_rows(final)) == 60
    shown = shown_predictions(final)
    assert shown is not None
    assert shown["part"] == "test"
    assert sum(images for _, _, images in shown["confusion"]) == 60


def test_no_image_is_kept_where_none_shall_be(final: FinalModel) -> None:
    final.options = final.options.model_copy(update={"samples": 0, "latency": False})
    measure(final, quantized=False)
    assert shown_predictions(final) is None


def test_other_ranks_take_part_only_where_all_must(final: FinalModel) -> None:
    found = measure(final, quantized=True, rank=1)
    assert "accuracy" in found
    assert set(found) <= {
        m.name for x in MEASUREMENTS.values() if x.on_every_rank for m in x.metrics
    }


def test_an_undeclared_metric_is_refused(
    final: FinalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def energy(final: FinalModel) -> Mapping[str, Value]:
        return {"energy_j": 1.0, "power_w": 2.0}

    joules = Measurement((Metric("energy_j", "energy of one batch", "J"),), energy)
    offers = {**MEASUREMENTS, "energy": joules}
    monkeypatch.setattr(metrics_module, "MEASUREMENTS", offers)
    with pytest.raises(ValueError, match="'energy' gave power_w, which its metrics"):
        measure(final, quantized=False)


def test_plugins_give_metrics_and_no_name_twice(
    final: FinalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def largest(final: FinalModel) -> Mapping[str, Value]:
        return {
            "largest_weight": max(float(w.max()) for w in final.state.weights.values())
        }

    offer = Measurement(
        (Metric("largest_weight", "largest of all weights", "1"),), largest
    )
    offers: dict[str, object] = {"largest": offer}
    monkeypatch.setattr(
        metrics_module.plugins,
        "merged",
        lambda group, ours, fits, rule: (
            {**ours, **offers} if group == "metrics" else dict(ours)
        ),
    )
    assert metrics_module.metrics()["largest_weight"].unit == "1"
    assert float(measure(final, quantized=False)["largest_weight"]) > 0
    offers["again"] = offer
    with pytest.raises(
        ValueError, match=r"'largest_weight' is given by .*'largest' and 'again'"
    ):
        metrics_module.metrics()


def test_further_runtimes_have_metrics_of_their_own(final: FinalModel) -> None:
    """Names, declared and given; the accuracy is that of the module in this runtime."""
    half = {"runtime": "torch", "precision": "bfloat16", "batch_size": 16}
    changed = {**QUICK.model_dump(), "also": {"half": half}}
    final.options = MeasureConfig.model_validate(changed)
    found = measure(final, quantized=False)
    assert found["runtime_accuracy"] == found["accuracy"]
    assert 0 <= found["half_runtime_accuracy"] <= 1
    assert found["half_latency_dtype"] == "bfloat16"
    assert found["half_latency_batch_size"] == 16
    assert found["half_throughput"] == pytest.approx(16e3 / found["half_latency_ms"])
    declared = existing_metrics(Conditions(runtimes=("", "half_")))
    assert {name for name in found if name.startswith("half_")} <= set(declared)
    for name in ("p95", "test", "Upper", "a-b"):
        with pytest.raises(ValueError, match="also"):
            MeasureConfig.model_validate({"also": {name: {}}})


def test_what_a_quantized_model_has_is_measured_where_it_is_compared(
    final: FinalModel,
) -> None:
    """The coded size of the float model is what one of a quantized model is compared with."""
    assert needs_quantized(["accuracy", "coded_bytes"])
    assert not needs_quantized(["accuracy", "model_bytes"])
    final.options = final.options.model_copy(update={"latency": False})
    found = measure(final, quantized=True)
    assert 0.5 < float(found["coded_ratio"]) < 2


@pytest.fixture
def in_onnxruntime(final: FinalModel) -> FinalModel:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    options = {**QUICK.model_dump(), "runtime": "onnxruntime", "threads": 1}
    final.options = MeasureConfig.model_validate(options)
    return final


def test_which_images_a_file_recognises_is_kept(in_onnxruntime: FinalModel) -> None:
    final = in_onnxruntime
    found = measure(final, quantized=False)
    hits = recognised_images(final)
    assert set(hits) == {"accuracy", "runtime_accuracy", "test_accuracy"}
    assert final.recognised["runtime_accuracy"].share == found["runtime_accuracy"]
    assert hits["runtime_accuracy"]["labels"] == hits["accuracy"]["labels"]


def test_the_file_can_be_evaluated_in_place_of_the_module(
    in_onnxruntime: FinalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that depends on predictions is the file's then: here of one that says the opposite."""

    class Opposite(onnxruntime.OnnxRuntimeSession):
        def infer(self, batch: Floats) -> Floats:
            return -super().infer(batch)

    final = in_onnxruntime
    final.options = final.options.model_copy(update={"evaluate_in": "runtime"})
    monkeypatch.setattr(onnxruntime, "OnnxRuntimeSession", Opposite)
    measure(final, quantized=False)
    with torch.no_grad():
        for split, prefix in (("val", ""), ("test", "test_")):
            images, labels = map(
                torch.cat,
                zip(*eval_batches(final.data, split, 64, final.device), strict=True),
            )
            wanted = (final.module(images).argmin(1) == labels).float().mean()
            assert final.metrics[f"{prefix}accuracy"] == pytest.approx(wanted.item())
    assert final.metrics["runtime_accuracy"] == final.metrics["accuracy"]


def test_trials_share_the_file_of_their_source(
    in_onnxruntime: FinalModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each writes its own; the source's is written again only where it is damaged."""
    written = []

    class Counting(onnxruntime.OnnxRuntime):
        def write(self, state: ModelState, *rest: Any, **given: Any) -> Path:
            written.append(state)
            return super().write(state, *rest, **given)

    monkeypatch.setattr(onnxruntime, "OnnxRuntime", Counting)
    first = in_onnxruntime
    source = ModelState.initialised(first.state.arch, 1)
    first = replace(first, source=source, source_files=tmp_path / "sources")
    second = replace(first, metrics={}, deployed={})
    for final in (first, second):
        assert measure(final, quantized=False)["latency_ratio"] > 0
    assert [state is source for state in written] == [False, True, False]
    [file] = (tmp_path / "sources").rglob("*.onnx")
    file.write_bytes(b"cut off")
    third = replace(first, metrics={}, deployed={})
    assert measure(third, quantized=False)["latency_ratio"] > 0
    assert [state is source for state in written[3:]] == [False, True]
