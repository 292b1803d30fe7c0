"""What the documentation shows works as shown."""

import importlib.util
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
from tests.optional import needs
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


@needs("nncf", "onnxruntime")
def test_the_spec_of_the_readme_holds(tmp_path: Path) -> None:
    readme = (DOCS.parent / "README.md").read_text("utf-8")
    text = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)[0]
    assert len(text.splitlines()) == 10
    ours = ["data={dataset: digits}", "source.pretrained=false", f"storage={tmp_path}"]
    checked = check_spec(
        spec_from(apply_overrides(parse_yaml(text, "README")[0], ours))
    )
    assert checked.num_configurations == 4


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


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and the docs site make them."""
    headings = re.findall(r"^#+ +(.*)$", without_code(text), re.MULTILINE)
    words = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {
        re.sub(r"[^\w\- ]", "", text).strip().lower().replace(" ", "-")
        for text in words
    }


def test_links_lead_somewhere() -> None:
    root = DOCS.parent
    pages = [*root.glob("*.md"), *DOCS.glob("*.md"), *root.glob("examples/**/*.md")]
    for page in pages:
        text = without_code(page.read_text("utf-8"))
        for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)", text):
            place = page.parent / target if target else page
            assert place.exists(), f"{page.name}: {target}"
            if anchor:
                there = anchors(place.read_text("utf-8"))
                assert anchor in there, f"{page.name}: {target}#{anchor}"


@pytest.fixture(scope="module")
def site() -> ModuleType:
    """The hook that makes the docs site; no builder is needed."""
    place = DOCS.parent / "scripts" / "docs_site.py"
    spec = importlib.util.spec_from_file_location("docs_site", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_has_what_it_links(site: ModuleType) -> None:
    """The navigation and all links, as they are turned for the site."""
    root = DOCS.parent
    own = {
        page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*") if page.is_file()
    }
    pages = own | set(site.ADDED.values()) | set(site.GENERATED)
    assert len(pages) == len(own) + len(site.ADDED) + len(site.GENERATED)
    navigation = re.findall(
        r"^ +- (\S+\.md)$", (root / "mkdocs.yml").read_text(), re.MULTILINE
    )
    assert set(navigation) <= pages
    assert len(navigation) == len(set(navigation))
    for file in [
        *site.ADDED,
        *(f"docs/{page}" for page in own if page.endswith(".md")),
    ]:
        text = site.turned_links(without_code((root / file).read_text("utf-8")), file)
        targets = re.findall(r"\]\((?!\w+:)([^)#\s]+)", text)
        assert set(targets) <= pages, file


def test_links_out_of_the_site_become_names(site: ModuleType) -> None:
    text = "[a](docs/spec.md#names) [b](examples/plugin) ![c](docs/report.png) [d](LICENSE)"
    turned = "[a](spec.md#names) [b](example_plugin.md) ![c](report.png) d (`LICENSE`)"
    assert site.turned_links(text, "README.md") == turned
    assert (
        site.turned_links("[e](../CHANGELOG.md)", "docs/spec.md") == "[e](changelog.md)"
    )
    assert site.turned_links("[`f.py`](../f.py)", "docs/spec.md") == "`f.py`"


def test_the_generated_references(site: ModuleType) -> None:
    assert "\n| `image_size` | int ≥ 4 | `null` | px |" in site.options_page()
    assert "\n## nvit\n" in site.methods_page()


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


def test_recordings_fit_into_their_terminal() -> None:
    text = (DOCS / "terminal.md").read_text("utf-8")
    shown = re.findall(r"^```\n\$ (.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(shown) > 5
    assert max(len(line) for part in shown for line in part.splitlines()) <= 80
