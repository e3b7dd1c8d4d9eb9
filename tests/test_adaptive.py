"""Adaptive sampling: its papers' algorithms, its accuracy, and that a sample does not feel its batch-mates."""

import math

import pytest
import torch

import sdekit as sk
from sdekit.adaptive import METHODS, sample_adaptive
from sdekit.elementwise import lanewise
from sdekit.noise import normal, path, paths
from sdekit.targets import Gaussian, GaussianMixture
from sdekit.testing import simgpu
from sdekit.testing.laws import exact_flow
from tests.strategies import PROCESSES

ODE = ("dpm-solver-12", "dpm-solver-23")
EXACT = torch.float64
VP = sk.VP(t_min=0.02)


def mixture(*, dtype=EXACT):
    """The mixture of ``laws.exact_flow``."""
    means, weights = torch.tensor([[-1.5], [0.3], [1.0]], dtype=dtype), torch.tensor([0.3, 0.5, 0.2], dtype=dtype)
    return GaussianMixture(means, 0.35, weights)


def elementwise(x, t, shift=0.0):
    """A network whose rows, and elements, do not mix; only +, −, × and /, which round alike everywhere."""
    t = t.reshape(-1, *[1] * (x.ndim - 1))
    shift = shift.reshape(-1, *[1] * (x.ndim - 1)) if isinstance(shift, torch.Tensor) else shift
    return x / (1 + x * x) * (1 + t) + t * shift - x * x * x / (8 + x * x * x * x)


# --- accuracy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ODE)
def test_the_error_falls_in_proportion_to_the_tolerance(method):
    start = torch.linspace(-2, 2, 17, dtype=EXACT)[:, None]
    truth = torch.tensor(exact_flow(start[:, 0].numpy(), 1.0, 0.02, VP))
    errors = []
    for tol in (1e-2, 1e-3, 1e-4):
        out = sample_adaptive(
            mixture().model(VP), (17, 1), method=method, rtol=tol, atol=tol, start=start, final="none"
        )
        errors.append((out.x[:, 0] - truth).abs().max().item())
        assert errors[-1] < 10 * tol
    slope = math.log10(errors[0] / errors[-1]) / 2
    assert 0.8 < slope < 1.2


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("method", ODE)
def test_gaussian_data_follow_the_exact_flow_under_every_process(method, process):
    mean = torch.tensor([1.0, -0.5, 0.2], dtype=EXACT)
    cov = torch.tensor([[1.0, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 0.05]], dtype=EXACT)
    target = Gaussian(mean, cov)
    start = target.sample(6, seed=1, t=process.t_max, process=process)
    truth = target.flow_map(start, process.t_max, process.t_min, process)
    for tol in (1e-2, 1e-4):
        out = sample_adaptive(
            target.model(process), (6, 3), method=method, rtol=tol, atol=tol, start=start, final="none"
        )
        assert (out.x - truth).abs().max() < 20 * tol


@pytest.mark.parametrize("method", METHODS)
def test_a_looser_tolerance_takes_fewer_evaluations(method):
    model = mixture().model(VP)
    loose, tight = (sample_adaptive(model, (8, 1), method=method, rtol=t, atol=t, seed=0).nfe for t in (0.1, 0.02))
    assert (loose < tight).all()


def gaussian_run(n, noise, tol, **arguments):
    """Standardised samples at t_min of data N(1, ¼²) in 4 dimensions, from the true p_T."""
    target = Gaussian(torch.ones(4, dtype=EXACT), torch.eye(4, dtype=EXACT) / 16)
    start = target.sample(n, seed=5, t=1.0, process=VP)
    out = sample_adaptive(
        target.model(VP), (n, 4), method="sde", noise=noise, rtol=tol, atol=tol / 4, start=start, seed=2, final="none",
        **arguments,
    )  # fmt: skip
    alpha, sigma = VP.alpha(0.02), VP.sigma(0.02)
    return (out.x - alpha) / math.hypot(alpha / 4, sigma), out


def test_the_sde_method_has_the_mean_and_the_variance_of_gaussian_data():
    x, out = gaussian_run(1000, "brownian", 0.05)
    assert out.rejected.double().mean() > 5  # rejected steps are what could bias it
    assert abs(x.mean().item()) < 3.5 / math.sqrt(x.numel())
    assert abs(x.var().item() - 1) < 3.5 * math.sqrt(2 / x.numel())


def test_redrawn_noise_is_biased_where_steps_are_rejected():
    # so that the test above is seen to be able to fail
    x, _ = gaussian_run(3000, "independent", 0.05)  # some 6.7 standard errors at 1000, over seeds
    assert abs(x.mean().item()) > 5 / math.sqrt(x.numel())


def test_the_sde_method_converges_to_the_solution_on_its_brownian_path():
    target = GaussianMixture(torch.tensor([[-0.8], [0.2], [0.7]], dtype=EXACT), 0.5, torch.tensor([0.3, 0.5, 0.2]))
    common = {"seed": 3, "noise": "brownian", "final": "none", "dtype": EXACT}
    truth = sk.sample(target.model(VP), (512, 1), solver="dpmpp-2m-sde", steps=600, **common).x
    errors = []
    for tol in (0.1, 0.02, 0.004):
        out = sample_adaptive(target.model(VP), (512, 1), method="sde", rtol=tol, atol=tol, **common)
        # a mean square is led by the few whose steps were rejected by a hair: another processor's rounding moves it
        errors.append((out.x - truth).abs().median().item())
    # the noise is additive: strong order 1, and E ~ h^1.5, so that the error goes like tolerance^(2/3)
    slope = math.log(errors[0] / errors[-1]) / math.log(25)
    assert 0.45 < slope < 0.9
    assert errors[-1] < 0.05


def test_per_sample_paths_are_those_of_the_noise_module():
    places = torch.tensor([-39.0, -4.7, -0.5, 0.0, 0.0, 1e-4, 2.0, 37.3], dtype=EXACT)
    samples = torch.arange(3, 3 + len(places))
    both = paths(9, places, samples, (2, 3), EXACT)
    for i, place in enumerate(places.tolist()):
        assert torch.allclose(both[i : i + 1], path(9, place, samples[i : i + 1], (2, 3), EXACT), rtol=0, atol=1e-12)


# --- each sample by itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in PROCESSES), ("VP", EXACT), ("Flow", EXACT)]
)
def test_a_sample_does_not_depend_on_its_batch_mates(method, name, dtype):
    model = sk.ScoreModel(elementwise, PROCESSES[name])
    shift = torch.linspace(-0.5, 0.5, 13, dtype=dtype)
    atol = 0.05 * PROCESSES[name].prior_std  # of EDM's noise of 80 a twentieth of 1 takes thousands of stochastic steps
    common = {"method": method, "rtol": 0.1, "atol": atol, "seed": 4, "dtype": dtype, "shift": shift}
    whole = sample_adaptive(model, (13, 3), **common)
    split = sample_adaptive(model, (13, 3), batch_size=5, **common)
    assert whole.seed == split.seed == 4
    for part in ("x", "nfe", "accepted", "rejected"):
        assert torch.equal(getattr(whole, part), getattr(split, part)), part
    assert len(set(whole.nfe.tolist())) > 1  # they do take different steps


@pytest.mark.parametrize("method", ODE)
def test_an_order_of_the_samples_is_kept(method):
    start = torch.linspace(-3, 3, 19, dtype=EXACT)[:, None].expand(19, 5).contiguous()
    model = sk.ScoreModel(elementwise, VP)
    there = sample_adaptive(model, (19, 5), method=method, start=start)
    back = sample_adaptive(model, (19, 5), method=method, start=start.flip(0))
    assert torch.equal(there.x, back.x.flip(0))
    assert torch.equal(there.nfe, back.nfe.flip(0))


def test_values_do_not_depend_on_their_place_in_a_vector():
    values = torch.linspace(-4, 4, 77, dtype=EXACT)
    for process in PROCESSES.values():
        together = lanewise(process.t_of_half_log_snr, values)
        assert torch.equal(together, torch.cat([lanewise(process.t_of_half_log_snr, v) for v in values.split(1)]))


def test_a_sample_of_another_kind_costs_the_others_nothing_and_loses_nothing():
    # 31 samples of data with std 0.02, whose ε hardly bends, and one with std 1
    narrow, wide = (Gaussian(torch.zeros(8, dtype=EXACT), s**2 * torch.eye(8, dtype=EXACT)) for s in (0.02, 1.0))
    other = torch.arange(32) == 5
    start = normal(0, 0, torch.arange(32), (8,), EXACT)
    truth = torch.where(other[:, None], wide.flow_map(start, 1.0, 0.02, VP), narrow.flow_map(start, 1.0, 0.02, VP))
    models = [target.model(VP) for target in (narrow, wide)]

    def net(x, t, which):
        return torch.where(which[:, None], models[1].eps(x, t), models[0].eps(x, t))

    def joint_net(x, t):  # the whole batch as one sample, and so with one step size
        return net(x[0], t.expand(32), other)[None]

    common = {"method": "dpm-solver-12", "rtol": 1e-3, "atol": 1e-3, "final": "none"}
    each = sample_adaptive(sk.ScoreModel(net, VP), (32, 8), start=start, which=other, **common)
    joint = sample_adaptive(sk.ScoreModel(joint_net, VP), (1, 32, 8), start=start[None], **common)
    worst, worst_joint = ((x - truth).square().mean(1).sqrt().max() for x in (each.x, joint.x[0]))
    assert worst_joint > 3 * worst
    assert joint.nfe.item() > 1.5 * each.nfe.double().mean()


def test_the_same_seed_gives_the_same_samples_and_another_others():
    model = sk.ScoreModel(elementwise, VP)
    common = {"method": "sde", "rtol": 0.5, "atol": 0.2}
    first, again, other = (sample_adaptive(model, (5, 2), seed=seed, **common) for seed in (1, 1, 2))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)
    drawn = sample_adaptive(model, (5, 2), **common)
    assert torch.equal(drawn.x, sample_adaptive(model, (5, 2), seed=drawn.seed, **common).x)


# --- what it counts, where it looks, where it runs ------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("final", ["denoise", "none"])
def test_evaluations_are_counted_for_each_sample(method, final):
    counts = torch.zeros(9, dtype=torch.long)

    def net(x, t, number):
        counts.index_add_(0, number, torch.ones_like(number))
        return elementwise(x, t)

    model, rtol = sk.ScoreModel(net, VP), 0.3 if method == "sde" else 1e-3
    out = sample_adaptive(
        model, (9, 2), method=method, final=final, control="i", rtol=rtol, seed=0, batch_size=5, number=torch.arange(9)
    )
    assert torch.equal(out.nfe, counts)
    assert out.rejected.sum() > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in PROCESSES), ("VP", EXACT), ("Flow", EXACT)]
)
def test_no_time_is_outside_the_range(method, name, dtype):
    process, seen = PROCESSES[name], []

    def net(x, t):
        seen.extend(t.tolist())
        return elementwise(x, t)

    # under EDM the SDE method takes 20 to 13,000 evaluations, by the seed
    sample_adaptive(sk.ScoreModel(net, process), (3, 2), method=method, rtol=0.3, atol=0.3, seed=101, dtype=dtype)
    assert process.t_min <= min(seen) <= max(seen) <= process.t_max
    assert seen[0] == pytest.approx(process.t_max, rel=1e-6)
    assert seen[-1] == pytest.approx(process.t_min, rel=1e-6)  # the denoising


def test_it_starts_where_sample_starts_and_ends_with_the_denoised_state():
    model = mixture(dtype=torch.float32).model(VP)
    starts = []
    sample_adaptive(sk.ScoreModel(lambda x, t: starts.append(x) or x, VP), (4, 1), seed=8)
    states = sk.sample(model, (4, 1), solver="ddim", steps=2, seed=8, keep="all")
    assert torch.equal(starts[0], states.trajectory[0])
    last = sample_adaptive(model, (4, 1), seed=8, final="none").x
    assert torch.allclose(sample_adaptive(model, (4, 1), seed=8).x, model.x0(last, 0.02), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_on_a_device_the_host_reads_once_a_round(method):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)) / 6)
            self.labels = torch.nn.Parameter(torch.randn(3, 6, generator=torch.Generator().manual_seed(1)))

        def forward(self, x, t, label):
            shift = self.labels[label] + torch.sin(t[:, None])
            return torch.tanh(x.flatten(1) @ self.weight + shift).reshape(x.shape)

    label = torch.tensor([0, 1, 2, 1, 0])
    common = {"method": method, "seed": 3, "batch_size": 3, "rtol": 0.5, "atol": 0.1}
    here = sample_adaptive(sk.ScoreModel(Net(), sk.VP()), (5, 2, 3), label=label, **common)
    with simgpu.device() as gpu:
        model, label = sk.ScoreModel(Net().to(gpu.device), sk.VP()), label.to(gpu.device)
        gpu.reset()
        there = sample_adaptive(model, (5, 2, 3), label=label, **common)
        reads = gpu.host_reads
        assert there.x.device.type == "simgpu"
        assert torch.equal(here.x, there.x.cpu())
    assert torch.equal(here.nfe, there.nfe)
    tries = (here.accepted + here.rejected).tolist()
    assert reads == max(tries[:3]) + max(tries[3:])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_on_cuda(method):
    # a Brownian path shows in z how the device rounded h: path by path, runs there and here agree to the tolerance only
    common = {"method": method, "noise": "independent", "seed": 3, "dtype": EXACT}
    here = sample_adaptive(sk.ScoreModel(elementwise, VP), (5, 3), **common)
    there = sample_adaptive(sk.ScoreModel(elementwise, VP), (5, 3), device="cuda", **common)
    assert torch.allclose(here.x, there.x.cpu(), rtol=1e-6, atol=1e-6)


# --- what goes wrong ------------------------------------------------------------------------------------------------


def broken_for_sample_2(x, t, number, bad):
    return torch.where(((t < 0.5) & (number == 2))[:, None], bad, elementwise(x, t))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("method", METHODS)
def test_a_network_that_is_not_finite_stops_the_run_and_says_where(method, bad):
    model, where = sk.ScoreModel(broken_for_sample_2, VP), r"t=0\.[45]\d* with a next step of \S*e-\d+ in"
    with pytest.raises(ValueError, match=rf"sample 2 got no further than {where} .*is the network finite there"):
        sample_adaptive(
            model, (4, 2), method=method, rtol=0.3, atol=0.3, seed=0, number=torch.arange(4), bad=bad, batch_size=3
        )


@pytest.mark.parametrize("method", METHODS)
def test_the_papers_control_ends_too_where_the_network_is_not_finite(method):
    # it grows without bound after a short step, and so may try to pass the place until the evaluations are used up
    with pytest.raises(ValueError, match="sample 2 got no further than"):
        sample_adaptive(
            sk.ScoreModel(broken_for_sample_2, VP), (4, 2), method=method, control="i", rtol=0.3, atol=0.3, seed=0,
            number=torch.arange(4), bad=math.nan, max_nfe=300,
        )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_step_into_infinity_is_rejected_and_tried_again_shorter(method):
    broken = []

    def net(x, t):
        # infinite at the first look beyond t = 0.9, as where a step that is too long leaves the network's range
        first = not broken and bool((t < 0.9).any())
        broken.extend([True] * first)
        return elementwise(x, t) + (math.inf if first else 0.0)

    out = sample_adaptive(sk.ScoreModel(net, VP), (1, 2), method=method, seed=1)
    assert broken == [True]
    assert out.x.isfinite().all()
    assert out.rejected.item() >= 1


def test_a_budget_that_does_not_suffice_says_where_it_ended():
    with pytest.raises(
        ValueError,
        match=r"sample \d got no further than t=0\.\d+ with a next step of 0\.\d+ in half_log_snr: max_nfe=60",
    ):
        sample_adaptive(mixture().model(VP), (3, 1), rtol=1e-6, atol=1e-6, max_nfe=60, seed=0, dtype=EXACT)
    out = sample_adaptive(mixture().model(VP), (3, 1), rtol=1e-3, atol=1e-3, seed=0, dtype=EXACT)
    enough = out.nfe.max().item()
    assert (
        sample_adaptive(
            mixture().model(VP), (3, 1), rtol=1e-3, atol=1e-3, seed=0, dtype=EXACT, max_nfe=enough
        ).nfe.max()
        == enough
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "dpm-solver12"}, "unknown method 'dpm-solver12': did you mean 'dpm-solver-12'"),
        ({"control": "pid"}, "unknown control 'pid': did you mean 'pi'"),
        ({"method": "sde", "noise": "brown"}, "unknown noise 'brown': did you mean 'brownian'"),
        ({"final": "denoised"}, "unknown final 'denoised': did you mean 'denoise'"),
        ({"rtol": -0.1}, "rtol=-0.1: it must be a finite number of at least 0"),
        ({"atol": math.nan}, "atol=nan: it must be a finite number of at least 0"),
        ({"rtol": 0.0, "atol": 1e-9}, "with torch.float32 one of them must be at least"),
        ({"max_nfe": 3}, "max_nfe=3: it must be a whole number of at least 4; 'dpm-solver-23' needs"),
        ({"batch_size": 0}, "batch_size=0: it must be a whole number from 1"),
        ({"dtype": torch.bfloat16}, "dtype=torch.bfloat16: the state must be float32 or float64"),
        ({"start": torch.zeros(2, 2)}, r"start has shape \[2, 2\], shape says \[3, 2\]"),
        ({"rtoll": 0.1}, "unknown argument of sample_adaptive or of the network 'rtoll': did you mean 'rtol'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_options_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_adaptive(sk.ScoreModel(lambda x, t: x, VP), (3, 2), **arguments)


def test_noise_beyond_the_reach_of_the_path_is_refused():
    process = sk.VE(sigma_min=1e-20, sigma_max=1.0)
    with pytest.raises(ValueError, match=r"noise='brownian' serves half_log_snr from -40\.0 to 40\.0, the run goes"):
        sample_adaptive(sk.ScoreModel(elementwise, process), (2, 2), method="sde")


def test_progress_is_shown(capsys):
    sample_adaptive(sk.ScoreModel(elementwise, VP), (3, 2), seed=0, progress=True)
    assert "100%" in capsys.readouterr().err
