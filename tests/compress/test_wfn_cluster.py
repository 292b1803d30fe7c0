"""The clustering call against a slow oracle written from the description, and what must
hold of any result.
"""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress.measure.model import value_statistics
from compress.wfn.candidates import Candidates, geometric_sequence, powers_of_two_sums
from compress.wfn.clustering import Clustering, Distance, cluster

GAMMA = 2.0**-7


def dense_candidates(
    bound: float,
    a: float,
    gamma: float,
    order: int,
    powers: bool = True,
    published: bool = False,
) -> np.ndarray:
    """Step 1 of the description, value by value; without powers of two, the geometric sequence."""
    a = min(a, 0.9999)
    lowest = math.log2(gamma) - order - 1
    lowest = lowest if published else math.ceil(lowest)
    found, v = {0.0}, gamma
    while v < bound:
        q = 2.0 ** float(np.round(np.log2(v))) if powers else float(np.float32(v))
        for _ in range(order if powers else 0):
            rest = v - q
            if abs(rest) < a * abs(v) or q == 0:
                break
            q += math.copysign(
                2.0 ** max(float(np.round(np.log2(abs(rest)))), lowest), rest
            )
        q = float(np.float32(q)) if published else q
        found |= {q, -q}
        v *= (1 + a) / (1 - a)
    return np.array(sorted(found))


def dense_distances(
    w: np.ndarray, c: float, gamma: float, mode: Distance, published: bool = False
) -> np.ndarray:
    if mode == "euclidean":
        free = published and c == 0
        return np.where(free & (np.abs(w) < gamma), 0.0, np.abs(w - c))
    if c == 0:
        return np.where(np.abs(w) < gamma, 0.0, 1.0)
    with np.errstate(divide="ignore"):
        return np.abs(w - c) / np.abs(w)


def oracle(
    weights: np.ndarray,
    fraction: float,
    a: float,
    gamma: float = GAMMA,
    mode: Distance = "relative",
    powers: bool = True,
    published: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[int, int]]:
    """Values, fixed, distances, orders: candidates × weights at each step, and a full
    stable sort.
    """
    w = weights.astype(np.float64)
    values, fixed, distances = w.copy(), np.zeros(len(w), bool), np.full(len(w), np.nan)
    orders: Counter[int] = Counter()
    order, tau = 0, a
    while (needed := math.floor(fraction * len(w)) - int(fixed.sum())) > 0:
        left = np.flatnonzero(~fixed)
        candidates = dense_candidates(
            np.abs(w[left]).max(), a, gamma, order, powers, published
        )
        nearest = np.concatenate(
            [
                np.abs(part[:, None] - candidates).argmin(1)
                for part in np.array_split(w[left], 1 + len(left) // 4096)
            ]
        )
        c = candidates[np.bincount(nearest, minlength=len(candidates)).argmax()]
        d = dense_distances(w[left], c, gamma, mode, published)
        ranked = np.argsort(d, kind="stable")
        counted = np.arange(1, len(d) + 1)
        zeros = np.count_nonzero(d == 0)
        if zeros > 1:
            counted = np.maximum(counted - zeros, 1)
        within = np.flatnonzero(np.cumsum(d[ranked]) / counted <= tau)
        if not len(within):
            order += 1
            tau *= 2 if order > 20 else 1
            continue
        first = ranked[: min(within[-1] + 1, needed)]
        fixed[left[first]], values[left[first]], distances[left[first]] = (
            True,
            c,
            d[first],
        )
        orders[order] += len(first)
        tau = a
    return values.astype(np.float32), fixed, distances.astype(np.float32), dict(orders)


def assert_equal_to_oracle(
    weights: np.ndarray,
    fraction: float,
    a: float,
    gamma: float = GAMMA,
    mode: Distance = "relative",
    powers: bool = True,
    published: bool = False,
) -> Clustering:
    result = cluster(
        torch.from_numpy(weights),
        fraction,
        a,
        zero_distance=gamma,
        distance=mode,
        powers_of_two=powers,
        published=published,
    )
    values, fixed, distances, orders = oracle(
        weights, fraction, a, gamma, mode, powers, published
    )
    np.testing.assert_array_equal(result.fixed.numpy(), fixed)
    np.testing.assert_array_equal(result.values.numpy(), values)
    np.testing.assert_array_equal(result.distances.numpy(), distances)
    assert result.orders == orders
    return result


def with_tiny_values(rng: np.random.Generator, n: int) -> np.ndarray:
    w = rng.normal(0, 0.2, n)
    tiny = rng.random(n) < 0.3
    w[tiny] = rng.choice([1e-44, -1e-40, 1e-30, -1e-9, 0.0, -0.0], tiny.sum())
    return w


DRAWS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(0, 0.1, n),
    "narrow": lambda rng, n: rng.normal(0, 0.005, n),
    "Laplace": lambda rng, n: rng.laplace(0, 0.05, n),
    "uniform": lambda rng, n: rng.uniform(-1, 1, n),
    "shifted": lambda rng, n: rng.normal(0.7, 0.2, n),
    "heavy tails": lambda rng, n: rng.standard_t(1.5, n) * 0.1,
    "half zeros": lambda rng, n: rng.normal(0, 0.1, n) * (rng.random(n) < 0.5),
    "duplicates": lambda rng, n: rng.choice(rng.normal(0, 0.3, max(1, n // 20)), n),
    "grid": lambda rng, n: np.round(rng.normal(0, 0.5, n) * 64) / 64,
    "bfloat16": (
        lambda rng, n: (
            torch.from_numpy(rng.normal(0, 0.1, n)).bfloat16().double().numpy()
        )
    ),
    "on centroids": (
        lambda rng, n: (
            rng.choice([1, -1], n)
            * 2.0 ** rng.integers(-9, 2, n)
            * rng.choice([1, 1.5], n)
        )
    ),
    "tiny values": with_tiny_values,
}


@pytest.mark.parametrize("mode", ["relative", "euclidean"])
@pytest.mark.parametrize("draw", DRAWS)
def test_equal_to_the_oracle(draw: str, mode: Distance) -> None:
    rng = np.random.default_rng(3)
    small = (
        0.02 if mode == "relative" or draw != "heavy tails" else 0.2
    )  # an outlier an order takes thousands of them
    for n, fraction, a in [
        *[(n, 1.0, small) for n in (1, 2, 3, 50)],
        (400, 0.3, 0.01),
        (400, 0.93, small),
        (700, 0.6, 0.1),
        (1000, 0.999, 0.5),
        (1000, 1.0, 1.0),
        (1000, 0.4, 2.5),
    ]:
        assert_equal_to_oracle(
            DRAWS[draw](rng, n).astype(np.float32), fraction, a, mode=mode
        )


@pytest.mark.parametrize("mode", ["relative", "euclidean"])
def test_without_powers_of_two_centroids_are_those_of_the_sequence(
    mode: Distance,
) -> None:
    w = np.random.default_rng(5).normal(0, 0.1, 600).astype(np.float32)
    result = assert_equal_to_oracle(w, 1.0, 0.02, mode=mode, powers=False)
    sequence = geometric_sequence(GAMMA, 0.02, 10.0).astype(np.float32)
    assert np.isin(np.abs(result.codebook.numpy()), np.append(sequence, 0)).all()
    assert set(result.codebook.tolist()) != set(
        cluster(torch.from_numpy(w), 1.0, 0.02, distance=mode).codebook.tolist()
    )


@pytest.mark.parametrize("gamma", [2.0**-5, 2.0**-10, 0.01, 0.0123])
def test_equal_to_the_oracle_at_other_zero_distances(gamma: float) -> None:
    rng = np.random.default_rng(4)
    assert_equal_to_oracle(np.float32(rng.normal(0, 0.05, 1500)), 0.9, 0.03, gamma)
    assert_equal_to_oracle(
        np.float32(rng.choice([gamma, -gamma, 0.3, gamma / 2], 300)), 1.0, 0.05, gamma
    )


@pytest.mark.parametrize(
    ("n", "fraction", "a"), [(3000, 1.0, 0.05), (100_000, 0.3, 0.05)]
)
def test_equal_to_the_oracle_on_many_weights(n: int, fraction: float, a: float) -> None:
    assert_equal_to_oracle(
        np.float32(np.random.default_rng(5).laplace(0, 0.04, n)), fraction, a
    )


weight_lists = st.lists(
    st.one_of(
        st.floats(-4, 4, width=32),
        st.floats(-0.015625, 0.015625, width=32),
        st.sampled_from(
            [0.0, -0.0, GAMMA, -GAMMA, 0.5, -0.25, 0.75, 1.0, 1.5, -1.0, 0.3, -0.3]
        ),
    ),
    max_size=40,
)
fractions = st.one_of(st.just(1.0), st.floats(0, 1))
distances = st.sampled_from([0.01, 0.05, 0.2, 0.45, 0.6, 0.9, 1.0, 1.7])
modes = st.sampled_from(["relative", "euclidean"])


@settings(max_examples=150, deadline=None)
@given(weight_lists, fractions, distances, modes, st.booleans())
def test_any_weights(
    weights: list[float], fraction: float, a: float, mode: Distance, published: bool
) -> None:
    w = np.array(weights, np.float32)
    result = assert_equal_to_oracle(w, fraction, a, mode=mode, published=published)
    assert (
        int(result.fixed.sum())
        == sum(result.orders.values())
        == math.floor(fraction * len(w))
    )
    # unfixed: untouched to the bit; fixed: what the codebook says, each entry in use
    unfixed = ~result.fixed
    assert result.values[unfixed].numpy().tobytes() == w[unfixed.numpy()].tobytes()
    assert (result.assignments[unfixed] == -1).all()
    assert result.distances[unfixed].isnan().all()
    assert not result.distances[result.fixed].isnan().any()
    used = result.assignments[result.fixed]
    assert torch.equal(result.codebook[used], result.values[result.fixed])
    assert used.unique().tolist() == list(range(len(result.codebook)))
    assert result.codebook.tolist() == sorted(set(result.codebook.tolist()))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("mode", ["relative", "euclidean"])
def test_order_matters_only_between_equal_distances(seed: int, mode: Distance) -> None:
    rng = np.random.default_rng(seed)
    w = torch.from_numpy(np.float32(rng.normal(0, 0.1, 400)))
    shuffled = torch.from_numpy(rng.permutation(400))
    # relative distances to the centroid 0 are equal; all weights fixed, they are not cut by
    # the number needed
    fraction = 1.0 if mode == "relative" else 0.8
    for a in (0.02, 0.1):
        result, other = (
            cluster(w, fraction, a, distance=mode),
            cluster(w[shuffled], fraction, a, distance=mode),
        )
        assert torch.equal(other.values, result.values[shuffled])
        assert torch.equal(other.fixed, result.fixed[shuffled])


@pytest.mark.parametrize("seed", range(5))
def test_signs_and_powers_of_two_carry_over(seed: int) -> None:
    w = torch.randn(100_000, generator=torch.Generator().manual_seed(seed)) * 0.1
    result = cluster(w, 0.6, 0.05)
    # signs carry over as long as no two candidates are equally full, as they may be in the tail
    assert torch.equal(cluster(-w, 0.6, 0.05).values, -result.values)
    assert torch.equal(
        cluster(4 * w, 0.6, 0.05, zero_distance=4 * GAMMA).values, 4 * result.values
    )


def test_powers_of_two_stay() -> None:
    w = (
        2.0
        ** torch.randint(
            -7, 3, (500,), generator=torch.Generator().manual_seed(0)
        ).float()
    )
    w[::3] *= -1
    w[::5] = 0
    result = cluster(w, 1.0, 0.05)
    assert torch.equal(result.values, w)
    assert result.orders == {0: 500}
    assert not result.distances.any()


def test_clustering_again_moves_few_weights_little() -> None:
    w = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 0.1
    once = cluster(w, 1.0, 0.02)
    again = cluster(once.values, 1.0, 0.02)
    assert len(again.codebook) <= len(once.codebook)
    assert (again.values == once.values).float().mean() > 0.9


def test_equal_weights_go_by_index() -> None:
    assert (
        cluster(torch.full((10,), 0.5), 0.4, 0.01).fixed.tolist()
        == [True] * 4 + [False] * 6
    )
    zeros = torch.tensor([0.0, 1e-3, -0.0, -1e-3, 0.0])
    assert cluster(zeros, 0.6, 0.01).fixed.tolist() == [True] * 3 + [False] * 2


@pytest.mark.parametrize("signs", [(1, -1), (-1, 1)])
def test_equal_distances_on_both_sides_go_by_index(signs: tuple[int, int]) -> None:
    # euclidean: 0.5 ± 1/16 in turn; relative to 1: 3/4 and 3/2 are both 1/3 away
    w = np.float32([0.5 + s / 16 for s in signs] * 4)
    result = assert_equal_to_oracle(w, 0.4, 0.1, mode="euclidean")
    assert result.fixed.tolist() == [True] * 3 + [False] * 5
    w = np.float32([1, *[0.75 if s < 0 else 1.5 for s in signs] * 4, 1, 1, 1, 1, 1])
    result = assert_equal_to_oracle(w, 0.65, 0.34)
    assert result.fixed.tolist() == [True] * 4 + [False] * 5 + [True] * 5


@pytest.mark.parametrize("value", [0.53, 0.55, 0.5701, 0.61, 0.47, 0.44])
@pytest.mark.parametrize("n", [10, 1000])
def test_means_that_only_rounding_tells_from_the_tolerance(
    value: float, n: int
) -> None:
    w = np.full(n, value, np.float32)
    exact = abs(float(w[0]) - 0.5) / float(w[0])
    for a in (exact, np.nextafter(exact, 0), np.nextafter(exact, 1)):
        assert_equal_to_oracle(w, 0.9, float(a))
        assert_equal_to_oracle(
            np.append(w, np.float32([0.501, 0.499, -0.5])), 0.9, float(a)
        )


def test_one_exact_zero_counts_in_the_mean_and_two_do_not() -> None:
    one = assert_equal_to_oracle(np.float32([0.5, 0.55]), 1.0, 0.05)
    assert one.codebook.tolist() == [0.5]  # (0 + 0.0909)/2 <= 0.05
    assert one.orders == {0: 2}
    two = assert_equal_to_oracle(np.float32([0.5, 0.5, 0.55]), 1.0, 0.05)
    assert two.orders[0] == 2
    # the same for c = 0, where larger weights are at distance 1
    assert assert_equal_to_oracle(
        np.float32([1e-3, GAMMA, GAMMA]), 0.7, 0.6
    ).codebook.tolist() == [0.0]
    assert_equal_to_oracle(
        np.float32([1e-3, -0.008, 0.009, 0.0079, -0.0081]), 1.0, 0.7, 0.0078
    )


def test_small_weights_become_zero() -> None:
    w = torch.tensor([0.0078, -0.0078, 1e-42, 0.0, 0.5, GAMMA])
    result = cluster(w, 1.0, 0.01)
    assert result.values.tolist() == [0, 0, 0, 0, 0.5, GAMMA]
    assert not result.values.signbit().any()
    assert result.assignments.tolist() == [0, 0, 0, 0, 2, 1]


def test_known_clustering() -> None:
    """Figures of the oracle, so that a change of both is noticed."""
    w = torch.from_numpy(
        np.random.default_rng(0).laplace(0, 0.05, 20_000).astype(np.float32)
    )
    result = cluster(w, 1.0, 0.02)
    statistics = value_statistics([result.values])
    assert statistics.unique_values == len(result.codebook) == 142
    assert statistics.entropy_bits == pytest.approx(6.235033, abs=1e-6)
    assert result.orders == {0: 1069, 1: 7639, 2: 9533, 3: 1724, 21: 31, 22: 4}


def test_nothing_to_do() -> None:
    w = torch.randn(7)
    for result in (cluster(w, 0.0, 0.01), cluster(w, 0.14, 0.01)):
        assert torch.equal(result.values, w)
        assert not result.fixed.any()
        assert result.codebook.shape == (0,)
        assert result.orders == {}
    empty = cluster(torch.empty(0), 1.0, 0.01)
    assert empty.values.shape == empty.fixed.shape == empty.codebook.shape == (0,)


@pytest.mark.parametrize(
    "value", [0.0, 1e-45, 1e-3, GAMMA, 0.3, -1.7, 1000.0, 1e-20, -3e30]
)
@pytest.mark.parametrize("mode", ["relative", "euclidean"])
@pytest.mark.parametrize("n", [1, 5])
def test_all_equal(value: float, mode: Distance, n: int) -> None:
    a = 0.05 if mode == "relative" or abs(value) < 2 else 0.1 * abs(value)
    result = assert_equal_to_oracle(np.full(n, value, np.float32), 1.0, a, mode=mode)
    assert result.fixed.all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_taken_as_float32(dtype: torch.dtype) -> None:
    w = (
        torch.randn(
            500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        * 0.1
    ).to(dtype)
    result, same = cluster(w, 0.7, 0.05), cluster(w.float(), 0.7, 0.05)
    assert result.values.dtype == torch.float32
    assert torch.equal(result.values, same.values)
    assert torch.equal(result.assignments, same.assignments)


def test_shape_order_and_input_are_kept() -> None:
    w = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)).t()
    before = w.clone()
    result = cluster(torch.nn.Parameter(w), 0.5, 0.05)
    flat = cluster(w.reshape(-1), 0.5, 0.05)
    assert torch.equal(w, before)
    for name in ("values", "fixed", "assignments"):
        tensor: Tensor = getattr(result, name)
        assert tensor.shape == w.shape
        assert torch.equal(tensor.reshape(-1), getattr(flat, name))
    assert not result.values.requires_grad
    assert cluster(torch.tensor(0.3), 1.0, 0.3).values.shape == ()


@pytest.mark.gpu
def test_cuda_gives_the_same() -> None:
    w = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 0.1
    here, there = cluster(w, 0.9, 0.02), cluster(w.cuda(), 0.9, 0.02)
    for name in ("values", "fixed", "codebook", "assignments", "distances"):
        tensor: Tensor = getattr(there, name)
        assert tensor.is_cuda
        np.testing.assert_array_equal(tensor.cpu().numpy(), getattr(here, name).numpy())
    assert here.orders == there.orders


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weights": torch.tensor([1.0, math.nan, math.inf])},
            "2 of 3 are not finite in float32, the first at 1",
        ),
        (
            {"weights": torch.tensor([1.0, 1e300], dtype=torch.float64)},
            "not finite in float32",
        ),
        ({"weights": torch.tensor([1.0, -2e38])}, "2\\^127"),
        (
            {"weights": torch.tensor([1, 2])},
            "torch.int64; they must be of a floating-point type",
        ),
        ({"fraction": -0.1}, "fraction is -0.1"),
        ({"fraction": 1.01}, "fraction is 1.01"),
        ({"fraction": math.nan}, "fraction is nan"),
        ({"max_distance": 0.0}, "max_distance is 0.0"),
        ({"max_distance": -0.1}, "max_distance is -0.1"),
        ({"max_distance": 1e-9}, "at least 2\\^-20"),
        ({"max_distance": math.inf}, "max_distance is inf"),
        ({"zero_distance": 0.0}, "zero_distance is 0.0"),
        ({"zero_distance": math.nan}, "zero_distance is nan"),
        ({"distance": "cosine"}, "'cosine' is not one of relative, euclidean"),
    ],
)
def test_refused(change: dict, message: str) -> None:
    arguments = {
        "weights": torch.ones(3),
        "fraction": 1.0,
        "max_distance": 0.1,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        cluster(**arguments)


def test_candidates_by_hand() -> None:
    sequence = geometric_sequence(0.25, 1 / 3, 1.9)  # r = 2
    assert sequence.tolist() == pytest.approx([0.25, 0.5, 1.0])
    assert len(geometric_sequence(0.25, 0.1, 0.25)) == 0
    v = np.array([0.75, 1.1, 1.02 * GAMMA])
    assert powers_of_two_sums(v, 0, 0.01, GAMMA).tolist() == [1, 1, GAMMA]
    # 1 - 1/4; 1 + 1/8; the added exponent is held at -7 - 1 - 1
    assert powers_of_two_sums(v, 1, 0.01, GAMMA).tolist() == [
        0.75,
        1.125,
        GAMMA + 2**-9,
    ]
    # 1.125 is 2.3 % off: - 1/32; a closer one stays
    assert powers_of_two_sums(v, 2, 0.01, GAMMA)[:2].tolist() == [0.75, 1.09375]
    assert powers_of_two_sums(v, 2, 0.03, GAMMA)[:2].tolist() == [0.75, 1.125]


@pytest.mark.parametrize("order", [0, 1, 3, 25])
@pytest.mark.parametrize("bound", [0.005, GAMMA, 0.5, 3.3])
def test_candidates_like_the_oracle(order: int, bound: float) -> None:
    candidates = Candidates(0.02, GAMMA, 5.0)
    found = candidates.at(order, candidates.length(bound))
    np.testing.assert_array_equal(found, dense_candidates(bound, 0.02, GAMMA, order))
