r"""Distributions whose score, density and every prediction are known exactly under any process.

Data x_0 from a Gaussian, a mixture of isotropic Gaussians or a real data set stays of its kind under
x_t = α x_0 + σ ε, so the optimal network is a closed form: what a solver gets wrong with it is the solver's error.
The two conditional means E[x_0 | x_t] and E[ε | x_t] are each computed directly, neither from the other by a
difference that cancels (the classical formulas are in Miyasawa 1961 and Efron 2011).

Targets are ``nn.Module``: ``target.to(device, dtype)`` and ``target.double()`` move and cast them in place. Work is
done in the wider of x's and the target's dtype and returned in x's.

>>> from sdekit.process import VP
>>> target = GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.5)
>>> model = target.model(VP(), predicts="x0")
>>> x = target.sample(3, t=0.5, process=VP())
>>> torch.allclose(model.score(x, 0.5), target.score(x, 0.5, VP()), atol=1e-5)
True
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sdekit import noise
from sdekit.door import Count, Positive, Seed, door
from sdekit.model import TIMES, ScoreModel
from sdekit.names import lookup
from sdekit.prediction import PREDICTIONS
from sdekit.process import Process, State, Time, match

LogProb = Float[Tensor, "batch"]

_BLOCK = 1 << 20  # elements in a block of differences; more leaves a CPU's cache and is slower
_STREAM = 0x746172676574  # keeps a target's draws apart from those of a run with the same seed


@door
class Target(nn.Module):
    """A data distribution that is known under every process: what its kinds share.

    A subclass gives three formulas on flat x [batch, D]: ``_log_density`` of x_t, ``_means`` and ``_draw``.
    """

    location: Tensor

    def __init__(self, event: torch.Size) -> None:
        super().__init__()
        self.event = event

    def _log_density(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        raise NotImplementedError

    def _means(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """E[x_0 | x_t = x] and E[ε | x_t = x]/σ, which is minus the score."""
        raise NotImplementedError

    def _draw(self, seed: int, samples: Tensor) -> Tensor:
        raise NotImplementedError

    @door
    def sample(self, n: Count, seed: Seed = 0, t: Time | None = None, process: Process | None = None) -> Tensor:
        """n samples of x_t [n, *event], or of the data itself where t is None.

        Sample i depends on (seed, i) alone; the same seed at two times gives the same x_0 and ε.

        Raises ValueError for n < 1, or where only one of t and process is given.

        >>> Gaussian(torch.zeros(2, 2), torch.eye(4)).sample(5).shape
        torch.Size([5, 2, 2])
        """
        if n < 1:
            raise ValueError(f"n={n}: at least 1 sample is needed")
        samples = torch.arange(n, device=self.location.device)
        stream = noise.key(_STREAM, seed)
        x0 = self._draw(stream, samples).reshape(n, *self.event)
        if _at_data(t, process):
            return x0
        alpha, sigma = _scales(t, process, x0)
        return alpha * x0 + sigma * noise.normal(stream, 2, samples, self.event, x0.dtype)

    @door
    def log_prob(self, x: State, t: Time | None = None, process: Process | None = None) -> LogProb:
        """log p_t(x) in nats, or the data's log density where t is None.

        Raises ValueError where x is not [batch, *event], or only one of t and process is given.

        >>> Gaussian(torch.zeros(1), torch.eye(1)).log_prob(torch.zeros(1, 1)).exp().mul(2.5066).round(decimals=3)
        tensor([1.])
        """
        work = self._flat(x)
        alpha, sigma = (1.0, 0.0) if _at_data(t, process) else _scales(t, process, work)
        return self._log_density(work, alpha, sigma).to(x.dtype)

    def score(self, x: State, t: Time, process: Process) -> State:
        """∇ log p_t(x), of x's shape. Raises ValueError where x is not [batch, *event].

        >>> from sdekit.process import VE
        >>> Gaussian(torch.zeros(1), torch.eye(1)).score(torch.full((1, 1), 3.0), 0.0, VE(sigma_min=1.0))
        tensor([[-1.5000]])
        """
        return -self.conditional_means(x, t, process)[1]

    @door
    def model(self, process: Process, predicts: str = "eps") -> ScoreModel:
        """The optimal network under ``process`` as a ``ScoreModel``, exact in each of ``prediction.PREDICTIONS``.

        Raises ValueError for an unknown prediction.

        >>> from sdekit.process import VE
        >>> model = Gaussian(torch.zeros(1), torch.eye(1)).model(VE(sigma_min=1.0))
        >>> model.x0(torch.full((1, 1), 3.0), 0.0)
        tensor([[1.5000]])
        """
        model = ScoreModel(_ExactNetwork(self, process, predicts), process, predicts)
        model.time = TIMES["t"]  # it knows the process, and asks for its time whatever it predicts
        return model

    def conditional_means(self, x: State, t: Time, process: Process) -> tuple[State, State]:
        """E[x_0 | x_t = x] and E[ε | x_t = x]/σ, which is minus the score; both of x's shape and dtype.

        >>> from sdekit.process import VE
        >>> target = Gaussian(torch.zeros(1), torch.eye(1))
        >>> [mean.item() for mean in target.conditional_means(torch.ones(1, 1), 0.0, VE(sigma_min=1.0))]
        [0.5, 0.5]
        """
        work = self._flat(x)
        x0, eps_over_sigma = self._means(work, *_scales(t, process, work))
        return x0.to(x.dtype).reshape(x.shape), eps_over_sigma.to(x.dtype).reshape(x.shape)

    def _flat(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.event:
            raise ValueError(f"x has shape {list(x.shape)}: it must be [batch, *event] with event {list(self.event)}")
        return x.reshape(x.shape[0], self.event.numel()).to(torch.promote_types(x.dtype, self.location.dtype))


class _ExactNetwork(nn.Module):
    """E[F | x_t = x] for one prediction F = a x_0 + b ε."""

    def __init__(self, target: Target, process: Process, predicts: str) -> None:
        super().__init__()
        self.target = target
        self.process = process
        self.predicts = predicts
        lookup("prediction", predicts, PREDICTIONS)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x0, eps_over_sigma = self.target.conditional_means(x, t, self.process)
        a, b = PREDICTIONS[self.predicts](self.process, t)
        return (match(a, x) * x0 + match(b * self.process.sigma(t), x) * eps_over_sigma).to(x.dtype)


@door
class Gaussian(Target):
    r"""N(mean, cov), with cov over the flattened event: x_t ~ N(α mean, α² cov + σ² I).

    cov = U diag(w) Uᵀ is decomposed once, in float64; every quantity is then diagonal in U's basis. cov may be
    singular; the data's own density (``log_prob`` without t) then does not exist, and asking for it raises.

    Args:
        mean: [*event].
        cov: [D, D] with D the number of elements of one event.

    Raises ValueError where cov has another shape, is not symmetric, or has a negative eigenvalue.

    >>> Gaussian(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    Traceback (most recent call last):
    ValueError: cov has the eigenvalue -1: a covariance has none below 0
    """

    basis: Tensor
    variances: Tensor

    def __init__(self, mean: Float[Tensor, "..."], cov: Float[Tensor, "..."]) -> None:
        super().__init__(mean.shape)
        size = mean.numel()
        if size == 0:
            raise ValueError(f"mean has shape {list(mean.shape)}: it is empty, at least one element is needed")
        _check_finite("mean", mean)
        if cov.shape != (size, size):
            raise ValueError(f"cov has shape {list(cov.shape)}: mean has {size} elements, so it must be {[size, size]}")
        exact = cov.detach().to("cpu", torch.float64)
        _check_finite("cov", exact)
        tolerance = 10 * size * torch.finfo(cov.dtype).eps * exact.abs().max().item()
        if (exact - exact.T).abs().max().item() > tolerance:
            gap = (exact - exact.T).abs().max().item()
            raise ValueError(f"cov differs from its transpose by {gap:g}: it must be symmetric")
        variances, basis = torch.linalg.eigh((exact + exact.T) / 2)
        if variances[0].item() < -tolerance:
            raise ValueError(f"cov has the eigenvalue {variances[0].item():g}: a covariance has none below 0")
        self._singular = variances[0].item() <= tolerance
        self.register_buffer("location", mean.detach().reshape(-1).clone())
        self.register_buffer("variances", variances.clamp(min=0).to(mean))
        self.register_buffer("basis", basis.to(mean))

    def log_prob(self, x: State, t: Time | None = None, process: Process | None = None) -> LogProb:
        if self._singular and t is None:
            raise ValueError("t=None: cov is singular, so that the data itself has no density; give t and process")
        return super().log_prob(x, t, process)

    def flow_map(self, x: State, t: Time, s: Time, process: Process) -> State:
        r"""Where the probability-flow ODE takes x from time t to time s.

        x_s = α_s mean + U √((α_s² w + σ_s²)/(α_t² w + σ_t²)) Uᵀ (x − α_t mean): along each eigenvector the ODE
        is linear and scales with the marginal's standard deviation (Song et al. 2021, eq. 13).

        >>> from sdekit.process import VE
        >>> process = VE(sigma_min=1.0, sigma_max=7**0.5)
        >>> Gaussian(torch.zeros(1), torch.eye(1)).flow_map(torch.full((1, 1), 4.0), 1.0, 0.0, process)
        tensor([[2.]])
        """
        work = self._flat(x)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = _scales(t, process, work), _scales(s, process, work)
        ratio = (self._total(alpha_s, sigma_s) / self._total(alpha_t, sigma_t)).sqrt()
        moved = alpha_s * self.location + self._turn(self._coordinates(work, alpha_t) * ratio)
        return moved.to(x.dtype).reshape(x.shape)

    def _total(self, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        return alpha**2 * self.variances + sigma**2

    def _coordinates(self, x: Tensor, alpha: float | Tensor) -> Tensor:
        return (x - alpha * self.location) @ self.basis.to(x.dtype)

    def _turn(self, coordinates: Tensor) -> Tensor:
        return coordinates @ self.basis.to(coordinates.dtype).T

    def _log_density(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        total = self._total(alpha, sigma)
        squares = self._coordinates(x, alpha) ** 2 / total
        return -0.5 * (squares + total.log() + math.log(2 * math.pi)).sum(1)

    def _means(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        whitened = self._coordinates(x, alpha) / self._total(alpha, sigma)
        return self.location + self._turn(alpha * self.variances * whitened), self._turn(whitened)

    def _draw(self, seed: int, samples: Tensor) -> Tensor:
        z = noise.normal(seed, 1, samples, (self.location.numel(),), self.location.dtype)
        return self.location + self._turn(z * self.variances.sqrt())


@door
class GaussianMixture(Target):
    r"""Σ_k w_k N(m_k, s_k² I): x_t has the components N(α m_k, v_k I) with v_k = α² s_k² + σ².

    With p_k(x) the posterior weights and c_k = p_k/v_k,
    E[x_0 | x] = Σ_k c_k (σ² m_k + α s_k² x) and −score = Σ_k c_k (x − α m_k).

    Distances come from differences, a block of components at a time, so that memory stays near the size of
    the data and of [batch, K]; so do their derivatives of either mode and order.

    Args:
        means: [K, *event].
        stds: s, for all or [K].
        weights: [K], positive, divided by their sum here (default: equal).

    Raises ValueError for no component, other shapes, and a std or weight that is not positive and finite.

    >>> target = GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.5, torch.tensor([1.0, 3.0]))
    >>> target.log_prob(torch.tensor([[2.0]])).exp().mul(2.5066 * 0.5).round(decimals=3)
    tensor([0.7500])
    """

    variances: Tensor
    log_weights: Tensor

    def __init__(
        self,
        means: Float[Tensor, "..."],
        stds: float | Float[Tensor, "..."],
        weights: Float[Tensor, "..."] | None = None,
    ) -> None:
        super().__init__(means.shape[1:])
        _check_components("means", means)
        spread = _positive("stds", stds, means)
        share = _positive("weights", 1.0 if weights is None else weights, means)
        self.register_buffer("location", means.detach().reshape(len(means), -1).clone())
        self.register_buffer("variances", spread.square().to(means))
        self.register_buffer("log_weights", (share / share.sum()).log().to(means))

    def posterior(self, x: State) -> Float[Tensor, "batch components"]:
        """The probability of each component for data x, [batch, K]: its mean over the law's own samples is ``weights``.

        Raises ValueError where x is not [batch, *event].

        >>> GaussianMixture(torch.tensor([[-9.0], [9.0]]), 1.0).posterior(torch.tensor([[9.0]])).round()
        tensor([[0., 1.]])
        """
        return self._log_joint(self._flat(x), 1.0, 0.0)[0].softmax(1)

    @property
    def weights(self) -> Float[Tensor, "components"]:
        """[K], of sum 1."""
        return self.log_weights.exp()

    def _log_joint(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """log w_k N(x; α m_k, v_k) [batch, K], without the constant (2π)^(−D/2), and v_k."""
        total = alpha**2 * self.variances + sigma**2
        # |x − α m|² = α² |x/α − m|²: the means stay as they are when α differs along the batch
        squares = alpha**2 * _SquaredDistances.apply(x / alpha, self.location.to(x.dtype))
        return self.log_weights - 0.5 * squares / total - 0.5 * x.shape[1] * total.log(), total

    def _log_density(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        log_joint, _ = self._log_joint(x, alpha, sigma)
        return log_joint.logsumexp(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)

    def _means(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        log_joint, total = self._log_joint(x, alpha, sigma)
        c = log_joint.softmax(1) / total
        mean = c @ self.location.to(x.dtype)
        x0 = sigma**2 * mean + alpha * (c * self.variances).sum(1, keepdim=True) * x
        return x0, c.sum(1, keepdim=True) * x - alpha * mean

    def _draw(self, seed: int, samples: Tensor) -> Tensor:
        # the component is picked on the host in float64, so that every device picks the same
        ends = self.log_weights.to("cpu", torch.float64).softmax(0).cumsum(0)
        uniform = torch.special.ndtr(noise.normal(seed, 0, torch.arange(len(samples)), (), torch.float64))
        pick = torch.searchsorted(ends, uniform).clamp(max=len(ends) - 1).to(samples.device)
        z = noise.normal(seed, 1, samples, (self.location.shape[1],), self.location.dtype)
        return self.location[pick] + self.variances[pick, None].sqrt() * z


@door
class Empirical(GaussianMixture):
    """A real data set as a mixture with equal weights: N(data_k, bandwidth² I). Its model is the optimal denoiser.

    The network that fits the training set perfectly is this one (Karras et al. 2022, appendix B.3).

    Args:
        data: [K, *event].
        bandwidth: > 0, in the data's units.

    Raises ValueError for empty data and a bandwidth that is not positive and finite.

    >>> Empirical(torch.rand(10, 1, 8, 8), 0.05).sample(3).shape
    torch.Size([3, 1, 8, 8])
    """

    def __init__(self, data: Float[Tensor, "..."], bandwidth: Positive) -> None:
        _check_components("data", data)
        if not 0 < bandwidth < math.inf:
            raise ValueError(f"bandwidth={bandwidth}: it must be positive and finite")
        super().__init__(data, bandwidth)


class _SquaredDistances(torch.autograd.Function):
    """|x_i − y_k|² [batch, K] of x [batch, D] and constants y [K, D], without keeping the differences for backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return _by_block(x, y, lambda differences: differences.square().sum(-1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (grad,), (x, y) = grad_outputs, ctx.saved_tensors
        return 2 * (grad.sum(1, keepdim=True) * x - grad @ y), None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Tensor:
        (dx, _), (x, y) = grad_inputs, ctx.saved_tensors
        return _by_block(x, y, lambda differences: 2 * (differences * dx[:, None]).sum(-1))


def _by_block(x: Tensor, y: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """``reduce`` of the differences x_i − y_k [batch, block, D], a block of components at a time: [batch, K]."""
    # filled in place: small results kept between large blocks would fragment the heap up to the size of all differences
    result = x.new_empty(len(x), len(y))
    block = max(1, _BLOCK // max(1, x.numel()))
    for start in range(0, len(y), block):
        result[:, start : start + block] = reduce(x[:, None] - y[start : start + block])
    return result


def _at_data(t: Time | None, process: Process | None) -> bool:
    if (t is None) != (process is None):
        raise ValueError(f"t={t}, process={process}: give both, or neither for the data itself")
    return t is None


def _scales(t: Any, process: Any, x: Tensor) -> tuple[Any, Any]:
    """α and σ at t, in x's dtype and shaped to broadcast against x."""
    if isinstance(t, Tensor):
        if t.ndim and t.shape != x.shape[:1]:
            raise ValueError(f"t has shape {list(t.shape)}: it must be a number or [{len(x)}], one for each sample")
        t = t.to(x.dtype)
    elif not min(process.t_min, process.t_max * 1e-12) <= t <= process.t_max * (1 + 1e-6):
        raise ValueError(f"t={t}: it must lie in [t_min, t_max] = [{process.t_min}, {process.t_max}]")
    return match(process.alpha(t), x), match(process.sigma(t), x)


def _check_finite(name: str, value: Tensor) -> None:
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity: every entry must be finite")


def _check_components(name: str, value: Tensor) -> None:
    if value.ndim == 0 or value.numel() == 0:
        raise ValueError(f"{name} has shape {list(value.shape)}: it must be [K, *event] with at least one element")
    _check_finite(name, value)


def _positive(name: str, value: float | Tensor, means: Tensor) -> Tensor:
    """``value`` as float64 [K] on the CPU, checked."""
    given = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    count = len(means)
    if given.shape not in ((), (count,)):
        raise ValueError(
            f"{name} has shape {list(given.shape)}: it must be a number or [{count}], one per component of means"
        )
    given = given.expand(count)
    bad = given[~((given > 0) & (given < math.inf))]
    if len(bad):
        raise ValueError(f"{name} has the entry {bad[0].item():g}: every one must be positive and finite")
    return given
