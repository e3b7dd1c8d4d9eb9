"""What the error bars of a log density know, and what they say they do not; which states it takes."""

import math

import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit.likelihood import elbo, log_prob
from sdekit.likelihood.errors import fewest
from sdekit.ode import decode, encode

TABLE = {"method": "unipc-3", "steps": 30}  # no host read, and the same knots for all


def gaussian(mean, size=1):
    return sk.targets.Gaussian(torch.full((size,), mean).double(), torch.eye(size).double())


def correlated(size):
    root = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    return sk.targets.Gaussian(torch.zeros(size).double(), root @ root.T / size + 0.01 * torch.eye(size))


def mixture(size, place=1.0):
    means = place * torch.randn(8, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    return sk.targets.GaussianMixture(means, 0.3)


@pytest.mark.parametrize("size", [2, 8])
def test_the_default_in_few_dimensions_is_the_exact_trace(size):
    process, target = sk.VP(), correlated(size)
    x = target.sample(4, t=process.t_min, process=process)
    found = log_prob(target.model(process), x, rtol=1e-8, atol=1e-8)
    truth = target.log_prob(x, process.t_min, process)
    assert torch.allclose(found.nats, truth, atol=2 * found.stderr.total.max().item() + 1e-6)
    assert found.stderr.probes.eq(0).all()


def test_the_default_in_many_dimensions_has_an_error_bar_that_holds():
    process, target = sk.VP(), mixture(16)
    x = target.sample(300, t=process.t_min, process=process)
    model, prior = target.model(process), lambda z: target.log_prob(z, process.t_max, process)
    found = log_prob(model, x, prior=prior, **TABLE)
    exact = log_prob(model, x, prior=prior, divergence="exact", **TABLE)
    inside = ((found.nats - exact.nats).abs() < 2 * found.stderr.probes).double().mean().item()
    assert 0.9 < inside < 0.995  # 95% but for chance, 1.3%


@pytest.mark.parametrize(
    ("settings", "known"),
    [({"probes": 1}, False), ({"probes": 3}, False), ({"probes": 4}, True), ({"divergence": "xtrace"}, False),
     ({"divergence": "hutch++", "probes": 9}, False), ({"divergence": "hutch++"}, True),
     ({"divergence": "exact"}, True)],
)  # fmt: skip
def test_a_total_with_an_unknown_part_is_unknown_and_says_so(settings, known):
    process, target = sk.VP(), correlated(9)
    found = log_prob(target.model(process), target.sample(2), **settings)
    assert found.stderr.probes.isnan().any().item() is not known
    assert found.stderr.total.isnan().any().item() is not known
    assert ("probes unknown" in str(found.stderr)) is not known
    assert ("total unknown" in str(found)) is not known


def test_a_method_without_an_estimate_of_its_error_has_no_total():
    found = log_prob(gaussian(0.0).model(sk.VP()), torch.zeros(2, 1), **TABLE)
    assert found.stderr.total.isnan().all()
    assert "solver unknown (the method has no estimate" in str(found.stderr)


def test_few_probes_of_two_dimensions_agree_too_often():
    """All of n Rademacher probes agree in 2^{1−n} of cases, and then show no spread."""
    process, target = sk.VP(), correlated(2)
    x = target.sample(1, t=process.t_min, process=process).expand(1000, 2)
    for probes in (4, 12):
        found = log_prob(target.model(process), x, probes=probes, **TABLE)
        agree = (found.stderr.estimates.plain < 1e-6).double().mean().item()
        assert agree == pytest.approx(2.0 ** (1 - probes), abs=0.03)
        assert found.stderr.probes.isnan().all().item() is (probes < fewest("hutchinson", "rademacher", 2))


PRIORS = [
    (gaussian(8.0), 1.5), (gaussian(0.0), 80), (gaussian(0.0, 16), 80), (mixture(2, 8.0), 40), (mixture(64), 3),
]  # fmt: skip


@pytest.mark.parametrize("process", [sk.VP(), sk.VE()], ids=lambda process: type(process).__name__)
@pytest.mark.parametrize(("target", "most"), PRIORS, ids=["N(8, 1)", "N(0, 1)", "16 × N(0, 1)", "far", "64"])
def test_the_prior_part_covers_what_the_start_gets_wrong(process, target, most):
    """Against the same solve with the true p_T: of 64 samples nine in ten lie within ±2, and not far within.

    Of N(0, 1) the mean of 64 is uncertain by 1/8, which costs α/(8σ), where S = 1 costs some α²/(4σ²): 76 times less.
    """
    x = target.sample(64, t=process.t_min, process=process)
    model = target.model(process)
    true = log_prob(model, x, prior=lambda z: target.log_prob(z, process.t_max, process), divergence="exact", **TABLE)
    found = log_prob(model, x, divergence="exact", **TABLE)
    error = (found.nats - true.nats).abs()
    assert (error < 2 * found.stderr.prior).double().mean() > 0.9
    assert (found.stderr.prior / error).median() < most
    assert true.stderr.prior.eq(0).all()


def test_the_prior_part_of_one_sample_takes_it_for_the_mean():
    process = sk.VE()
    target = gaussian(8.0)
    for seed in range(5):
        x = target.sample(1, seed=seed, t=process.t_min, process=process)
        true = target.log_prob(x, process.t_min, process)
        found = log_prob(target.model(process), x)
        assert (found.nats - true).abs() < 2 * found.stderr.total


def test_the_prior_part_is_the_same_by_either_product():
    """More samples than dimensions go by the covariance, fewer by products of samples: split, they are the same."""
    from sdekit.misfit import prior_error

    x = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wide = torch.cat([x, torch.zeros(5, 1).double()], 1)
    process = sk.VE()
    t = process.t_min
    extra = 0.5 * (process.sigma(t) / process.sigma(1.0)) ** 2  # x's own noise, of a dimension that has none
    assert torch.allclose(prior_error(process, x, t, 9 * x), prior_error(process, wide, t, 9 * wide), atol=2 * extra)


@pytest.mark.parametrize("process", [sk.VP(), sk.VE(0.05), sk.Flow()], ids=lambda process: type(process).__name__)
def test_samples_go_into_log_prob_as_the_states_that_they_are(process):
    target = mixture(2)
    model = target.model(process)
    out = sk.sample(model, (400, 2), nfe=30, seed=0, final="none")
    found = log_prob(model, out)
    assert torch.equal(found.nats, log_prob(model, out.x, t=out.t[-1]).nats)
    truth = target.log_prob(target.sample(20_000, t=process.t_min, process=process), process.t_min, process)
    assert found.nats.mean().item() == pytest.approx(truth.mean().item(), abs=4 * truth.std().item() / 20)
    assert torch.allclose(decode(model, encode(model, out)), out.x, atol=1e-3)


@pytest.mark.parametrize("process", [sk.VP(), sk.VE()], ids=lambda process: type(process).__name__)
@pytest.mark.parametrize("draw", [sk.sample, sk.sample_adaptive])
def test_denoised_samples_are_refused(draw, process):
    """Under VE the state at t_min has t = 0 as well: it is σ that tells."""
    model = mixture(2).model(process)
    budget = {"nfe": 6} if draw is sk.sample else {}
    for take in (log_prob, encode):
        with pytest.raises(ValueError, match=r"denoised samples.*final='none'"):
            take(model, draw(model, (3, 2), seed=0, **budget))
        take(model, draw(model, (3, 2), seed=0, final="none", **budget))
    with pytest.raises(ValueError, match=r"samples at t=.*, not at t=0\.5"):
        log_prob(model, draw(model, (3, 2), seed=0, final="none", **budget), t=0.5)


def test_numpy_arrays_are_taken():
    model, x = mixture(2).model(sk.VP()), torch.linspace(-1, 1, 6).reshape(3, 2)
    array = x.double().numpy()
    assert torch.equal(log_prob(model, array).nats, log_prob(model, x).nats)
    assert torch.equal(elbo(model, array, times=2).nats, elbo(model, x, times=2).nats)
    assert torch.equal(encode(model, array), encode(model, x))
    assert torch.equal(decode(model, array), decode(model, x))
    with pytest.raises(ValueError, match="int64: the state must be float32"):
        log_prob(model, np.zeros((3, 2), dtype=np.int64))


@pytest.mark.parametrize("per", ["feature", "event"])
def test_the_density_of_standardised_data_is_that_of_the_data(per):
    """A Gaussian far from standardised, solved in its standardised units, has its own density."""
    target = sk.targets.Gaussian(torch.tensor([8.0, -3.0]).double(), torch.diag(torch.tensor([4.0, 0.25])).double())
    x = target.sample(4000)
    to = sk.data.Standardise.of(x, per)
    y = to.apply(x)
    assert torch.allclose(to.undo(y), x)
    if per == "feature":
        assert torch.allclose(y.mean(0), torch.zeros(2).double(), atol=1e-9)
        assert torch.allclose(y.var(0), torch.ones(2).double(), atol=1e-3)
    there = sk.targets.Gaussian(to.apply(target.location), torch.diag(target_variances(to)))
    # so much noise at t_max that the start N(0, σ²) misses nothing
    found = log_prob(there.model(sk.VP(t_min=1e-5, beta_max=40.0)), y[:5], rtol=1e-9, atol=1e-9)
    truth = target.log_prob(x[:5])
    assert torch.allclose(found.nats + to.log_det, truth, atol=0.02)
    assert torch.allclose(to.bits_per_dim(found.bits_per_dim), -truth / (2 * math.log(2)), atol=0.02)


def target_variances(to):
    return torch.tensor([4.0, 0.25]).double() / to.scale.double() ** 2


def test_levels_stay_levels_in_standardised_units():
    q = sk.data.Quantization(bins=256, mean=0.0, scale=1 / 256)  # x = 0 … 255, as files have it
    levels = torch.randint(60, 200, (50, 3), generator=torch.Generator().manual_seed(0))
    x = q.values(levels)
    to = sk.data.Standardise.of(x, "event")
    there = to.quantization(q)
    assert torch.equal(there.levels(to.apply(x)), levels)
    assert there.bits_offset == pytest.approx(math.log2(to.scale[0].item()))  # bins of width 1/scale
    with pytest.raises(ValueError, match="per='event'"):
        sk.data.Standardise.of(x).quantization(q)


def test_standardise_takes_what_data_bring():
    x = np.array([[1.0, 5.0], [3.0, 5.0]])
    to = sk.data.Standardise.of(x)
    assert to.scale.tolist() == [1.0, 1.0]  # the second feature is constant
    assert to.apply(x).tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    for bad, message in ((x[:1], r"\[1, 2\]"), (x[0], r"\[2\]"), (x * math.nan, "finite")):
        with pytest.raises(ValueError, match=message):
            sk.data.Standardise.of(bad)
    with pytest.raises(ValueError, match="constant"):
        sk.data.Standardise.of(np.ones((3, 2)), "event")
    with pytest.raises(ValueError, match="did you mean 'feature'"):
        sk.data.Standardise.of(x, "features")
