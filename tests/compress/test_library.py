"""The methods on modules of one's own: what docs/library.md shows, run as it is shown."""

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compress
from compress import codec, learngene, selection, wfn
from compress.finetune import Finetune
from compress.nvit import GroupSizes, Pruner, PruneRules
from compress.quant_baselines import KmeansQuant
from trainers.config import DataConfig
from trainers.models.arch import ModelState

DOCS = Path(__file__).parent.parent.parent / "docs"


def sections() -> dict[str, list[str]]:
    """Heading → the Python blocks below it."""
    found: dict[str, list[str]] = {}
    for part in (DOCS / "library.md").read_text().split("\n## "):
        heading = part.splitlines()[0].removeprefix("# ")
        found[heading] = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
    return found


def num_statements(block: str) -> int:
    """Statements of an example, those inside loops and functions too; imports are none."""
    return sum(
        isinstance(node, ast.stmt) and not isinstance(node, ast.Import | ast.ImportFrom)
        for node in ast.walk(ast.parse(block))
    )


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, data_cache: Path) -> dict[str, Any]:
    """The names that all examples of the page leave behind."""
    names: dict[str, Any] = {"__name__": "library_page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("library"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("SWEEPS_DATA_CACHE", str(data_cache))
        torch.manual_seed(0)
        for blocks in sections().values():
            for block in blocks:
                exec(compile(block, "library.md", "exec"), names)
        names["coded_path"] = Path("model.coded").absolute()
    return names


def test_every_method_has_a_section_and_is_short() -> None:
    found = sections()
    assert {
        "A whole pipeline",
        "Weight selection",
        "Learngene expansion",
        "NViT pruning",
        "Weight fixing",
        "The coded file",
    } < set(found)
    assert num_statements(found["A whole pipeline"][0]) <= 5
    for heading in ("Weight selection", "Learngene expansion", "The coded file"):
        assert all(num_statements(block) <= 10 for block in found[heading])
    # these two hold the user's own loop: optimiser, batches, loss and update
    assert num_statements(found["NViT pruning"][0]) <= 10 + 5
    assert num_statements(found["Weight fixing"][0]) <= 10 + 5


def test_the_pipeline_of_the_page(shown: dict[str, Any]) -> None:
    result = shown["result"]
    assert [run.name for run in result.stages] == [
        "weight_selection",
        "finetune",
        "kmeans_quant",
    ]
    assert isinstance(shown["result"].model, ModelState)


def test_the_methods_of_the_page(shown: dict[str, Any]) -> None:
    assert len(shown["deep"].blocks) == 5
    assert len({id(block) for block in shown["auxiliary"].blocks}) == 2
    assert len(shown["gene"].expand(depth=6).blocks) == 6
    dense = sum(p.numel() for p in shown["vit"].parameters())
    assert shown["pruner"].stop_reason == "latency_target"
    assert sum(p.numel() for p in shown["small"].parameters()) < 0.8 * dense
    fixable = [shown["model"].stem.weight, shown["model"].classifier.weight]
    values = torch.cat([weight.detach().reshape(-1) for weight in fixable])
    assert set(values.tolist()) <= set(shown["fixed"].codebook.tolist())
    for ours, read in zip(
        shown["model"].state_dict().values(),
        shown["again"].state_dict().values(),
        strict=True,
    ):
        assert torch.equal(ours, read)


class Mlp(nn.Module):
    def __init__(self, width: int, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


# --- selection


@pytest.mark.parametrize("rule", ["uniform", "consecutive", "magnitude", "random"])
def test_selection_takes_every_tensor_but_the_classifier(
    rule: selection.ElementRule,
) -> None:
    torch.manual_seed(0)
    teacher, student = Mlp(8), Mlp(4)
    head = student.head.weight.clone()
    before = [p.clone() for p in teacher.parameters()]
    taken = selection.initialise(
        student, teacher, element_rule=rule, classifier=["head"]
    )
    assert taken == [
        f"layers.{i}.{leaf}" for i in range(2) for leaf in ("weight", "bias")
    ]
    assert torch.equal(student.head.weight, head)
    assert all(map(torch.equal, teacher.parameters(), before))
    values = teacher.layers[0].weight.flatten().tolist()
    assert set(student.layers[0].weight.flatten().tolist()) <= set(values)
    if rule == "consecutive":
        assert torch.equal(student.layers[1].bias, teacher.layers[1].bias[:4])


def test_selection_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="does not say which layers classify"):
        selection.initialise(Mlp(4), Mlp(8))
    with pytest.raises(
        ValueError, match=r"classifier \['fc'\]: Mlp has no such layers"
    ):
        selection.initialise(Mlp(4), Mlp(8), classifier=["fc"])
    with pytest.raises(ValueError, match="the student is larger in axis 0, 1"):
        selection.initialise(Mlp(8), Mlp(4), classifier=["head"])


# --- learngene


def test_a_stage_is_one_module_until_it_is_expanded() -> None:
    torch.manual_seed(0)
    module = Mlp(4, depth=3)
    shared = learngene.share_stages(module.layers, [1, 2])
    assert list(shared) == [module.layers[0], module.layers[1], module.layers[1]]
    expanded = learngene.expand_stages(shared, [1, 0, 1])
    assert torch.equal(expanded[0].weight, module.layers[1].weight)
    assert torch.equal(expanded[1].weight, module.layers[0].weight)
    assert len({id(p) for p in expanded.parameters()}) == 6


@pytest.mark.parametrize("repeats", [[], [1, 0], [1, 1, 1, 1]])
def test_stages_that_there_are_not(repeats: list[int]) -> None:
    with pytest.raises(ValueError, match="repeats"):
        learngene.share_stages(Mlp(4, depth=3).layers, repeats)
    with pytest.raises(ValueError, match="one stage from 0 to 2"):
        learngene.expand_stages(Mlp(4, depth=3).layers, [3])


@pytest.mark.parametrize(
    ("method", "options", "size"),
    [
        ("sws", {"repeats": [1, 2]}, {"layers_source": [0, 1, 1, 1]}),
        ("tleg", {"depth": 3}, {"depth": 4}),
        ("lets", {"gene_dim": 8, "depth": 4}, {"width": 8, "depth": 4}),
        ("wave", {"template_dim": 8, "depth": 2}, {"width": 24, "depth": 4}),
        ("sweet", {"ranks": [6, 9, 10], "depth": 2}, {"width": 24, "depth": 4}),
    ],
)
def test_each_learngene_expands(
    method: Any, options: dict[str, Any], size: dict[str, Any]
) -> None:
    gene = learngene.Learngene(
        method, num_classes=5, image_size=32, embed_dim=16, num_heads=2, **options
    )
    images = torch.randn(2, 3, 32, 32)
    assert gene.network(images).shape == (2, 5)
    first, second = gene.expand(**size), gene.expand(**size)
    assert len(first.get_submodule("blocks")) == 4  # type: ignore[arg-type]
    assert torch.equal(first(images), second(images))
    with torch.no_grad():
        next(first.parameters()).add_(1)
    assert torch.equal(gene.expand(**size)(images), second(images))


# --- nvit


def test_a_masked_vit_and_its_dense_module_agree() -> None:
    import timm

    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        embed_dim=16,
        num_heads=2,
        depth=2,
        num_classes=4,
    ).eval()
    groups = GroupSizes(embed=4, heads=1, qk=2, v=2, mlp=8)
    rules = PruneRules(interval_prune=1, prune_per_iter=32, latency_target=0.5)
    pruner = Pruner.of(vit, rules, groups=groups)
    images = torch.randn(3, 3, 32, 32)
    pruner.vit.eval()
    torch.testing.assert_close(pruner.vit(images), vit(images))
    for step in range(1, 30):
        pruner.vit(images).square().sum().backward()
        pruner.on_grads()
        ended = pruner.on_step(step)
        pruner.vit.zero_grad()
        if ended:
            break
    assert ended
    small = pruner.dense_module()
    torch.testing.assert_close(small(images), pruner.vit(images), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(
        p.numel() for p in vit.parameters()
    )
    with pytest.raises(ValueError, match="it is a Mlp; needed is a ViT or DeiT"):
        Pruner.of(Mlp(4))


# --- wfn


def test_fixing_needs_no_training_and_fixes_everything() -> None:
    torch.manual_seed(0)
    module = Mlp(16)
    seen: list[float] = []

    def train(hook: wfn.HoldFixed, iteration: int) -> None:
        seen.append(sum(int(f.sum()) for f in hook.fixed) / (2 * 272 + 51))

    rules = wfn.FixRules(fractions=(0.5, 1.0), distance_allowed=0.05)
    found = wfn.fix(module, train, rules)
    assert seen == [0.0, pytest.approx(0.5, abs=0.01)]
    assert bool(found.fixed.all())
    weights = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    assert set(weights.tolist()) == set(found.codebook.tolist())
    with pytest.raises(ValueError, match="Identity has no Linear or Conv parameters"):
        wfn.fix(nn.Identity(), train)


def test_clustering_takes_an_array() -> None:
    weights = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    by_array = wfn.cluster(weights, 0.8, 0.1)
    by_tensor = wfn.cluster(torch.from_numpy(weights), 0.8, 0.1)
    assert torch.equal(by_array.values, by_tensor.values)
    assert by_array.values.shape == (20, 5)


# --- codec


def test_a_module_and_a_state_dict_are_coded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Mlp(32)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_((p * 8).round() / 8)
    by_module = codec.encode(module, tmp_path / "a")
    by_dict = codec.encode(module.state_dict(), tmp_path / "b")
    assert by_module.size.coded_weights > 2000
    assert by_module.content == by_dict.content
    read = codec.decode_weights(tmp_path / "a")
    assert list(read) == list(module.state_dict())
    assert all(torch.equal(read[name], p) for name, p in module.state_dict().items())
    with pytest.raises(ValueError, match=r"no architecture; compress\.codec"):
        codec.decode(tmp_path / "a")
    with pytest.raises(ValueError, match="allows"):
        codec.decode_weights(tmp_path / "a", max_bytes=100)
    (tmp_path / "a").write_bytes(b"other")
    with pytest.raises(ValueError, match="a: cannot be read as a coded model"):
        codec.decode_weights(tmp_path / "a")


# --- pipelines


def test_a_pipeline_of_stages(
    tmp_path: Path, data_cache: Path, digits_config: DataConfig
) -> None:
    train = Finetune(epochs=1, batch_size=40, warmup=0)
    found = compress.run(
        "resnet20_cifar",
        digits_config,
        [train, train, KmeansQuant(clusters=4), "uniform_quant"],
        cache=tmp_path,
        data_cache=data_cache,
    )
    assert [run.name for run in found.stages] == [
        "finetune",
        "finetune_2",
        "kmeans_quant",
        "uniform_quant",
    ]
    metrics = compress.measured(
        found, digits_config, data_cache=data_cache, batch_size=2, repeats=3
    )
    assert {"accuracy", "coded_bytes", "latency_ms"} <= set(metrics)


def test_a_pipeline_that_cannot_be(tmp_path: Path, data_cache: Path) -> None:
    with pytest.raises(ValueError, match="no stage 'no_such'; valid: finetune"):
        compress.run("resnet20_cifar", "digits", ["no_such"])
    with pytest.raises(ValueError, match=r"stages\.asp: resnet20_cifar has no Linear"):
        compress.run("resnet20_cifar", "digits", ["asp"])
    with pytest.raises(AttributeError, match="no attribute 'walk'"):
        compress.walk  # noqa: B018
