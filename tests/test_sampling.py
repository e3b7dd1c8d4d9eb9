"""The loop: batches, seeds, starts, trajectories, conditions, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdekit as sk
from sdekit.solvers import names

NET = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh())


def elementwise(x, t):
    return torch.tanh(x) * (1 + t[:, None])


@pytest.mark.parametrize("solver", names())
@settings(max_examples=5)  # for each of many solvers
@given(batch_size=st.integers(1, 12), seed=st.integers(0, 2**62))
def test_batch_split_changes_no_bit(solver, batch_size, seed):
    model = sk.ScoreModel(elementwise, sk.VP())
    whole = sk.sample(model, (11, 3), solver=solver, nfe=4, seed=seed)
    split = sk.sample(model, (11, 3), solver=solver, nfe=4, seed=seed, batch_size=batch_size)
    assert torch.equal(whole.x, split.x)
    assert whole.nfe == split.nfe == 4


def test_more_samples_keep_the_first_ones():
    model = sk.ScoreModel(elementwise, sk.VP())
    few = sk.sample(model, (3, 3), solver="ddpm", nfe=4, seed=1).x
    assert torch.equal(few, sk.sample(model, (9, 3), solver="ddpm", nfe=4, seed=1).x[:3])


def test_the_seed_is_returned_and_repeats_the_run():
    model = sk.ScoreModel(elementwise, sk.VP())
    first = sk.sample(model, (3, 3), solver="ddpm", nfe=4)
    assert torch.equal(first.x, sk.sample(model, (3, 3), solver="ddpm", nfe=4, seed=first.seed).x)
    assert not torch.equal(first.x, sk.sample(model, (3, 3), solver="ddpm", nfe=4).x)


def test_no_global_random_number_is_used():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sk.sample(sk.ScoreModel(elementwise, sk.VP()), (3, 3), solver="ddpm", nfe=4)
    assert torch.equal(before, torch.get_rng_state())


def test_start_from_the_true_noise_reaches_the_data_exactly():
    """Gaussian data: the flow map is a closed form, and 300 steps of order 3 are within 1e-7 of it."""
    process = sk.VP()
    target = sk.targets.Gaussian(torch.tensor([0.5, -1.0]).double(), torch.tensor([[1.0, 0.6], [0.6, 0.5]]).double())
    start = target.sample(6, t=1.0, process=process)
    out = sk.sample(target.model(process), (6, 2), solver="dpm-solver-3", steps=300, start=start, final="none")
    assert out.x.dtype == torch.float64
    assert torch.allclose(out.x, target.flow_map(start, 1.0, process.t_min, process), atol=1e-7)


@pytest.mark.parametrize("process", [sk.VP(), sk.VE(), sk.SubVP(), sk.CosineVP(), sk.DiscreteVP(), sk.Flow()], ids=repr)
def test_samples_have_the_targets_moments(process):
    """Mean and covariance of 4,000 samples within 5 standard errors, from noise alone."""
    cov = torch.tensor([[1.0, 0.6], [0.6, 0.5]])
    target = sk.targets.Gaussian(torch.tensor([0.5, -1.0]), cov)
    x = sk.sample(target.model(process), (4000, 2), solver="dpm-solver-3", nfe=61, seed=4).x
    assert (x.mean(0) - target.location).abs().max() < 5 / 4000**0.5
    assert (x.T.cov() - cov).abs().max() < 5 * 2**0.5 / 4000**0.5


def test_keep_all_gives_every_knot():
    model = sk.ScoreModel(elementwise, sk.VP())
    out = sk.sample(model, (5, 3), solver="unipc-2", nfe=6, seed=0, keep="all", batch_size=2)
    knots = sk.Grid.make(sk.VP(), "logsnr", 6).knots
    assert out.t == (*(knot.t for knot in knots), 0.0)
    assert out.trajectory.shape == (8, 5, 3)
    assert torch.equal(out.trajectory[-1], out.x)
    last = sk.sample(model, (5, 3), solver="unipc-2", nfe=6, seed=0)
    assert last.trajectory is None
    assert last.t == (0.0,)
    assert torch.equal(last.x, out.x)


def test_final_denoise_is_x0_at_t_min():
    model = sk.ScoreModel(elementwise, sk.VP())
    state = sk.sample(model, (5, 3), solver="ddim", nfe=5, seed=0, final="none")
    out = sk.sample(model, (5, 3), solver="ddim", nfe=6, seed=0, final="denoise")
    assert state.t == (sk.VP().t_min,)
    assert torch.allclose(out.x, model.x0(state.x, sk.VP().t_min))


def test_callback_sees_every_step_of_every_batch():
    seen = []
    model = sk.ScoreModel(elementwise, sk.VP())
    sk.sample(model, (5, 3), solver="heun", nfe=6, batch_size=3, callback=lambda i, t, x: seen.append((i, t, len(x))))
    assert [(i, n) for i, _, n in seen] == [(i, n) for n in (3, 2) for i in range(4)]
    assert seen[3][1] == 0.0


def test_conditions_reach_the_network_and_are_split_with_the_batch():
    def net(x, t, shift, scale=1.0):
        return scale * torch.tanh(x) + shift

    shift = torch.arange(5.0)[:, None]
    model = sk.ScoreModel(net, sk.VP())
    whole = sk.sample(model, (5, 3), nfe=4, seed=0, shift=shift, scale=0.5)
    assert torch.equal(whole.x, sk.sample(model, (5, 3), nfe=4, seed=0, shift=shift, scale=0.5, batch_size=2).x)
    assert not torch.equal(whole.x, sk.sample(model, (5, 3), nfe=4, seed=0, shift=shift * 2, scale=0.5).x)


def test_progress_is_shown_on_stderr(capsys):
    sk.sample(sk.ScoreModel(elementwise, sk.VP()), (2, 3), nfe=4, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "sampling" in captured.err


def test_gradients_flow_through_the_loop():
    """d x_end/d x_start by autograd against the closed form of the Gaussian flow map."""
    process = sk.VP()
    target = sk.targets.Gaussian(torch.zeros(1).double(), torch.full((1, 1), 0.25).double())
    start = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    plan = sk.solvers.get("dpm-solver-3").plan(process, steps=200, final="none")
    *_, (_, x) = sk.march(plan, target.model(process), start, lambda a, b: torch.zeros(1))
    x.sum().backward()
    ratio = [(0.25 * process.alpha(t) ** 2 + process.sigma(t) ** 2) ** 0.5 for t in (process.t_min, 1.0)]
    assert start.grad.item() == pytest.approx(ratio[0] / ratio[1], rel=1e-6)


def test_rows_with_a_constant_and_a_linear_part():
    """x ← 2·anchor + 3 (F − 0.5 x) + 4, by hand; a tensor coefficient is cast to the state's dtype."""
    model, x = sk.ScoreModel(lambda x, t: 7 * x, sk.VP()), torch.tensor([[1.0, 2.0]])
    for c in (1.0, torch.ones(2, dtype=torch.float64)):
        row = sk.solvers.Row(to=sk.VP().knot(0.5), anchor=2.0 * c, history=(3.0 * c,), shift=4.0 * c, linear=0.5 * c)
        plan = sk.solvers.Plan(sk.VP().knot(1.0), (row,), "eps")
        ((_, out),) = sk.march(plan, model, x, lambda start, end: x)
        assert torch.equal(out, 2 * x + 3 * (7 * x - 0.5 * x) + 4)
        assert out.dtype == torch.float32
    assert "shift tensor[2]; F less tensor[2]·x" in str(plan)


def test_half_precision_networks_keep_a_float32_state():
    net = sk.ScoreModel(TimedLinear().to(torch.bfloat16), sk.VP())
    out = sk.sample(net, (4, 3), nfe=6, seed=0)
    assert out.x.dtype == torch.float32
    exact = sk.sample(sk.ScoreModel(TimedLinear(), sk.VP()), (4, 3), nfe=6, seed=0)
    assert (out.x - exact.x).abs().max() < 0.05 * exact.x.abs().max()


class TimedLinear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 3, bias=False)
        self.linear.weight.data = torch.eye(3) * 0.5

    def forward(self, x, t):
        return self.linear(x) * torch.cos(t)[:, None].to(x.dtype)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "ddmp"}, "did you mean 'ddpm'"),
        ({"grid": "logsn"}, "did you mean 'logsnr'"),
        ({"keep": "al"}, "did you mean 'all'"),
        ({"final": "denoised"}, "did you mean 'denoise'"),
        ({"nfe": 0}, "nfe=0"),
        ({"nfe": 1, "final": "denoise"}, "nfe=1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"sovler": "ddim"}, "did you mean 'solver'"),
        ({"start": torch.zeros(2, 2)}, r"start has shape \[2, 2\], shape says \[5, 3\]"),
        ({"start": torch.zeros(5, 3, dtype=torch.long)}, "floating-point"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    model = sk.ScoreModel(elementwise, sk.VP())
    with pytest.raises(ValueError, match=message):
        sk.sample(model, (5, 3), **{"nfe": 5, **arguments})


@pytest.mark.parametrize("shape", [(), (0, 3), (-1,)])
def test_bad_shapes_are_named(shape):
    with pytest.raises(ValueError, match="shape="):
        sk.sample(sk.ScoreModel(elementwise, sk.VP()), shape, nfe=5)


def test_a_network_elsewhere_is_named():
    model = sk.ScoreModel(TimedLinear(), sk.VP())
    with pytest.raises(ValueError, match="device='meta': it must be a device that is here: cpu"):
        sk.sample(model, (5, 3), nfe=5, device="meta")


def test_a_network_of_the_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"returned shape \[5, 6\] for x of shape \[5, 3\]"):
        sk.sample(sk.ScoreModel(lambda x, t: torch.cat([x, x], 1), sk.VP()), (5, 3), nfe=5)


def test_nan_is_named_with_its_time_where_asked():
    def net(x, t):
        return torch.where(t[:, None] < 0.5, torch.nan, x)

    with pytest.raises(ValueError, match=r"NaN or infinity at t=0\.3"):
        sk.sample(sk.ScoreModel(net, sk.VP(), check_finite=True), (2, 3), grid=[1.0, 0.6, 0.3, 0.1], final="none")
