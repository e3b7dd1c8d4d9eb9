r"""Both ways between sdekit and k-diffusion, and what samples by its contract: ComfyUI, A1111 and their forks.

k-diffusion's coordinates are variance-exploding: x = x_0 + σ ε, and a model is a denoiser D(x, σ) = E[x_0 | x]. A run
is the caller's own list of σ, from noise to data, mostly with a 0 at its end. ComfyUI runs flow models through the same
functions with x = (1 − σ) x_0 + σ ε and σ from 1 to 0.

``sampler`` gives them a solver of the registry, ``wrap`` gives their models to ``sample``.
"""

from __future__ import annotations

import copy
import math
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.door import Seed, door
from sdekit.interop.edm import sigma_range
from sdekit.model import ScoreModel
from sdekit.names import lookup
from sdekit.noise import SOURCES
from sdekit.process import EDM, VE, Flow, Knot, Process
from sdekit.sampling import march, progress_bar
from sdekit.solvers import Solver, get
from sdekit.solvers.tableau import DATA, Plan, Row
from sdekit.tuning import Tuned

Sampler = Callable[..., Tensor]
Levels = Sequence[float]
_ONE = 1 - 1e-4  # above, a flow model's σ is taken for 1 with a rounding
_ROUNDING = 1e-5  # of σ in float32
_HOMES: dict[str, tuple[type[Process], ...]] = {"ve": (EDM, VE), "flow": (Flow,)}
_FORMULAS = {"ve": "x_0 + σ ε", "flow": "(1 − σ) x_0 + σ ε"}


def _ve(levels: Levels) -> tuple[Process, list[float]]:
    return EDM(t_min=levels[-1], t_max=levels[0]), list(levels)


def _flow(levels: Levels) -> tuple[Process, list[float]]:
    if levels[0] > 1:
        raise ValueError(f"sigmas begin at {levels[0]:g}: those of a flow model lie between 0 and 1")
    first = levels[0]
    if first > _ONE:  # λ is −∞ at σ = 1: begin just inside, above the next σ
        first = min(first, max(Flow().t_max, (1 + levels[1]) / 2))
    inside = [first, *levels[1:]]
    return Flow(t_min=inside[-1], t_max=inside[0]), inside


COORDINATES: dict[str, Callable[[Levels], tuple[Process, list[float]]]] = {"ve": _ve, "flow": _flow}
"""What x is at noise level σ: ``"ve"`` x_0 + σ ε, ``"flow"`` (1 − σ) x_0 + σ ε."""


@door
def sampler(
    solver: str | Solver = "auto", *, coordinates: str = "auto", seed: Seed | None = None, noise: str = "independent"
) -> Sampler:
    """A solver of the registry as ``f(model, x, sigmas, extra_args=None, callback=None, disable=None)`` → x.

    ``f`` does what a ``sample_*`` function of k-diffusion does: ``model(x, σ, **extra_args)`` with σ [batch] gives x_0,
    and ``sigmas`` are the run's knots, exactly. A 0 at their end is the denoising, by one evaluation at the σ before
    it; without it x is returned at the last σ. So N values and a 0 are N evaluations of a one-evaluation solver, as
    with k-diffusion's own. ``callback`` gets dict(x, i, sigma, sigma_hat, denoised) once for each σ at which the model
    is asked, x being what it was asked at. Reading ``sigmas`` is the one time the host reads the device.

    Args:
        solver: a name in ``solvers.names()``, with options as in ``"ddim(eta=0.5)"``, or a ``Solver``; one that
            ``tune`` fitted under ``EDM``, ``VE`` or ``Flow`` runs on its own list, ``sigmas(solver)``, alone.
        coordinates: a name in ``COORDINATES``; ``"auto"`` is ``"flow"`` where the model is ComfyUI's and holds a
            ``model_sampling`` of its class ``CONST`` (Forge's: a ``predictor`` of type "const"), else ``"ve"``.
        seed: of a stochastic solver's noise, which is sdekit's own: row i of x gets sample i's numbers, whatever the
            batch or device. None takes ``extra_args["seed"]``, which ComfyUI gives, else draws one. Deterministic
            solvers need none.
        noise: ``"independent"`` or ``"brownian"``, as in ``sample``.

    A flow model's σ = 1 (above 0.9999), where λ is −∞, is run as 0.999, or as what lies half-way from the next σ to 1
    where that is larger: x is multiplied by it, so that it is that multiple of the noise. That leaves out 0.001 x_0, as
    ``Flow`` does.

    Raises ValueError here for unknown names; ``f`` does for sigmas that are too few, negative, not finite or do not
    fall, for a flow model's σ above 1, for others than a tuned solver's own, for one tuned in other coordinates, and
    for a model whose result has another shape than x.

    >>> run = sampler("dpmpp-2m")
    >>> x = run(lambda x, sigma: 0 * x, torch.ones(2, 3), torch.tensor([10.0, 1.0, 0.0]))
    >>> x.abs().max().item()
    0.0
    """
    chosen, source = get(solver), lookup("noise", noise, SOURCES)
    lookup("coordinates", coordinates, {"auto": None, **COORDINATES})

    @torch.no_grad()
    def run(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
    ) -> Tensor:
        extra, levels = dict(extra_args or {}), _levels(sigmas)
        named = coordinates if coordinates != "auto" else "flow" if _is_flow(model) else "ve"
        process, times, plan = _plan(chosen, named, levels)
        x = x if plan.start.sigma == levels[0] else x * (plan.start.sigma / levels[0])
        number = next((n for n in (seed, extra.get("seed")) if n is not None), None)
        number = secrets.randbits(63) if number is None else int(number)
        draw = source(number, plan.intervals, torch.arange(len(x), device=x.device), x.shape[1:], x.dtype)
        asked = _Asked(model, extra, sigmas, _shown(plan, times) if callback else {}, callback)
        told = "sigma" if isinstance(process, VE) else "t"  # t is σ elsewhere
        show = sys.stderr.isatty() if disable is None else not disable
        with progress_bar(show, sum(row.commit for row in plan.rows)) as advance:
            for _, state in march(plan, ScoreModel(asked, process, "x0", told), x, draw):
                x = state
                advance()
        return x

    return run


def _levels(sigmas: Tensor | Sequence[float]) -> list[float]:
    levels = [float(level) for level in (sigmas.tolist() if isinstance(sigmas, Tensor) else sigmas)]
    if len(levels) < 2:
        raise ValueError(f"sigmas: {len(levels)} given, a run has at least 2: where it begins and where it ends")
    for level in levels:
        if not 0 <= level < math.inf:
            raise ValueError(f"sigmas hold {level:g}: they must be finite and not negative")
    for high, low in zip(levels, levels[1:]):
        if not high > low:
            raise ValueError(f"sigmas must fall from noise to data, but {high:g} is followed by {low:g}")
    return levels


def _plan(solver: Solver, coordinates: str, levels: list[float]) -> tuple[Process, list[float], Plan]:
    """The process, the times of ``levels`` without a 0 at their end, and the table of the run."""
    if isinstance(solver, Tuned):
        return _tuned(solver, coordinates, levels)
    ends_with_data = levels[-1] == 0
    if ends_with_data and len(levels) == 2:  # nothing but the denoising, which asks for no λ
        process, _ = COORDINATES[coordinates]([levels[0], levels[0] / 2])
        start = Knot(levels[0], 1.0, levels[0], -math.log(levels[0]))
        return process, levels[:1], Plan(start, (Row(to=DATA, anchor=0.0, history=(1.0,)),), "x0")
    process, times = COORDINATES[coordinates](levels[:-1] if ends_with_data else levels)
    return process, times, solver.plan(process, grid=times, final="denoise" if ends_with_data else "none")


def _tuned(solver: Tuned, coordinates: str, levels: list[float]) -> tuple[Process, list[float], Plan]:
    """The same for a solver that has its own times, and with them its own σ."""
    process = solver.process
    if not isinstance(process, _HOMES[coordinates]):
        raise ValueError(
            f"solver {solver.name!r} was fitted for {process}, and x here is {_FORMULAS[coordinates]}: tune a model of"
            " that x, such as sk.interop.k_diffusion.wrap(denoiser) is of x_0 + σ ε"
        )
    own = sigmas(solver).tolist()
    if len(own) != len(levels) or not all(math.isclose(a, b, rel_tol=_ROUNDING) for a, b in zip(own, levels)):
        raise ValueError(
            f"sigmas: solver {solver.name!r} has its own, [{', '.join(f'{level:.6g}' for level in own)}], and others"
            " were given: give sk.interop.k_diffusion.sigmas(solver)"
        )
    return process, list(solver.table.times), solver.plan(process)


@door
def sigmas(solver: Solver) -> Tensor:
    """The σ that a tuned solver was fitted with, a 0 at their end, in float64: ``sampler`` runs it on no other list.

    Raises ValueError for a solver that runs on any.

    >>> from sdekit import tune
    >>> denoiser = lambda x, sigma: x / (1 + sigma[:, None] ** 2)
    >>> model = wrap(denoiser, sigma_max=10.0)
    >>> plan = tune(model, (1, 2), nfe=3, starts=60, budget=0, choices=[("ddim", "karras")])
    >>> sampler(plan)(denoiser, 10 * torch.ones(1, 2), sigmas(plan)).shape
    torch.Size([1, 2])
    """
    if not isinstance(solver, Tuned) or solver.process is None:
        raise ValueError(f"solver {solver.name!r} has no σ of its own, as those have that sk.tune returns")
    return torch.tensor([*(solver.process.sigma(t) for t in solver.table.times), 0.0], dtype=torch.float64)


def _is_flow(model: object) -> bool:
    """Whether ComfyUI or Forge says so, by what the model, or a model that it wraps, holds."""
    while model is not None:
        if (sampling := getattr(model, "model_sampling", None)) is not None:
            return any(base.__name__ == "CONST" for base in type(sampling).__mro__)
        if (predictor := getattr(model, "predictor", None)) is not None:
            return getattr(predictor, "prediction_type", None) == "const"
        model = getattr(model, "inner_model", None)
    return False


class _Asked:
    """The caller's model as a network, which tells the callback what it was asked and what it said."""

    def __init__(
        self,
        model: Callable[..., Tensor],
        extra: Mapping[str, Any],
        sigmas: Tensor | Sequence[float],
        shown: Mapping[int, tuple[int, float | None]],
        callback: Callable[[dict[str, Any]], object] | None,
    ) -> None:
        self.model, self.extra, self.sigmas, self.shown, self.callback = model, extra, sigmas, shown, callback
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        denoised = self.model(x, sigma, **self.extra)
        if self.callback is not None and self.calls in self.shown:
            step, lifted = self.shown[self.calls]
            told = self.sigmas[step]
            hat = told if lifted is None else told * 0 + lifted
            self.callback({"x": x, "i": step, "sigma": told, "sigma_hat": hat, "denoised": denoised})
        self.calls += 1
        return denoised


def _shown(plan: Plan, times: list[float]) -> dict[int, tuple[int, float | None]]:
    """The evaluations that a callback is shown: number → (which σ, the level it is made at where that is another).

    One for each σ: the first from the state that the step begins with, which churn may have lifted; where there is
    none, as with a corrector that goes on from the evaluation at what it corrects, the first made there.
    """
    places = {t: i for i, t in enumerate(times)}
    here, step, calls, settled = plan.start, 0, 0, True
    begun, made = dict[int, tuple[int, float]](), dict[int, tuple[int, float]]()
    for row in plan.rows:
        if row.evaluate:
            if settled:
                begun.setdefault(step, (calls, here.t))
            elif here.t in places:
                made.setdefault(places[here.t], (calls, here.t))
            calls += 1
        here, settled = row.to, row.commit or (settled and not row.evaluate and not row.history)  # no more than noise
        if row.commit:
            step = places.get(here.t, step)
    found = {**made, **begun}
    return {call: (step, None if level == times[step] else level) for step, (call, level) in found.items()}


@door
def wrap(
    denoiser: Callable[..., Tensor], *, sigma_min: float | None = None, sigma_max: float | None = None
) -> ScoreModel:
    """A k-diffusion denoiser D(x, σ, **kwargs) → x_0, with x = x_0 + σ ε, as a ``ScoreModel`` of ``EDM``.

    ``DiscreteEpsDDPMDenoiser``, ``DiscreteVDDPMDenoiser``, ``VDenoiser``, ``Denoiser``, or any such callable; what it
    predicts is its own to the bit. Where a module's ``inner_model`` runs in half precision, that alone does: the
    scalings around it, which σ enters, stay in float32.

    Args:
        denoiser: returns x's shape.
        sigma_min, sigma_max: where sampling ends and begins; by default the denoiser's own where it states them, as
            those of a discrete schedule do, otherwise 0.002 and 80.

    Raises ValueError for a range that the denoiser does not cover.

    >>> model = wrap(lambda x, sigma: x / (1 + sigma[:, None] ** 2), sigma_max=10.0)  # data N(0, 1)
    >>> model.x0(torch.ones(2, 3), 1.0)[0, 0].item(), model.process.t_max
    (0.5, 10.0)
    """
    low, high = sigma_range(denoiser, sigma_min, sigma_max)
    inner = getattr(denoiser, "inner_model", None)
    own = next(inner.parameters(), None) if isinstance(inner, nn.Module) else None
    if own is None or own.dtype not in (torch.float16, torch.bfloat16) or not isinstance(denoiser, nn.Module):
        return ScoreModel(denoiser, EDM(low, high), "x0")
    outer = copy.copy(denoiser)
    vars(outer)["_modules"] = {**vars(denoiser)["_modules"], "inner_model": _Cast(inner, own.dtype)}  # its own stays
    return ScoreModel(outer, EDM(low, high), "x0", dtype=torch.float32)


class _Cast(nn.Module):
    """A network whose x is cast to its precision, and its result back."""

    def __init__(self, net: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.net: Any = net
        self.dtype = dtype

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.net(x.to(self.dtype), *args, **kwargs).to(x.dtype)

    def apply_model(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # what ``CompVisDenoiser`` calls
        return self.net.apply_model(x.to(self.dtype), *args, **kwargs).to(x.dtype)
