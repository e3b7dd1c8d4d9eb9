r"""One network, every prediction: ``ScoreModel`` ties a network to a process.

Anything with ``process``, ``device``, ``nfe`` and ``predict(kind, x, t, **conditions)`` is a model to the
solvers: guidance and conditions wrap a ``ScoreModel``, solvers never know.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from sdekit.names import lookup
from sdekit.prediction import PREDICTIONS, convert
from sdekit.process import DiscreteVP, Process, State, Time, match

TimeMap = Callable[[Process, "float | Tensor"], "float | Tensor"]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Held = TypeVar("Held")


def _index(process: Process, t: float | Tensor) -> float | Tensor:
    if not isinstance(process, DiscreteVP):
        raise ValueError(f'time="index" needs a DiscreteVP process, got {type(process).__name__}')
    return t * process.steps - 1


TIMES: dict[str, TimeMap] = {
    "t": lambda process, t: t,
    "index": _index,  # n = tT − 1, the entry of a DDPM's table
    "999t": lambda process, t: t * 999,  # score_sde's VP networks
    "1000t": lambda process, t: t * 1000,  # flow-matching networks of diffusers
    "sigma": lambda process, t: process.sigma(t),
    "half-log-snr": lambda process, t: process.half_log_snr(t),
    "edm": lambda process, t: process.half_log_snr(t) * -0.25,  # c_noise = log(σ/α)/4, Karras et al. 2022
}


class ScoreModel:
    """A network that predicts ``predicts`` under ``process``, and through it every other prediction.

    ``net(x, times, **conditions)`` takes x [batch, *event] and times [batch] and returns x's shape.

    Args:
        net: any callable; an ``nn.Module`` with parameters fixes ``dtype`` and ``device``.
        process: the forward process it was trained under.
        predicts: ``"eps" | "x0" | "score" | "v" | "flow"`` (``prediction.PREDICTIONS``).
        time: how the network is told the time: a name in ``model.TIMES`` or ``f(process, t)``.
        dtype: what x is cast to for the network (default: its parameters' dtype); the result is cast
            back to x's. In half precision the times stay float32.
        check_finite: raise where the network returns NaN or infinity. It reads the device at every call.

    Attributes:
        nfe: calls of the network so far, each a whole batch.

    Raises ValueError for unknown names, and at a call whose result has another shape or device than x.

    >>> from sdekit.process import VP
    >>> model = ScoreModel(lambda x, t: 0.5 * x, VP(), predicts="eps")
    >>> x = torch.ones(2, 3)
    >>> torch.allclose(model.score(x, 0.5), -0.5 * x / VP().sigma(0.5))
    True
    >>> model.nfe
    1
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        process: Process,
        predicts: str = "eps",
        time: str | TimeMap = "t",
        dtype: torch.dtype | None = None,
        check_finite: bool = False,
    ) -> None:
        lookup("prediction", predicts, PREDICTIONS)
        self.net = net
        self.process = process
        self.predicts = predicts
        self.time: TimeMap = lookup("time", time, TIMES) if isinstance(time, str) else time
        self.time(process, process.t_max)  # a time the process cannot give fails here, not in the loop
        self.check_finite = check_finite
        self.nfe = 0
        parameter = next(net.parameters(), None) if isinstance(net, nn.Module) else None
        self.dtype = dtype if dtype is not None or parameter is None else parameter.dtype

    def __repr__(self) -> str:
        name = type(self.net).__name__
        return f"ScoreModel({name}, {self.process}, predicts={self.predicts!r}, nfe={self.nfe})"

    @property
    def device(self) -> torch.device:
        """Where the network's parameters and buffers lie; the CPU where there are none."""
        tensors = chain(self.net.parameters(), self.net.buffers()) if isinstance(self.net, nn.Module) else iter(())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def predict(self, kind: str, x: State, t: Time, /, **conditions: Any) -> State:
        """The prediction ``kind`` at (x, t) from one network call; t is a float, 0-d or [batch]."""
        if kind == self.predicts:
            return self._call(x, t, conditions)
        lookup("prediction", kind, PREDICTIONS)  # an unknown one costs no call
        output = self._call(x, t, conditions)
        c_x, c_F = convert(self.predicts, kind, self.process, t)  # noqa: N806
        if isinstance(c_F, float) and isinstance(c_x, float):
            return torch.add(x * c_x, output, alpha=c_F) if c_x else output * c_F
        return (match(c_x, x) * x + match(c_F, x) * output).to(x.dtype)

    def eps(self, x: State, t: Time, **conditions: Any) -> State:
        """ε, the noise in x = α x_0 + σ ε."""
        return self.predict("eps", x, t, **conditions)

    def score(self, x: State, t: Time, **conditions: Any) -> State:
        """s = ∇ log p_t(x) = −ε/σ(t)."""
        return self.predict("score", x, t, **conditions)

    def x0(self, x: State, t: Time, **conditions: Any) -> State:
        """E[x_0 | x_t = x], the denoised x."""
        return self.predict("x0", x, t, **conditions)

    def v(self, x: State, t: Time, **conditions: Any) -> State:
        """v = α ε − σ x_0."""
        return self.predict("v", x, t, **conditions)

    def flow(self, x: State, t: Time, **conditions: Any) -> State:
        """dx/dt of the probability-flow ODE."""
        return self.predict("flow", x, t, **conditions)

    def _call(self, x: Tensor, t: float | Tensor, conditions: dict[str, Any]) -> Tensor:
        dtype = x.dtype if self.dtype is None else self.dtype
        time_dtype = dtype if dtype in (torch.float32, torch.float64) else torch.float32
        time = self.time(self.process, t)
        if isinstance(time, Tensor):
            times = time.to(time_dtype).expand(x.shape[0])
        else:
            times = x.new_full((x.shape[0],), time, dtype=time_dtype)
        self.nfe += 1
        output = self.net(x if x.dtype == dtype else x.to(dtype), times, **conditions)
        self._check(output, x, t)
        return output if output.dtype == x.dtype else output.to(x.dtype)

    def _check(self, output: Tensor, x: Tensor, t: float | Tensor) -> None:
        if output.shape != x.shape:
            raise ValueError(
                f"the network returned shape {list(output.shape)} for x of shape {list(x.shape)}: they must be equal"
                " (a network with learned variance returns twice the channels: wrap it and keep the first half)"
            )
        if output.device != x.device:
            raise ValueError(f"the network returned a tensor on {output.device} for x on {x.device}")
        if self.check_finite and not math.isfinite(output.abs().max().item()):
            bad = (~output.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(f"the network returned NaN or infinity at t={t} for samples {bad} of the batch")


def networks(model: object) -> list[nn.Module]:
    """The modules that a model holds: as an attribute, inside what it wraps, or named by a plain function.

    >>> net = nn.Linear(2, 2)
    >>> networks([lambda x, t: net(x)]) == [net]
    True
    """
    found, seen, left = list[nn.Module](), set[int](), [model]
    while left:
        thing = left.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
            found.append(thing)
        else:
            left.extend(_held(thing))
    return found


def _held(thing: Any) -> Iterator[Any]:
    """What a wrapper, a container, a bound method or a function holds."""
    if isinstance(thing, functools.partial):
        yield from (thing.func, *thing.args, *thing.keywords.values())
    elif inspect.ismethod(thing):
        yield from (thing.__self__, thing.__func__)
    elif inspect.isfunction(thing):
        known = inspect.getclosurevars(thing)
        yield from known.nonlocals.values()
        # of other modules' functions there is no end
        near = (value for value in known.globals.values() if not inspect.isfunction(value) or _same_file(value, thing))
        yield from near
    elif isinstance(thing, dict):
        yield from thing.values()
    elif isinstance(thing, list | tuple):
        yield from thing
    elif (callable(thing) or hasattr(thing, "predict")) and not isinstance(thing, type):
        yield from getattr(thing, "__dict__", {}).values()


def _same_file(function: Any, other: Any) -> bool:
    return function.__code__.co_filename == other.__code__.co_filename


@contextmanager
def evaluating(model: object) -> Generator[None]:
    """Every network that ``model`` holds in evaluation mode, and afterwards each part in the mode it was in.

    Dropout and batch normalisation in training mode would make samples of their own noise.

    >>> from sdekit.process import VP
    >>> net = nn.Dropout(0.5)
    >>> with evaluating(ScoreModel(lambda x, t: net(x), VP())):
    ...     net.training
    False
    >>> net.training
    True
    """
    changed = [part for net in networks(model) for part in net.modules() if part.training]
    for part in changed:
        part.training = False
    try:
        yield
    finally:
        for part in changed:
            part.training = True


def in_evaluation_mode(
    function: Callable[Concatenate[Held, Arguments], Result],
) -> Callable[Concatenate[Held, Arguments], Result]:
    """``function(model, …)`` with the model's networks in evaluation mode while it runs; see ``evaluating``."""

    @functools.wraps(function)
    def run(model: Held, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with evaluating(model):
            return function(model, *args, **kwargs)

    return run
