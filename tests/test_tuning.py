"""Tuned solvers: nearer the flow's end than any untuned one on starts never seen, and a value like others."""

from __future__ import annotations

import math

import pytest
import torch

import sdekit as sk
from sdekit.targets import Gaussian, GaussianMixture
from sdekit.testing import simgpu
from sdekit.tuning import STREAMS, Interrupted, Table, Tuned, starts
from sdekit.tuning.refine import Free, free_count, precision
from sdekit.tuning.search import CANDIDATES, candidates
from sdekit.tuning.table import follow
from sdekit.tuning.teacher import Pairs, distance, solve

STDS = torch.tensor([1.0, 0.1])
CHOICES = [("ddim", "time"), ("ipndm-3", "vp-time(power=3)"), ("unipc-2", "logsnr")]


def eight_modes():
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return GaussianMixture(torch.stack([angles.cos(), angles.sin()], dim=1), 0.1)


def gaussian():
    return Gaussian(torch.zeros(2), torch.diag(STDS**2)).double()


def ends(target, process, x):
    """The flow's end, denoised at t_min; of a Gaussian in closed form: each axis is scaled."""
    alpha, sigma = process.alpha(process.t_min), process.sigma(process.t_min)
    first = process.knot(process.t_max)
    spread = (STDS.double() ** 2 * alpha**2 + sigma**2).sqrt() / (
        STDS.double() ** 2 * first.alpha**2 + first.sigma**2
    ).sqrt()
    return x * spread * alpha * STDS.double() ** 2 / (STDS.double() ** 2 * alpha**2 + sigma**2)


@pytest.fixture(scope="module")
def circle():
    model = eight_modes().model(sk.VP())
    return model, sk.tune(model, (1, 2), nfe=5, starts=450, budget=250_000)


def test_it_beats_every_untuned_cell_on_fresh_starts(circle):
    model, plan = circle
    start = starts(model, (2,), "report", 256, seed=3)
    end = sk.sample(model, start.shape, solver="dpm-solver-3", nfe=300, start=start, final="denoise").x

    def errors(**run):
        return distance(sk.sample(model, start.shape, start=start, **run).x, end)

    cells = [errors(solver=solver, grid=grid, nfe=5, final="reuse") for solver, grid in CANDIDATES]
    tuned = errors(solver=plan)
    assert tuned.median() < 0.4 * min(cell.median() for cell in cells)
    assert tuned.square().mean() < 0.8**2 * min(cell.square().mean() for cell in cells)


def test_a_gaussian_needs_two_evaluations():
    """The flow of a Gaussian is linear in x, with one factor for each variance: two evaluations fit two factors."""
    model, process = gaussian().model(sk.VP()), sk.VP()
    plan = sk.tune(model, (1, 2), nfe=3, starts=60, budget=60_000, choices=CHOICES)
    start = starts(model, (2,), "report", 64)
    exact = ends(gaussian(), process, start)
    torch.testing.assert_close(solve(model, start, {}, None, lambda *_: None)[0], exact, atol=1e-3, rtol=0)
    tuned = distance(sk.sample(model, start.shape, solver=plan, start=start).x, exact)
    untuned = [
        distance(sk.sample(model, start.shape, solver=s, grid=g, nfe=3, start=start).x, exact).median()
        for s, g in CHOICES
    ]
    assert tuned.median() < 0.05 * min(untuned)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "unipc-3", "ipndm", "deis-3", "dpm-solver-2", "dpmpp-3s"])
@pytest.mark.parametrize("process", [sk.VP(), sk.VE(), sk.Flow()], ids=lambda p: type(p).__name__)
def test_a_plan_and_its_table_give_the_same_samples(solver, process):
    model = gaussian().model(process)
    plan = sk.solvers.get(solver).plan(process, nfe=6, grid="logsnr", final="reuse")
    table = Table.of(plan, process)
    x = starts(model, (2,), "train", 5)
    expected = sk.sample(model, x.shape, solver=solver, nfe=6, grid="logsnr", final="reuse", start=x).x
    torch.testing.assert_close(follow(model, table, x, {}).end, expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(
        sk.sample(model, x.shape, solver=Tuned.make(table, process, {}), start=x).x, expected, rtol=1e-8, atol=1e-9
    )


def test_what_is_no_table_is_refused():
    for solver in ("ddpm", "heun"):
        with pytest.raises(ValueError, match="a table"):
            Table.of(sk.solvers.get(solver).plan(sk.VP(), nfe=6), sk.VP())


def test_free_numbers_go_into_the_table_and_come_back():
    table = candidates(sk.VP(), 5, [("ipndm", "time")])[0].table
    levels = tuple(sk.VP().half_log_snr(t) for t in table.times)
    for memory in (2, 5):
        free = Free(table, levels, memory)
        values = free.values()
        assert len(values) == len(free.first_rows) == free_count(5, memory)
        again = free.table(values, sk.VP().t_of_half_log_snr)
        assert again.anchor == table.anchor
        assert again.history == table.history
        assert again.times == pytest.approx(table.times)
        for k, row in enumerate(free.first_rows):
            values[k] += 0.01
            other = free.table(values, sk.VP().t_of_half_log_snr)
            same = [
                a == b
                for a, b in zip(
                    zip(again.times, again.anchor, again.history), zip(other.times, other.anchor, other.history)
                )
            ]
            assert same.index(False) == row
            values[k] -= 0.01


def test_it_is_deterministic_and_its_streams_are_apart(circle):
    model, _ = circle
    first, again, other = (
        sk.tune(model, (9, 2), nfe=3, starts=60, budget=20_000, choices=CHOICES, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other
    drawn = [starts(model, (2,), stream, 50, seed) for stream in STREAMS for seed in range(3)]
    sampled = [
        sk.sample(model, (50, 2), solver="ddim", nfe=1, final="none", keep="all", seed=s).trajectory[0]
        for s in range(3)
    ]
    numbers = torch.cat([*drawn, *[x.double() for x in sampled]])
    assert len(numbers.unique(dim=0)) == len(numbers)


def test_it_stays_with_the_start_where_a_fit_does_not_help(circle):
    """With no budget nothing is fitted: the search's best cell comes back as it was."""
    model, _ = circle
    plan = sk.tune(model, (1, 2), nfe=5, starts=90, budget=0, choices=CHOICES)
    start = plan.record["start"]
    assert plan.record["stage"] == "search"
    assert plan.record["validation"] == start["validation"]
    expected = sk.sample(model, (8, 2), solver=start["solver"], grid=start["grid"], nfe=5, final="reuse", seed=0).x
    torch.testing.assert_close(sk.sample(model, (8, 2), solver=plan, seed=0).x, expected, rtol=1e-4, atol=1e-4)


def test_the_solver_is_a_value_like_others(circle, tmp_path):
    model, plan = circle
    out = sk.sample(model, (4, 2), solver=plan, seed=0)
    assert (out.nfe, out.sigma, plan.stochastic) == (5, 0.0, False)
    assert torch.equal(sk.sample(model, (4, 2), solver=plan, seed=0, batch_size=3, nfe=5).x, out.x)
    data = eight_modes().sample(64, seed=1).float()
    cells = sk.compare(model, data, solvers=["ddim", plan], nfe=[5, 6], samples=32).cells
    tuned = [cell for cell in cells if cell.solver == "tuned-5"]
    assert tuned[0].metrics["rmse"] < cells[0].metrics["rmse"]
    assert "5 evaluations alone" in tuned[1].note
    for call, error in (
        (lambda: sk.sample(model, (4, 2), solver=plan, nfe=6), "nfe=6: solver 'tuned-5' was fitted for 5 evaluations"),
        (lambda: sk.sample(model, (4, 2), solver=plan, steps=4), "steps=4"),
        (lambda: sk.sample(model, (4, 2), solver=plan, grid="time"), "has its own times"),
        (lambda: sk.sample(model, (4, 2), solver=plan, final="none"), "ends with x_0"),
        (lambda: sk.sample(model, (4, 2), solver=plan, corrector=sk.Langevin(), nfe=10), "tuned-5"),
        (lambda: sk.encode(model, data, method=plan, steps=5), "no table from"),
        (lambda: sk.sample(eight_modes().model(sk.Flow()), (4, 2), solver=plan), "was fitted for VP"),
    ):
        with pytest.raises(ValueError, match=error.replace("(", r"\(")):
            call()


def test_conditions_reach_the_network_with_their_rows():
    """Data N(mean of the label, 0.1²): what fits one label's starts fits the other's, in batches too."""
    means, process = torch.tensor([-1.0, 1.0], dtype=torch.float64), sk.VP()

    def net(x, t, label, scale):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        mean = alpha * means[label][:, None] * scale
        return sigma * (x - mean) / (alpha**2 * 0.01 + sigma**2)

    model = sk.ScoreModel(net, process, dtype=torch.float64)
    label = torch.arange(60) % 2
    plan = sk.tune(
        model, (1, 3), nfe=3, starts=60, budget=20_000, choices=CHOICES, batch_size=17, label=label, scale=1.0
    )
    assert plan.record["behaviour"] is None
    x = sk.sample(model, (200, 3), solver=plan, seed=0, label=torch.arange(200) % 2, scale=1.0).x
    assert x[::2].mean() == pytest.approx(-1, abs=0.05)
    assert x[1::2].mean() == pytest.approx(1, abs=0.05)
    with pytest.raises(ValueError, match="labl"):
        sk.tune(model, (1, 3), nfe=3, labl=label)


def test_it_takes_ends_of_ones_own(circle):
    model, _ = circle
    plan = sk.tune(model, (1, 2), nfe=2, starts=60, budget=5_000, choices=CHOICES, endpoints=lambda x: 0 * x)
    assert sk.sample(model, (50, 2), solver=plan, seed=0).x.abs().max() < 0.05  # fitted to zeros
    with pytest.raises(ValueError, match=r"endpoints: <tensor \[60, 1\]"):
        sk.tune(model, (1, 2), nfe=2, starts=60, choices=CHOICES, endpoints=lambda x: x[:, :1])


def test_the_cost_is_told_first_and_kept_to(circle):
    model, _ = circle
    told = []
    plan = sk.tune(model, (1, 2), nfe=3, starts=60, budget=20_000, choices=CHOICES, progress=lambda *x: told.append(x))
    assert told[0][:2] == ("teacher", 0)
    assert plan.record["evaluations"] <= told[0][2]
    assert {what for what, *_ in told} == {"teacher", "search", "refine"}


def test_ctrl_c_keeps_the_best_so_far(circle):
    model, _ = circle
    calls = 0

    def stop(what, done, total):
        nonlocal calls
        calls += what == "refine"
        if calls == 40:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        sk.tune(model, (1, 2), nfe=4, starts=90, choices=CHOICES, progress=stop)
    plan = caught.value.plan
    assert plan.record["validation"]["median"] <= plan.record["start"]["validation"]["median"]
    assert sk.sample(model, (2, 2), solver=plan).nfe == 4


def test_bad_input_is_named(circle):
    model, _ = circle
    for given, error in (
        ({"nfe": 1}, "nfe=1: it must be a whole number of at least 2"),
        ({"nfe": 6, "starts": 30}, "starts=30: it must be a whole number of at least 58; .* 29 free numbers"),
        ({"nfe": 4, "choices": [("ddpm", "time")]}, "not one is a deterministic table"),
        ({"nfe": 4, "choices": []}, "choices=.*at least one"),
        ({"nfe": 4, "memory": 0}, "memory=0"),
    ):
        with pytest.raises(ValueError, match=error):
            sk.tune(model, (1, 2), **given)
    kinked = sk.ScoreModel(lambda x, t: torch.sin(40 / t[:, None] + 50 * x), sk.VP())
    with pytest.raises(ValueError, match="the teacher does not converge"):
        sk.tune(kinked, (1, 2), nfe=4, starts=60)


def test_differences_suit_the_networks_precision():
    exact = gaussian().model(sk.VP())
    net = torch.nn.Linear(2, 2)
    rounded = sk.ScoreModel(lambda x, t: net(x), sk.VP(), dtype=torch.float32)
    for model, step in ((exact, 1e-6), (rounded, 1e-3)):
        x = starts(model, (2,), "train", 8)
        assert precision(model, Pairs.of(x, x, {})) == step


def test_on_a_device_it_is_the_same_table_without_a_host_read(circle):
    _, plan = circle
    net = torch.nn.Linear(2, 2)
    here = sk.sample(sk.ScoreModel(lambda x, t: net(x), sk.VP()), (3, 2), solver=plan, seed=0).x
    with simgpu.device() as gpu:
        moved = torch.nn.Linear(2, 2)
        moved.load_state_dict(net.state_dict())
        moved = moved.to(gpu.device)

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = moved

            def forward(self, x, t):
                return self.inner(x)

        device_model = sk.ScoreModel(Net(), sk.VP())
        with gpu.forbid_host_reads():
            there = sk.sample(device_model, (3, 2), solver=plan, seed=0)
        assert torch.equal(there.x.cpu(), here)
