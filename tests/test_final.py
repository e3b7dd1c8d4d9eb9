"""The noise left at the end, taken off by the predictions that were made on the way."""

import math

import pytest
import torch
from test_auto import circle, mixture_model

import sdekit as sk
from sdekit.solvers import get, names
from sdekit.testing.laws import gaussian_moments, measured_order

VP = sk.VP(t_min=0.02)
DETERMINISTIC = [name for name in names() if not get(name).stochastic]


@pytest.mark.parametrize("name", names())
def test_it_costs_no_evaluation_and_ends_at_the_data(name):
    plan = get(name).plan(sk.VP(), nfe=7, final="reuse")
    assert plan.nfe == 7
    assert not plan.rows[-1].evaluate
    assert plan.rows[-1].to.sigma == 0
    assert get(name).plan(sk.VP(), nfe=7, final="none").rows == plan.rows[:-1]


@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if get(name).predicts in ("eps", "x0")])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_constant_prediction_is_exact(name, steps):
    rule, start = get(name), torch.tensor([[0.7]], dtype=torch.float64)
    model = sk.ScoreModel(lambda x, t: torch.full_like(x, 0.3), VP, predicts=rule.predicts)
    out = sk.sample(model, (1, 1), solver=rule, steps=steps, final="reuse", start=start)
    knot = VP.knot(VP.t_max)
    truth = {"eps": (0.7 - knot.sigma * 0.3) / knot.alpha, "x0": 0.3}[rule.predicts]
    assert out.x.item() == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m(lower_order_below=0)", "ddpm", "dpm-solver-1"])
def test_a_last_step_of_first_order_leads_to_its_own_x0(name):
    """DDIM and DDPM from s to t and then to the data are one step from s to the data, whatever was drawn."""
    model = sk.ScoreModel(lambda x, t: torch.tanh(x) * t[:, None], VP)
    start = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(3, 2)
    times = [VP.t_max, 0.4] if "dpmpp" in name else [VP.t_max, 0.6, 0.4]
    out = sk.sample(model, (3, 2), solver=name, grid=times, nfe=len(times) - 1, start=start, seed=3)
    before = start
    if len(times) == 3:
        before = sk.sample(model, (3, 2), solver=name, grid=times[:2], final="none", start=start, seed=3).x
    assert torch.allclose(out.x, model.x0(before, times[-2]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "heun", "deis-3", "unipc-2"])
def test_the_order_is_kept(name):
    """Against the evaluated denoising of the exact flow's end, at an end where σ matters."""
    model = mixture_model(circle(), 0.3, VP)
    start = torch.linspace(-2, 2, 16, dtype=torch.float64).reshape(8, 2)
    exact = sk.sample(model, start.shape, solver="unipc-4", steps=2000, start=start, final="denoise").x

    def error(steps: int) -> float:
        x = sk.sample(model, start.shape, solver=name, steps=steps, start=start, final="reuse").x
        return (x - exact).abs().max().item()

    assert measured_order(error, (100, 200)) > get(name).order - 0.3


@pytest.mark.parametrize("name", ["ddpm", "dpmpp-2m-sde", "dpmpp-sde", "er-sde-2", "euler-maruyama", "gddim"])
def test_stochastic_runs_end_with_the_datas_spread(name):
    """The noise of the last step goes as well: as near to the data's moments as with one more evaluation."""
    errors = []
    for final in ("reuse", "denoise"):
        mean, std = gaussian_moments(get(name).plan(sk.VP(), nfe=20, final=final), sk.VP(), 1.0, 0.25)
        errors.append(math.hypot(mean - 1, std - 0.25))
    assert errors[0] < 1.2 * errors[1]


def test_auto_evaluates_where_much_noise_is_left_and_in_long_runs():
    for process, nfe, evaluates in ((sk.VP(), 10, False), (sk.VP(), 20, True), (sk.VP(t_min=0.1), 10, True)):
        assert get("ddim").plan(process, nfe=nfe).rows[-1].evaluate is evaluates
    times = [1.0, 0.5, 0.1]
    assert get("ddim").plan(sk.VP(), grid=times).nfe == 3  # each time given is evaluated
    assert get("ddim").plan(sk.VP(), grid=times, nfe=2).nfe == 2


def test_a_corrector_and_stochastic_adaptive_steps_refuse_it():
    model = sk.ScoreModel(lambda x, t: x, sk.VP())
    with pytest.raises(ValueError, match="final='reuse': a corrector moves x"):
        sk.sample(model, (2, 2), solver="ddim", nfe=6, final="reuse", corrector=sk.Langevin(0.1))
    with pytest.raises(ValueError, match="final='reuse': method='sde' keeps no account"):
        sk.sample_adaptive(model, (2, 2), method="sde", final="reuse")


def test_adaptive_steps_save_the_evaluation():
    model = mixture_model(circle(), 0.3, sk.VP())
    options = {"seed": 0, "dtype": torch.float64, "rtol": 1e-3, "atol": 1e-3}
    reused, evaluated = (sk.sample_adaptive(model, (8, 2), final=final, **options) for final in ("reuse", "denoise"))
    assert torch.equal(reused.nfe, evaluated.nfe - 1)
    assert (reused.x - evaluated.x).abs().max() < 3 * sk.VP().sigma(sk.VP().t_min)  # σ times the change of ε
