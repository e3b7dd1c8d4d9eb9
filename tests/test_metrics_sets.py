"""Kernels, neighbours, features, classifiers and transport against closed forms and scikit-learn, SciPy and POT."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.spatial.distance
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from sklearn.neighbors import NearestNeighbors

from sdekit import metrics
from sdekit.noise import normal
from sdekit.targets import GaussianMixture

COUNTS = st.integers(7, 25)
SEEDS = st.integers(0, 99)
CHUNKED = {
    "mmd": metrics.mmd,
    "cmmd": metrics.cmmd,
    "kernel": metrics.kernel_distance,
    "density": lambda x, y: metrics.prdc(x, y).density,
    "recall": lambda x, y: metrics.prdc(x, y).recall,
    "coverage": lambda x, y: metrics.prdc(x, y).coverage,
    "authenticity": metrics.authenticity,
}


def draws(seed: int, n: int, *event: int) -> torch.Tensor:
    return normal(seed, 0, torch.arange(n), event, torch.float64)


def close_to_mean(values: list[float], exact: float, errors: float = 4.0) -> bool:
    """Whether the mean is ``exact`` but for chance."""
    return abs(np.mean(values) - exact) < errors * np.std(values, ddof=1) / math.sqrt(len(values))


# -- kernels --------------------------------------------------------------------------------------


def off_diagonal(k: np.ndarray) -> float:
    return k[~np.eye(len(k), dtype=bool)].mean()


@given(n=COUNTS, m=COUNTS, seed=SEEDS)
def test_discrepancies_are_those_of_scikit_learns_kernels(n: int, m: int, seed: int) -> None:
    x, y = draws(seed, n, 3), 1.5 * draws(seed + 100, m, 3) + 0.5
    k = [polynomial_kernel(a, b, degree=3, gamma=1 / 3, coef0=1) for a, b in ((x, x), (y, y), (x, y))]
    exact = off_diagonal(k[0]) + off_diagonal(k[1]) - 2 * k[2].mean()
    assert metrics.kernel_distance(x, y).item() == pytest.approx(exact, rel=1e-9, abs=1e-12)
    k = [rbf_kernel(a, b, gamma=1 / (2 * 0.7**2)) for a, b in ((x, x), (y, y), (x, y))]
    exact = off_diagonal(k[0]) + off_diagonal(k[1]) - 2 * k[2].mean()
    assert metrics.mmd(x, y, sigma=0.7).item() == pytest.approx(exact, rel=1e-9, abs=1e-12)
    k = [rbf_kernel(a, b, gamma=1 / 200).mean() for a, b in ((x, x), (y, y), (x, y))]
    assert metrics.cmmd(x, y).item() == pytest.approx(1000 * (k[0] + k[1] - 2 * k[2]), rel=1e-9, abs=1e-9)


def test_the_gaussian_discrepancy_of_gaussians_without_bias() -> None:
    # E exp(−z²/(2σ²)) for z ~ N(μ, 2) is √(σ²/(σ² + 2)) exp(−μ²/(2(σ² + 2)))
    sigma, mu = 1.3, 0.8
    overlap = math.sqrt(sigma**2 / (sigma**2 + 2))
    exact = 2 * overlap * (1 - math.exp(-(mu**2) / (2 * (sigma**2 + 2))))
    found = [metrics.mmd(draws(r, 8, 1), draws(r + 1000, 12, 1) + mu, sigma).item() for r in range(400)]
    assert close_to_mean(found, exact)
    biased = [metrics.cmmd(draws(r, 8, 1), draws(r + 1000, 12, 1), sigma, scale=1.0).item() for r in range(400)]
    assert close_to_mean(biased, (1 - overlap) * (1 / 8 + 1 / 12))


@pytest.mark.parametrize(("block", "runs"), [(10_000, 500), (5, 200)])
def test_the_kernel_distance_of_gaussians_without_bias_in_blocks_too(block: int, runs: int) -> None:
    # of (1 + z)³ = 1 + 3z + 3z² + z³, with the moments of N(0, 1) and N(μ, 1)
    mu = 0.5
    moments = {"xx": (0, 1, 0), "yy": (mu**2, (1 + mu**2) ** 2, (mu**3 + 3 * mu) ** 2), "xy": (0, 1 + mu**2, 0)}
    mean = {name: 1 + 3 * a + 3 * b + c for name, (a, b, c) in moments.items()}
    exact = mean["xx"] + mean["yy"] - 2 * mean["xy"]
    found = [metrics.kernel_distance(draws(r, 16, 1), draws(r + 900, 12, 1) + mu, block).item() for r in range(runs)]
    assert close_to_mean(found, exact)
    assert np.std(found) / math.sqrt(runs) < 0.3 * exact


def test_blocks_hold_every_sample_once() -> None:
    """The distance without the pairs within one set is additive: −2 mean (x·y + 1)³ over blocks of one x and one y."""
    x = torch.zeros(40, 1)
    x[17] = 3.0
    y = torch.zeros(40, 1)
    # all kernels with 0 are 1, (9 + 1)³ is left out as i = j: only where a block holds it, and there all are 1
    assert metrics.kernel_distance(x, y, block=4).item() == pytest.approx(0.0, abs=1e-12)
    y[:] = 1.0
    # blocks of 4: k = 8 for pairs of y; of x 1; of both 1, and with x_17 (3 + 1)³ = 64 for all 4 pairs of its block
    assert metrics.kernel_distance(x, y, block=4).item() == pytest.approx(7 - 2 * 63 / 40, rel=1e-12)


def test_the_width_is_the_median_distance_of_the_data() -> None:
    x, y = draws(1, 9, 2), draws(2, 3, 2)
    width = float(np.median(scipy.spatial.distance.pdist(y.numpy())))
    assert metrics.mmd(x, y).item() == pytest.approx(metrics.mmd(x, y, width).item(), rel=1e-12)


@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draws(3, 37, 4), 1.2 * draws(4, 23, 4)
    whole = CHUNKED[name](x, y).item()
    monkeypatch.setattr("sdekit.metrics.sets.CHUNK", 50)
    assert CHUNKED[name](x, y).item() == pytest.approx(whole, rel=1e-10)


# -- neighbours -----------------------------------------------------------------------------------


def radii(z: np.ndarray, k: int) -> np.ndarray:
    return NearestNeighbors(n_neighbors=k).fit(z).kneighbors()[0][:, -1]


@given(n=COUNTS, m=COUNTS, k=st.integers(1, 6), seed=SEEDS)
def test_precision_recall_density_and_coverage_by_their_definitions(n: int, m: int, k: int, seed: int) -> None:
    x, y = draws(seed, n, 2) + 0.7, 1.5 * draws(seed + 100, m, 2)
    distance = scipy.spatial.distance.cdist(x, y)
    of_x, of_y = radii(x.numpy(), k), radii(y.numpy(), k)
    exact = [
        np.mean([any(distance[i, j] < of_y[j] for j in range(m)) for i in range(n)]),
        np.mean([any(distance[i, j] < of_x[i] for i in range(n)) for j in range(m)]),
        np.mean([sum(distance[i, j] < of_y[j] for j in range(m)) / k for i in range(n)]),
        np.mean([min(distance[:, j]) < of_y[j] for j in range(m)]),
    ]
    assert [value.item() for value in metrics.prdc(x, y, k)] == pytest.approx(exact, rel=1e-12)


def test_coverage_and_density_of_equal_laws() -> None:
    """Among n + m − 1 others a sample comes before the k-th datum: by ranks alone, whatever the law."""
    n, m, k = 20, 30, 3
    found = [metrics.prdc(draws(r, n, 3), draws(r + 1000, m, 3), k) for r in range(300)]
    missed = math.prod((m - i) / (n + m - i) for i in range(1, k + 1))
    assert close_to_mean([one.coverage.item() for one in found], 1 - missed)
    assert close_to_mean([one.density.item() for one in found], 1.0)


def test_identical_and_far_sets() -> None:
    x = draws(5, 40, 6)
    assert [value.item() for value in metrics.prdc(x, x.roll(3, 0))] == [1.0, 1.0, 1.0, 1.0]
    assert [value.item() for value in metrics.prdc(x, x + 100)] == [0.0, 0.0, 0.0, 0.0]


def test_half_of_the_modes() -> None:
    """Samples of one of two modes are precise, reach half of the data and lie as densely as all of the data's would."""
    y = torch.cat([draws(6, 200, 2), draws(7, 200, 2) + 100])
    found = metrics.prdc(draws(8, 400, 2), y)
    assert found.precision.item() > 0.95
    assert found.recall.item() == pytest.approx(0.5, abs=0.05)
    assert found.coverage.item() <= 0.5
    assert found.density.item() == pytest.approx(1.0, abs=0.1)


@given(n=COUNTS, m=COUNTS, seed=SEEDS)
def test_authenticity_by_its_definition(n: int, m: int, seed: int) -> None:
    x, train = draws(seed, n, 2), draws(seed + 100, m, 2)
    distance, number = NearestNeighbors(n_neighbors=1).fit(train).kneighbors(x)
    own = radii(train.numpy(), 1)
    exact = np.mean(own[number[:, 0]] < distance[:, 0])
    assert metrics.authenticity(x, train).item() == pytest.approx(exact, rel=1e-12)


def test_copies_are_found() -> None:
    train, fresh = draws(9, 300, 5), draws(10, 100, 5)
    near = train[:100] + 1e-3 * draws(11, 100, 5)
    assert metrics.authenticity(near, train).item() == 0.0
    assert metrics.authenticity(fresh, train).item() > 0.5
    test = draws(12, 200, 5)
    assert metrics.ct_statistic(near, test, train).item() < -5
    assert abs(metrics.ct_statistic(fresh, test, train).item()) < 4
    assert metrics.ct_statistic(3 * fresh, test, train).item() > 3


def test_the_copying_statistic_in_one_cell_is_scipys_test() -> None:
    x, y, train = 0.9 * draws(13, 60, 3), draws(14, 50, 3), draws(15, 70, 3)
    nearest = [scipy.spatial.distance.cdist(z, train).min(1) for z in (x, y)]
    p = scipy.stats.mannwhitneyu(*nearest, alternative="less", method="asymptotic").pvalue
    assert scipy.stats.norm.cdf(metrics.ct_statistic(x, y, train, cells=1).item()) == pytest.approx(p, rel=1e-9)


def test_the_copying_statistic_weighs_cells_by_the_data() -> None:
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]], dtype=torch.float64)
    # 10 samples in the last cell: too few, it is left out
    x = torch.cat([draws(16, 40, 2), 0.5 * draws(17, 30, 2) + centres[1], draws(18, 10, 2) + centres[2]])
    y = torch.cat([draws(19, 60, 2), draws(20, 20, 2) + centres[1], draws(21, 40, 2) + centres[2]])
    train = torch.cat([draws(22 + c, 50, 2) + centre for c, centre in enumerate(centres)])
    parts = [
        metrics.ct_statistic(x[:40], y[:60], train[:50], cells=1).item(),
        metrics.ct_statistic(x[40:70], y[60:80], train[50:100], cells=1).item(),
    ]
    exact = (60 * parts[0] + 20 * parts[1]) / 80
    assert metrics.ct_statistic(x, y, train).item() == pytest.approx(exact, rel=1e-9)
    assert len(set(KMeans(3, n_init=10, random_state=0).fit(train.numpy()).predict(centres.numpy()))) == 3


# -- features -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(12, 5), (5, 12)])
def test_vendi_score_by_its_definition(n: int, d: int) -> None:
    x = draws(25, n, d)
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    eigenvalues = np.linalg.eigvalsh(unit @ unit.T / n)
    assert metrics.vendi_score(x).item() == pytest.approx(np.exp(scipy.stats.entropy(eigenvalues.clip(0))), rel=1e-9)
    assert metrics.vendi_score(x * torch.arange(1, n + 1)[:, None]).item() == pytest.approx(
        metrics.vendi_score(x).item(), rel=1e-9
    )


def test_vendi_score_of_kinds_is_the_exponential_of_their_entropy() -> None:
    kinds = torch.eye(4).repeat_interleave(torch.tensor([1, 2, 3, 6]), 0)
    exact = np.exp(scipy.stats.entropy([1, 2, 3, 6]))
    assert metrics.vendi_score(kinds).item() == pytest.approx(exact, rel=1e-12)
    assert metrics.vendi_score(torch.ones(9, 3)).item() == pytest.approx(1.0, rel=1e-12)
    assert metrics.vendi_gap(kinds, torch.eye(4)).item() == pytest.approx(math.log(4 / exact), rel=1e-12)


def test_the_extrapolated_frechet_distance_loses_the_bias() -> None:
    y = draws(26, 4000, 6)
    sets = [draws(27 + r, 100, 6) for r in range(40)]
    plain = [metrics.frechet_distance(x, y).item() for x in sets]
    extrapolated = [metrics.frechet_infinity(x, y).item() for x in sets]
    # |mean|² is d/n in the mean, and W_2² between I and I + E is tr E²/4 to second order, d (d + 1)/(4n) in the mean
    bias = (6 + 6 * 7 / 4) * (1 / 100 + 1 / 4000)
    assert np.mean(plain) == pytest.approx(bias, rel=0.15)
    assert abs(np.mean(extrapolated)) < 0.3 * bias


def test_the_extrapolation_is_a_line_in_the_inverse_number() -> None:
    x, y = draws(70, 60, 2), draws(71, 80, 2)
    order = normal(0, 0, torch.arange(60), (), torch.float64).argsort()
    sizes = np.linspace(6, 60, 15).astype(int)
    values = [metrics.frechet_distance(x[order[:size]], y).item() for size in sizes]
    assert metrics.frechet_infinity(x, y).item() == pytest.approx(np.polyfit(1 / sizes, values, 1)[1], rel=1e-9)


# -- classifier -----------------------------------------------------------------------------------


def test_a_classifier_takes_a_part_of_large_sets() -> None:
    """As many as it says, drawn from all of them, the same each time."""
    seen: list[int] = []

    class Counting(LogisticRegression):
        def fit(self, X, y):  # noqa: N803
            seen.append(len(X))
            return super().fit(X, y)

    x, y = draws(0, 300, 2), draws(1, 400, 2)
    assert metrics.classifier_accuracy(x, y, Counting(), most=50).item() > 0
    assert seen == [80] * 5  # four fifths of a hundred
    sorted_x, sorted_y = (z[z[:, 0].argsort()] for z in (x, y))  # the first ones would tell the sets apart
    found = [metrics.classifier_accuracy(sorted_x, sorted_y[-300:], most=100).item() for _ in range(2)]
    assert found[0] == found[1]
    with pytest.raises(ValueError, match="most=9"):
        metrics.classifier_accuracy(x, y, most=9)


def test_a_classifier_is_at_chance_for_equal_laws_and_at_the_best_ones_share_for_gaussians() -> None:
    equal = [metrics.classifier_accuracy(draws(r, 60, 2), draws(r + 500, 90, 2)).item() for r in range(40)]
    assert close_to_mean(equal, 0.5)
    shift = torch.tensor([1.0, 0.0])
    x, y = draws(72, 2000, 2), draws(73, 2000, 2) + shift
    found = metrics.classifier_accuracy(x, y, LogisticRegression()).item()
    exact = scipy.stats.norm.cdf(0.5)  # ½ + TV/2 of two Gaussians one standard deviation apart
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000))
    assert found - 0.05 < metrics.classifier_accuracy(x, y).item() < found + 0.02


# -- transport ------------------------------------------------------------------------------------


def test_exact_transport_is_scipys_assignment() -> None:
    pytest.importorskip("ot")
    x, y = draws(74, 30, 3), 2 * draws(75, 30, 3) + 5
    cost = scipy.spatial.distance.cdist(x, y, "sqeuclidean")
    exact = math.sqrt(cost[scipy.optimize.linear_sum_assignment(cost)].mean())
    assert metrics.wasserstein(x, y).item() == pytest.approx(exact, rel=1e-9)


@given(n=COUNTS, m=COUNTS, seed=SEEDS)
def test_exact_transport_on_a_line(n: int, m: int, seed: int) -> None:
    pytest.importorskip("ot")
    x, y = draws(seed, n, 1), draws(seed + 100, m, 1) + 1
    exact = metrics.sliced_wasserstein(x, y, projections=1).item()
    assert metrics.wasserstein(x, y).item() == pytest.approx(exact, rel=1e-9)


def test_exact_transport_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ot")
    monkeypatch.setattr("sdekit.metrics.transport.PAIRS", 10)
    with pytest.raises(ValueError, match="5 and 3 samples given: at most 10 pairs"):
        metrics.wasserstein(torch.zeros(5, 1), torch.zeros(3, 1))
    monkeypatch.setitem(__import__("sys").modules, "ot", None)
    with pytest.raises(ImportError, match="pip install POT"):
        metrics.wasserstein(torch.zeros(5, 1), torch.zeros(2, 1))


# -- errors of each sample ------------------------------------------------------------------------


@given(n=st.integers(1, 30), q=st.floats(0, 1), seed=SEEDS)
def test_quantiles_of_errors_are_numpys(n: int, q: float, seed: int) -> None:
    x, reference = draws(seed, n, 2, 3), draws(seed + 100, n, 2, 3)
    errors = np.sqrt(np.mean((x - reference).numpy() ** 2, axis=(1, 2)))
    assert metrics.quantile_error(x, reference, q).item() == pytest.approx(np.quantile(errors, q), rel=1e-12)


def test_one_sample_that_crosses_a_watershed_moves_the_root_mean_square_alone() -> None:
    x = draws(76, 100, 2)
    crossed = x + 0.01
    crossed[3] += 100
    assert metrics.rmse(crossed, x).item() > 10 * 0.9
    assert metrics.quantile_error(crossed, x).item() == pytest.approx(0.01, rel=1e-9)
    assert metrics.METRICS["q90_error"].distance(crossed, x).item() == pytest.approx(0.01, rel=1e-9)


# -- laws -----------------------------------------------------------------------------------------


def mixture(apart: float, *weights: float) -> GaussianMixture:
    means = apart * torch.arange(float(len(weights)), dtype=torch.float64)[:, None]
    return GaussianMixture(means, 1.0, torch.tensor(weights, dtype=torch.float64))


def test_likelihoods_of_a_mixture_are_scipys() -> None:
    law, x, y = mixture(3.0, 0.2, 0.8), draws(77, 9, 1), draws(78, 5, 1)
    log_density = [np.log(scipy.stats.norm.pdf(z, [[0.0, 3.0]]) @ [0.2, 0.8]).mean() for z in (x.numpy(), y.numpy())]
    assert metrics.negative_log_likelihood(x, law).item() == pytest.approx(-log_density[0], rel=1e-9)
    assert metrics.nll_gap(x, y, law).item() == pytest.approx(abs(log_density[0] - log_density[1]), rel=1e-9)


def test_weights_of_modes_that_overlap_are_found_without_bias() -> None:
    """Nearest means would call Φ(−½) of the samples the other mode's: 0.25 of 0.8 and 0.2 instead of 0.2."""
    law = mixture(1.0, 0.8, 0.2)
    assert metrics.mode_weights_error(law.sample(20000), law).item() < 0.01
    other = mixture(1.0, 0.2, 0.8)
    # E p(2 | x) under the other law by quadrature
    grid = np.linspace(-9, 10, 20001)
    joint = scipy.stats.norm.pdf(grid[:, None], [[0.0, 1.0]]) * [0.8, 0.2]
    density = scipy.stats.norm.pdf(grid[:, None], [[0.0, 1.0]]) @ [0.2, 0.8]
    share = np.trapezoid(density * joint[:, 1] / joint.sum(1), grid)
    assert metrics.mode_weights_error(other.sample(20000), law).item() == pytest.approx(share - 0.2, abs=0.01)


def test_the_bias_of_weights_of_modes_far_apart() -> None:
    law, n = mixture(50.0, 0.3, 0.7), 200
    found = [metrics.mode_weights_error(law.sample(n, seed=r), law).item() for r in range(200)]
    # 2 √(w (1 − w)/(2πn)); the normal limit of a binomial is off by some 1/n at most
    assert close_to_mean(found, 2 * math.sqrt(0.21 / (2 * math.pi * n)))


# -- bad input ------------------------------------------------------------------------------------

BAD = [
    (lambda x: metrics.prdc(x, x, 3), "3 and 3 samples given: each set needs at least 4"),
    (lambda x: metrics.prdc(x, x, 0), "k=0: it must be a whole number from 1"),
    (lambda x: metrics.mmd(x, x[:1]), "each set needs at least 2"),
    (lambda x: metrics.mmd(x, x, sigma=0.0), "sigma=0.0: it must be a finite number above 0"),
    (lambda x: metrics.mmd(x, torch.ones(9, 2)), "half of the pairs of y coincide"),
    (lambda x: metrics.cmmd(x, x, sigma=-1.0), "sigma=-1.0"),
    (lambda x: metrics.kernel_distance(x, x, block=1), "block=1"),
    (lambda x: metrics.kernel_distance(x, x[:, :1]), "must be equal"),
    (lambda x: metrics.vendi_score(torch.zeros(2, 2)), "entries are all 0"),
    (lambda x: metrics.vendi_score(x[:0]), "x=.*not empty"),
    (lambda x: metrics.vendi_score(x / 0), "x=<tensor .* with .*(nan|inf) at "),
    (lambda x: metrics.prdc(x, torch.full((9, 2), math.nan), 1), "y=<tensor .* with .*(nan|inf) at "),
    (lambda x: metrics.frechet_infinity(x, x), "3 samples and points=15"),
    (lambda x: metrics.classifier_accuracy(x, x), "each set needs at least 10"),
    (lambda x: metrics.authenticity(x, x[:1]), "train: 1 sample given"),
    (lambda x: metrics.ct_statistic(x, x, x, cells=0), "cells=0"),
    (lambda x: metrics.ct_statistic(x, x, x, cells=1), "no cell of 1 has more than 20"),
    (lambda x: metrics.quantile_error(x, x, q=1.5), "q=1.5"),
    (lambda x: metrics.mode_weights_error(x, metrics.table.Target(torch.Size([2]))), "Target has no modes"),
    (lambda x: metrics.negative_log_likelihood(x, mixture(1.0, 1.0)), "must be"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(draws(79, 3, 2))
