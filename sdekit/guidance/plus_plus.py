r"""CFG++ (Chung et al. 2024): denoise with the guided prediction, renoise with the unconditional one.

    x_t = α_t x̂_0 + σ_t ε_∅,   x̂_0 = (x_s − σ_s ε̂)/α_s,   ε̂ = ε_∅ + ω (ε_c − ε_∅)

differs from a step of DDIM in the last term alone. As both are linear in ε_∅ and ε_c, it is a step of DDIM with a scale
that depends on the step,

    w = ω/(1 − e^{−h}),   h = λ_t − λ_s,

and the last denoising, h = ∞, has w = ω. So the method is a table that the package has, ``ddim``, and a scale at
each of its knots. For short steps w = ω/h grows without bound: at a fixed ω more steps are more guidance, and the ODE
of no scale is what CFG++ converges to. With ω = w (1 − e^{−h}) it is DDIM at w, of order 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sdekit.door import Evaluations, Shape, door
from sdekit.grid import Grid, GridSpec
from sdekit.guidance.rules import check_scale
from sdekit.guidance.wrappers import ClassifierFree
from sdekit.process import Process
from sdekit.sampling import Model, Solution, sample
from sdekit.solvers.registry import check_count

_FIXED = {
    "solver": "it steps as ddim does",
    "final": "the last step denoises",
    "nfe": "give steps, which take two each",
}


@door
@dataclass(frozen=True)
class Renoised:
    """The scale ω/(1 − e^{−h}) at each of ``times``, with h the step in λ from there to the next; ω at the last.

    Raises ValueError at any other time: the scale belongs to a step, not to a noise level.

    >>> from sdekit.process import VE
    >>> process = VE(sigma_min=1.0, sigma_max=4.0)
    >>> scale = Renoised(0.75, (1.0, 0.0))
    >>> round(scale(process, 1.0), 12), scale(process, 0.0)
    (1.0, 0.75)
    """

    omega: float
    times: tuple[float, ...]

    def __call__(self, process: Process, t: float | Tensor) -> float:
        """The scale at t."""
        if isinstance(t, Tensor) or t not in self.times:
            raise ValueError(f"t={t}: CFG++ has a scale at the {len(self.times)} knots of its run alone")
        place = self.times.index(t)
        if place + 1 == len(self.times):
            return self.omega
        return self.omega / -math.expm1(process.half_log_snr(t) - process.half_log_snr(self.times[place + 1]))


@door
def sample_plus_plus(
    model: Model,
    shape: Shape,
    *,
    scale: float,
    null: Mapping[str, Any],
    steps: Evaluations,
    grid: GridSpec = "logsnr",
    doubled: bool = True,
    **options: Any,
) -> Solution:
    """Draw samples by CFG++.

    Args:
        model: a model that takes conditions.
        shape: [n, *event] of the samples.
        scale: ω, from 0 to 1 in the paper.
        null: as of ``ClassifierFree``, and so is ``doubled``.
        steps: each two evaluations, as is the denoising at the end: ``nfe`` is 2 (steps + 1).
        grid: a name in ``grid.GRIDS`` or ``steps`` + 1 times.
        options: what else ``sample`` takes (seed, batch_size, …), and the conditions.

    Raises ValueError for a scale that is not finite, and for options of ``sample`` that CFG++ fixes.

    >>> import torch
    >>> from sdekit.nn import digits_model
    >>> label = torch.arange(4)
    >>> sample_plus_plus(digits_model(), (4, 1, 8, 8), scale=0.6, null={"label": 10}, steps=4, seed=0, label=label).nfe
    10
    """
    for name in _FIXED.keys() & options.keys():
        raise ValueError(f"{name}={options[name]!r}: CFG++ fixes it: {_FIXED[name]}")
    if callable(scale):
        raise ValueError("scale: CFG++ takes a number")
    check_scale(scale)
    check_count("steps", steps, 1, "a run takes at least one step")
    times = tuple(knot.t for knot in Grid.make(model.process, grid, [1] * steps).knots)
    guided = ClassifierFree(model, Renoised(scale, times), null=null, doubled=doubled)
    return sample(guided, shape, solver="ddim", grid=times, final="denoise", **options)
