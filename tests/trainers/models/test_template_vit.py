"""Composed weights against explicit Kronecker sums and mode products, entry by entry, and the
networks against a timm ViT that holds the composed weights.
"""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainers.config import TrainConfig
from trainers.models.arch import Arch, buildable
from trainers.models.mean_vit import state_of
from trainers.models.template_layers import kronecker, tucker
from trainers.training.optim import make_optimizer

SIZE: dict[str, Any] = {
    "num_classes": 5,
    "img_size": 16,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 6,
}
WAVE = {"template_dim": 8, "num_templates": 4}
SWEET = {"ranks": [5, 7, 6]}
OPTIONS: dict[str, dict[str, Any]] = {"wave_vit": WAVE, "sweet_vit": SWEET}
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network(builder: str, **options: Any) -> Any:
    """A network in eval mode whose every parameter is random: no vector is 0 or 1."""
    torch.manual_seed(1)
    args = SIZE | OPTIONS[builder] | options
    module = Arch(builder, builder, args).build().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return module


def timm_state(module: Any) -> dict[str, Tensor]:
    with torch.no_grad():
        return state_of(*module.weights())


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


# ------------------------------------------------------------------ the maths


@pytest.mark.parametrize(
    ("sizes", "multiples"),
    [
        ((3,), (4,)),
        ((2, 3), (4, 2)),
        ((2, 3), (1, 3)),
        ((1, 4, 3), (1, 1, 5)),
        ((2, 3, 2, 2), (3, 1, 1, 1)),
    ],
)
def test_a_sum_of_kronecker_products(sizes: Any, multiples: Any) -> None:
    """By the definition of ⊗: entry (i·t + j) is S[i]·T[j], in every dimension."""
    layers, count = 2, 3
    templates, scalers = draw(count, *sizes), draw(layers, count, *multiples)
    found = kronecker(templates, scalers)
    expected = np.zeros(
        (layers, *(m * t for m, t in zip(multiples, sizes, strict=True)))
    )
    for layer, n in itertools.product(range(layers), range(count)):
        for block in np.ndindex(*multiples):
            for place in np.ndindex(*sizes):
                at = tuple(
                    i * t + j for i, t, j in zip(block, sizes, place, strict=True)
                )
                expected[(layer, *at)] += float(scalers[layer, n][block]) * float(
                    templates[n][place]
                )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4),
    st.integers(1, 4),
)
def test_any_shape_is_as_torchs_product(
    dims: list[tuple[int, int]], count: int
) -> None:
    sizes, multiples = zip(*dims, strict=True)
    templates, scalers = draw(count, *sizes), draw(1, count, *multiples)
    expected = sum(torch.kron(scalers[0, n], templates[n]) for n in range(count))
    torch.testing.assert_close(kronecker(templates, scalers)[0], expected)


def test_mode_products() -> None:
    """G ×₁ X ×₂ U ×₃ V by one sum for each entry."""
    core, mix, rows, columns = draw(2, 3, 4), draw(5, 2), draw(6, 3), draw(7, 4)
    found = tucker(core, mix, rows, columns).numpy()
    for s, i, j in np.ndindex(5, 6, 7):
        entry = sum(
            float(core[a, b, c] * mix[s, a] * rows[i, b] * columns[j, c])
            for a, b, c in np.ndindex(2, 3, 4)
        )
        assert found[s, i, j] == pytest.approx(entry, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=6, max_size=6))
def test_any_mode_products(n: list[int]) -> None:
    """Against einsum; and narrower factors give the first rows and columns."""
    core, mix = draw(*n[:3]), draw(n[3], n[0])
    rows, columns = draw(n[4], n[1]), draw(n[5], n[2])
    found = tucker(core, mix, rows, columns)
    expected = torch.einsum("sa,abc,ib,jc->sij", mix, core, rows, columns)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    part = tucker(core, mix[:2], rows[:3], columns[:1])
    torch.testing.assert_close(part, expected[:2, :3, :1], atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------ the networks


def kron_of(module: Any, key: str, layer: int) -> Tensor:
    """A composed parameter by torch's own Kronecker product."""
    templates, scalers = module.templates[key], module.scalers[key][layer]
    return sum(torch.kron(s, t) for s, t in zip(scalers, templates, strict=True))  # type: ignore[return-value]


def test_waves_parameters_by_hand() -> None:
    module = network("wave_vit")
    state = timm_state(module)
    for name, value in state.items():
        block, layer = name, 0
        if name.startswith("blocks."):
            _, number, block = name.split(".", 2)
            layer = int(number)
        if "qkv" in block:
            part = block.rpartition(".")[2]
            each = [kron_of(module, f"attn_{q}_{part}", layer) for q in "qkv"]
            expected = torch.cat(each)
        else:
            expected = kron_of(module, block.replace(".", "_"), layer)
        torch.testing.assert_close(value, expected, msg=name)


def test_sweets_parameters_by_hand() -> None:
    module = network("sweet_vit")
    state = timm_state(module)
    own = {k: v.detach().double().numpy() for k, v in module.state_dict().items()}
    core, u, v = own["templates.core"], own["scalers.rows"], own["scalers.columns"]
    for layer in range(3):
        x, x_vectors = own["scalers.mix"][layer], own["scalers.mix_vectors"][layer]
        w = np.einsum("sa,abc,ib,jc->sij", x, core, u, v)
        b = np.einsum("sa,ab,ib->si", x_vectors, own["templates.vectors"], u)
        expected = {
            "attn.qkv.weight": np.concatenate([w[0], w[1], w[2]]),
            "attn.proj.weight": w[3],
            "mlp.fc1.weight": np.concatenate([w[4], w[5], w[6], w[7]]),
            "mlp.fc2.weight": np.concatenate([w[8], w[9], w[10], w[11]], axis=1),
            "norm1.weight": 1 + b[0],
            "norm1.bias": b[1],
            "attn.qkv.bias": np.concatenate([b[2], b[3], b[4]]),
            "attn.proj.bias": b[5],
            "norm2.weight": 1 + b[6],
            "norm2.bias": b[7],
            "mlp.fc1.bias": np.concatenate([b[8], b[9], b[10], b[11]]),
            "mlp.fc2.bias": b[12],
        }
        for name, values in expected.items():
            found = state[f"blocks.{layer}.{name}"].numpy()
            np.testing.assert_allclose(found, values, atol=1e-5, err_msg=name)
    outer = {
        "patch_embed.proj.weight": np.einsum(
            "ib,bcpq->icpq", u, own["templates.patch_weight"]
        ),
        "patch_embed.proj.bias": u @ own["templates.patch_bias"],
        "pos_embed": np.einsum("ib,opb->opi", u, own["templates.pos_embed"]),
        "fc_norm.weight": 1 + u @ own["templates.fc_norm_weight"],
        "fc_norm.bias": u @ own["templates.fc_norm_bias"],
        "head.weight": np.einsum("kc,jc->kj", own["templates.head_weight"], v),
        "head.bias": own["templates.head_bias"],
    }
    for name, values in outer.items():
        np.testing.assert_allclose(state[name].numpy(), values, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("builder", OPTIONS)
def test_a_network_computes_what_timms_vit_does(builder: str) -> None:
    module = network(builder)
    plain = SIZE | {"class_token": False, "global_pool": "avg"}
    vit = Arch("timm", "vit_base_patch16_224", plain).build().eval()
    vit.load_state_dict(timm_state(module))
    with torch.inference_mode():
        torch.testing.assert_close(module(IMAGES), vit(IMAGES), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("builder", OPTIONS)
def test_templates_fit_every_size(builder: str) -> None:
    def shapes(**size: int) -> dict[str, Any]:
        args = SIZE | OPTIONS[builder] | size
        state = Arch(builder, builder, args).build().state_dict()
        return {name: tuple(value.shape) for name, value in state.items()}

    first = shapes()
    for width, depth in ((8, 1), (16, 3), (40, 5)):
        other = shapes(embed_dim=width, depth=depth, num_heads=width // 4)
        assert other.keys() == first.keys()
        templates = {n for n in first if n.startswith("templates.")}
        assert {n for n in first if other[n] == first[n]} >= templates
        assert any(other[n] != first[n] for n in first.keys() - templates)


@pytest.mark.parametrize("builder", OPTIONS)
def test_at_first_the_composed_weights_are_as_timm_draws_them(builder: str) -> None:
    """Of the size of timm's own: standard deviation near 0.02, norms 1, biases 0."""
    torch.manual_seed(0)
    larger = {"embed_dim": 96, "num_heads": 6, "depth": 2}
    more = {"template_dim": 16, "num_templates": 24, "ranks": [24, 48, 48]}
    options = {name: more[name] for name in OPTIONS[builder]}
    state = timm_state(Arch(builder, builder, SIZE | larger | options).build())
    for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        assert 0.014 < state[f"blocks.1.{part}.weight"].std() < 0.028
        assert not state[f"blocks.1.{part}.bias"].any()
    torch.testing.assert_close(state["blocks.0.norm1.weight"], torch.ones(96))
    torch.testing.assert_close(state["fc_norm.weight"], torch.ones(96))


def test_stochastic_scaling_is_of_training_alone() -> None:
    module, still = network("sweet_vit", stochastic_scaling=0.2), network("sweet_vit")
    with torch.inference_mode():
        assert torch.equal(module(IMAGES), still(IMAGES))
        module.train()
        core = module.templates["core"]
        ratio = module._core() / core
        assert not torch.equal(module(IMAGES), module(IMAGES))
    # the same number for a whole row or column, at most 1.2² and at least 0.8²
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    outer = ratio[0, :, :1] * ratio[0, :1, :] / ratio[0, 0, 0]
    torch.testing.assert_close(ratio[0], outer)
    assert ratio.min() >= 0.64 - 1e-5
    assert ratio.max() <= 1.44 + 1e-5


@pytest.mark.parametrize(
    ("learn", "trained"),
    [
        (["scalers"], {"scalers"}),
        (["templates"], {"templates"}),
        (["scalers", "head"], {"scalers", "head"}),
    ],
)
@pytest.mark.parametrize("builder", OPTIONS)
def test_what_is_trained(builder: str, learn: list[str], trained: set[str]) -> None:
    module = network(builder, learn=learn)
    for name, parameter in module.named_parameters():
        kind, part = name.split(".")
        expected = kind in trained or ("head" in trained and part.startswith("head"))
        assert parameter.requires_grad == expected, name


@pytest.mark.parametrize("builder", OPTIONS)
def test_only_templates_of_matrices_decay(builder: str) -> None:
    module = network(builder)
    names = {parameter: name for name, parameter in module.named_parameters()}
    groups = make_optimizer(module, TrainConfig(weight_decay=0.1)).param_groups
    decayed = {
        names[p].split(".")[1] for g in groups if g["weight_decay"] for p in g["params"]
    }
    matrices = {
        "wave_vit": {
            *(f"attn_{which}_weight" for which in ("q", "k", "v", "proj")),
            "mlp_fc1_weight",
            "mlp_fc2_weight",
            "patch_embed_proj_weight",
            "head_weight",
        },
        "sweet_vit": {"core", "patch_weight", "head_weight"},
    }
    assert decayed == matrices[builder]


@pytest.mark.parametrize(
    ("builder", "options", "message"),
    [
        ("wave_vit", {"template_dim": 7}, "template_dim 7 must divide embed_dim 24"),
        ("wave_vit", {"template_dim": 6}, r"multiple of a head's width, .* \(4\)"),
        (
            "sweet_vit",
            {"num_heads": 5},
            "embed_dim 24 must be a multiple of num_heads 5",
        ),
    ],
)
def test_sizes_that_do_not_fit(
    builder: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        buildable(Arch(builder, builder, SIZE | OPTIONS[builder] | options))
