"""Data concentrated at a single value, and how reverse diffusion finds it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from sdekit.data import Standardise
from sdekit.door import Count, Evaluations, Positive, Seed, door
from sdekit.misfit import MisfitWarning
from sdekit.plots.density import DensityImage
from sdekit.plots.reverse import SOLVERS, Run, density_at_end, draw_ends, draw_paths, legend, runs_of
from sdekit.plots.style import figure, window
from sdekit.process import VP, Process
from sdekit.solvers.registry import check_count
from sdekit.targets import Gaussian

_DATA = 4000  # draws of the data, of which the map to standardised ones is made


@door
def single_value(
    value: float = 8.0,
    std: Positive = 0.25,
    *,
    process: Process | None = None,
    short: Process | None = None,
    nfe: Evaluations = 200,
    paths: Count = 6,
    samples: Count = 2000,
    seed: Seed = 0,
) -> Figure:
    r"""How reverse diffusion finds data N(value, std²): where the start fits, where it does not, and standardised.

    Each panel has paths of the reverse SDE and of the probability-flow ODE with the exact score, from N(0, σ²) at t_max
    where the truth is N(α value, α² std² + σ²); its title has mean and standard deviation of the ends. With
    r = α std/√(α² std² + σ²) at t_max, exact solutions end at a mean of value (1 − r) for the ODE and value (1 − r²)
    for the SDE, which forgets its start, with variances std² (1 − r²) and std² (1 − r⁴). ``process`` makes r small,
    ``short`` does not. The third panel is ``short`` again on data that ``Standardise`` mapped to mean 0 and variance 1,
    drawn in the data's own units: the mean is then right; the spread, of which r at std 1 decides, is right under a
    longer process alone.

    Args:
        value, std: of the data.
        process: by default ``VP()``, whose α at t_max is 0.0066.
        short: by default ``VP(beta_max=2.0)``, whose α at t_max is 0.59.
        nfe, paths, samples, seed: as in ``reverse_diffusion``.

    Raises ValueError for a std that is not positive, and as ``sample`` does.

    >>> figure = single_value(8.0, nfe=20, samples=50)
    >>> len(figure.axes)  # three panels, each with the ends at its side
    6
    """
    if not 0 < std < float("inf") or not abs(value) < float("inf"):
        raise ValueError(f"value={value}, std={std}: both must be finite, and std positive")
    check_count("paths", paths, 1, "it is how many are drawn")
    check_count("samples", samples, paths, "the paths are those of the first samples")
    long, short = process or VP(), short or VP(beta_max=2.0)
    data = _normal(value, std)
    to = Standardise.of(data.sample(_DATA, seed))
    scaled = _normal((value - to.shift.item()) / to.scale.item(), std / to.scale.item())
    counts = (nfe, samples, seed)
    scenes = [
        ("start fits", long, *_scene(data, long, *counts)),
        ("start misses", short, *_scene(data, short, *counts)),
        ("standardised", short, *_scene(scaled, short, *counts, to=to)),
    ]
    picture = figure(10.5, 3.8)
    axes = picture.subplots(1, 6, width_ratios=(3, 1.2) * 3, sharey=True)
    for (name, used, image, density, runs), panel, side in zip(scenes, axes[::2], axes[1::2]):
        draw_paths(panel, image, runs, paths)
        draw_ends(side, image.edges, density, runs)
        panel.set_title(f"{name}: α(t_max) = {used.alpha(used.t_max):.2g}\n{_means(runs)}", fontsize=9)
    low = min(image.edges[0].item() for _, _, image, _, _ in scenes)
    high = max(image.edges[-1].item() for _, _, image, _, _ in scenes)
    for panel in axes:
        panel.set_ylim(low, high)
    for panel in axes[2::2]:
        panel.set_ylabel("")
    legend(picture, *axes[:2])
    picture.suptitle(f"Reverse diffusion finds {value:g}: data N({value:g}, {std:g}²)", fontsize=10)
    return picture


def _normal(mean: float, std: float) -> Gaussian:
    return Gaussian(torch.tensor([float(mean)]), torch.tensor([[float(std) ** 2]]))


def _scene(
    target: Gaussian, process: Process, nfe: int, samples: int, seed: int, to: Standardise | None = None
) -> tuple[DensityImage, torch.Tensor, list[Run]]:
    """The density over time, that at t_min, and the runs, all in the data's own units."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MisfitWarning)  # that the start misses is what is shown
        runs = runs_of(target, target.model(process), SOLVERS, nfe, "time", samples, seed)
    low, high = window(target, process, None, *(run.states for run in runs))
    image = DensityImage.of(target, process, low.item(), high.item())
    density = density_at_end(target, process, image.edges)
    if to is None:
        return image, density, runs
    return image.undo(to), density / to.scale.double().item(), [run.undo(to) for run in runs]


def _means(runs: Sequence[Run]) -> str:
    ends = [(run.label[:3], run.states[-1].double()) for run in runs]
    return "ends: " + ", ".join(f"{kind} {x.mean().item():.2f} ± {x.std().item():.2f}" for kind, x in ends)
