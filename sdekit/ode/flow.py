"""``encode`` data to noise, ``decode`` noise to data, or ``flow`` between any two times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sdekit.adaptive import AdaptiveSolution
from sdekit.data import as_tensor
from sdekit.door import Evaluations, Rows, Tally, Tolerance, door, record
from sdekit.grid import GridSpec
from sdekit.model import in_evaluation_mode, networks
from sdekit.names import lookup, unknown
from sdekit.ode.field import VARIABLES, Evaluate, Field, network
from sdekit.ode.plans import run_plan
from sdekit.ode.steppers import STEPPERS, Settings
from sdekit.process import DiscreteVP, Process, State
from sdekit.sampling import Model, Solution, as_rows
from sdekit.solvers import Solver, get, names
from sdekit.solvers.registry import check_count

States = State | np.ndarray | Solution | AdaptiveSolution


@record
@dataclass(frozen=True)
class Path:
    """Where a solve ended.

    Attributes:
        x: the state [batch, *event] at the last time.
        nfe: network evaluations that each sample took [batch].
        integral: ∫ div(dy/du)/D du for each probe [batch, probes]; no columns where none was asked for.
        defect: an estimate of the solver's error of the log density [batch], in nats; None where the method has none.
    """

    x: Float[Tensor, "batch *event"]
    nfe: Int[Tensor, "batch"]
    integral: Float[Tensor, "batch probes"]
    defect: Float[Tensor, "batch"] | None


@door
def state_of(model: Model, x: Annotated[States, Rows(1)], t: float | None = None) -> tuple[State, float]:
    """x as a state at time t, and t: by default that of what ``sample`` returned, of other x t_min.

    Raises ValueError for denoised samples, which are no states of the process, and for samples of another time.

    >>> from sdekit import ScoreModel, VP
    >>> state_of(ScoreModel(lambda x, t: x, VP()), np.zeros((1, 2)))
    (tensor([[0., 0.]]), 0.001)
    """
    if not isinstance(x, (Solution, AdaptiveSolution)):
        state = as_tensor(x, model.device)
        if not state.is_floating_point():
            raise ValueError(f"x has dtype {state.dtype}: the state must be float32 or float64")
        return state, model.process.t_min if t is None else t
    if x.sigma == 0:
        raise ValueError(
            "x holds denoised samples, which are no states of the process at any time: draw them with final='none'"
        )
    if t is not None and t != x.t[-1]:
        raise ValueError(f"x holds samples at t={x.t[-1]}, not at t={t}")
    return x.x, x.t[-1]


@door
@in_evaluation_mode
def integrate(
    model: Model,
    x: States,
    t0: float,
    t1: float,
    *,
    method: str | Solver = "per-sample",
    variable: str = "half-log-snr",
    rtol: Tolerance = 1e-5,
    atol: Tolerance = 1e-5,
    steps: Evaluations | None = None,
    grid: GridSpec = "auto",
    gradients: str = "none",
    max_attempts: Evaluations = 1000,
    options: Mapping[str, Any] | None = None,
    evaluate: tuple[str, Evaluate] | None = None,
    probes: Tally = 0,
    **conditions: Any,
) -> Path:
    r"""Solve the probability-flow ODE dx/dt = f x − ½ g² s(x, t) from t0 to t1 (Song et al. 2021, eq. 13).

    Args:
        x: the state [batch, *event] at t0; float32 or float64, a numpy array (taken as torch's default dtype), or what
            ``sample`` returned with ``final="none"``.
        t0, t1: within [t_min, t_max], in either order. The network is never called outside that range.
        method: ``"per-sample"``: Dormand–Prince 5(4), each sample with its own steps; ``"fixed"``: the same formulas
            with ``steps`` equal steps in u and no read by the host; a method of torchdiffeq; or a deterministic solver
            of the registry (its name, or a ``Solver`` where torchdiffeq has the name too), run in either direction;
            those with one evaluation a step give densities too, by a spline through the divergences at the knots.
            ``"explicit_adams"`` is of order 4 unless ``options`` say otherwise.
        variable: the integration variable u, a name in ``VARIABLES``. ``"angle"`` needs fewer evaluations on
            closed-form targets; networks that are told λ or log σ change fast in it near both ends.
        rtol, atol: tolerances of the adaptive methods, for y = x/√(α² + σ²).
        steps: the number of steps of the fixed-step methods, equal in u; of a solver of the registry, on ``grid``.
        gradients: ``"none"``; ``"direct"`` through every step; ``"adjoint"`` by torchdiffeq's adjoint equation.
        max_attempts: the most steps that one sample may try before the solve is given up.
        options: more options for torchdiffeq's method.
        evaluate, probes: what the network predicts, itself and its divergences (``likelihood`` gives them).
        conditions: passed to the network.

    Raises ValueError for unknown names, times outside the range, tolerances that the state's dtype cannot reach, and a
    solve that does not get on (it names t and the sample).

    >>> from sdekit import VP, targets
    >>> target = targets.Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, 0.1])))
    >>> x = target.sample(3, t=1e-3, process=VP())
    >>> path = integrate(target.model(VP()), x, 1e-3, 1.0)
    >>> torch.allclose(path.x, target.flow_map(x, 1e-3, 1.0, VP()), atol=1e-3), path.nfe.shape
    (True, torch.Size([3]))
    """
    process, rule = model.process, _rule(method)
    if probes and evaluate is None:
        raise ValueError(f"probes={probes}: only what evaluate= gives has divergences to follow")
    y, _ = state_of(model, x, t0)
    _check(process, y, (t0, t1), (rtol, atol), gradients, variable)
    check_count("max_attempts", max_attempts, 1, "it bounds the steps that one sample tries")
    with torch.set_grad_enabled(gradients != "none"):
        _refuse(gradients == "adjoint" and rule in ("per-sample", "fixed"), str(rule), "has no adjoint")
        if isinstance(rule, Solver):
            _refuse(gradients == "adjoint", rule.name, "has no adjoint")
            variable = "half-log-snr"  # its knots are what it is
        kind = getattr(model, "predicts", "eps")
        kind, function = evaluate or (kind, network(model, kind, len(y), as_rows(model, conditions, len(y))))
        field = Field(process, lookup("variable", variable, VARIABLES), kind, function, y.shape[1:], y.dtype)
        if isinstance(rule, Solver):
            y, evaluations, integral = run_plan(rule, field, y, t0, t1, steps, grid, probes)
            return Path(y, torch.full((len(y),), evaluations), integral, None)
        scale0, scale1 = (math.hypot(process.alpha(t), process.sigma(t)) for t in (t0, t1))
        z = torch.cat([(y / scale0).flatten(1), y.new_zeros(len(y), probes)], 1)
        ends: tuple[float, float] = (field.variable.of_t(process, float(t0)), field.variable.of_t(process, float(t1)))
        settings = Settings(rtol, atol, steps, max_attempts, gradients, dict(options or {}), _parameters(model))
        z, nfe, defect = (z, [0] * len(y), None) if t0 == t1 else STEPPERS[rule](field, z, ends, settings)
        counts = torch.tensor(nfe, dtype=torch.int64)
        return Path((scale1 * z[:, : field.size]).reshape(y.shape), counts, z[:, field.size :], defect)


@door
def flow(model: Model, x: Annotated[States, Rows(1)], t0: float, t1: float, **arguments: Any) -> State:
    """Where the probability-flow ODE takes x from t0 to t1; the arguments are those of ``integrate``.

    >>> from sdekit import VE, targets
    >>> target = targets.Gaussian(torch.zeros(1), torch.eye(1))
    >>> model = target.model(VE(sigma_min=1.0, sigma_max=7**0.5))
    >>> flow(model, torch.full((1, 1), 4.0), 1.0, 0.0).round(decimals=3)
    tensor([[2.]])
    """
    return integrate(model, x, t0, t1, **arguments).x


@door
def encode(model: Model, x0: Annotated[States, Rows(1)], **arguments: Any) -> State:
    """The latent of x0: the probability-flow ODE from t_min to t_max. Arguments as in ``integrate``.

    Data are taken for states at t_min, as is usual. Samples are such states with ``final="none"``: hand over what
    ``sample`` returned, and denoised ones are refused.

    >>> from sdekit import VP, targets
    >>> model = targets.Gaussian(torch.zeros(2), torch.eye(2)).model(VP())
    >>> x0 = torch.tensor([[1.0, -2.0]])
    >>> torch.allclose(decode(model, encode(model, x0)), x0, atol=1e-3)
    True
    """
    return flow(model, x0, model.process.t_min, model.process.t_max, **arguments)


@door
def decode(model: Model, z: Annotated[States, Rows(1)], **arguments: Any) -> State:
    """The data of a latent z: the probability-flow ODE from t_max to t_min; see ``encode``.

    >>> from sdekit import VP, targets
    >>> model = targets.Gaussian(torch.zeros(2), torch.eye(2)).model(VP())  # whose flow stands still
    >>> torch.allclose(decode(model, torch.ones(1, 2)), torch.ones(1, 2), atol=1e-3)
    True
    """
    return flow(model, z, model.process.t_max, model.process.t_min, **arguments)


def _rule(method: str | Solver) -> str | Solver:
    if isinstance(method, Solver) or method in STEPPERS:
        return method
    if method.partition("(")[0] not in names():
        raise unknown("method", method, [*STEPPERS, *names()])
    return get(method)


def _refuse(wrong: bool, method: str, why: str) -> None:
    if wrong:
        raise ValueError(f"method={method!r} {why}: use one of torchdiffeq's methods, such as 'dopri5'")


def _parameters(model: Model) -> tuple[nn.Parameter, ...]:
    """Those of every network that the model holds, each once."""
    return tuple(dict.fromkeys(parameter for net in networks(model) for parameter in net.parameters()))


def _check(
    process: Process, x: Tensor, times: Sequence[float], tolerances: tuple[float, float], gradients: str, variable: str
) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x has dtype {x.dtype}: the state must be float32 or float64 (the network may run in less)")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"x has shape {list(x.shape)}: it must be [batch, *event] with at least one element")
    for name, t in zip(("t0", "t1"), times):
        if not process.t_min <= t <= process.t_max:
            raise ValueError(f"{name}={t}: it must lie in [t_min, t_max] = [{process.t_min}, {process.t_max}]")
    reach = 4 * torch.finfo(x.dtype).eps
    if not (min(tolerances) >= 0 and math.inf > max(tolerances) >= reach):
        raise ValueError(f"rtol, atol = {tolerances}: with {x.dtype} one must be at least {reach:.2g}; use float64")
    if gradients not in ("none", "direct", "adjoint"):
        raise unknown("gradients", gradients, ("none", "direct", "adjoint"))
    lookup("variable", variable, VARIABLES)
    if variable == "t" and isinstance(process, DiscreteVP):
        raise ValueError(
            "variable='t': DiscreteVP's rate jumps at each entry of its table; use 'angle' or 'half-log-snr'"
        )
