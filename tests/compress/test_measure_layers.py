from collections import Counter
from math import log2

import torch

from compress.measure.layers import measure_layers
from trainers.models.arch import Arch, ModelState
from trainers.models.make import make_arch


def test_every_layer_has_its_own_figures() -> None:
    state = ModelState.initialised(
        make_arch("resnet20_cifar", num_classes=10, image_size=32, args={"width": 4}), 0
    )
    weights = dict(state.weights)
    weights["conv1.weight"] = (weights["conv1.weight"] > 0.1).float() * 0.5
    rows = {
        row["layer"]: row for row in measure_layers(ModelState(state.arch, weights))
    }
    conv = rows["conv1"]
    values = weights["conv1.weight"].flatten().tolist()
    shares = [count / len(values) for count in Counter(values).values()]
    assert conv["kind"] == "Conv2d"
    assert conv["shape"] == [4, 3, 3, 3]
    assert conv["num_weights"] == len(values) == 108
    assert conv["num_unique"] == 2
    assert abs(conv["entropy_bits"] + sum(p * log2(p) for p in shares)) < 1e-9
    assert conv["zero_fraction"] == values.count(0.0) / 108
    parameters = sum(
        v.numel()
        for k, v in weights.items()
        if not k.endswith(("mean", "var", "tracked"))
    )
    assert sum(row["num_weights"] for row in rows.values()) == parameters


def test_blocks_give_their_dimensions() -> None:
    arch = Arch(
        "timm",
        "vit_tiny_patch16_224",
        {
            "num_classes": 3,
            "img_size": 16,
            "patch_size": 8,
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 2,
        },
    )
    state = ModelState.initialised(arch, 0)
    blocks = [
        r
        for r in measure_layers(
            ModelState(arch, state.weights, {"source_layers": [0, 4]})
        )
        if r["kind"] == "block"
    ]
    dims = {"embed": 24, "heads": 2, "qk": 12, "v": 12, "mlp": 96}
    assert blocks == [
        {"layer": f"blocks.{i}", "kind": "block", **dims, "source_layer": source}
        for i, source in enumerate((0, 4))
    ]
    assert torch.equal(state.weights["head.weight"], state.build().head.weight)  # type: ignore[attr-defined]


def test_a_model_of_few_values_gives_its_histogram() -> None:
    state = ModelState.initialised(
        make_arch("resnet20_cifar", num_classes=10, image_size=32, args={"width": 4}), 0
    )
    rows = measure_layers(state)
    assert all(row["kind"] != "model" for row in rows)
    places = {row["layer"] for row in rows if row["kind"] in ("Conv2d", "Linear")}
    names = [name for name in state.weights if name.rpartition(".")[0] in places]
    coarse = {
        n: (v * 4).round() / 4 if n in names else v for n, v in state.weights.items()
    }
    row = measure_layers(ModelState(state.arch, coarse))[-1]
    seen = Counter(x for n in names for x in coarse[n].flatten().add(0.0).tolist())
    assert row == {
        "layer": "",
        "kind": "model",
        "values": sorted(seen),
        "counts": [seen[v] for v in sorted(seen)],
    }
