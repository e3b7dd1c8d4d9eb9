"""Thresholding against its formula, and what it leaves alone."""

import pytest
import torch
from strategies import PROCESSES

import sdekit as sk
from sdekit.prediction import PREDICTIONS
from sdekit.testing import simgpu
from sdekit.thresholding import Dynamic, Static, Thresholded

X = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def net(x, t):
    return 3 * torch.sin(x + t.reshape(-1, 1, 1))


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("rule", [Static(1.0), Static(0.3), Dynamic(0.8, 2.0)], ids=repr)
def test_every_prediction_follows_from_the_thresholded_x0(name, predicts, rule):
    process = PROCESSES[name]
    model = sk.ScoreModel(net, process, predicts)
    clipped = Thresholded(model, rule)
    t = process.t_min + 0.4 * (process.t_max - process.t_min)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x0 = rule(model.x0(X, t))
    eps = (X - alpha * x0) / sigma  # α x_0 + σ ε = x
    truth = {
        "x0": x0, "eps": eps, "score": -eps / sigma, "v": alpha * eps - sigma * x0,
        "flow": process.alpha_rate(t) * x0 + process.sigma_rate(t) * eps,
    }  # fmt: skip
    truth["flow-to-data"] = -truth["flow"]
    assert truth.keys() == PREDICTIONS.keys()
    for kind, value in truth.items():
        torch.testing.assert_close(clipped.predict(kind, X, t), value, rtol=1e-9, atol=1e-9)


def test_what_lies_within_the_limit_is_the_models_own_to_the_bit():
    model = sk.ScoreModel(net, sk.VP(), "x0")
    for kind in PREDICTIONS:
        own, clipped = (one.predict(kind, X.float(), 0.3) for one in (model, Thresholded(model, Static(3.0))))
        assert torch.equal(own, clipped)


def test_dynamic_is_torchs_quantile_of_each_sample_and_static_where_the_limit_is_one():
    for q in (0.5, 0.9, 0.995, 1.0):
        s = torch.quantile(X.abs().flatten(1), q, dim=1).clamp(1, 2.5).reshape(-1, 1, 1)
        torch.testing.assert_close(Dynamic(q, 2.5)(X), X.clamp(-s, s) / s)
        torch.testing.assert_close(Dynamic(q)(X), Static(1.0)(X))
    assert Dynamic()(torch.tensor([[5.0]])).item() == 1  # one number: no two between which to interpolate
    assert torch.equal(Dynamic(0.9, 3.0)(X)[2:3], Dynamic(0.9, 3.0)(X[2:3]))
    assert Dynamic(0.9, 3.0)(X.bfloat16()).dtype == torch.bfloat16


def test_a_thresholded_model_stays_within_the_limit_and_counts_its_calls():
    model = Thresholded(sk.ScoreModel(net, sk.VP(), "x0"), Static(0.5))
    out = sk.sample(model, (3, 3, 5), solver="dpmpp-2m", nfe=7, seed=0, final="denoise")
    assert out.nfe == model.nfe == 7
    assert out.x.abs().max() == 0.5
    assert repr(model) == "Thresholded(ScoreModel(function, VP(beta_min=0.1, beta_max=20.0, t_min=0.001, t_max=1.0)," \
        " predicts='x0', nfe=7), Static(limit=0.5))"  # fmt: skip
    with pytest.raises(ValueError, match="unknown argument of sample or of the network 'slover'"):
        sk.sample(model, (3, 3, 5), slover="ddim", nfe=7)


def test_on_the_device_without_a_read():
    def sampled(device, rule):
        model = Thresholded(sk.ScoreModel(net, sk.VP(), "x0"), rule)
        return sk.sample(model, (3, 3, 5), solver="ddim", nfe=4, seed=0, device=device).x

    for rule in (Static(0.5), Dynamic(0.9, 3.0)):
        here = sampled("cpu", rule)
        with simgpu.device() as gpu:
            with gpu.forbid_host_reads():
                there = sampled(gpu.device, rule)
            assert torch.equal(here, there.cpu())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Static(0.0), r"limit=0.0: it must be above 0"),
        (lambda: Dynamic(1.5), r"quantile=1.5: it must lie in \(0, 1\]"),
        (lambda: Dynamic(0.9, 0.5), r"limit=0.5: it must be at least 1"),
    ],
)
def test_rules_that_are_none_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
