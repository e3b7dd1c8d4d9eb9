"""Elementary functions that take a Python float or a tensor and return the same kind.

A process writes each formula once with these. Grids and solver tables call it with floats
(float64, on the host), networks' time conditions and losses with tensors (any device, any dtype).

>>> import math, torch
>>> exp(1.0) == math.e and torch.equal(exp(torch.zeros(2)), torch.ones(2))
True
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

Scalar = TypeVar("Scalar", float, Tensor, float | Tensor)


def _either(on_float: Callable[..., float], on_tensor: Callable[..., Tensor]) -> Callable[..., Scalar]:
    def function(first: Any, *rest: Any) -> Any:
        return on_tensor(first, *rest) if isinstance(first, Tensor) else on_float(first, *rest)

    return function


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


exp = _either(math.exp, torch.exp)
expm1 = _either(math.expm1, torch.expm1)
log = _either(math.log, torch.log)
log1p = _either(math.log1p, torch.log1p)
sqrt = _either(math.sqrt, torch.sqrt)
sin = _either(math.sin, torch.sin)
cos = _either(math.cos, torch.cos)
tan = _either(math.tan, torch.tan)
asinh = _either(math.asinh, torch.asinh)
atan = _either(math.atan, torch.atan)
absolute = _either(math.fabs, torch.abs)
sign = _either(lambda x: math.copysign(1.0, x), torch.sign)
lower = _either(min, lambda x, most: x.clamp(max=most))
sigmoid = _either(_sigmoid, torch.sigmoid)
# torch's own softplus turns linear at 20, which costs 2e-9; this form is exact to rounding
softplus = _either(_softplus, lambda x: torch.logaddexp(x, torch.zeros_like(x)))


def atan2(y: float | Tensor, x: float | Tensor) -> Any:
    """The angle of the point (x, y), in (−π, π]; a tensor where either is one.

    >>> atan2(1.0, 0.0) == math.pi / 2, atan2(0.0, torch.tensor([-1.0, 1.0]))
    (True, tensor([3.1416, 0.0000]))
    """
    if isinstance(y, Tensor):
        return torch.atan2(y, x if isinstance(x, Tensor) else y.new_full((), x))
    return torch.atan2(x.new_full((), y), x) if isinstance(x, Tensor) else math.atan2(y, x)


_LANES = 64


def lanewise(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """``function`` of each value, the same to the bit whatever stands beside it.

    A CPU computes full vectors and the rest behind them by different code, which differs in the last bit for some
    functions (sigmoid, logaddexp, pow): padding leaves no rest. ``function`` may add dimensions in front.

    >>> values = torch.linspace(0, 1, 5)
    >>> torch.equal(lanewise(torch.sigmoid, values)[3:4], lanewise(torch.sigmoid, values[3:4]))
    True
    """
    count = values.numel()
    flat = values.reshape(-1)
    padded = torch.cat([flat, flat[:1].expand(-count % _LANES)])
    result = function(padded)[..., :count]
    return result.reshape(*result.shape[:-1], *values.shape)


def clock(x: Tensor) -> torch.dtype:
    """The dtype of times and of the few coefficients made from them: float64, wherever x's device has it."""
    return x.dtype if x.device.type == "mps" else torch.float64


@dataclass(frozen=True)
class LinearTable:
    """The piecewise linear function through (0, values[0]), (1, values[1]), …; values strictly decrease.

    >>> table = LinearTable((0.0, -1.0, -3.0))
    >>> table(1.5), table.slope(1.5), table.inverse(-2.0)
    (-2.0, -2.0, 1.5)
    """

    values: tuple[float, ...]

    def _cell(self, u: Any) -> tuple[Any, Any, Any]:
        """u's offset into its cell, the cell's first value, and its slope."""
        last = len(self.values) - 2
        if isinstance(u, Tensor):
            low = u.floor().clamp(0, last)
            table, index = _on_device(self.values, u.dtype, u.device), low.long()
            start = table.take(index)  # table[index] would read a 0-d index back to the host
            return u - low, start, table.take(index + 1) - start
        low = min(max(math.floor(u), 0), last)
        return u - low, self.values[low], self.values[low + 1] - self.values[low]

    def __call__(self, u: Scalar) -> Scalar:
        offset, start, slope = self._cell(u)
        return start + offset * slope

    def slope(self, u: Scalar) -> Scalar:
        return self._cell(u)[2]

    def inverse(self, value: Scalar) -> Scalar:
        last = len(self.values) - 2
        if isinstance(value, Tensor):
            table = _on_device(self.values, value.dtype, value.device)
            low = (torch.searchsorted(-table, -value.contiguous()) - 1).clamp(0, last)
            start = table.take(low)
            return low + (value - start) / (table.take(low + 1) - start)
        low = min(max(bisect.bisect_left(self.values, -value, key=lambda v: -v) - 1, 0), last)
        return low + (value - self.values[low]) / (self.values[low + 1] - self.values[low])


@lru_cache(maxsize=16)
def _on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)
