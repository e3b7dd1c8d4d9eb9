"""What the pictures hold is what they say: densities, paths, scores, schedules, images, to the number."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from matplotlib.quiver import Quiver
from torch import Tensor
from torch.special import ndtr

import sdekit as sk
from sdekit import plots
from sdekit.nn import digits_model
from sdekit.plots.forward import forward_paths
from sdekit.process import Process
from sdekit.targets import Empirical, Gaussian, GaussianMixture
from sdekit.testing import simgpu

ROOT = Path(__file__).parents[1]
MEANS, STDS, WEIGHTS = (-2.0, 0.5, 1.5), (0.25, 0.15, 0.3), (0.5, 0.3, 0.2)
LINE = GaussianMixture(torch.tensor(MEANS)[:, None], torch.tensor(STDS), torch.tensor(WEIGHTS))
RING = GaussianMixture(torch.tensor([[1.5 * math.cos(k), 1.5 * math.sin(k)] for k in range(6)]), 0.2)
CUBE = Gaussian(torch.zeros(3), torch.eye(3))
PROCESSES = [sk.VP(), sk.SubVP(), sk.VE(sigma_max=5.0), sk.CosineVP(), sk.Flow(), sk.EDM(t_max=5.0)]
SMALL = {"nfe": 8, "samples": 50}


def kind(process: Process) -> str:
    return type(process).__name__


def image(figure: Figure, panel: int = 0) -> tuple[Tensor, tuple[float, ...]]:
    """The image's values, rows from the bottom, and its extent."""
    (found,) = figure.axes[panel].get_images()
    return torch.as_tensor(np.asarray(found.get_array())), tuple(found.get_extent())


def columns(values: Tensor, extent: tuple[float, ...], process: Process) -> Tensor:
    """The times of the image's columns, which must go from t_min to t_max."""
    left, right = extent[:2]
    t = left + (torch.arange(values.shape[1], dtype=torch.float64) + 0.5) * (right - left) / values.shape[1]
    torch.testing.assert_close(t[[0, -1]], torch.tensor([process.t_min, process.t_max]).double())
    return t


@pytest.mark.parametrize("process", PROCESSES, ids=kind)
def test_the_density_over_time_is_that_of_the_target_and_each_column_has_mass_1(process: Process) -> None:
    """Of a mixture, whose distribution function says what each cell holds."""
    values, extent = image(plots.forward_diffusion(LINE, process))
    edges = torch.linspace(extent[2], extent[3], len(values) + 1, dtype=torch.float64)
    width = edges[1] - edges[0]
    assert ((values.sum(0) * width - 1).abs() < 2e-3).all()
    for i, t in list(enumerate(columns(values, extent, process).tolist()))[::13]:
        alpha, sigma = process.alpha(t), process.sigma(t)
        below = sum(
            w * ndtr((edges - alpha * m) / math.hypot(alpha * s, sigma)) for w, m, s in zip(WEIGHTS, MEANS, STDS)
        )
        assert isinstance(below, Tensor)
        cells = below.diff() / width
        assert (values[:, i] - cells).abs().max() < 0.01 * cells.max()


def test_a_peak_much_narrower_than_a_cell_keeps_its_mass() -> None:
    image = plots.DensityImage.of(Empirical(torch.tensor([[0.003]]), 1e-4), sk.EDM(), -400.0, 400.0, columns=3)
    assert (image.values.sum(0) * 2 - 1).abs().max() < 2e-3
    assert image.values[:, 0].argmax() == 200  # the cell from 0 to 2
    torch.testing.assert_close(
        image.values[200, 0] + image.values[199, 0], torch.tensor(0.5).double(), rtol=0.01, atol=0
    )


def test_a_window_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at t=0.001 the window from -1 to 1 holds 0\.\d+ of the density, not 1"):
        plots.DensityImage.of(LINE, sk.VP(), -1.0, 1.0)
    with pytest.raises(ValueError, match=r"cells of 2, a thousand times as wide as the density"):
        plots.DensityImage.of(Empirical(torch.tensor([[0.003]]), 1e-6), sk.EDM(t_min=1e-6), -400.0, 400.0)


def test_forward_paths_have_the_marginals_and_the_covariance_of_the_sde() -> None:
    """Data N(0, 1) under VP: Var x_t = 1 and Cov(x_s, x_t) = α_t/α_s."""
    process, times = sk.VP(), [0.05, 0.2, 0.4]
    x = forward_paths(Gaussian(torch.zeros(1), torch.eye(1)), process, times, 20_000, 0)[..., 0].double()
    scales = torch.tensor([process.alpha(t) for t in times]).double()
    expected = torch.minimum(scales[:, None] / scales, scales / scales[:, None])
    assert (torch.cov(x) - expected).abs().max() < 0.04  # some four standard errors
    assert x.mean(1).abs().max() < 0.03


def test_the_forward_picture_shows_those_paths_and_the_samples() -> None:
    figure = plots.forward_diffusion(LINE, sk.VP(), paths=3, seed=5)
    lines = figure.axes[0].get_lines()
    times = lines[0].get_xdata().tolist()
    assert (times[0], times[-1]) == (sk.VP().t_min, sk.VP().t_max)
    drawn = torch.stack([torch.as_tensor(line.get_ydata()) for line in lines], 1)
    torch.testing.assert_close(drawn, forward_paths(LINE, sk.VP(), times, 3, 5)[..., 0])
    plane = plots.forward_diffusion(RING, sk.Flow(), samples=40, panels=3, seed=2)
    assert [panel.get_title() for panel in plane.axes] == ["t = 0.001", "t = 0.5", "t = 0.999"]
    for panel, t in zip(plane.axes, (0.001, 0.5, 0.999)):
        assert np.allclose(points(plane, plane.axes.index(panel)), RING.sample(40, 2, t, sk.Flow()), atol=1e-6)


def points(figure: Figure, panel: int) -> np.ndarray:
    (found,) = [artist for artist in figure.axes[panel].collections if isinstance(artist, PathCollection)]
    return np.asarray(found.get_offsets())


def test_the_density_in_the_plane_is_that_of_the_target() -> None:
    figure = plots.forward_diffusion(RING, sk.VP(), panels=2, samples=1)
    for panel, t in enumerate((sk.VP().t_min, sk.VP().t_max)):
        values, (left, right, low, high) = image(figure, panel)
        rows, across = values.shape
        x = left + (np.arange(across) + 0.5) * (right - left) / across
        y = low + (np.arange(rows) + 0.5) * (high - low) / rows
        grid = torch.tensor([[x[j], y[i]] for i in range(0, rows, 7) for j in range(0, across, 7)])
        exact = RING.log_prob(grid, t, sk.VP()).exp().reshape(len(range(0, rows, 7)), -1)
        torch.testing.assert_close(values[::7, ::7], exact, rtol=1e-4, atol=1e-9)
        mass = values.sum().item() * (x[1] - x[0]) * (y[1] - y[0])
        assert mass == pytest.approx(1, abs=3e-3)


def trajectory(model: sk.ScoreModel, solver: str, n: int, seed: int) -> sk.Solution:
    return sk.sample(model, (n, *model.net.target.event), solver=solver, nfe=8, grid="time", seed=seed, keep="all")


@pytest.mark.parametrize("process", PROCESSES, ids=kind)
def test_reverse_paths_are_those_of_sample_from_the_same_starts(process: Process) -> None:
    figure = plots.reverse_diffusion(LINE, process, paths=3, seed=4, **SMALL)
    lines = figure.axes[0].get_lines()
    sde, ode = (trajectory(LINE.model(process), solver, 50, 4) for solver in ("euler-maruyama", "dpmpp-2m"))
    for line, (out, i) in zip(lines, [(out, i) for out in (sde, ode) for i in range(3)], strict=True):
        assert out.trajectory is not None
        assert line.get_xdata().tolist() == list(out.t)
        torch.testing.assert_close(torch.as_tensor(line.get_ydata()), out.trajectory[:, i, 0])
        assert line.get_ydata()[-1] == out.x[i, 0]
    assert [line.get_ydata()[0] for line in lines[:3]] == [line.get_ydata()[0] for line in lines[3:]]
    assert figure.axes[0].get_xlim()[0] == pytest.approx(process.t_max)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["SDE, euler-maruyama", "ODE, dpmpp-2m", "exact density at t_min"]


def test_the_ends_are_counted_beside_the_exact_density() -> None:
    figure = plots.reverse_diffusion(LINE, sk.VP(), solvers=["ddim"], nfe=8, samples=400, seed=1)
    (stairs,) = [patch for patch in figure.axes[1].patches if isinstance(patch, StepPatch)]
    heights, edges, _ = stairs.get_data()
    ends = trajectory(LINE.model(sk.VP()), "ddim", 400, 1).x[:, 0].double().numpy()
    assert np.allclose(heights, np.histogram(ends, edges, density=True)[0])
    assert (heights * np.diff(edges)).sum() == pytest.approx(1)
    outline = figure.axes[1].collections[0].get_paths()[0].vertices
    where = torch.tensor(outline[outline[:, 0] > 1e-3])
    exact = LINE.log_prob(where[:, 1:], sk.VP().t_min, sk.VP()).exp().numpy()
    assert np.allclose(where[:, 0], exact, atol=1e-6)


def test_reverse_paths_in_the_plane_begin_and_end_where_sample_does() -> None:
    figure = plots.reverse_diffusion(RING, sk.VP(), paths=2, seed=3, **SMALL)
    for panel, solver in zip(figure.axes, ("euler-maruyama", "dpmpp-2m")):
        out = trajectory(RING.model(sk.VP()), solver, 50, 3)
        assert out.trajectory is not None
        paths = [line.get_xydata() for line in panel.get_lines() if len(line.get_xdata()) > 1]
        assert np.allclose(np.stack(paths, 1), out.trajectory[:, :2], atol=1e-6)
        ends = [line.get_xydata()[0] for line in panel.get_lines() if len(line.get_xdata()) == 1]
        assert np.allclose(ends[1::2], out.x[:2], atol=1e-6)


def test_a_model_of_ones_own_is_the_one_that_is_run() -> None:
    mean = torch.tensor([3.0])
    model = sk.ScoreModel(lambda x, t: mean.expand_as(x), sk.VP(), predicts="x0")
    figure = plots.reverse_diffusion(LINE, sk.VP(), model=model, solvers=["ddim"], paths=2, **SMALL)
    assert [line.get_ydata()[-1] for line in figure.axes[0].get_lines()] == pytest.approx([3.0, 3.0], abs=0.02)


def test_paths_that_blow_up_leave_the_rest_to_be_seen() -> None:
    wild = sk.ScoreModel(lambda x, t: torch.where(x > 0, 1e30, torch.nan), sk.VP(), predicts="x0")
    figure = plots.reverse_diffusion(LINE, sk.VP(), model=wild, solvers=["ddim"], paths=2, **SMALL)
    low, high = figure.axes[0].get_ylim()
    assert -20 < low < -3 < 3 < high < 20
    assert [text.get_text() for text in figure.axes[1].texts] == ["100.0% outside"]


@pytest.mark.parametrize("process", PROCESSES, ids=kind)
def test_arrows_are_the_exact_score(process: Process) -> None:
    times = [process.t_min, process.t_of_half_log_snr(0.0)]
    figure = plots.score_field(RING, process, times)
    for panel, t in zip(figure.axes, times):
        (field,) = [artist for artist in panel.collections if isinstance(artist, Quiver)]
        where = torch.tensor(np.stack([field.X, field.Y], 1))
        exact = RING.double().score(where, t, process).numpy()
        RING.float()
        assert np.allclose(np.stack([field.U, field.V], 1), exact, rtol=1e-3, atol=2e-3 * np.abs(exact).max())
        assert len(where) > 20


def test_arrows_of_a_model_are_the_models() -> None:
    model = sk.ScoreModel(lambda x, t: torch.stack([x[:, 1], -x[:, 0]], 1), sk.VP(), predicts="score")
    (panel,) = plots.score_field(RING, sk.VP(), [0.1], model=model).axes
    (field,) = [artist for artist in panel.collections if isinstance(artist, Quiver)]
    assert np.allclose(field.U, field.Y, atol=1e-6)
    assert np.allclose(field.V, -np.asarray(field.X), atol=1e-6)


def test_networks_are_drawn_in_evaluation_mode() -> None:
    net = torch.nn.Dropout(0.5)
    model = sk.ScoreModel(lambda x, t: net(x), sk.VP(), predicts="score")
    (panel,) = plots.score_field(RING, sk.VP(), [0.1], model=model).axes
    (field,) = [artist for artist in panel.collections if isinstance(artist, Quiver)]
    assert np.allclose(np.stack([field.U, field.V]), np.stack([field.X, field.Y]), atol=1e-6)
    assert net.training


def test_schedules_are_the_formulas_of_the_papers() -> None:
    found = {"linear": sk.VP(0.1, 20.0), "exploding": sk.VE(0.01, 50.0), "straight": sk.Flow()}
    panels = plots.schedules(found).axes
    assert [line.get_label() for line in panels[0].get_lines()] == list(found)
    for i, process in enumerate(found.values()):
        share = panels[0].get_lines()[i].get_xdata()
        t = process.t_min + np.asarray(share) * (process.t_max - process.t_min)
        integral = 0.1 * t + 0.5 * 19.9 * t**2
        alpha = [np.exp(-integral / 2), np.ones_like(t), 1 - t][i]
        sigma = [np.sqrt(1 - np.exp(-integral)), 0.01 * 5000**t, t][i]
        for panel, values in zip(panels, (alpha, sigma, np.log(alpha / sigma))):
            assert np.allclose(panel.get_lines()[i].get_ydata(), values, atol=1e-9)


def test_processes_of_one_class_are_told_apart() -> None:
    lines = plots.schedules([sk.VP(), sk.VP(beta_max=5.0), sk.Flow()]).axes[2].get_lines()
    labels = [line.get_label() for line in lines]
    assert labels == [repr(sk.VP()), repr(sk.VP(beta_max=5.0)), "Flow"]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 3


def test_samplers_show_what_sample_returns() -> None:
    plane = plots.samplers(RING, sk.VP(), ["ddim", "euler-maruyama"], [5, 9], samples=60, seed=7)
    for i, (solver, nfe) in enumerate([("ddim", 5), ("ddim", 9), ("euler-maruyama", 5), ("euler-maruyama", 9)]):
        x = sk.sample(RING.model(sk.VP()), (60, 2), solver=solver, nfe=nfe, seed=7).x
        assert np.allclose(points(plane, i), x, atol=1e-6)
    line = plots.samplers(LINE, sk.VP(), ["heun"], [6, 30], samples=300, seed=7)
    for panel, nfe in zip(line.axes, (6, 30)):
        x = sk.sample(LINE.model(sk.VP()), (300, 1), solver="heun", nfe=nfe, seed=7).x[:, 0].double().numpy()
        (stairs,) = [patch for patch in panel.patches if isinstance(patch, StepPatch)]
        heights, edges, _ = stairs.get_data()
        counts, _ = np.histogram(x, edges)
        assert np.allclose(heights, counts / (300 * np.diff(edges)))
        outside = ((x < edges[0]) | (x > edges[-1])).mean()
        assert [text.get_text() for text in panel.texts] == ([f"{outside:.1%} outside"] if outside else [])


def test_denoising_shows_the_states_and_what_the_network_takes_them_for() -> None:
    model, labels = digits_model(), [3, 8]
    model.net.train()
    figure = plots.denoising(model, (2, 1, 8, 8), nfe=8, columns=4, seed=1, label=labels)
    assert model.net.training
    model.net.eval()
    out = sk.sample(model, (2, 1, 8, 8), nfe=8, seed=1, keep="all", label=torch.tensor(labels))
    assert out.trajectory is not None
    shown = [torch.as_tensor(np.asarray(panel.get_images()[0].get_array())) for panel in figure.axes]
    places = [0, 3, 5, 8] if len(out.t) == 9 else [round(i * (len(out.t) - 1) / 3) for i in range(4)]
    for column, place in enumerate(places):
        t, x = out.t[place], out.trajectory[place]
        with torch.no_grad():
            x0 = model.x0(x, t, label=torch.tensor(labels)) if t > 0 else x
        for row in range(2):  # VP: α² + σ² = 1
            for offset, expected in ((0, x), (1, x0)):
                grey = (expected[row, 0].clamp(-1, 1) + 1) / 2
                torch.testing.assert_close(shown[(2 * row + offset) * 4 + column], grey, atol=1e-5, rtol=0)
    assert figure.axes[3].get_title() == "t = 0"


def test_ways_are_the_states_of_sample_from_the_same_starts() -> None:
    model, labels = digits_model(), torch.tensor([3, 8])
    figure = plots.trajectories(model, (2, 1, 8, 8), ["ddim", "ddpm"], nfe=6, seed=1, label=labels)
    shown = [np.asarray(panel.get_images()[0].get_array()) for panel in figure.axes]
    for i, solver in enumerate(["ddim", "ddpm"]):
        out = sk.sample(model, (2, 1, 8, 8), solver=solver, nfe=6, seed=1, keep="all", label=labels)
        assert out.trajectory is not None
        wide = len(shown) // 4
        assert wide == len(out.t)
        for image in range(2):  # VP: α² + σ² = 1
            for column, x in enumerate(out.trajectory[:, image, 0]):
                grey = (x.clamp(-1, 1) + 1) / 2
                assert np.allclose(shown[(2 * i + image) * wide + column], grey, atol=1e-5)
    assert [panel.get_ylabel() for panel in figure.axes if panel.get_ylabel()] == ["ddim", "ddpm"]


def test_ways_in_the_plane_begin_and_end_where_sample_does_and_the_data_lie_under_them() -> None:
    model, data = RING.model(sk.VE(sigma_max=5.0)), RING.sample(20)
    figure = plots.trajectories(model, (3, 2), ["euler", "ddpm"], nfe=7, seed=4, data=data)
    assert [panel.get_title() for panel in figure.axes if panel.get_title()] == ["euler", "ddpm"]
    for panel, solver in zip(figure.axes, ["euler", "ddpm"]):
        out = sk.sample(model, (3, 2), solver=solver, nfe=7, seed=4, keep="all")
        assert out.trajectory is not None
        for line, path in zip(panel.get_lines()[::3], out.trajectory.unbind(1)):
            scale = torch.tensor([math.hypot(1, model.process.sigma(t)) if t > 0 else 1.0 for t in out.t])
            assert np.allclose(np.asarray(line.get_xydata()), path / scale[:, None], atol=1e-5)
        (under,) = [c for c in panel.collections if isinstance(c, PathCollection)]
        assert np.allclose(under.get_offsets(), data)
    line = plots.trajectories(LINE.model(sk.VP()), (2, 1), ["ddim"], nfe=4)
    assert line.axes[0].get_xlabel() == "t (noise → data)"
    with pytest.raises(ValueError, match="solvers is empty"):
        plots.trajectories(model, (3, 2), [])


def test_colour_images_are_shown_in_colour_at_the_data_s_brightness_under_ve() -> None:
    model = sk.ScoreModel(lambda x, t: torch.full_like(x, 0.5), sk.VE(), predicts="x0")
    figure = plots.denoising(model, (1, 3, 4, 5), nfe=6, columns=3)
    shown = [np.asarray(panel.get_images()[0].get_array()) for panel in figure.axes]
    assert {picture.shape for picture in shown} == {(4, 5, 3)}
    for picture in (*shown[3:], shown[2]):
        assert np.allclose(picture, 0.75, atol=1e-3)
    start = sk.sample(model, (1, 3, 4, 5), nfe=6, seed=0, keep="all").trajectory[0, 0] / math.hypot(1, 50)
    assert np.allclose(shown[0], (start.clamp(-1, 1) + 1).permute(1, 2, 0) / 2, atol=1e-5)


@pytest.mark.parametrize("value", [8, -3.0])
def test_a_single_value_is_found_where_the_start_fits_and_missed_by_what_theory_says(value: float) -> None:
    figure = plots.single_value(value, 0.25, samples=1000, nfe=200)
    ends = [
        [float(n) for n in re.findall(r"-?\d+\.\d+", panel.get_title().splitlines()[1])] for panel in figure.axes[::2]
    ]
    short, long = sk.VP(beta_max=2.0), sk.VP()
    for (m_sde, s_sde, m_ode, s_ode), process, mean, std, scale in zip(
        ends, (long, short, short), (value, value, 0.0), (0.25, 0.25, 1.0), (1.0, 1.0, 0.25)
    ):
        alpha, sigma = process.alpha(process.t_max), process.sigma(process.t_max)
        r = alpha * std / math.hypot(alpha * std, sigma)
        shift = 0.0 if scale == 1 else value
        for got, spread, share in ((m_sde, s_sde, r**2), (m_ode, s_ode, r)):
            assert got == pytest.approx(
                shift + scale * mean * (1 - share), abs=0.035
            )  # four standard errors, and rounding
            assert spread == pytest.approx(scale * std * math.sqrt(1 - share**2), abs=0.03)
    for i, process in ((0, long), (2, short), (4, short)):
        values, extent = image(figure, i)
        assert (values.sum(0) * (extent[3] - extent[2]) / len(values)).numpy() == pytest.approx(1, abs=2e-3)
        middle = (values.argmax(0) + 0.5) / len(values) * (extent[3] - extent[2]) + extent[2]
        scales = torch.tensor([process.alpha(t) for t in columns(values, extent, process).tolist()])
        expected = value * (scales if i < 4 else torch.ones_like(scales))
        assert (middle - expected).abs().max() < 0.1


def test_targets_of_scalars_data_without_a_density_and_half_precision_are_drawn() -> None:
    point = Gaussian(torch.tensor(0.5), torch.zeros(1, 1))
    assert point.event == torch.Size([])
    for target in (point, GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.5).half()):
        for figure in (
            plots.forward_diffusion(target, sk.VP()),
            plots.reverse_diffusion(target, sk.VP(), **SMALL),
            plots.samplers(target, sk.VP(), ["ddim"], [6], samples=20),
        ):
            figure.draw_without_rendering()
    plots.score_field(GaussianMixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 0.5).half(), sk.VP(), [0.1])


def test_pictures_are_drawn_of_targets_on_a_device() -> None:
    with simgpu.device() as gpu:
        line, ring = (GaussianMixture(target.location, 0.3).to(gpu.device) for target in (LINE, RING))
        states = forward_paths(line, sk.VP(), [0.1, 0.5], 3, 0).cpu()
        density = plots.DensityImage.of(line, sk.VP(), -7.0, 7.0, columns=2)
        plane = plots.samplers(ring, sk.VP(), ["ddim"], [5], samples=20)
        score = plots.score_field(ring, sk.VP(), [0.1])
    line, ring = (GaussianMixture(target.location, 0.3) for target in (LINE, RING))
    assert torch.equal(states, forward_paths(line, sk.VP(), [0.1, 0.5], 3, 0))
    here = plots.DensityImage.of(line, sk.VP(), -7.0, 7.0, columns=2)
    torch.testing.assert_close(density.values, here.values, rtol=1e-4, atol=1e-6)
    assert np.allclose(points(plane, 0), sk.sample(ring.model(sk.VP()), (20, 2), solver="ddim", nfe=5, seed=0).x)
    (field,) = [artist for artist in score.axes[0].collections if isinstance(artist, Quiver)]
    where = torch.tensor(np.stack([field.X, field.Y], 1))
    assert np.allclose(np.stack([field.U, field.V], 1), ring.score(where, 0.1, sk.VP()), rtol=1e-3, atol=1e-3)


POINTS = GaussianMixture(torch.tensor([[-2.0, 0.1], [2.0, 0.0]]), 1e-3)
OTHER = LINE.model(sk.VP(beta_max=5.0))
BAD = {
    "three elements over time": (
        lambda: plots.forward_diffusion(CUBE, sk.VP()),
        r"shape \[3\]: .* needs 1 or 2 elements",
    ),
    "three elements back": (lambda: plots.reverse_diffusion(CUBE, sk.VP()), r"shape \[3\]: .* needs 1 or 2 elements"),
    "three elements sampled": (lambda: plots.samplers(CUBE, sk.VP()), r"shape \[3\]: .* needs 1 or 2 elements"),
    "a score on a line": (lambda: plots.score_field(LINE, sk.VP()), r"shape \[1\]: .* needs 2 elements"),
    "another process": (lambda: plots.reverse_diffusion(LINE, sk.VP(), model=OTHER), "they must be equal"),
    "another process, samplers": (lambda: plots.samplers(LINE, sk.VP(), model=OTHER), "they must be equal"),
    "a time outside": (lambda: plots.score_field(RING, sk.VP(), [2.0]), r"times holds 2.0: it must lie in \[t_min"),
    "no time": (lambda: plots.score_field(RING, sk.VP(), []), "times is empty"),
    "arrows far apart": (lambda: plots.score_field(POINTS, sk.VP(), [1e-3], arrows=5), "arrows=5: at t=0.001 all of"),
    "no process": (lambda: plots.schedules([]), "processes is empty"),
    "no solver": (lambda: plots.samplers(LINE, sk.VP(), []), "at least one of each"),
    "no solver back": (lambda: plots.reverse_diffusion(LINE, sk.VP(), solvers=[]), "at least one"),
    "a solver twice": (lambda: plots.reverse_diffusion(LINE, sk.VP(), solvers=["ddim", "ddim"]), "each once"),
    "an unknown solver": (lambda: plots.samplers(LINE, sk.VP(), ["dimm"]), "did you mean 'ddim'"),
    "no paths": (lambda: plots.forward_diffusion(LINE, sk.VP(), paths=0), "paths=0"),
    "one panel": (lambda: plots.forward_diffusion(RING, sk.VP(), panels=1), "panels=1"),
    "fewer samples than paths": (lambda: plots.reverse_diffusion(LINE, sk.VP(), samples=2), "samples=2"),
    "no image": (lambda: plots.denoising(OTHER, (4, 1)), r"shape=\(4, 1\): it must be \[n, channels"),
    "one column": (lambda: plots.denoising(digits_model(), (1, 1, 8, 8), columns=1), "columns=1"),
    "no spread": (lambda: plots.single_value(8.0, 0.0), "std=0.0: it must be a finite number above 0"),
    "no number": (lambda: plots.single_value(math.nan), "value=nan: it must be a finite number"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_drawn_is_said(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "benchmarks" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_each_picture_of_the_script_and_none_is_heavy(tmp_path: Path) -> None:
    module = script()
    page = (ROOT / "docs" / "pictures.md").read_text(encoding="utf-8")
    assert re.findall(r"\(images/([\w-]+)\.png\)", page) == list(module.PICTURES)
    for name in module.PICTURES:
        assert (ROOT / "docs" / "images" / f"{name}.png").stat().st_size < 150_000
    module.save(module.PICTURES["schedules"](), tmp_path / "schedules.png")
    assert (tmp_path / "schedules.png").stat().st_size > 10_000
