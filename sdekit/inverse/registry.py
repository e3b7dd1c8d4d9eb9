"""The methods by name, and the one call that runs each: ``sample_posterior``."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit.correction import Corrector
from sdekit.door import Count, Evaluations, FloatDtype, Seed, Shape, door, record
from sdekit.grid import GridSpec
from sdekit.guidance.resampling import systematic, uniform
from sdekit.guidance.wrappers import check_model
from sdekit.inverse.measurement import Measurement
from sdekit.names import check_options, lookup, options_of, parse
from sdekit.noise import key
from sdekit.sampling import Model, check_conditions, check_shape, sample
from sdekit.solvers import Plan, Solver, get
from sdekit.solvers.registry import check_count

_STREAM = 0x905


@record
@dataclass(frozen=True)
class Posterior:
    """What ``sample_posterior`` returns.

    Attributes:
        x: samples [n, *event].
        nfe: network evaluations that each sample took.
        gradients: backward passes through the network that each sample took.
        seed: the seed that repeats the run.
        weights: of weighted particles [n], of mean 1 in each population; None where all count the same.
        ess: the effective sample size of each population, over its size, after each step [steps, populations].
        log_evidence: of each population, an estimate of log p(y); its mean over runs, as a number not as a logarithm,
            is p(y) of the chain that was run.
    """

    x: Float[Tensor, "n *event"]
    nfe: int
    gradients: int
    seed: int
    weights: Float[Tensor, "n"] | None = None
    ess: Float[Tensor, "steps populations"] | None = None
    log_evidence: Float[Tensor, "populations"] | None = None

    def even(self) -> Float[Tensor, "n *event"]:
        """n samples of equal weight: particles are drawn in proportion to their weights, in each population."""
        if self.weights is None or self.log_evidence is None:
            return self.x
        log_weights = self.weights.log().reshape(len(self.log_evidence), -1)
        picks = systematic(log_weights, uniform(key(self.seed, _STREAM), 0, log_weights))
        return self.x[flat(picks)]


def flat(picks: Tensor) -> Tensor:
    """Places within populations [populations, n] as places among all."""
    first = torch.arange(len(picks), device=picks.device)[:, None] * picks.shape[1]
    return (picks + first).flatten()


@dataclass(frozen=True, eq=False)
class Run:
    """What a method is asked to do; ``sample_posterior`` says what each is."""

    model: Model
    measurement: Measurement
    shape: tuple[int, ...]
    nfe: int
    seed: int
    solver: Solver
    grid: GridSpec
    measured: Tensor | None
    populations: int
    dtype: torch.dtype
    batch_size: int | None
    conditions: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def plan(self) -> Plan:
        """The solver's table of this run, in its data's dtype."""
        plan = self.solver.plan(self.model.process, nfe=self.nfe, grid=self.grid, final="denoise")
        return plan.to(self.model.device, self.dtype, self.shape[1:])

    def sample(self, model: Any, solver: Solver | None = None, corrector: Corrector | None = None) -> Posterior:
        """Run the solver on a model that knows the measurement; it counts ``gradients`` where it has any."""
        measured = {} if self.measured is None or model is self.model else {"measured": self.measured}
        batches = 1 if self.batch_size is None else -(-self.shape[0] // self.batch_size)
        out = sample(
            model, self.shape, solver=solver or self.solver, nfe=self.nfe, grid=self.grid, seed=self.seed,
            final="denoise", corrector=corrector, dtype=self.dtype, batch_size=self.batch_size, **measured,
            **self.conditions,
        )  # fmt: skip
        return Posterior(out.x, out.nfe, getattr(model, "gradients", 0) // batches, out.seed)


@record
@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        run: ``run(run, **options)``.
        reference: the paper, and where in it.
        solver, grid: what it runs with where none is given.
        exact: whether its law is the posterior as steps and particles grow, for any data.
        operators: ``"mask"``, ``"linear"`` or ``"any"``: what it takes; the first two go with Gaussian noise.
    """

    name: str
    run: Callable[..., Posterior]
    reference: str
    solver: str
    grid: str
    exact: bool
    operators: str

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.run) or "").partition("\n")[0]


_METHODS: dict[str, Method] = {}


@door
def register(
    name: str,
    *,
    reference: str,
    solver: str = "ddim(eta=1.0)",
    grid: str = "logsnr",
    exact: bool = False,
    operators: str = "linear",
) -> Callable[[Callable[..., Posterior]], Callable[..., Posterior]]:
    """Register ``run(run, **options)``; options are keyword-only, each ``Annotated`` with its rule. See ``Method``."""

    def add(run: Callable[..., Posterior]) -> Callable[..., Posterior]:
        options_of(run)
        _METHODS[name] = Method(name, run, reference, solver, grid, exact, operators)
        return run

    return add


def names() -> list[str]:
    """The registered methods, sorted.

    >>> "mmps" in names()
    True
    """
    return sorted(_load())


@door
def method(name: str) -> Method:
    """The method of that name. Raises ValueError for an unknown one.

    >>> method("tds").exact
    True
    """
    return lookup("method", name, _load())


def _load() -> dict[str, Method]:
    home = import_module("sdekit.inverse.methods")
    for found in iter_modules(home.__path__):
        import_module(f"{home.__name__}.{found.name}")
    return _METHODS


@door
def sample_posterior(
    model: Model,
    measurement: Measurement,
    shape: Shape,
    *,
    method: str = "mmps",
    nfe: Evaluations = 50,
    seed: Seed | None = None,
    solver: str | Solver | None = None,
    grid: GridSpec | None = None,
    measured: Tensor | None = None,
    populations: Count = 1,
    dtype: FloatDtype = torch.float32,
    batch_size: Count | None = None,
    **conditions: Any,
) -> Posterior:
    """Draw samples of x given a measurement of it.

    Args:
        model: of x; a ``ScoreModel``, or what wraps one.
        measurement: ``Measurement(operator, y, noise)``.
        shape: [n, *event] of the samples.
        method: a name in ``inverse.names()``, with options as in ``"mmps(iterations=3)"``.
        nfe: network evaluations for each sample, exact.
        seed: as of ``sample``; with an operator that measures nothing the samples are those of ``sample``.
        solver: of the registry; each method has its own. Some need one evaluation a step, and particles noise.
        grid: a name in ``grid.GRIDS`` or times.
        measured: [n, *measured], a measurement for each sample instead of ``measurement.y``; of particles, for each
            population [populations, *measured].
        populations: of weighted particles, n/populations each, side by side.
        dtype: of the samples.
        batch_size: samples run at once; of weighted particles all run at once.
        conditions: passed to the network.

    Raises ValueError for an unknown method or option, an operator or noise that the method does not take or that does
    not fit the shape, and whatever ``sample`` refuses.

    >>> from sdekit.inverse import GaussianNoise, Mask
    >>> from sdekit.process import VP
    >>> from sdekit.targets import Gaussian
    >>> prior = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    >>> seen = Measurement(Mask(torch.tensor([True, False])), torch.tensor([1.0]), GaussianNoise(0.1))
    >>> out = sample_posterior(prior.model(VP()), seen, (2000, 2), method="mmps", nfe=20, seed=0)
    >>> out.x.mean(0).round(decimals=1), out.nfe  # exact: 1/1.01, 0.9/1.01
    (tensor([1.0000, 0.9000]), 20)
    """
    check_model("model", model)
    sizes = check_shape(shape, None)
    name, options = parse(method)
    found = lookup("method", name, _load())
    check_options(name, options_of(found.run), options)
    if tuple(sizes[1:]) != measurement.operator.event:
        raise ValueError(
            f"shape={sizes}: the operator measures samples of shape {list(measurement.operator.event)}, not {sizes[1:]}"
        )
    check_count("populations", populations, 1, "it is how many populations of particles run side by side")
    check_conditions(model, conditions, sample_posterior)
    run = Run(
        model, measurement, tuple(sizes), nfe, secrets.randbits(63) if seed is None else seed,
        get(found.solver if solver is None else solver), found.grid if grid is None else grid, measured, populations,
        dtype, batch_size, conditions,
    )  # fmt: skip
    return found.run(run, **options)
