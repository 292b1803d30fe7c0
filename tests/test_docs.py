"""What the documentation shows works as shown."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from compress import pipeline as pipeline_module
from compress.cache import StageCache
from compress.pipeline import NamedStage, Pipeline, run_pipeline
from sweeps.check import check_spec
from sweeps.space.overrides import apply_overrides
from sweeps.spec.load import spec_from
from sweeps.spec.yaml_text import parse_yaml
from tests.compress.cases import CASES
from trainers.config import DataConfig, SourceConfig
from trainers.models.arch import ModelState

DOCS = Path(__file__).parent.parent / "docs"


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)


def test_the_example_spec_holds(tmp_path: Path) -> None:
    raw = parse_yaml(blocks("spec.md", "yaml")[0], "docs")[0]
    ModelState.initialised(
        pipeline_module.Arch(
            "timm",
            "vit_small_patch16_224",
            {"num_classes": 10, "patch_size": 4, "img_size": 32},
        ),
        0,
    ).save(tmp_path)
    overrides = [
        "data={dataset: digits}",
        f"source.checkpoint={tmp_path / 'model.safetensors'}",
        "resources={}",
        f"storage={tmp_path}",
    ]
    checked = check_spec(spec_from(apply_overrides(raw, overrides)))
    assert checked.space.dimensions[0].path == "stages.init"
    assert checked.num_configurations == 40


def test_the_example_method_works(
    tmp_path: Path,
    digits_config: DataConfig,
    data_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = ModuleType("magnitude_prune_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    cases: dict[str, dict[str, dict[str, float]]] = {}
    tables: list[dict[str, Any]] = [pipeline_module.STAGES, cases]
    page = "adding_a_method.md"
    for number, block in enumerate(blocks(page, "python"), start=1):
        is_entries = block.startswith(" ")  # of a dict that stands in another file
        text = f"entries = {{\n{block}}}" if is_entries else block
        exec(compile(text, f"{page}, block {number}", "exec"), module.__dict__)
        if is_entries:
            table = tables.pop(0)
            for key, value in module.entries.items():
                monkeypatch.setitem(table, key, value)
    assert not tables
    assert set(cases["magnitude_prune"]) == set(CASES["finetune"])
    for config in cases["magnitude_prune"].values():
        pipeline_module.STAGES["magnitude_prune"].model_validate(config)
    stage = NamedStage("prune", "magnitude_prune", module.MagnitudePrune(fraction=0.25))
    pipeline = Pipeline(
        SourceConfig(model="resnet20_cifar", args={"width": 4}),
        digits_config,
        (stage,),
        0,
    )
    result = run_pipeline(
        pipeline,
        cache=StageCache(tmp_path),
        data_cache=data_cache,
        device=torch.device("cpu"),
    )
    weight = result.model.weights["layer2.0.conv1.weight"]
    assert (weight == 0).sum() == weight.numel() // 4
    assert result.metrics["pruned_weights"] > 0


def test_links_lead_somewhere() -> None:
    root = DOCS.parent
    pages = [*root.glob("*.md"), *DOCS.glob("*.md"), *root.glob("examples/**/*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tests_that_hold_a_replication_exist() -> None:
    text = (DOCS / "replication.md").read_text()
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text))
    assert len(named) > 20
    root = DOCS.parent
    missing = [
        f"{file}::{name}"
        for file, name in sorted(named)
        if f"def {name}(" not in (root / file).read_text()
    ]
    assert not missing
