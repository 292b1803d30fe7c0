"""Tables of measured block latency over a grid of dimensions, and what they answer in between.

Legend
    d = (E, H, QK, V, M)    dimensions of a block: embed, heads, query/key and value per
                            head, MLP hidden
    g_j                     grid points of axis j, ascending
    T(d)                    latency of a block, ms a batch, multilinear between grid points
    L                       latency of a model: stem(E) + Σ_blocks T(d_b) + head(E)

T of a grid point is the measured value to the last bit. Above the grid a query is refused.
Below it a dimension counts as the smallest grid point: the estimate is then too high, never
too low, and nothing more is saved there. With `below="to_zero"`, as in NViT's code, E and M
go on linearly to latency 0 at size 0 instead.
"""

import io
import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from trainers.files import parse_json, write_atomic
from trainers.machine import processor_name
from trainers.models.parameters import DIMENSIONS

Array = npt.NDArray[Any]
_VERSION = 1
_METADATA = b"latency_table"
_NVIT_KEYS = (r"EMB_(\d+)", r"QK_(\d+)_(\d+)", r"V_(\d+)", r"MLP_(\d+)")
_TO_ZERO = [DIMENSIONS.index(name) for name in ("embed", "mlp")]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fingerprint:
    """What a table was measured with; None where its file does not say.

    Attributes:
        device_name: of the accelerator or the processor.
        driver: version of the accelerator's driver; "" on the CPU.
        torch_version: with the build, for example 2.13.0+cu128.
        batch_size: images a pass.
        dtype: float32, bfloat16 or float16.
        tf32: whether float32 products on CUDA were allowed TF32.
        image_size: pixels, a number or [height, width].
        num_tokens: tokens of a block's input, prefix tokens included.
        num_threads: threads of the CPU's operators; 0 on an accelerator.
        runtime: what executed the blocks.
    """

    device_name: str | None = None
    driver: str | None = None
    torch_version: str | None = None
    batch_size: int | None = None
    dtype: str | None = None
    tf32: bool | None = None
    image_size: int | list[int] | None = None
    num_tokens: int | None = None
    num_threads: int | None = None
    runtime: str = "torch"


def device_name(device: torch.device) -> str:
    """The accelerator's name, or the processor's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()


def num_threads(device: torch.device) -> int:
    """Threads of the CPU's operators; 0 on an accelerator."""
    return torch.get_num_threads() if device.type == "cpu" else 0


@dataclass(frozen=True)
class Violation:
    """A place where more of one dimension was measured to be faster.

    Attributes:
        dimension: which grew.
        small, large: the two neighbouring grid points (E, H, QK, V, M).
        fall: by what fraction of the smaller block's latency the larger one's is below it.
    """

    dimension: str
    small: tuple[int, ...]
    large: tuple[int, ...]
    fall: float


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Latency of a transformer block as a function of its dimensions.

    Attributes:
        axes: ascending grid points (integers) of embed, heads, qk, v, mlp.
        block: milliseconds a batch, one axis a dimension.
        stem, head: milliseconds of patch embedding with positions, and of final norm with
            classifiers, at each grid point of embed; zeros where they were not measured.
        fingerprint: what it was measured with.
        below: what a width or a number of hidden units below the smallest grid point has:
            the latency of that point ("constant"), or its part of it ("to_zero").
    """

    axes: tuple[Array, ...]
    block: Array
    stem: Array
    head: Array
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    below: Literal["constant", "to_zero"] = "constant"

    def __post_init__(self) -> None:
        shape = tuple(len(axis) for axis in self.axes)
        assert len(shape) == len(DIMENSIONS), shape
        assert self.block.shape == shape, (self.block.shape, shape)
        assert self.stem.shape == self.head.shape == shape[:1], (
            self.stem.shape,
            self.head.shape,
        )
        if any((np.diff(axis) <= 0).any() or axis[0] < 1 for axis in self.axes):
            raise ValueError(
                "the grid points of a latency table are ascending and at least 1"
            )
        if not (np.isfinite(self.block) & (self.block > 0)).all():
            raise ValueError(
                "a latency table holds a value that is not a positive number of"
                " milliseconds"
            )

    def block_ms(self, dims: Array) -> Array:
        """Latency (n,) in ms of blocks with dimensions (n, 5): embed, heads, qk, v, mlp.

        Raises:
            ValueError: a dimension above the grid.
        """
        dims = np.asarray(dims, np.float64)
        self._refuse_above(dims)
        start = np.zeros(len(dims), np.int64)
        corners = np.zeros(1, np.int64)
        parts = []
        for j, axis in enumerate(self.axes):
            x = np.maximum(dims[:, j], axis[0])
            low = np.minimum(
                np.searchsorted(axis, x, side="right") - 1, max(len(axis) - 2, 0)
            )
            high = np.minimum(
                low + 1, len(axis) - 1
            )  # of one point, it is the point itself
            parts.append((x - axis[low]) / np.maximum(axis[high] - axis[low], 1))
            stride = math.prod(self.block.shape[j + 1 :])
            start += stride * low
            corners = np.concatenate([corners, corners + stride * (len(axis) > 1)])
        values = self.block.reshape(-1)[
            corners[:, None] + start
        ]  # (32, n): the last axis varies slowest
        for part in reversed(parts):
            half = len(values) // 2
            values = values[:half] * (1 - part) + values[half:] * part
        if self.below == "constant":
            return values[0]
        parts = [np.minimum(dims[:, j] / self.axes[j][0], 1.0) for j in _TO_ZERO]
        return values[0] * np.prod(parts, axis=0)

    def model_ms(self, embed: int, blocks: Array) -> float:
        """Latency in ms of a model of that width with block dimensions (L, 4): heads, qk,
        v, mlp.
        """
        blocks = np.asarray(blocks)
        dims = np.concatenate([np.full((len(blocks), 1), embed), blocks], 1)
        ends = np.interp(embed, self.axes[0], self.stem) + np.interp(
            embed, self.axes[0], self.head
        )
        return float(self.block_ms(dims).sum() + ends)

    def gradient(self, dims: Array) -> Array:
        """What one unit fewer of each dimension saves, T(d) − T(d − e_j), in ms: (n, 5) → (n, 5).

        0 at and below the smallest grid point, unless latency goes to zero there.
        """
        dims = np.asarray(dims, np.float64)
        fewer = (dims[:, None] - np.eye(len(DIMENSIONS))).reshape(-1, len(DIMENSIONS))
        return self.block_ms(dims)[:, None] - self.block_ms(fewer).reshape(dims.shape)

    def _refuse_above(self, dims: Array) -> None:
        most = np.array([axis[-1] for axis in self.axes])
        above = (dims > most).any(0)
        if above.any():
            raise ValueError(
                self._outside(int(above.argmax()), dims[:, above.argmax()].max())
            )

    def _outside(self, j: int, value: float) -> str:
        axis = self.axes[j]
        return (
            f"the latency table covers {DIMENSIONS[j]} from {axis[0]} to {axis[-1]},"
            f" the model has {value:g}; measure a table for this model (sweeps"
            " latency-table)"
        )

    def check_covers(self, dims: Array, num_tokens: int | None = None) -> None:
        """Refuse a table for other shapes: every dimension (n, 5) of the unpruned model
        lies within the grid.

        Args:
            num_tokens: tokens of the model, prefix tokens included; compared where the
                table knows its own.

        Raises:
            ValueError: names the axis, its range, the value and the remedy.
        """
        dims = np.asarray(dims)
        for j, axis in enumerate(self.axes):
            outside = (dims[:, j] < axis[0]) | (dims[:, j] > axis[-1])
            if outside.any():
                raise ValueError(self._outside(j, dims[outside.argmax(), j]))
        known = self.fingerprint.num_tokens
        if None not in (known, num_tokens) and known != num_tokens:
            raise ValueError(
                f"the latency table was measured at {known} tokens"
                f" ({self.fingerprint.image_size} px), the model has {num_tokens};"
                " measure a table for this image and patch size (sweeps latency-table)"
            )

    def warn_other_device(self, device: torch.device) -> str | None:
        """Log a warning, and return it, when the table was not measured on such a device
        with as many threads.
        """
        mine = self.fingerprint
        name = device_name(device)
        threads = num_threads(device)
        if mine.device_name is None:
            problem = "the latency table does not say what device it was measured on"
        elif mine.device_name != name:
            problem = f"the latency table was measured on {mine.device_name}"
        elif mine.num_threads != threads:
            problem = (
                f"the latency table was measured with {mine.num_threads} threads, not"
                f" {threads}"
            )
        else:
            return None
        message = f"{problem}; its estimates need not hold on this device ({name})"
        _log.warning(message)
        return message

    def check_monotone(self, tolerance: float = 0.02) -> list[Violation]:
        """Neighbouring grid points of which the larger is faster, worst first; the worst is
        logged as a warning.

        Real devices have such places (unfavourable sizes); many or deep ones speak of a
        disturbed measurement.

        Args:
            tolerance: falls of at most this fraction are noise.
        """
        found = []
        for j, name in enumerate(DIMENSIONS):
            values = np.moveaxis(self.block, j, 0)
            fall = np.moveaxis(1 - values[1:] / values[:-1], 0, j)
            for index in np.argwhere(fall > tolerance):
                above = index.copy()
                above[j] += 1
                found.append(
                    Violation(
                        name,
                        self._at(index),
                        self._at(above),
                        float(fall[tuple(index)]),
                    )
                )
        found.sort(key=lambda v: -v.fall)
        if found:
            worst = found[0]
            _log.warning(
                f"latency table: at {len(found)} places more of a dimension is faster;"
                f" the worst is {worst.dimension} from {_shown(worst.small)} to"
                f" {_shown(worst.large)}, {100 * worst.fall:.0f} % faster; where other"
                " work shares the device, measure again with more rounds"
            )
        return found

    def _at(self, index: Array) -> tuple[int, ...]:
        return tuple(int(axis[i]) for axis, i in zip(self.axes, index, strict=True))

    def write(self, path: Path) -> None:
        """Write a Parquet file, whole or not at all: one row a grid point, the rest in the
        schema's metadata.

        Raises:
            ValueError: the name does not end in .parquet.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if path.suffix != ".parquet":
            raise ValueError(f"{path}: a latency table is written as .parquet")
        grid = np.meshgrid(*self.axes, indexing="ij")
        columns = {
            name: points.reshape(-1)
            for name, points in zip(DIMENSIONS, grid, strict=True)
        }
        note = {
            "version": _VERSION,
            "fingerprint": asdict(self.fingerprint),
            "embed": self.axes[0].tolist(),
            "stem_ms": self.stem.tolist(),
            "head_ms": self.head.tolist(),
        }
        table = pa.table(columns | {"block_ms": self.block.reshape(-1)})
        buffer = io.BytesIO()
        pq.write_table(
            table.replace_schema_metadata({_METADATA: json.dumps(note).encode()}),
            buffer,
        )
        write_atomic(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> "LatencyTable":
        """Read what `write` wrote, or a table as NViT publishes it (.json, seconds, without
        a fingerprint).

        Raises:
            ValueError: the file is missing, damaged, or its points are no full grid.
        """
        if not path.is_file():
            raise ValueError(
                f"{path}: not a latency table (no such file); measure one with `sweeps"
                " latency-table`"
            )
        try:
            return _read_nvit(path) if path.suffix == ".json" else _read_parquet(path)
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: not a latency table ({error})") from error


def _shown(point: Sequence[int]) -> str:
    return ", ".join(
        f"{name} {value}" for name, value in zip(DIMENSIONS, point, strict=True)
    )


def _read_parquet(path: Path) -> LatencyTable:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    note = parse_json((table.schema.metadata or {}).get(_METADATA, b"null"))
    if note is None or note["version"] != _VERSION:
        raise ValueError(
            "it lacks the metadata of version 1 that `sweeps latency-table` writes"
        )
    points = np.stack([table.column(name).to_numpy() for name in DIMENSIONS], 1)
    axes, block = _grid(points, table.column("block_ms").to_numpy())
    if axes[0].tolist() != note["embed"]:
        raise ValueError("stem and head were measured at other widths than the blocks")
    return LatencyTable(
        axes,
        block,
        np.array(note["stem_ms"]),
        np.array(note["head_ms"]),
        Fingerprint(**note["fingerprint"]),
    )


def _read_nvit(path: Path) -> LatencyTable:
    points: list[list[int]] = []
    seconds: list[float] = []

    def walk(node: Any, level: int, point: list[int]) -> None:
        if level == len(_NVIT_KEYS):
            points.append(point)
            seconds.append(float(node))
            return
        for key, child in node.items():
            match = re.fullmatch(_NVIT_KEYS[level], key)
            if match is None:
                raise ValueError(f"key {key!r} is not of the form {_NVIT_KEYS[level]}")
            walk(child, level + 1, [*point, *map(int, match.groups())])

    walk(parse_json(path.read_text()), 0, [])
    axes, block = _grid(
        np.array(points, np.int64).reshape(-1, len(DIMENSIONS)),
        1000 * np.array(seconds),
    )
    return LatencyTable(axes, block, np.zeros(len(axes[0])), np.zeros(len(axes[0])))


def _grid(points: Array, values: Array) -> tuple[tuple[Array, ...], Array]:
    """Axes and values of a full grid given as points (n, 5) in any order."""
    axes = tuple(np.unique(points[:, j]) for j in range(len(DIMENSIONS)))
    shape = tuple(len(axis) for axis in axes)
    places = tuple(np.searchsorted(axis, points[:, j]) for j, axis in enumerate(axes))
    block = np.full(shape, np.nan)
    block[places] = values
    if len(points) != block.size or np.isnan(block).any():
        raise ValueError(
            f"its {len(points)} points are no full grid: the axes have"
            f" {' × '.join(map(str, shape))} points"
        )
    return axes, block
