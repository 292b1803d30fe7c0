"""What each layer of a model holds: the rows of a run's `layers` table."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from compress.measure.model import value_statistics
from trainers.models.arch import ModelState

MOST_VALUES = 1024
"""A model with more different values has no row of values and counts: it is not quantised
as a whole.
"""

_BLOCK_DIMS = ("heads", "qk", "v", "mlp")


def measure_layers(state: ModelState) -> list[dict[str, Any]]:
    """One row for every layer that has parameters of its own, in module order, and one for
    every transformer block.

    Returns:
        Rows with `layer` (its path) and `kind` (its class). Of a layer: `shape` (of its
        weight), `num_weights` (all its parameters), `num_unique`, `entropy_bits`,
        `entropy_nonzero_bits` (bits per value) and `zero_fraction` over them. Of a block
        (`kind` is "block"): `embed`, `heads`, `qk`, `v` (per head) and `mlp`, and
        `source_layer`, the learngene layer that it came from, where the model's meta has
        `source_layers`. Last, of a model whose linear and convolutional parameters take at
        most `MOST_VALUES` different values, a row of kind "model" with those `values`,
        ascending, and their `counts`.
    """
    with torch.device("meta"):
        module = state.arch.build()
    sources = state.meta.get("source_layers")
    rows: list[dict[str, Any]] = []
    shared: list[torch.Tensor] = []
    blocks, most = 0, 0
    for path, layer in module.named_modules():
        if hasattr(layer, "attn") and hasattr(layer, "mlp"):
            rows.append(_block(path, layer, blocks, state))
            if sources is not None and blocks < len(sources):
                rows[-1]["source_layer"] = sources[blocks]
            blocks += 1
        names = [leaf for leaf, _ in layer.named_parameters(recurse=False)]
        if names and path:  # the root's own are tokens and position embeddings
            rows.append(_layer(path, layer, names, state))
            if isinstance(layer, nn.Linear | _ConvNd):
                shared += [
                    state.weights[f"{path}.{name}"].reshape(-1) for name in names
                ]
                most = max(most, rows[-1]["num_unique"])
    return rows + (_values(shared) if shared and most <= MOST_VALUES else [])


def _values(tensors: list[torch.Tensor]) -> list[dict[str, Any]]:
    values, counts = torch.unique(
        torch.cat([t.float() for t in tensors]), return_counts=True
    )
    if len(values) > MOST_VALUES:
        return []
    return [
        {
            "layer": "",
            "kind": "model",
            "values": values.tolist(),
            "counts": counts.tolist(),
        }
    ]


def _layer(
    path: str, layer: nn.Module, names: list[str], state: ModelState
) -> dict[str, Any]:
    tensors = [state.weights[f"{path}.{name}"] for name in names]
    statistics = value_statistics(tensors)
    main = state.weights[
        f"{path}.weight" if "weight" in names else f"{path}.{names[0]}"
    ]
    return {
        "layer": path,
        "kind": type(layer).__name__,
        "shape": list(main.shape),
        "num_weights": sum(t.numel() for t in tensors),
        "num_unique": statistics["unique_values"],
        **{
            key: statistics[key]
            for key in ("entropy_bits", "entropy_nonzero_bits", "zero_fraction")
        },
    }


def _block(
    path: str, block: nn.Module, index: int, state: ModelState
) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": path, "kind": "block"}
    dims = state.arch.dims
    if all(name in dims for name in _BLOCK_DIMS):
        return (
            row
            | {"embed": dims["embed"]}
            | {name: dims[name][index] for name in _BLOCK_DIMS}
        )
    proj, fc1 = getattr(block.attn, "proj", None), getattr(block.mlp, "fc1", None)
    heads = getattr(block.attn, "num_heads", None)
    if not (
        isinstance(proj, nn.Linear)
        and isinstance(fc1, nn.Linear)
        and isinstance(heads, int)
    ):
        return row
    head_dim = proj.in_features // heads
    return row | {
        "embed": proj.out_features,
        "heads": heads,
        "qk": head_dim,
        "v": head_dim,
        "mlp": fc1.out_features,
    }
