r"""One network, every prediction: ``ScoreModel`` ties a network to a process.

Anything with ``process``, ``device``, ``nfe`` and ``predict(kind, x, t, **conditions)`` is a model to the
solvers: guidance and conditions wrap a ``ScoreModel``, solvers never know.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from numbers import Integral
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from sdekit.door import FloatDtype, door
from sdekit.names import lookup, unknown
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


def _entry(process: Process, t: float | Tensor) -> int | Tensor:
    nearest = _index(process, t)
    return nearest.round().long() if isinstance(nearest, Tensor) else round(nearest)


# functions with names: a model is pickled with its time map, which a lambda cannot be


def _same(process: Process, t: Any) -> Any:
    return t


def _to_data(process: Process, t: Any) -> Any:
    return 1 - t


def _times_999(process: Process, t: Any) -> Any:
    return t * 999


def _times_1000(process: Process, t: Any) -> Any:
    return t * 1000


def _sigma(process: Process, t: Any) -> Any:
    return process.sigma(t)


def _half_log_snr(process: Process, t: Any) -> Any:
    return process.half_log_snr(t)


def _c_noise(process: Process, t: Any) -> Any:
    return process.half_log_snr(t) * -0.25


TIMES: dict[str, TimeMap] = {
    "t": _same,
    "1-t": _to_data,  # networks with the data at t = 1: flow_matching, torchcfm
    "index": _index,  # n = tT − 1, the entry of a DDPM's table
    "entry": _entry,  # the nearest entry, an integer: for ``nn.Embedding``
    "999t": _times_999,  # score_sde's VP networks
    "1000t": _times_1000,  # flow-matching networks of diffusers
    "sigma": _sigma,
    "half-log-snr": _half_log_snr,
    "edm": _c_noise,  # log(σ/α)/4, Karras et al. 2022
}

# the two velocities: the clock of a network that predicts it, and the other velocity
_VELOCITIES = {"flow": ("t", "flow-to-data"), "flow-to-data": ("1-t", "flow")}


def _check_direction(predicts: str, process: Process, time: TimeMap) -> None:
    """A velocity and a clock that is linear in t run the same way: half of a convention samples plausible nonsense."""
    if predicts not in _VELOCITIES:
        return
    own, other = _VELOCITIES[predicts]
    if (told := _linear_clock(process, time)) not in (None, own):
        raise ValueError(
            f'predicts="{predicts}" is the velocity of a network that is told {own}, or a multiple, but time= tells it'
            f' a multiple of {told}: such a network predicts="{other}", and needs no time= unless it is a multiple'
            " (one with the other sign: give its negative as net)"
        )


def _linear_clock(process: Process, time: TimeMap) -> str | None:
    """``"t"`` or ``"1-t"`` where ``time`` is a multiple of it, but for roundings to whole numbers; None elsewhere."""
    s, t = (process.t_min + share * (process.t_max - process.t_min) for share in (1 / 3, 2 / 3))
    a, b = float(time(process, s)), float(time(process, t))
    for name, (left, right) in {"t": (a * t, b * s), "1-t": (a * (1 - t), b * (1 - s))}.items():
        if left and math.isclose(left, right, rel_tol=5e-3):
            return name
    return None


# how torch's kernels say that two tensors' dtypes differ
_DTYPES = re.compile(r"same dtype|should be the same|expected scalar type|dtypes? to be the same")


@door
class ScoreModel:
    """A network that predicts ``predicts`` under ``process``, and through it every other prediction.

    ``net(x, times, **conditions)`` takes x [batch, *event] and times [batch] and returns x's shape.

    Args:
        net: any callable; an ``nn.Module`` with parameters fixes ``dtype`` and ``device``.
        process: the forward process it was trained under.
        predicts: ``"eps" | "x0" | "score" | "v" | "flow" | "flow-to-data"`` (``prediction.PREDICTIONS``). A flow
            network trained with the data at t = 0 predicts ``"flow"``, with the data at t = 1 ``"flow-to-data"``.
        time: how the network is told the time: a name in ``model.TIMES`` or ``f(process, t)``, by default t, and
            1 − t for ``predicts="flow-to-data"``. Integers stay integers, for embeddings.
        dtype: what x is cast to for the network (default: its parameters' dtype); the result is cast
            back to x's. In half precision the times stay float32.
        check_finite: raise where the network returns NaN or infinity. It reads the device at every call.

    Attributes:
        nfe: calls of the network so far, each a whole batch.

    Raises ValueError for unknown names, for a velocity and a time that run against each other, and at a call with
    conditions that the network does not take, without those that it needs, or whose result has another shape or device
    than x.

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
        time: str | TimeMap | None = None,
        dtype: FloatDtype | None = None,
        check_finite: bool = False,
    ) -> None:
        lookup("prediction", predicts, PREDICTIONS)
        self.net = net
        self.process = process
        self.predicts = predicts
        time = _VELOCITIES.get(predicts, ("t",))[0] if time is None else time
        self.time: TimeMap = lookup("time", time, TIMES) if isinstance(time, str) else time
        self.time(process, process.t_max)  # a time the process cannot give fails here, not in the loop
        _check_direction(predicts, process, self.time)
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
        times = self._times(x, t, dtype if dtype in (torch.float32, torch.float64) else torch.float32)
        self.nfe += 1
        try:
            output = self.net(x if x.dtype == dtype else x.to(dtype), times, **conditions)
        except RuntimeError as error:
            if _DTYPES.search(str(error)):
                raise ValueError(
                    f"the network got x in {dtype} and times in {times.dtype}, and failed: {error}. Where its weights"
                    " are of another dtype, dtype= of ScoreModel says what x is cast to; a module given as net, not"
                    " inside a function, says it itself. Times the network casts to what it needs"
                ) from error
            raise
        except TypeError as error:
            if (sentence := _of_conditions(error, self.net, conditions)) is not None:
                raise sentence from error
            raise
        self._check(output, x, t)
        return output if output.dtype == x.dtype else output.to(x.dtype)

    def _times(self, x: Tensor, t: float | Tensor, dtype: torch.dtype) -> Tensor:
        """What the network is told, for each sample [batch]: whole numbers as int64, all else in ``dtype``."""
        told = self.time(self.process, t if isinstance(t, Tensor) else float(t))
        if isinstance(told, Tensor):
            return (told.to(dtype) if told.is_floating_point() else told.long()).expand(x.shape[0])
        return x.new_full((x.shape[0],), told, dtype=torch.int64 if isinstance(told, Integral) else dtype)

    def _check(self, output: Any, x: Tensor, t: float | Tensor) -> None:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"the network returned a {type(output).__name__}, not a tensor: of a network of diffusers"
                " sk.interop.diffusers.wrap(network, scheduler) makes a model, told the time as it was trained; give"
                " others inside a function of (x, t) that returns a tensor"
            )
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


_KEYWORD = re.compile(r"^(\S+)\(\) got an unexpected keyword argument '(\w+)'")
_MISSING = re.compile(r"^(\S+)\(\) missing \d+ required .*arguments?: '(\w+)'")


def _of_conditions(error: TypeError, net: Any, conditions: Mapping[str, Any]) -> ValueError | None:
    """The sentence for a condition that the network, whatever stands around it, does not take, or that it misses."""
    unexpected, missing = _KEYWORD.match(str(error)), _MISSING.match(str(error))
    found = unexpected or missing
    known = None if found is None else _conditions_of(found[1], net)
    if found is None or known is None:  # raised by what the network calls, not by the call of the network
        return None
    name = found[2]
    if unexpected:
        return unknown("condition of the network", name, known) if name in conditions else None
    return ValueError(f"{name}: the network needs it at every call, as in {name}=...") if name in known else None


def _conditions_of(name: str, net: Any) -> list[str] | None:
    """What the function of that qualified name takes beside x and t; None where ``net`` holds no such function."""
    called = [part.forward for whole in networks(net) for part in whole.modules()]
    called += [thing for thing in (net, getattr(net, "func", None)) if inspect.isroutine(thing)]
    function = next((one for one in called if getattr(one, "__qualname__", None) == name), None)
    if function is None:
        return None
    inputs = [one for one in inspect.signature(function).parameters.values() if one.kind is not one.VAR_KEYWORD]
    return [one.name for one in inputs[2:]]


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
        yield from (*known.nonlocals.values(), *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values())
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

    first = next(iter(inspect.signature(function).parameters))

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Result:  # the model may be given by its name, whatever that is
        with evaluating(args[0] if args else kwargs.get(first)):
            return function(*args, **kwargs)

    return run
