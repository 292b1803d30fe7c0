"""Entropy coding of indices: contexts that predict a weight's size and sign from weights
already coded.

Legend
    O, I, P     output channels, input channels, kernel positions of a tensor (a linear
                layer has P = 1)
    V           signed values of a tensor's weights, integers, (P, O, I): positions are
                coded one after the other
    block       rows × columns of one position, coded at once; all that was coded before may
                serve it
    R_o, C_i    mean |V| of output channel o and of input channel i so far, shrunk towards
                the tensor's mean G
    s           predicted size of a weight, log2(R_o·C_i/G), in eighths of an octave
    u           predicted value from the neighbours in the kernel: left + above - (left above)/2
    cell        (class of s, class of sign(u)·|u|/2^s): one adaptive histogram

Histograms are learnt as coding goes, the same way on both sides; nothing of them is stored.
A cell starts from what cells of similar s hold, those from the histogram of the scale, that
from the one of all. Every number that decides a probability is an integer or comes from
single IEEE operations on float64, so that all machines agree to the bit.

The coder is constriction's ANS, a stack: the encoder gathers all blocks and pushes them
last to first.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import constriction  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

Symbols = NDArray[Any]
Int16s = NDArray[np.int16]
Categorical = constriction.stream.model.Categorical
AnsCoder = constriction.stream.stack.AnsCoder

LARGEST_VALUE = 6000
"""Of |V|: 2 left + 2 above - left above fits 16 bits."""
_SIGN_THRESHOLDS = (-8, 2, 10)  # of log2(|u|/2^s), eighths of an octave
_SIGN_CLASSES = 2 * len(_SIGN_THRESHOLDS) + 1
_SIZE_STEP = 5  # eighths of an octave
_SIZE_LEVELS = 128
_SIZE_CLASSES = -(-_SIZE_LEVELS // _SIZE_STEP)
_SIGNED_SYMBOLS = 512  # with more symbols the sign classes would be too thin to learn
_SHRINK = 2  # weights' worth of G in R and C
_BLOCK = 1 << 17  # elements: they stay in a core's second-level cache
_COUNT_ALL = 1 << 13  # of a larger block every fourth element is counted
# histograms are renewed when this much more has been seen since the tensor began ...
_GROWTH = 0.1
# ... or, in a network of more than `_MANY` weights, since the beginning
_GROWTH_OF_MANY = 0.2
_MANY = 1 << 20
_PROBABILITY = 1 << 20
# how many observations a prior is worth
_PRIOR_SIZE = 50
_PRIOR_SIMILAR = 30
_PRIOR_CELL = 60


def _eighths(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """log2(1 + value) in eighths of an octave, linear in between: exact integers."""
    values = values + 1
    octave = np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1
    return 8 * octave + ((values << 3) >> octave) - 8


def _log_table() -> Int16s:
    """16 bits of a signed number → its sign and logarithm in quarter octaves, 7 bits."""
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.int16).astype(np.int64)
    return (np.minimum(_eighths(np.abs(numbers)) // 2, 63) + 64 * (numbers < 0)).astype(
        np.int16
    )


def _cell_table() -> NDArray[np.uint8]:
    """(level of s, 7 bits of 2u) → cell."""
    level = np.arange(_SIZE_LEVELS)[:, None]
    code = np.arange(128)
    # V is stored times 16 for s, and u times 2
    ratio = (2 * (code & 63) - 8) - (level - 32)
    rank = np.searchsorted(_SIGN_THRESHOLDS, ratio) * ((code & 63) > 0)
    middle = len(_SIGN_THRESHOLDS)
    cells = (
        level // _SIZE_STEP * _SIGN_CLASSES + middle + np.where(code >> 6, -rank, rank)
    )
    return cells.astype(np.uint8).reshape(-1)


_LOG = _log_table()
_CELL = _cell_table()
_NEUTRAL = _CELL[::128].copy()


class Block(NamedTuple):
    """Rows and columns of one kernel position."""

    position: int
    rows: slice
    columns: slice


class Scan:
    """The order in which a tensor is coded, and the cells of a block given what came before.

    Args:
        shape: the tensor's.
        signed: V of each symbol.
        mean_16: 16 times the mean |V| of earlier tensors.
        histograms: of the cells; they say whether cells depend on u, and whether to hurry.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        signed: Int16s,
        mean_16: int,
        histograms: "Histograms",
    ) -> None:
        rows, columns = (*shape, 1, 1)[:2]
        self.shape = (math.prod(shape[2:]), rows, columns)
        self._width = shape[-1] if len(shape) > 2 else 1
        self._height = shape[-2] if len(shape) > 3 else 1
        self._signed = signed
        self._mean_16 = mean_16
        self._has_signs = histograms.has_signs
        self._halvings = (2 if self.shape[0] > 1 else 3) - histograms.many
        self._values = np.zeros(self.shape, np.int16)
        self._row_sum = np.zeros(rows, np.int64)
        self._column_sum = np.zeros(columns, np.int64)
        self._row_count = np.zeros(rows, np.int64)
        self._column_count = np.zeros(columns, np.int64)
        self.sum = 0
        self.count = 0

    def blocks(self) -> Iterator[Block]:
        """All blocks in coding order. The first position is split, so that its later parts
        know R and C.
        """
        positions, rows, columns = self.shape
        halvings = max(0, min(self._halvings, ((rows * columns).bit_length() - 8) // 2))
        row_edges = _edges(rows, halvings)
        column_edges = _edges(columns, halvings)
        for position in range(positions):
            if position:
                row_edges = [0, rows]
                column_edges = [0, columns]
            for top, bottom in pairwise(row_edges):
                for left, right in pairwise(column_edges):
                    step = max(1, _BLOCK // (right - left))
                    for row in range(top, bottom, step):
                        yield Block(
                            position,
                            slice(row, min(row + step, bottom)),
                            slice(left, right),
                        )

    def cells(self, block: Block) -> NDArray[np.uint8]:
        """The cell of each weight of a block, flat."""
        mean = ((self.sum << 4) + 8 * self._mean_16) // (self.count + 8)
        height = block.rows.stop - block.rows.start
        total = np.concatenate(
            [self._row_sum[block.rows], self._column_sum[block.columns], [0]]
        )
        count = np.concatenate(
            [self._row_count[block.rows], self._column_count[block.columns], [0]]
        )
        logs = _eighths(((total << 4) + _SHRINK * mean) // (count + _SHRINK)).astype(
            np.int16
        )
        row = logs[:height]
        column = logs[height:-1] - logs[-1]
        level = np.add.outer(row, column)
        if row.min() + column.min() < 0 or row.max() + column.max() >= _SIZE_LEVELS:
            np.clip(level, 0, _SIZE_LEVELS - 1, out=level)
        predicted = self._predicted(block)
        if predicted is None:
            return _NEUTRAL.take(level).reshape(-1)
        level <<= 7
        level |= _LOG.take(predicted.view(np.uint16))
        return _CELL.take(level).reshape(-1)

    def _predicted(self, block: Block) -> Int16s | None:
        """2u, or None where nothing of the kernel is known."""
        position, rows, columns = block
        x = position % self._width
        y = position // self._width % self._height
        if not self._has_signs or not (x or y):
            return None
        left = self._values[position - 1, rows, columns]
        if not y:
            return left << 1
        above = self._values[position - self._width, rows, columns]
        if not x:
            return above << 1
        twice = left + above
        twice <<= 1
        twice -= self._values[position - self._width - 1, rows, columns]
        return twice

    def record(self, block: Block, symbols: Symbols) -> None:
        """Take in a block's symbols, flat."""
        position, rows, columns = block
        if position and position == self.shape[0] - 1:
            return  # nobody asks any more
        values = self._signed.take(symbols).reshape(
            rows.stop - rows.start, columns.stop - columns.start
        )
        self._values[position, rows, columns] = values
        np.abs(values, out=values)
        # a block's sums fit 32 bits, which is twice as fast; not those of a row that is
        # longer than a block
        dtype = np.int32 if values.size <= _BLOCK else np.int64
        of_rows = values.sum(1, dtype=dtype)
        self._row_sum[rows] += of_rows
        self._column_sum[columns] += values.sum(0, dtype=dtype)
        self._row_count[rows] += values.shape[1]
        self._column_count[columns] += values.shape[0]
        self.sum += int(of_rows.sum(dtype=np.int64))
        self.count += values.size


def _edges(length: int, halvings: int) -> list[int]:
    return sorted({0, *(length >> k for k in range(halvings + 1))})


class Histograms:
    """Adaptive histograms of all cells.

    Attributes:
        has_signs: whether cells distinguish signs.
        many: whether there are so many weights that time counts more than the last permille.
    """

    def __init__(self, num_symbols: int, num_weights: int) -> None:
        self.has_signs = num_symbols <= _SIGNED_SYMBOLS
        self._symbols = num_symbols
        self._counts = np.zeros(
            (_SIZE_CLASSES, _SIGN_CLASSES if self.has_signs else 1, num_symbols)
        )
        place = np.arange(_SIZE_CLASSES * _SIGN_CLASSES) // (
            1 if self.has_signs else _SIGN_CLASSES
        )
        self._first = (place * num_symbols).astype(np.int32)
        self._noted: dict[int, list[NDArray[np.int32]]] = {1: [], 4: []}
        self.many = num_weights >= _MANY
        self._seen = 0
        self._pending = 0
        self._renew()

    def begin(self) -> None:
        """A new tensor: where that takes little time, renew often until it is known."""
        if not self.many:
            self._seen = 0

    def group(
        self, cells: NDArray[np.uint8]
    ) -> tuple[NDArray[np.intp], NDArray[np.uint8], list[int]]:
        """Order that sorts a block by cell, the sorted cells, and where each cell that
        occurs ends among them.
        """
        order = np.argsort(cells, kind="stable")
        in_order = cells.take(order)
        return (
            order,
            in_order,
            [*(np.flatnonzero(in_order[1:] != in_order[:-1]) + 1).tolist(), len(cells)],
        )

    def model(self, cell: int) -> Any:
        """The current distribution of a cell."""
        model = self._models.get(cell)
        if model is None:
            size, sign = divmod(cell, _SIGN_CLASSES)
            known = self._low <= size < self._low + len(self._frequencies)
            frequencies = (
                self._frequencies[size - self._low, sign if self.has_signs else 0]
                if known
                else self._of_all
            )
            model = self._models[cell] = Categorical(frequencies, perfect=False)
        return model

    def observe(self, cells: NDArray[np.uint8], symbols: Symbols) -> None:
        """Note the symbols of a block (both sorted by cell), and renew the distributions
        when it is time.
        """
        stride = 1 if len(symbols) <= _COUNT_ALL else 4
        places = self._first.take(cells[::stride])
        places += symbols[::stride]
        self._noted[stride].append(places)
        self._pending += len(symbols)
        if (
            self._pending
            >= (_GROWTH_OF_MANY if self.many else _GROWTH) * self._seen
            + 100
            + self._symbols
        ):
            self._renew()

    def _renew(self) -> None:
        for stride, places in self._noted.items():
            if places:
                counted = np.bincount(
                    np.concatenate(places), minlength=self._counts.size
                )
                self._counts += (stride * counted).reshape(self._counts.shape)
                places.clear()
        self._seen = self._seen + self._pending
        self._pending = 0
        self._models: dict[int, Any] = {}
        total = self._counts.sum((0, 1)) + 0.5
        of_all = total / total.sum()
        self._of_all = _frequencies(of_all)
        used = np.flatnonzero(self._counts.any((1, 2)))
        self._low = max(0, int(used[0]) - 2) if len(used) else 0
        counts = self._counts[self._low : used[-1] + 3 if len(used) else 0]
        similar = 16 * counts
        similar[1:] += 5 * counts[:-1]
        similar[:-1] += 5 * counts[1:]
        similar[2:] += counts[:-2]
        similar[:-2] += counts[2:]
        of_size = _mix(similar.sum(1, keepdims=True), 16 * _PRIOR_SIZE, of_all)
        of_similar = _mix(similar, 16 * _PRIOR_SIMILAR, of_size)
        self._frequencies = _frequencies(_mix(counts, _PRIOR_CELL, of_similar))


def _frequencies(probability: NDArray[np.float64]) -> NDArray[np.float32]:
    """Integers: their sum is exact in float32, whatever order constriction adds them in."""
    return (np.floor(probability * _PROBABILITY) + 1).astype(np.float32)


def _mix(
    counts: NDArray[np.float64], weight: int, prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Relative frequencies after adding `weight` observations of the prior."""
    return (counts + weight * prior) / (counts.sum(-1, keepdims=True) + weight)


@dataclass
class Plane:
    """A tensor to code: its shape, V of its symbols, and its symbols (P·O·I flat, in coding
    order).
    """

    shape: tuple[int, ...]
    signed: Int16s
    symbols: Symbols | None = None


def encode_with_contexts(planes: list[Plane], num_symbols: int) -> NDArray[np.uint32]:
    """The ANS words of all tensors."""
    histograms = Histograms(
        num_symbols, sum(math.prod(plane.shape) for plane in planes)
    )
    mean_16 = LARGEST_VALUE * 2
    pushed: list[tuple[Symbols, list[int], list[Any]]] = []
    for plane in planes:
        assert plane.symbols is not None
        scan = Scan(plane.shape, plane.signed, mean_16, histograms)
        whole = plane.symbols.reshape(scan.shape)
        histograms.begin()
        for block in scan.blocks():
            symbols = whole[block].reshape(-1)
            order, in_order, ends = histograms.group(scan.cells(block))
            grouped = symbols.take(order)
            pushed.append(
                (
                    grouped,
                    ends,
                    [histograms.model(int(in_order[end - 1])) for end in ends],
                )
            )
            histograms.observe(in_order, grouped)
            scan.record(block, symbols)
        mean_16 = (scan.sum << 4) // scan.count
    coder = AnsCoder()
    for grouped, ends, models in reversed(pushed):
        numbers = grouped.astype(np.int32)
        for start, end, model in zip(
            [0, *ends][-2::-1], ends[::-1], models[::-1], strict=True
        ):
            coder.encode_reverse(numbers[start:end], model)
    return coder.get_compressed()


def decode_with_contexts(
    words: NDArray[np.uint32], planes: list[Plane], num_symbols: int
) -> None:
    """Fill in the symbols of `planes`.

    Raises:
        ValueError: the words are not those of such tensors.
    """
    coder = AnsCoder(words)
    histograms = Histograms(
        num_symbols, sum(math.prod(plane.shape) for plane in planes)
    )
    mean_16 = LARGEST_VALUE * 2
    dtype = np.uint8 if num_symbols <= 256 else np.uint16
    for plane in planes:
        scan = Scan(plane.shape, plane.signed, mean_16, histograms)
        whole = np.empty(scan.shape, dtype)
        histograms.begin()
        for block in scan.blocks():
            order, in_order, ends = histograms.group(scan.cells(block))
            grouped = np.empty(len(order), dtype)
            start = 0
            for end in ends:
                grouped[start:end] = coder.decode(
                    histograms.model(int(in_order[start])), end - start
                )
                start = end
            histograms.observe(in_order, grouped)
            symbols = np.empty_like(grouped)
            symbols[order] = grouped
            whole[block] = symbols.reshape(whole[block].shape)
            scan.record(block, symbols)
        mean_16 = (scan.sum << 4) // scan.count
        plane.symbols = whole.reshape(-1)
    if not coder.is_empty():
        raise ValueError("indices are left over after the last tensor")
