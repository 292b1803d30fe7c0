"""ONNX files of one model at many sizes, from one that was exported.

Exporting a transformer block takes a second or more, and a latency table has hundreds of them.
Here a block is exported once, at sizes that occur nowhere else in its graph, and its file is then
written with other sizes in their place: shapes of weights, and shapes that the graph computes with.
Weights are filled by repeating those of the exported block: a latency does not depend on them.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_LEAST_SIZE = 5
"""Smaller numbers are axes in a graph, not sizes."""


def unique_sizes(count: int, taken: Iterable[int]) -> list[int]:
    """Prime numbers for `count` dimensions; neither they nor products of two are in `taken`."""
    others = set(taken)
    found: list[int] = []
    candidate = _LEAST_SIZE
    while len(found) < count:
        products = {candidate, *(candidate * size for size in [*found, candidate])}
        is_prime = all(candidate % n for n in range(2, int(candidate**0.5) + 1))
        if is_prime and not products & others:
            found.append(candidate)
        candidate += 2
    return found


def write_resized(template: Path, sizes: Mapping[int, int], file: Path) -> None:
    """Write the ONNX file `template` with each size that is a key replaced by its value."""
    import onnx

    model = onnx.load(str(template))
    graph = model.graph
    del graph.value_info[:]  # shapes in between; a runtime infers them
    for tensor in graph.initializer:
        tensor.CopyFrom(_resized(tensor, sizes))
    for value in (*graph.input, *graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.HasField("dim_value"):
                axis.dim_value = sizes.get(axis.dim_value, axis.dim_value)
    onnx.save(model, str(file))


def _resized(tensor: Any, sizes: Mapping[int, int]) -> Any:
    from onnx import numpy_helper

    array = numpy_helper.to_array(tensor)
    if array.dtype == np.int64:  # a shape that the graph computes with
        values = [sizes.get(size, size) for size in array.reshape(-1).tolist()]
        array = np.array(values, np.int64).reshape(array.shape)
    else:
        array = np.resize(array, [sizes.get(size, size) for size in array.shape])
    return numpy_helper.from_array(array.copy(), tensor.name)
