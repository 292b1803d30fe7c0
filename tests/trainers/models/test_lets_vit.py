"""LeTs against its description, written out one layer and one matrix at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainers.config import TrainConfig
from trainers.models.arch import Arch, buildable
from trainers.models.lets_layers import (
    gene_layers,
    grow_columns,
    grow_rows,
    initial_depth,
    initial_width,
    num_groups,
)
from trainers.training.optim import make_optimizer

SIZE: dict[str, Any] = {
    "num_classes": 5,
    "img_size": 16,
    "patch_size": 8,
    "embed_dim": 24,
    "num_heads": 3,
    "gene_dim": 8,
}
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
MIXED = ["norm1", "q", "k", "v", "proj", "norm2", "fc1", "fc2"]


def lets(depth: int, **options: Any) -> Any:
    """In eval mode, every parameter random."""
    torch.manual_seed(1)
    module = (
        Arch("lets_vit", "lets_vit", SIZE | {"depth": depth} | options).build().eval()
    )
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return module


def plain(depth: int, width: int) -> nn.Module:
    args = {k: v for k, v in SIZE.items() if k != "gene_dim"} | {
        "embed_dim": width,
        "num_heads": width // 8,
        "depth": depth,
        "class_token": False,
        "global_pool": "avg",
    }
    return Arch("timm", "vit_base_patch16_224", args).build().eval()


def state_by_the_paper(
    module: Any, width: int, layers: list[int], groups: list[int]
) -> dict[str, Tensor]:
    """A descendant's timm state from the parameters by the paper's formulas: one learngene layer at
    a time is grown, then pairs are added up; differentiable.
    """
    p, new = dict(module.named_parameters()), width - SIZE["gene_dim"]
    f_e, f_cls = p["width.embed"][:new], p["width.cls"][:new]

    def whole(w: Tensor, f_in: Tensor, f_out: Tensor) -> Tensor:
        inner = torch.cat([w, torch.einsum("oi,ni->on", w, f_in)], 1)
        return torch.cat([inner, torch.einsum("no,oi->ni", f_out, inner)], 0)

    def vector(b: Tensor, f: Tensor) -> Tensor:
        return torch.cat([b, torch.einsum("no,o->n", f, b)])

    def gene(j: int) -> dict[str, Tensor]:
        f = {name: p["width.qkv"][i, j, :new] for i, name in enumerate("qkv")}
        f_ffn = p["width.ffn"][j, : 4 * new]
        ways = {"proj": (f["v"], f_e), "fc1": (f_e, f_ffn), "fc2": (f_ffn, f_e)} | {
            n: (f_e, f[n]) for n in "qkv"
        }
        grown = {}
        for i, name in enumerate("qkv"):
            grown[f"{name}.weight"] = whole(p["gene.qkv_weight"][i, j], *ways[name])
            grown[f"{name}.bias"] = vector(p["gene.qkv_bias"][i, j], ways[name][1])
        for name in ("proj", "fc1", "fc2"):
            grown[f"{name}.weight"] = whole(p[f"gene.{name}_weight"][j], *ways[name])
            grown[f"{name}.bias"] = vector(p[f"gene.{name}_bias"][j], ways[name][1])
        for name in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                grown[f"{name}.{part}"] = vector(p[f"gene.{name}_{part}"][j], f_e)
        return grown

    genes, state = [gene(j) for j in range(len(p["gene.norm1_weight"]))], {}
    where = {
        "norm1": "norm1",
        "proj": "attn.proj",
        "norm2": "norm2",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
    }
    for i, (layer, group) in enumerate(zip(layers, groups, strict=True)):
        pair = [genes[2 * (layer // 4)], genes[2 * (layer // 4) + 1]]
        for part in ("weight", "bias"):
            found = {}
            for n, name in enumerate(MIXED):
                g = p[f"coefficients.{part}"][n, group // 2]
                found[name] = (
                    g[0] * pair[0][f"{name}.{part}"] + g[1] * pair[1][f"{name}.{part}"]
                )
            state[f"blocks.{i}.attn.qkv.{part}"] = torch.cat([found[n] for n in "qkv"])
            state |= {
                f"blocks.{i}.{theirs}.{part}": found[ours]
                for ours, theirs in where.items()
            }
    kernel = p["gene.patch_weight"]
    kernel = torch.cat([kernel, torch.einsum("no,oi->ni", f_e, kernel)])
    head = p["gene.head_weight"]
    return state | {
        "patch_embed.proj.weight": kernel.reshape(width, 3, 8, 8),
        "patch_embed.proj.bias": vector(p["gene.patch_bias"], f_e),
        "pos_embed": p["pos_embed"][:, :, :width],
        "head.bias": p["gene.head_bias"],
        "head.weight": torch.cat([head, torch.einsum("oi,ni->on", head, f_cls)], 1),
        **{
            f"fc_norm.{part}": vector(p[f"gene.fc_norm_{part}"], f_e)
            for part in ("weight", "bias")
        },
    }


def own(depth: int) -> tuple[list[int], list[int]]:
    return list(range(depth)), [i // 2 * 2 for i in range(depth)]


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 8, 11])
def test_the_auxiliary_network_is_the_papers(depth: int) -> None:
    module = lets(depth)
    state = state_by_the_paper(module, 24, *own(depth))
    vit = plain(depth, 24)
    vit.load_state_dict(state)
    torch.testing.assert_close(module(IMAGES), vit(IMAGES), atol=1e-5, rtol=1e-5)


def test_gradients_are_the_sum_over_uses() -> None:
    """Of learngene, F and G: what autograd finds through the paper's formulas and timm's
    own forward pass.
    """
    module = lets(6)
    module(IMAGES).square().sum().backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    functional_call(
        plain(6, 24), state_by_the_paper(module, 24, *own(6)), (IMAGES,)
    ).square().sum().backward()
    for name, p in module.named_parameters():
        assert p.grad.abs().max() > 0, name
        torch.testing.assert_close(
            found[name],
            p.grad,
            atol=1e-4 * max(1.0, p.grad.abs().max().item()),
            rtol=1e-3,
        )


@pytest.mark.parametrize("width", [8, 16, 24])
@pytest.mark.parametrize(
    "maps",
    [
        own(8),
        ([0, 1, 5], [0, 2, 4]),
        ([7, 0], [0, 6]),
        ([0, 0, 0, 4, 4, 4, 4, 7, 7, 7], [0, 2, 4, 6, 0, 2, 4, 6, 0, 0]),
    ],
)
def test_descendants_are_the_papers(
    width: int, maps: tuple[list[int], list[int]]
) -> None:
    module = lets(8)
    found, expected = (
        module.descendant(width, *maps),
        state_by_the_paper(module, width, *maps),
    )
    assert set(found) == set(expected) == set(plain(len(maps[0]), width).state_dict())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach(), atol=1e-5, rtol=1e-5)
        assert not found[name].requires_grad
        assert found[name].is_contiguous()


def test_growth_by_hand() -> None:
    weight, rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.5, 0.5]])
    inner = grow_columns(weight, torch.tensor([[1.0, -1.0]]))
    assert inner.tolist() == [[1, 2, -1], [3, 4, -1]]
    assert grow_rows(inner, rows).tolist() == [[1, 2, -1], [3, 4, -1], [2, 3, -1]]


def test_counts_of_the_paper() -> None:
    assert (gene_layers(16), num_groups(16)) == (8, 8)
    assert [gene_layers(n) for n in (1, 4, 5, 8)] == [2, 2, 4, 4]
    assert [num_groups(n) for n in (1, 4, 5, 8)] == [1, 2, 3, 4]


@pytest.mark.parametrize("scheme", ["rand", "rand-softmax"])
def test_random_rows_sum_to_one(scheme: Any) -> None:
    torch.manual_seed(0)
    for rows in (
        initial_width(scheme, 0.03, 3, 7, 5),
        initial_depth(scheme, 0.03, 8, 4, 2),
    ):
        assert rows.min() >= 0
        assert rows.std() > 0
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))
    spread = (
        initial_width(scheme, 0.0, 1, 400).amax()
        / initial_width(scheme, 0.0, 1, 400).amin()
    )
    # e^1 is the most that a softmax of [0, 1] gives
    assert spread < 3 if scheme == "rand-softmax" else spread > 3


def test_selection_copies_one_unit() -> None:
    torch.manual_seed(0)
    rows = initial_width("selection", 0.03, 2, 50, 6)
    assert set(rows.unique().tolist()) == {0, 1}
    assert (rows.sum(-1) == 1).all()
    assert (rows.sum((0, 1)) > 0).all()
    noisy = initial_width("selection-noisy", 0.03, 2, 50, 6)
    assert ((noisy == 1).sum(-1) == 1).all()
    others = noisy[noisy != 1]
    assert 0 <= others.min() < others.max() <= 0.03


def test_stackbert_starts_at_the_pairs_first_layer() -> None:
    torch.manual_seed(0)
    assert (initial_depth("stackbert", 0.03, 8, 4, 2) == torch.tensor([1.0, 0.0])).all()
    noisy = initial_depth("stackbert-noisy", 0.03, 8, 4, 2)
    torch.testing.assert_close(noisy.sum(-1), torch.ones(8, 4))
    ratio = noisy[..., 1] / noisy[..., 0]
    assert 0 <= ratio.min() < ratio.max() <= 0.03


@pytest.mark.parametrize("learn", [["gene"], ["width", "depth"], []])
def test_what_is_not_learned_stays(learn: list[str]) -> None:
    module = lets(4, learn=learn)
    module(IMAGES).sum().backward()
    trained = {
        name.split(".")[0]
        for name, p in module.named_parameters()
        if p.grad is not None
    }
    assert trained == {"pos_embed"} | {
        {"depth": "coefficients"}.get(name, name) for name in learn
    }


def test_a_residual_is_added_to_what_is_grown() -> None:
    torch.manual_seed(0)
    module: Any = Arch(
        "lets_vit", "lets_vit", SIZE | {"depth": 4, "residual": 0.01}
    ).build()
    grown = {name: t.detach().clone() for name, t in module.grown(16).items()}
    with torch.no_grad():
        terms = {name: t.clone() for name, t in module.residual.items()}
        for t in module.residual.values():
            t.zero_()
    for name, without in module.grown(16).items():
        term = terms[name][tuple(slice(n) for n in without.shape)]
        assert 0 < term.abs().max() <= 0.01
        torch.testing.assert_close(grown[name] - without, term, atol=1e-6, rtol=1e-4)


def test_no_new_width_is_plain_mixing() -> None:
    module = lets(4, gene_dim=24)
    vit = plain(4, 24)
    vit.load_state_dict(module.descendant(24, *own(4)))
    torch.testing.assert_close(module(IMAGES), vit(IMAGES), atol=1e-5, rtol=1e-5)


def test_only_matrices_are_decayed() -> None:
    module = lets(4, residual=0.1)
    optimizer = make_optimizer(module, TrainConfig(weight_decay=0.5))
    decayed = {
        id(p)
        for group in optimizer.param_groups
        if group["weight_decay"]
        for p in group["params"]
    }
    weights = {
        "patch_weight",
        "qkv_weight",
        "proj_weight",
        "fc1_weight",
        "fc2_weight",
        "head_weight",
    }
    expected = {f"{part}.{name}" for part in ("gene", "residual") for name in weights}
    expected |= {f"width.{name}" for name in ("embed", "qkv", "ffn", "cls")}
    assert {
        name for name, p in module.named_parameters() if id(p) in decayed
    } == expected


def test_compiles_as_one_graph() -> None:
    module = lets(3)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(IMAGES), module(IMAGES), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{"gene_dim": 12}, {"gene_dim": 32}, {"num_heads": 5}]
)
def test_widths_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be multiples of one head's width"):
        buildable(Arch("lets_vit", "lets_vit", SIZE | {"depth": 4} | options))
