r"""A model of x given a measurement, as a wrapper of a model of x: what its kinds share.

∇ log p(x_t | y) = ∇ log p(x_t) + ∇ log p(y | x_t), and by Tweedie's formula a change g of the score is one of
σ²/α·g in the predicted x_0. So each method is a change of x_0, and every prediction follows from it: every solver,
grid and process runs it. Where the change is 0 the prediction is the model's own, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sdekit.guidance.wrappers import check_model
from sdekit.inverse.measurement import GaussianNoise, Measurement
from sdekit.inverse.operators import check_gradient
from sdekit.inverse.spectrum import Spectrum
from sdekit.prediction import convert
from sdekit.process import Process, State, Time, match
from sdekit.sampling import Model, Wrapper


@dataclass(frozen=True, eq=False)
class Point:
    """A noisy x, what the model predicts there, and what was measured.

    Attributes:
        t: the time.
        alpha, sigma: of the process there, shaped to broadcast against x.
        x, x0: the state and the predicted data [batch, *event].
        y: the measurement of each sample [batch, *measured].
        pull: u ↦ (∂x_0/∂x)ᵀ u, one backward pass of the network; it raises where the method asked for none.
    """

    t: Time
    alpha: float | Tensor
    sigma: float | Tensor
    x: Tensor
    x0: Tensor
    y: Tensor
    pull: Callable[[Tensor], Tensor]

    @property
    def tweedie(self) -> float | Tensor:
        """σ²/α: the factor from a change of the score to one of x_0, and from ∂x_0/∂x to the covariance of x_0."""
        return self.sigma**2 / self.alpha

    def covariance(self, u: Tensor) -> Tensor:
        """Cov[x_0 | x_t] u = (σ²/α) (∂x_0/∂x) u, with the Jacobian's transpose, which for an exact model is itself."""
        return self.tweedie * self.pull(u)


class Conditioned(Wrapper):
    """``model`` given a measurement; a subclass gives ``change``, what is added to the predicted x_0.

    ``predict(…, measured=y)`` [batch, *measured] gives each sample a measurement of its own: ``sample`` splits it with
    the batch.

    Attributes:
        nfe: network evaluations so far, as of every model.
        gradients: backward passes through the network so far.
        linear: whether the operator must be linear and the noise Gaussian.
        differentiates: whether the network is differentiated.
    """

    linear: ClassVar[bool] = True
    differentiates: ClassVar[bool] = True

    def __init__(self, model: Model, measurement: Measurement) -> None:
        check_model("model", model)
        self.model, self.measurement = model, measurement
        self.nfe = self.gradients = 0
        if self.linear:
            check_linear(type(self).__name__, measurement)
        else:
            check_gradient(measurement.operator)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r}, {self.measurement.operator!r})"

    def change(self, at: Point) -> Tensor:
        """What is added to the predicted x_0."""
        raise NotImplementedError

    def predict(self, kind: str, x: State, t: Time, /, measured: Tensor | None = None, **conditions: Any) -> State:
        """The prediction ``kind`` given the measurement, or each sample's own in ``measured``."""
        F, at = self.look(kind, x, t, measured, conditions)  # noqa: N806
        back = match(convert("x0", kind, self.process, t)[1], x)
        return (F + back * self.change(at)).to(x.dtype)

    def look(
        self, kind: str, x: Tensor, t: Any, measured: Tensor | None, conditions: Mapping[str, Any]
    ) -> tuple[Tensor, Point]:
        """The model's own prediction, and what a change is made of; one call of the network."""
        operator = self.measurement.operator
        if tuple(x.shape[1:]) != operator.event:
            raise ValueError(f"x has shape {list(x.shape)}: the operator measures samples {list(operator.event)}")

        def both(x: Tensor) -> tuple[Tensor, Tensor]:
            before = self.model.nfe
            output = self.model.predict(kind, x, t, **conditions)
            self.nfe += self.model.nfe - before
            return data_of(output, kind, self.process, x, t), output

        if self.differentiates:
            found: Any = torch.func.vjp(both, x, has_aux=True)
            x0, back, own = found
        else:
            (x0, own), back = both(x), None

        def pull(u: Tensor) -> Tensor:
            if back is None:
                raise RuntimeError("this method asks for no derivative of the network")
            self.gradients += 1
            return back(u.to(x.dtype))[0]

        alpha, sigma = (match(of(t), x) for of in (self.process.alpha, self.process.sigma))
        return own, Point(t, alpha, sigma, x, x0, self.measurement.rows(x, measured), pull)

    def residual(self, at: Point) -> Tensor:
        """y − A(x_0)."""
        return at.y - self.measurement.operator.apply(at.x0)


class Spectral(Conditioned):
    """A method that solves with the singular value decomposition of the operator."""

    def __init__(self, model: Model, measurement: Measurement) -> None:
        super().__init__(model, measurement)
        self.spectrum = Spectrum.of(measurement.operator, model.device)

    def gain(self, at: Point, variance: float | Tensor) -> Tensor:
        """c Aᵀ (c A Aᵀ + σ_y² I)⁻¹ (y − A x_0), c = ``variance``."""
        return self.spectrum.gain(self.residual(at), variance, noise_std(self.measurement) ** 2, at.x0.shape[1:])


def data_of(output: Tensor, kind: str, process: Process, x: Tensor, t: Any) -> Tensor:
    """x_0 of the prediction ``kind``."""
    if kind == "x0":
        return output
    c_x, c_F = convert(kind, "x0", process, t)  # noqa: N806
    return (match(c_x, x) * x + match(c_F, x) * output).to(x.dtype)


def check_linear(name: str, measurement: Measurement) -> None:
    """ValueError unless the operator is linear and the noise Gaussian."""
    if not measurement.operator.linear:
        raise ValueError(
            f"operator: {name} takes a linear one, {type(measurement.operator).__name__} is not; dps and tds take"
            " any that can be differentiated"
        )
    if not isinstance(measurement.noise, GaussianNoise):
        raise ValueError(f"noise={measurement.noise}: {name} takes GaussianNoise; dps and tds take others")


def noise_std(measurement: Measurement) -> float:
    """σ_y of Gaussian noise."""
    assert isinstance(measurement.noise, GaussianNoise)
    return measurement.noise.std
