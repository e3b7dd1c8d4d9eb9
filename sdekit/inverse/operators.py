r"""What measures data: maps A from x [batch, *event] to A(x) [batch, *measured], frozen.

Each says the shape of one sample that it takes. The adjoint of a linear one is found by automatic differentiation:
⟨A x, u⟩ = ⟨x, Aᵀ u⟩, and Aᵀ u is the vector–Jacobian product of A with u.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from sdekit.door import Positive, Seed, Takes, Width, door
from sdekit.noise import normal
from sdekit.solvers.registry import check_count

_PROBES = 0xA11


class Operator:
    """A map of data; a subclass is a frozen dataclass with ``event`` and ``apply``.

    Attributes:
        event: shape of one sample.
        linear: whether it is linear, and so has an adjoint, a matrix and a spectrum.
    """

    event: tuple[Width, ...]
    linear: ClassVar[bool] = True

    def apply(self, x: Tensor) -> Tensor:
        """A(x) of x [batch, *event], whose shape is not checked."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """A(x). Raises ValueError where x is not [batch, *event]."""
        if tuple(x.shape[1:]) != self.event:
            raise ValueError(
                f"x has shape {list(x.shape)}: {type(self).__name__} measures [batch, *event] with event"
                f" {list(self.event)}"
            )
        return self.apply(x)

    @property
    def measured(self) -> tuple[int, ...]:
        """Shape of one measurement."""
        return tuple(self.apply(torch.zeros(1, *self.event)).shape[1:])

    def adjoint(self, u: Tensor) -> Tensor:
        """Aᵀ u [batch, *event] of u [batch, *measured]. Raises ValueError where A is not linear.

        >>> Mask(torch.tensor([True, False, True])).adjoint(torch.tensor([[1.0, 2.0]]))
        tensor([[1., 0., 2.]])
        """
        if not self.linear:
            raise ValueError(f"{type(self).__name__} is not linear: it has no adjoint")
        return pulled(self.apply, u.new_zeros(len(u), *self.event))[1](u)

    def matrix(self) -> Tensor:
        """A as a matrix [m, D] of flattened samples and measurements, float64 on the CPU.

        Raises ValueError where A is not linear.

        >>> Downsample((2, 2), 2).matrix()
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]], dtype=torch.float64)
        """
        if not self.linear:
            raise ValueError(f"{type(self).__name__} is not linear: it has no matrix")
        size = math.prod(self.event)
        return self.apply(torch.eye(size, dtype=torch.float64).reshape(size, *self.event)).reshape(size, -1).T


@door
@dataclass(frozen=True, eq=False)
class Mask(Operator):
    """The elements of x at which ``keep`` [*event] is True, as a row [m]. Raises ValueError where keep holds no bool.

    >>> Mask(torch.tensor([[True, False], [False, True]]))(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    tensor([[1., 4.]])
    """

    keep: Tensor
    places: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.keep.dtype != torch.bool or self.keep.ndim == 0:
            raise ValueError(f"keep has dtype {self.keep.dtype}: it must be bool, of one sample's shape")
        object.__setattr__(self, "places", self.keep.flatten().nonzero().flatten())

    @property
    def event(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The shape of ``keep``."""
        return tuple(self.keep.shape)

    def apply(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, self.places.to(x.device))


@door
@dataclass(frozen=True, eq=False)
class Downsample(Operator):
    """The mean of each block of ``factor`` × ``factor`` over the last two dimensions.

    Raises ValueError where the factor does not divide them.

    >>> Downsample((2, 4), 2)(torch.arange(8.0).reshape(1, 2, 4))
    tensor([[[2.5000, 4.5000]]])
    """

    event: tuple[Width, ...]
    factor: Width

    def __post_init__(self) -> None:
        check_count("factor", self.factor, 1, "it is the side of a block")
        _check_image("Downsample", self.event)
        if any(side % self.factor for side in self.event[-2:]):
            raise ValueError(f"factor={self.factor}: it must divide the sides {list(self.event[-2:])}")

    def apply(self, x: Tensor) -> Tensor:
        *front, height, width = x.shape
        blocks = x.reshape(*front, height // self.factor, self.factor, width // self.factor, self.factor)
        return blocks.mean((-3, -1))


@door
@dataclass(frozen=True, eq=False)
class Blur(Operator):
    """Convolution with a Gaussian of ``std`` pixels over the last two dimensions, around the edges, by FFT.

    Its transfer function is exp(−½ std² ω²), ω the frequency in radians a pixel. Raises ValueError for a std ≤ 0.

    >>> Blur((4, 4), 1.0)(torch.ones(1, 4, 4)).round(decimals=5).unique()
    tensor([1.])
    """

    event: tuple[Width, ...]
    std: Positive

    def __post_init__(self) -> None:
        _check_image("Blur", self.event)
        if not 0 < self.std < math.inf:
            raise ValueError(f"std={self.std}: it must be positive and finite, in pixels")

    def apply(self, x: Tensor) -> Tensor:
        work = x if x.dtype == torch.float64 else x.float()
        height, width = self.event[-2:]
        down = torch.fft.fftfreq(height, dtype=work.dtype, device=x.device)[:, None]
        right = torch.fft.rfftfreq(width, dtype=work.dtype, device=x.device)
        transfer = torch.exp((down.square() + right.square()) * (-2 * (math.pi * self.std) ** 2))
        return torch.fft.irfft2(torch.fft.rfft2(work) * transfer, s=(height, width)).to(x.dtype)


@door
@dataclass(frozen=True, eq=False)
class Projection(Operator):
    """Products with ``size`` random vectors of entries N(0, 1/D): compressed sensing.

    Raises ValueError for a size below 1.

    >>> Projection((3, 2), 4, seed=1)(torch.zeros(5, 3, 2)).shape
    torch.Size([5, 4])
    """

    event: tuple[Width, ...]
    size: Width
    seed: Seed = 0
    rows: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_count("size", self.size, 1, "it counts the measurements")
        length = math.prod(self.event)
        rows = normal(self.seed, _PROBES, torch.arange(self.size), (length,), torch.float64) / math.sqrt(length)
        object.__setattr__(self, "rows", rows)

    def apply(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.rows.to(x.device, x.dtype).T


@door
@dataclass(frozen=True, eq=False)
class Linear(Operator):
    """Any linear ``function`` of x [batch, *event], differentiable by torch; its adjoint is found.

    Raises ValueError where the function fails, is not linear, mixes samples, or cuts the gradient.

    >>> total = Linear(lambda x: x.sum(-1, keepdim=True), (3,))
    >>> total.adjoint(torch.tensor([[2.0]]))
    tensor([[2., 2., 2.]])
    """

    function: Annotated[Callable[[Tensor], Tensor], Takes(1, "function(x)")]
    event: tuple[Width, ...]

    def __post_init__(self) -> None:
        check_runs(self)
        check_gradient(self)
        x = normal(0, _PROBES, torch.arange(2), self.event)
        both = self.apply(x)
        gap = (self.apply(2 * x[:1] - 3 * x[1:]) - 2 * both[:1] + 3 * both[1:]).abs().max().item()
        size = both.abs().max().item()
        if not gap <= 1e-4 * size:
            raise ValueError(
                f"function: A(2u − 3v) differs from 2A(u) − 3A(v) by {gap:.2g}, where A is of size {size:.2g}: it is"
                " not linear; give Differentiable(function, event)"
            )

    def apply(self, x: Tensor) -> Tensor:
        return self.function(x)


@door
@dataclass(frozen=True, eq=False)
class Differentiable(Operator):
    """Any ``function`` of x [batch, *event] that torch can differentiate: for the methods that need no adjoint.

    Raises ValueError where the function fails or mixes samples. Whether it has a gradient is asked by methods that need
    one.

    >>> Differentiable(torch.abs, (2,))(torch.tensor([[-1.0, 2.0]]))
    tensor([[1., 2.]])
    """

    function: Annotated[Callable[[Tensor], Tensor], Takes(1, "function(x)")]
    event: tuple[Width, ...]
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_runs(self)

    def apply(self, x: Tensor) -> Tensor:
        return self.function(x)


def pulled(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """y = function(x), and u ↦ (∂y/∂x)ᵀ u.

    >>> y, pull = pulled(torch.square, torch.tensor([3.0]))
    >>> y, pull(torch.ones(1))
    (tensor([9.]), tensor([6.]))
    """
    found: Any = torch.func.vjp(function, x)
    return found[0], lambda u: found[1](u)[0]


def check_runs(operator: Operator) -> None:
    """ValueError unless the operator takes [batch, *event] and measures each sample by itself."""
    x = normal(0, _PROBES, torch.arange(2), operator.event)
    try:
        both, one = operator.apply(x), operator.apply(x[1:])
    except Exception as error:
        raise ValueError(
            f"function: it fails on x of shape {list(x.shape)}, [batch, *event]: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(both, Tensor) or not both.is_floating_point() or both.ndim < 2 or len(both) != 2:
        what = list(both.shape) if isinstance(both, Tensor) else type(both).__name__
        raise ValueError(
            f"function, event: it gave {what} for 2 samples of shape {list(operator.event)}: it must give a float"
            " tensor [batch, *measured]"
        )
    if not torch.allclose(both[1:], one, rtol=1e-4, atol=1e-5):
        raise ValueError("function: what it gives for a sample depends on the others of the batch")


def check_gradient(operator: Operator) -> None:
    """ValueError unless the operator can be differentiated: a gradient that is cut, or 0 where A changes."""
    x = normal(0, _PROBES, torch.arange(2), operator.event)
    try:
        y, pull = pulled(operator.apply, x)
        slope = pull(torch.ones_like(y))
    except RuntimeError as error:
        raise ValueError(
            f"operator: {type(operator).__name__} cannot be differentiated: {str(error).splitlines()[0]}"
        ) from error
    changes = bool(((y[0] - y[1]).abs() > 1e-6).any())
    if changes and not bool((slope != 0).any()):
        raise ValueError(
            f"operator: {type(operator).__name__} changes with x but its gradient is 0 (it rounds, or detaches x): this"
            " method needs a gradient"
        )


def _check_image(name: str, event: Sequence[int]) -> None:
    if len(event) < 2:
        raise ValueError(
            f"event={list(event)}: {name} needs samples of at least two dimensions, the last two a picture"
        )
