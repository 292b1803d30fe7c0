"""Keys of the stage cache: those of version 0.1 still hold, and only what decides counts."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from compress import keys as keys_module
from compress.keys import computing, content_key, source_key, stage_key
from compress.pipeline import STAGES
from compress.selection.random_init import RandomInit
from compress.stage import Stage
from trainers.plugins import Plugin

TRAIN: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 40,
    "lr": 1e-3,
    "warmup": 0,
    "augment": "flip",
}
NVIT: dict[str, Any] = TRAIN | {
    "latency": "macs",
    "measure": False,
    "latency_target": 0.8,
    "interval_prune": 2,
    "prune_per_iter": 48,
    "groups": {"embed": 4, "heads": 1, "qk": 2, "v": 2, "mlp": 8},
}
WFN: dict[str, Any] = {
    "percentages": [0.5, 1.0],
    "first_epoch": 1,
    "fixing_epochs": 1,
    "batch_size": 40,
    "lr": 1e-3,
    "augment": "flip",
    "distance_allowed": 0.1,
}
# as version 0.1 wrote them, with these versions on one thread of a CPU
VERSIONS = {
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
    "timm": "1.0.31",
    "numpy": "2.4.6",
}
COMPUTE: dict[str, str | int] = {"device": "cpu", "threads": 1}
DATA = "ac2ade1d6f47ea59df2820236c7f789787cc7c5386cdfd35a09c3186e0384a4a"
VIT = "dc5200473a443586462175309ee73a48e012f268e205856f1ef27b9d5c5f01d7"
RESNET = "d5a8b71344e0bb821ee8659dc494f228287f825889adaf769bdd1229bebd5923"
LONG = [
    "49a7840dc4c22b950ea6f7b02d5fbff98019d7c3f294b8f50220b529a07a3743",
    "db9e674a8404646e4a23602eed1b376a1be6aac8b5641b894ead1c81365a6fc8",
    "ea867083835c027e5b998ed6417b905f7a86c8223858a8edc90282534e804f85",
    "0cb24032c51c2c9d0aabb42dac637ef5c648bb7108cde5a21de08ab29df8bc65",
    "73abe997b120b76bc2cfa1a510969afc54c46dfd320bba225601c4c3fac64689",
]
CHANGED = ("weight_selection",)
"""Methods whose default result is another one since."""
KMEANS = "f615bc3243a063594f45bece76ede03dfa2f008169ec8a9d5931171b7eafed1d"


def stage(kind: str, **config: Any) -> Stage:
    return STAGES[kind].model_validate(config)


def test_the_keys_of_version_0_1_still_hold() -> None:
    """A change of any default here makes every user's cache useless: raise the version."""
    pipeline = [
        ("finetune", stage("finetune", **TRAIN)),
        (
            "weight_selection",
            stage("weight_selection", args={"embed_dim": 16, "depth": 1}),
        ),
        ("nvit", stage("nvit", **NVIT)),
        ("finetune", stage("finetune", **TRAIN, distill={"teacher": "stage:teacher"})),
        ("wfn", stage("wfn", **WFN)),
    ]
    key = source_key(VIT, DATA, 3, COMPUTE, VERSIONS)
    for i, (kind, config) in enumerate(pipeline):
        found = stage_key(key, kind, config, [LONG[0]] if i == 3 else [])
        assert (found == LONG[i]) == (kind not in CHANGED), kind
        key = LONG[i]


def test_new_options_count_where_they_are_not_at_their_default() -> None:
    before = stage_key("k", "finetune", stage("finetune", **TRAIN), [])
    for name, default, other in [
        ("schedule_step", "step", "epoch"),
        ("cosine_span", "whole", "after_warmup"),
        ("scale_min_lr", True, False),
        ("train_mode", True, False),
    ]:
        same = stage("finetune", **TRAIN, **{name: default})
        changed = stage("finetune", **TRAIN, **{name: other})
        assert stage_key("k", "finetune", same, []) == before
        assert stage_key("k", "finetune", changed, []) != before
    distill = {"teacher": "source"}
    nested = [
        stage_key("k", "finetune", stage("finetune", **TRAIN, distill=given), [])
        for given in (distill, distill | {"base_loss_heads": "mean"})
    ]
    assert len({before, *nested}) == 3


def test_the_key_of_a_quantised_resnet_still_holds() -> None:
    config = stage("kmeans_quant", clusters=8, scope="network")
    before = source_key(RESNET, DATA, 0, COMPUTE, VERSIONS)
    assert stage_key(before, "kmeans_quant", config, []) == KMEANS


def test_keys_depend_on_order_and_content() -> None:
    assert content_key("a", "b") != content_key("b", "a")
    assert content_key({"x": 1, "y": 2}) == content_key({"y": 2, "x": 1})
    assert content_key("ab") != content_key("a", "b")


def test_the_source_of_a_plugin_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RandomInit()
    built_in = stage_key("k", "halve", config, [])
    found: list[str] = []
    for sha256 in ("1" * 64, "2" * 64):
        monkeypatch.setattr(
            keys_module.plugins,
            "plugin_of",
            lambda obj, sha256=sha256: (
                Plugin("halve.py", sha256) if obj is RandomInit else None
            ),
        )
        found.append(stage_key("k", "halve", config, []))
    assert len({built_in, *found}) == 3


def test_files_count_by_content(tmp_path: Path) -> None:
    class Reads(RandomInit):
        file: Path
        version: ClassVar[int] = 1

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "table").write_text("same")
    by_file = {
        stage_key("k", "reads", Reads(file=tmp_path / name / "table"), [])
        for name in ("a", "b")
    }
    by_folder = {
        stage_key("k", "reads", Reads(file=tmp_path / name), []) for name in ("a", "b")
    }
    assert len(by_file) == len(by_folder) == 1
    (tmp_path / "b" / "table").write_text("other")
    assert stage_key("k", "reads", Reads(file=tmp_path / "b"), []) not in by_folder


def test_how_workers_share_a_model_counts_where_there_are_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    alone = computing(cpu, "ddp")
    assert computing(cpu, "fsdp") == alone
    assert not {"workers", "strategy"} & alone.keys()
    monkeypatch.setattr(keys_module.distributed, "world_size", lambda: 2)
    assert computing(cpu, "ddp") == alone | {"workers": 2}
    assert computing(cpu, "fsdp") == alone | {"workers": 2, "strategy": "fsdp"}
