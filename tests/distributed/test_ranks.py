"""Two real processes, gloo: what must be equal on all ranks is, and one process is the
reference.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.config import AugmentConfig, DataConfig, SourceConfig, TrainConfig
from trainers.data.splits import load_data
from trainers.models.source import load_source
from trainers.training.epoch_metrics import EPOCH_METRICS
from trainers.training.evaluate import evaluate_classes

Ranks = Callable[..., list[Any]]

COMMON = """
from dataclasses import replace
from compress.cache import StageCache
from compress.pipeline import STAGES, NamedStage, Pipeline, run_pipeline
from trainers.config import DataConfig
from trainers.data.splits import load_data
from trainers.models.source import load_source
from trainers.training.evaluate import evaluate, evaluate_classes
from trainers.config import SourceConfig

TRAIN = dict(epochs=2, batch_size=40, lr=2e-3, lr_scaling="unscaled", warmup=0, augment="none")
RESNET = SourceConfig(model="resnet20_cifar", args={"width": 4})
VIT = SourceConfig(model="vit_tiny_patch16_224", args={"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2})
data, data_cache = DataConfig(dataset="digits", limit=160, limit_test=61, val_fraction=0.25), Path(os.environ["SWEEPS_DATA_CACHE"])
CPU = torch.device("cpu")

def first_image(images):
    return replace(images, rows=images.rows[:1], labels=images.labels[:1])

def run(kind, config, source=RESNET, cache="cache", on_epoch=None):
    rows = []
    stage = NamedStage(kind, kind, STAGES[kind](**config))
    result = run_pipeline(Pipeline(source, data, (stage,), 0), cache=StageCache(folder / cache),
                          data_cache=data_cache, device=CPU, on_epoch=on_epoch or rows.append)
    return result, rows

def vit():
    micro = None if world == 2 else 20
    result, rows = run("finetune", TRAIN | {"max_batch_per_worker": micro, "clip_grad": 1.0}, VIT)
    return {"rows": [[r["train_loss"], r["accuracy"], r["loss"]] for r in rows],
            "norm": float(sum(v.double().pow(2).sum() for v in result.model.weights.values()))}
"""
TWO = (
    COMMON
    + """
import hashlib
import compress.wfn.fixing as wfn

result, rows = run("finetune", TRAIN)
again, rows_again = run("finetune", TRAIN)
scores = evaluate(result.model.build(), load_data(data, data_cache), "test", CPU)
fit = {"hash": result.model.hash(), "rows": [[r["train_loss"], r["accuracy"]] for r in rows], "scores": scores,
       "cached": [s.cached for s in again.stages], "again": again.model.hash(), "replayed": len(rows_again)}

evaluated = [tuple(evaluate_classes(load_source(RESNET, num_classes=10, image_size=32, seed=5).build(),
                                   replace(opened, test=part), "test", CPU, batch_size=16))
             for opened in [load_data(data, data_cache)] for part in (opened.test, first_image(opened.test))]

seen, original = [], wfn.cluster
def spy(*args, **options):
    found = original(*args, **options)
    seen.append(hashlib.sha256(found.values.numpy().tobytes() + found.fixed.numpy().tobytes()).hexdigest())
    return found
wfn.cluster = spy
config = {k: v for k, v in TRAIN.items() if k != "epochs"} | {"percentages": (0.4, 0.8, 1.0), "fixing_epochs": 1}
fixed, _ = run("wfn", config | {"distance_allowed": 0.05})

class Killed(Exception):
    pass
def killed_after_two(row):
    killed_after_two.seen += 1
    if killed_after_two.seen == 2:
        raise Killed
killed_after_two.seen = 0
try:
    run("finetune", TRAIN | {"epochs": 3}, cache="killed", on_epoch=killed_after_two)
except Killed:
    pass
dist.barrier()
resumed, resumed_rows = run("finetune", TRAIN | {"epochs": 3}, cache="killed")
whole, _ = run("finetune", TRAIN | {"epochs": 3}, cache="whole")
give({"fit": fit, "evaluated": evaluated, "wfn": {"seen": seen, "hash": fixed.model.hash(), "metrics": fixed.metrics}, "vit": vit(),
      "resumed": [resumed.model.hash(), whole.model.hash(), len(resumed_rows)]})
"""
)
ONE = COMMON + "give(vit())"


@pytest.fixture(scope="module")
def two(ranks: Ranks) -> list[dict[str, Any]]:
    """What each of two ranks saw."""
    return ranks(TWO, 2)


def test_all_ranks_end_alike(two: list[dict[str, Any]]) -> None:
    assert two[0] == two[1]


def test_a_fit_counts_every_image_once_and_is_taken_from_the_cache(
    two: list[dict[str, Any]],
) -> None:
    fit = two[0]["fit"]
    right = fit["scores"]["accuracy"] * 61
    assert right == pytest.approx(round(right), abs=1e-9)
    assert fit["cached"] == [True]
    assert fit["again"] == fit["hash"]
    assert fit["replayed"] == 2


def test_every_epoch_metric_is_that_of_one_process(
    two: list[dict[str, Any]], data_cache: Path
) -> None:
    """On 61 images, and on one alone, of which the second rank has none."""
    config = DataConfig(dataset="digits", limit=160, limit_test=61, val_fraction=0.25)
    data = load_data(config, data_cache)
    source = SourceConfig(model="resnet20_cifar", args={"width": 4})
    module = load_source(source, num_classes=10, image_size=32, seed=5).build()
    first = replace(data.test, rows=data.test.rows[:1], labels=data.test.labels[:1])
    for part, (metrics, by_class) in zip(
        (data.test, first), two[0]["evaluated"], strict=True
    ):
        alone = evaluate_classes(
            module, replace(data, test=part), "test", torch.device("cpu")
        )
        assert metrics == pytest.approx(alone.metrics, abs=1e-6)
        assert by_class == alone.class_accuracy
    assert set(two[0]["evaluated"][0][0]) == set(EPOCH_METRICS) - {"train_loss"}
    assert "auroc" not in two[0]["evaluated"][1][0]


def test_wfn_assigns_alike_in_every_iteration(two: list[dict[str, Any]]) -> None:
    assert len(set(two[0]["wfn"]["seen"])) == 3
    assert two[0]["wfn"] == two[1]["wfn"]


def test_killed_and_resumed_is_uninterrupted(two: list[dict[str, Any]]) -> None:
    resumed, whole, rows = two[0]["resumed"]
    assert resumed == whole
    assert rows == 3


def test_two_ranks_are_one_process_that_accumulates(
    two: list[dict[str, Any]], ranks: Ranks
) -> None:
    """Without batch norm: the same images in the same global batches give the same
    gradient, up to rounding.
    """
    (alone,) = ranks(ONE, 1)
    assert two[0]["vit"]["norm"] == pytest.approx(alone["norm"], rel=1e-5)
    for ours, reference in zip(two[0]["vit"]["rows"], alone["rows"], strict=True):
        assert ours == pytest.approx(reference, rel=1e-3)


def test_batches_that_do_not_divide_are_refused() -> None:
    config = TrainConfig(epochs=1, batch_size=33, augment=AugmentConfig(preset="none"))
    with pytest.raises(ValueError, match="batch_size 33 does not divide by 2 workers"):
        config.accumulation(2)
