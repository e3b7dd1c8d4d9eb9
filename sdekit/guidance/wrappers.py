"""Guidance as wrappers: each takes a model and is a model, so that solvers, grids and likelihoods never know."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from sdekit.door import door
from sdekit.guidance.rules import Rule, Scale, check_scale, combine, converted, scale_at
from sdekit.process import State, Time, match
from sdekit.sampling import Model, Wrapper


class _Around(Wrapper):
    """A model around another: its process and device, and its own count of what it asked the network for."""

    def __init__(self, model: Model) -> None:
        check_model("model", model)
        self.model = model
        self.nfe = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    def _ask(self, model: Model, kind: str, x: Tensor, t: Any, conditions: Mapping[str, Any]) -> Tensor:
        before = model.nfe
        output = model.predict(kind, x, t, **conditions)
        self.nfe += model.nfe - before
        return output


@door
class Given(_Around):
    """A model with conditions fixed, the same for every sample, for what takes no conditions itself.

    A number becomes a tensor [batch], a tensor of one sample's shape a tensor [batch, *shape].
    Raises ValueError at a call that gives a condition of the same name.

    >>> from sdekit.nn import digits_model
    >>> Given(digits_model(), label=3).predict("x0", torch.zeros(2, 1, 8, 8), 0.5).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, model: Model, **conditions: Any) -> None:
        super().__init__(model)
        self.conditions = conditions

    def predict(self, kind: str, x: State, t: Time, /, **conditions: Any) -> State:
        """The model's prediction with the fixed conditions and ``conditions``."""
        if twice := sorted(self.conditions.keys() & conditions.keys()):
            raise ValueError(f"{twice[0]}: it is fixed by Given, leave it out of the call")
        fixed = {name: rows(value, x) for name, value in self.conditions.items()}
        return self._ask(self.model, kind, x, t, {**conditions, **fixed})


class _Pair(_Around):
    """Two predictions, good and bad, and what is made of them; a subclass gives ``pair``."""

    def __init__(self, model: Model, scale: Scale, rule: Rule | None) -> None:
        super().__init__(model)
        check_scale(scale)
        self.scale, self.rule = scale, rule

    @property
    def net(self) -> Any:
        """The network inside, for checks of what it takes."""
        return getattr(self.model, "net", None)

    def pair(self, kind: str, x: State, t: Time, conditions: Mapping[str, Any]) -> tuple[State, State]:
        """The prediction to be followed, and the one to be left behind."""
        raise NotImplementedError

    def plain(self, kind: str, x: State, t: Time, conditions: Mapping[str, Any]) -> State:
        """The prediction without guidance (w = 1)."""
        return self._ask(self.model, kind, x, t, conditions)

    def predict(self, kind: str, x: State, t: Time, /, **conditions: Any) -> State:
        """The guided prediction ``kind`` at (x, t), in x's dtype."""
        own = kind if self.rule is None else self.rule.kind
        good, bad = self.pair(own, x, t, conditions)
        scale = scale_at(self.scale, self.process, t, x)
        guided = (combine if self.rule is None else self.rule)(good, bad, scale)
        return converted(guided, own, kind, self.process, x, t)


@door
class ClassifierFree(_Pair):
    r"""F = F(x, ∅) + w (F(x, c) − F(x, ∅)) (Ho & Salimans 2022, eq. 6, whose scale is w − 1).

    w = 0 is unconditional, w = 1 conditional, w > 1 guided. Both predictions are needed at every call: ``nfe`` counts
    two, whether the network is called twice or once with the batch doubled.

    Args:
        model: a model that takes conditions.
        scale: w, or ``f(process, t)`` that gives it.
        null: for each condition its value for "none": a number, a tensor of one sample's shape, or None to leave the
            condition out.
        rule: what is made of the two instead of the line above: ``Rescaled``, ``Projected`` or one's own.
        doubled: one call of twice the batch (default), or two calls.

    Raises ValueError for a scale that is not finite, and at a call without one of the conditions.

    >>> from sdekit import sample
    >>> from sdekit.nn import digits_model
    >>> guided = ClassifierFree(digits_model(), 2.0, null={"label": 10})
    >>> sample(guided, (4, 1, 8, 8), nfe=5, seed=0, label=torch.arange(4)).nfe
    10
    """

    def __init__(
        self,
        model: Model,
        scale: Scale,
        *,
        null: Mapping[str, Any],
        rule: Rule | None = None,
        doubled: bool = True,
    ) -> None:
        super().__init__(model, scale, rule)
        if not isinstance(null, Mapping) or not null:
            raise ValueError(
                f'null={null!r}: name each condition and its value for "none", such as null={{"label": 10}}'
            )
        self.null, self.doubled = dict(null), doubled

    def pair(self, kind: str, x: State, t: Time, conditions: Mapping[str, Any]) -> tuple[State, State]:
        """F(x, c) and F(x, ∅)."""
        if missing := [name for name in self.null if conditions.get(name) is None]:
            raise ValueError(
                f"{missing[0]}: classifier-free guidance needs what null names at every call, as in {missing[0]}=..."
            )
        none = {name: rows(value, x) for name, value in self.null.items() if value is not None}
        free = {**{name: value for name, value in conditions.items() if name not in self.null}, **none}
        if not self.doubled:
            return self._ask(self.model, kind, x, t, conditions), self._ask(self.model, kind, x, t, free)
        both = {name: _both(name, value, free, x) for name, value in conditions.items()}
        times = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        before = self.nfe
        output = self._ask(self.model, kind, torch.cat([x, x]), times, both)
        self.nfe += self.nfe - before  # each sample took two
        good, bad = output.chunk(2)
        return good, bad


@door
class Autoguided(_Pair):
    r"""F = F_weak + w (F − F_weak): away from what a weaker model does wrong (Karras et al. 2024).

    The weaker model is a smaller or less trained one for the same data and conditions. ``nfe`` counts both networks.

    Raises ValueError where the two have different processes, and for a scale that is not finite.

    >>> from sdekit.targets import Gaussian
    >>> from sdekit.process import VP
    >>> good, weak = (Gaussian(torch.zeros(1), std**2 * torch.eye(1)).model(VP()) for std in (0.5, 1.0))
    >>> guided = Autoguided(good, weak, 1.5)
    >>> guided.predict("x0", torch.ones(1, 1), 0.5).shape, guided.nfe
    (torch.Size([1, 1]), 2)
    """

    def __init__(self, model: Model, weak: Model, scale: Scale, *, rule: Rule | None = None) -> None:
        super().__init__(model, scale, rule)
        check_model("weak", weak)
        if weak.process != model.process:
            raise ValueError(f"weak: its process is {weak.process}, the model's {model.process}: they must be equal")
        self.weak = weak

    def pair(self, kind: str, x: State, t: Time, conditions: Mapping[str, Any]) -> tuple[State, State]:
        """The model's prediction and the weaker one's."""
        return self._ask(self.model, kind, x, t, conditions), self._ask(self.weak, kind, x, t, conditions)


@door
class ClassifierGuided(_Around):
    r"""s(x, t) + w ∇_x log p(c | x, t), that is ε − w σ ∇ log p (Dhariwal & Nichol 2021, eq. 14).

    ``nfe`` counts the network and, as one more, the gradient.

    Args:
        model: any model.
        log_prob: ``log_prob(x, t, **conditions)`` [batch], of noisy x, with t [batch] the process's time.
        scale: w.
        only: names of conditions that are for ``log_prob`` alone.

    Raises ValueError for a scale that is not finite, and at a call where ``log_prob`` does not return [batch].

    >>> from sdekit.process import VP
    >>> from sdekit.targets import Gaussian
    >>> model = Gaussian(torch.zeros(1), torch.eye(1)).model(VP())
    >>> guided = ClassifierGuided(model, lambda x, t: x[:, 0], 2.0)
    >>> guided.predict("score", torch.zeros(1, 1), 0.5), guided.nfe
    (tensor([[2.]]), 2)
    """

    def __init__(
        self, model: Model, log_prob: Callable[..., Tensor], scale: Scale, *, only: Collection[str] = ()
    ) -> None:
        super().__init__(model)
        check_scale(scale)
        if isinstance(only, str):
            raise ValueError(f"only={only!r}: it holds names, write it as ({only!r},)")
        self.log_prob, self.scale, self.only = log_prob, scale, tuple(only)

    def plain(self, kind: str, x: State, t: Time, conditions: Mapping[str, Any]) -> State:
        """The model's own prediction."""
        rest = {name: value for name, value in conditions.items() if name not in self.only}
        return self._ask(self.model, kind, x, t, rest)

    def predict(self, kind: str, x: State, t: Time, /, **conditions: Any) -> State:
        """The guided prediction ``kind`` at (x, t)."""
        if missing := [name for name in self.only if conditions.get(name) is None]:
            raise ValueError(f"{missing[0]}: the classifier needs it at every call, as in {missing[0]}=...")
        scale = scale_at(self.scale, self.process, t, x)
        guided = self.plain("score", x, t, conditions) + scale * self._gradient(x, t, conditions)
        return converted(guided.to(x.dtype), "score", kind, self.process, x, t)

    def _gradient(self, x: Tensor, t: Any, conditions: Mapping[str, Any]) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)  # half precision resolves three digits of a time
        times = t.to(dtype).expand(len(x)) if isinstance(t, Tensor) else x.new_full((len(x),), t, dtype=dtype)

        def total(x: Tensor) -> Tensor:
            value = self.log_prob(x, times, **conditions)
            if value.shape != x.shape[:1]:
                raise ValueError(f"log_prob returned shape {list(value.shape)}: it must be [batch], {[len(x)]}")
            return value.sum()

        self.nfe += 1
        return torch.func.grad(total)(x)


@door
class Interval(_Around):
    r"""Guidance where low < σ/α ≤ high, and the plain prediction elsewhere (Kynkäänniemi et al. 2024).

    σ/α = e^{−λ} is EDM's σ: the interval is one of noise levels, the same for every grid, process and solver. Outside
    it the second evaluation is saved, unless t is a tensor: then both are made and one is chosen on the device.

    Args:
        guided: any of the wrappers here.
        low, high: bounds of σ/α = e^{−λ}.

    Raises ValueError for bounds that are not 0 ≤ low < high.

    >>> from sdekit import sample
    >>> from sdekit.nn import digits_model
    >>> guided = Interval(ClassifierFree(digits_model(), 2.0, null={"label": 10}), 0.2, 5.0)
    >>> sample(guided, (4, 1, 8, 8), nfe=8, seed=0, label=torch.arange(4)).nfe
    12
    """

    def __init__(self, guided: ClassifierFree | Autoguided | ClassifierGuided | Interval, low: float, high: float):
        if not hasattr(guided, "plain"):
            raise ValueError(f"guided: a {type(guided).__name__} has no guidance to leave out; give a wrapper that has")
        super().__init__(guided)
        if not 0 <= low < high:  # infinity is a bound like any other
            raise ValueError(f"low={low}, high={high}: bounds of σ/α, they need 0 <= low < high")
        self.guided, self.low, self.high = guided, low, high

    def plain(self, kind: str, x: State, t: Time, conditions: Mapping[str, Any]) -> State:
        """The prediction without guidance."""
        before = self.guided.nfe
        output = self.guided.plain(kind, x, t, conditions)
        self.nfe += self.guided.nfe - before
        return output

    def predict(self, kind: str, x: State, t: Time, /, **conditions: Any) -> State:
        """The guided prediction inside the interval, the plain one outside."""
        least, most = (-math.log(bound) if bound > 0 else math.inf for bound in (self.high, self.low))
        half_log_snr: Any = self.process.half_log_snr(t)
        inside = (least <= half_log_snr) & (half_log_snr < most)
        if isinstance(inside, Tensor):
            guided = self._ask(self.guided, kind, x, t, conditions)
            chosen: Any = match(inside, x)
            return torch.where(chosen, guided, self.plain(kind, x, t, conditions))
        return self._ask(self.guided, kind, x, t, conditions) if inside else self.plain(kind, x, t, conditions)


def rows(value: Any, x: Tensor) -> Any:
    """``value`` for each sample of x: a number as [batch], a tensor of one sample's shape as [batch, *shape].

    >>> rows(3, torch.zeros(2, 5)), rows(torch.zeros(4), torch.zeros(2, 5)).shape
    (tensor([3, 3]), torch.Size([2, 4]))
    """
    if isinstance(value, Tensor):
        return value.to(x.device, non_blocking=True).expand(len(x), *value.shape)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) < 2**63:
            raise ValueError(
                f"condition {value}: a number that is the same for every sample must be finite, below 2^63"
            )
        return x.new_full((len(x),), value, dtype=torch.int64 if isinstance(value, int) else x.dtype)
    return value


def _both(name: str, value: Any, free: Mapping[str, Any], x: Tensor) -> Any:
    """A condition for the batch twice: with what is given, and with what is free."""
    if name not in free:
        raise ValueError(
            f"null: {name}=None leaves it out, which one call cannot do for half a batch; give doubled=False"
        )
    other = free[name]
    per_sample = isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(x)
    if other is value:
        return torch.cat([value, value]) if per_sample else value
    if not per_sample or not isinstance(other, Tensor) or other.shape != value.shape:
        shapes = [list(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in (value, other)]
        raise ValueError(
            f"{name}: what is given is {shapes[0]}, its null for {len(x)} samples {shapes[1]}: in one call of twice the"
            " batch both must be tensors [batch, ...] of one shape; doubled=False makes two calls"
        )
    if other.is_floating_point() and not value.is_floating_point():
        raise ValueError(f"null: {name} holds {value.dtype}, its null {other.dtype}: give a whole number")
    return torch.cat([value, other.to(value.dtype)])


def check_model(name: str, model: object) -> None:
    """ValueError unless it has what the solvers ask of a model."""
    if not isinstance(model, Model):
        raise ValueError(
            f"{name}: a {type(model).__name__} given, a model has process, device, nfe and predict: sk.ScoreModel makes"
            " one of a network"
        )
