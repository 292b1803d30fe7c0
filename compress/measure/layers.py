"""What each layer of a model holds: the rows of a run's `layers` table."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.measure.model import value_statistics
from trainers.models.arch import ModelState, shared_on_meta
from trainers.models.parameters import (
    BLOCK_DIMS,
    NORMS,
    counts_norms,
    is_linear_or_conv,
)

MOST_VALUES = 1024
"""A model with more different values has no row of values and counts: it is not quantised
as a whole.
"""


@dataclass(frozen=True)
class LayerRow:
    """A layer that has parameters of its own.

    Attributes:
        layer: its path in the model.
        kind: its class.
        shape: of its weight.
        num_weights: values in all its parameters.
        num_unique: different values among them.
        entropy_bits: entropy of their histogram, bits per value.
        entropy_nonzero_bits: the same of the values that are not zero.
        zero_fraction: share of zeros among them.
    """

    layer: str
    kind: str
    shape: list[int]
    num_weights: int
    num_unique: int
    entropy_bits: float
    entropy_nonzero_bits: float
    zero_fraction: float


@dataclass(frozen=True)
class BlockRow:
    """A transformer block. Dimensions are None where the block does not show them.

    Attributes:
        layer: its path in the model.
        embed: channels of the residual stream.
        heads: attention heads.
        qk, v: query/key and value dimensions of a head.
        mlp: hidden units.
        source_layer: the layer of the learngene that it came from, if it came from one.
    """

    layer: str
    kind: str = "block"
    embed: int | None = None
    heads: int | None = None
    qk: int | None = None
    v: int | None = None
    mlp: int | None = None
    source_layer: int | None = None


@dataclass(frozen=True)
class ValuesRow:
    """The values that all linear and convolutional layers of a quantised model share, and its
    norms where they were quantised too.

    Attributes:
        values: different values, ascending.
        counts: how often each occurs.
    """

    values: list[float]
    counts: list[int]
    layer: str = ""
    kind: str = "model"


Row = LayerRow | BlockRow | ValuesRow


def measure_layers(state: ModelState) -> list[dict[str, Any]]:
    """`layer_rows` as JSON-able dicts; what is None is left out."""
    return [
        {name: value for name, value in asdict(row).items() if value is not None}
        for row in layer_rows(state)
    ]


def layer_rows(state: ModelState) -> list[Row]:
    """One row for every layer and every transformer block, in module order.

    Last comes the row of shared values, for a model whose linear and convolutional
    parameters take at most `MOST_VALUES` different ones.
    """
    rows: list[Row] = []
    shared: list[Tensor] = []
    most_unique = 0
    num_blocks = 0
    with_norms = counts_norms(state.meta)
    for path, layer in shared_on_meta(state.arch).named_modules():
        if hasattr(layer, "attn") and hasattr(layer, "mlp"):
            rows.append(_block(path, layer, num_blocks, state))
            num_blocks += 1
        names = [leaf for leaf, _ in layer.named_parameters(recurse=False)]
        if not names or not path:  # the root's own are tokens and position embeddings
            continue
        row = _layer(path, layer, names, state)
        rows.append(row)
        if is_linear_or_conv(layer) or (with_norms and isinstance(layer, NORMS)):
            shared += [state.weights[f"{path}.{name}"].reshape(-1) for name in names]
            most_unique = max(most_unique, row.num_unique)
    # a layer with too many values spares the count over the whole model, which takes seconds
    values = _values(shared) if shared and most_unique <= MOST_VALUES else None
    return rows if values is None else [*rows, values]


def _values(tensors: list[Tensor]) -> ValuesRow | None:
    """None where there are too many values."""
    together = torch.cat([tensor.float() for tensor in tensors])
    values, counts = torch.unique(together, return_counts=True)
    if len(values) > MOST_VALUES:
        return None
    return ValuesRow(values.tolist(), counts.tolist())


def _layer(
    path: str, layer: nn.Module, names: list[str], state: ModelState
) -> LayerRow:
    tensors = [state.weights[f"{path}.{name}"] for name in names]
    statistics = value_statistics(tensors)
    main = "weight" if "weight" in names else names[0]
    return LayerRow(
        layer=path,
        kind=type(layer).__name__,
        shape=list(state.weights[f"{path}.{main}"].shape),
        num_weights=sum(tensor.numel() for tensor in tensors),
        num_unique=statistics.unique_values,
        entropy_bits=statistics.entropy_bits,
        entropy_nonzero_bits=statistics.entropy_nonzero_bits,
        zero_fraction=statistics.zero_fraction,
    )


def _block(path: str, block: nn.Module, index: int, state: ModelState) -> BlockRow:
    sources = state.meta.get("source_layers") or []
    source_layer = sources[index] if index < len(sources) else None
    dims = state.arch.dims
    if all(name in dims for name in BLOCK_DIMS):
        own = {name: dims[name][index] for name in BLOCK_DIMS}
        return BlockRow(path, embed=dims["embed"], source_layer=source_layer, **own)
    attention: Any = block.attn
    mlp: Any = block.mlp
    proj = getattr(attention, "proj", None)
    fc1 = getattr(mlp, "fc1", None)
    heads = getattr(attention, "num_heads", None)
    linear = isinstance(proj, nn.Linear) and isinstance(fc1, nn.Linear)
    if proj is None or fc1 is None or not linear or not isinstance(heads, int):
        return BlockRow(path, source_layer=source_layer)
    head_dim = proj.in_features // heads
    return BlockRow(
        path,
        embed=proj.out_features,
        heads=heads,
        qk=head_dim,
        v=head_dim,
        mlp=fc1.out_features,
        source_layer=source_layer,
    )
