r"""The trace of a Jacobian: exactly, or estimated from products with random probes, for each sample of a batch.

``divergence(f, x, probes)`` evaluates f once and returns f(x) with one estimate of tr ∂f/∂x for each probe, so that
the spread of the estimates is the error of their mean.

| method | estimate | products for m probes | source |
|---|---|---|---|
| ``exact`` | Σ_i e_iᵀ J e_i | D | |
| ``hutchinson`` | vᵀ J v | m | Hutchinson 1990; Grathwohl et al. 2019 for flows |
| ``hutch++`` | tr QᵀJQ + gᵀ(I − QQᵀ) J (I − QQᵀ) g, Q spanning Jᵀ S | m | Meyer et al. 2021, algorithm 1 |
| ``xtrace`` | the same with each probe left out of Q in turn | 2 m | Epperly, Tropp & Webber 2024, section 2.1 |

Var vᵀJv = 2 Σ_{i≠j} S_ij² for Rademacher probes and 2 Σ_ij S_ij² for Gaussian ones, with S = (J + Jᵀ)/2.
Products are with Jᵀ in reverse mode and with J in forward mode; the trace is the same.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdekit import noise
from sdekit.door import Count, Place, Rows, Seed, door
from sdekit.names import lookup
from sdekit.solvers.registry import check_count

Probes = Float[Tensor, "probes batch *event"]
Map = Callable[[Tensor], Tensor]
Products = Callable[[Tensor], Tensor]
"""Probes [m, batch, *event] → J or Jᵀ times each, of the same shape."""

_STREAM = 0x70726F626573  # keeps the probes apart from a run's noise with the same seed

DISTRIBUTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "rademacher": lambda z, size: torch.where(z < 0, -1.0, 1.0).to(z.dtype),
    "gaussian": lambda z, size: z,
    "sphere": lambda z, size: z * (size**0.5 / z.flatten(2).norm(dim=2).reshape(*z.shape[:2], *[1] * (z.ndim - 2))),
}
"""Distributions of a probe with E[v vᵀ] = I, made from standard normals."""


@door
def draw_probes(
    x: Float[Tensor, "batch *event"], count: Count, distribution: str = "rademacher", seed: Seed = 0, first: Place = 0
) -> Probes:
    """``count`` probes for each sample of x; sample i's depend on (seed, first + i) alone.

    Raises ValueError for count < 1 or an unknown distribution.

    >>> v = draw_probes(torch.zeros(3, 2), 4)
    >>> v.shape, bool((v.abs() == 1).all())
    (torch.Size([4, 3, 2]), True)
    """
    check_count("probes", count, 1, "a trace is estimated from at least one probe")
    shape = lookup("distribution", distribution, DISTRIBUTIONS)
    samples = torch.arange(first, first + len(x), device=x.device)
    stream = noise.key(_STREAM, seed)
    draws = torch.stack([noise.normal(stream, draw, samples, x.shape[1:], x.dtype) for draw in range(count)])
    return shape(draws, x.shape[1:].numel())


@door
def divergence(
    f: Map,
    x: Annotated[Float[Tensor, "batch *event"], Rows()],
    probes: Probes | None,
    method: str = "hutchinson",
    mode: str = "vjp",
    chunk_size: Count | None = None,
) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, "batch estimates"]]:
    """f(x) and estimates of tr ∂f_i/∂x_i for each sample i, from one evaluation of f.

    Sample i of f(x) must depend on sample i of x alone. Differentiable where grad mode is on. In forward mode
    ``hutch++``, ``xtrace`` and ``exact`` evaluate f again for products that depend on others.

    Args:
        probes: from ``draw_probes``; None for ``method="exact"``.
        method: a name in ``METHODS``.
        mode: ``"vjp"``, reverse mode; ``"jvp"``, forward mode: less memory, and every operation must have it.
        chunk_size: how many products are made at once (default: all of them; of ``exact`` 32).

    Raises ValueError for unknown names, too few or too many probes for the method, an operation that lacks forward
    mode, and a compiled network whose backward pass can be run only once.

    >>> J = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    >>> divergence(lambda x: x @ J.T, torch.zeros(1, 2), None, method="exact")[1]
    tensor([[4.]])
    """
    estimate = lookup("divergence method", method, METHODS)
    open_products = lookup("mode", mode, _MODES)
    if probes is not None and (probes.shape[1:] != x.shape or not len(probes)):
        raise ValueError(f"probes has shape {list(probes.shape)}: it must be [probes, *x's], x's being {list(x.shape)}")
    value, products = open_products(f, x, chunk_size, probes)
    if probes is None:
        if method != "exact":
            raise ValueError(f"probes=None: divergence {method!r} needs probes")
        return value, _exact(products, x, chunk_size or 32)
    return value, estimate(products, probes)


def _vjp(f: Map, x: Tensor, chunk_size: int | None, _: Tensor | None) -> tuple[Tensor, Products]:
    """f(x) and Jᵀ times probes by reverse mode; a graph is kept only where gradients are wanted."""
    keep = torch.is_grad_enabled()
    if x.device.type == "cpu":
        _keep_freed_memory()
    # fused attention has no second derivative
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH) if keep else nullcontext():
        x = x if x.requires_grad else x.detach().requires_grad_()
        value = f(x)

    def one(v: Tensor, batched: bool) -> Tensor:
        if not value.requires_grad:  # f is constant
            return torch.zeros_like(v)
        with _backward_again():
            product: Any = torch.autograd.grad(
                value, x, v, retain_graph=True, create_graph=keep, allow_unused=True, is_grads_batched=batched
            )[0]
        return torch.zeros_like(v) if product is None else product

    def products(v: Tensor) -> Tensor:
        if len(v) == 1:  # vmap costs more than it saves
            return one(v[0], False)[None]
        return torch.cat([one(part, True) for part in v.split(chunk_size or len(v))])

    return (value if keep else value.detach()), products


@door
@contextmanager
def forward_mode(message: str) -> Generator[None]:
    """Raise ValueError(message) where an operation has no forward-mode derivative; its name takes the place of {}."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".torch.jit.script.", DeprecationWarning)  # torch's own
            with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward mode
                yield
    except (NotImplementedError, RuntimeError) as error:
        found = re.search(r"forward AD with (\S+)", str(error))
        if found is None:
            raise
        raise ValueError(message.format(found[1])) from error


@contextmanager
def _backward_again() -> Generator[None]:
    """Raise ValueError where a compiled backward pass gives its buffers away, and so refuses to keep its graph."""
    try:
        yield
    except RuntimeError as error:
        if "donated buffers" not in str(error):
            raise
        raise ValueError(
            "mode='vjp': this compiled network's backward pass can be run only once (donated buffers); use mode='jvp'"
        ) from error


@cache
def _keep_freed_memory() -> None:
    """Let glibc keep what a backward pass frees, instead of giving it back and paging it in again at the next.

    It gives back what exceeds twice the largest block freed so far, blocks up to 32 MiB counting (mallopt(3),
    M_MMAP_THRESHOLD): so one is made and freed, untouched. The digits U-Net's drift and divergence take 1.9 forwards
    instead of 2.5. Elsewhere it does nothing.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def _jvp(f: Map, x: Tensor, chunk_size: int | None, probes: Tensor | None) -> tuple[Tensor, Products]:
    """f(x) and J times probes by forward mode; f(x) and J times ``probes`` come from one evaluation."""

    def one(tangent: Tensor) -> Any:
        return torch.func.jvp(f, (x,), (tangent,))

    vmap: Any = torch.vmap  # its stub does not know that an output may be the same for all

    def both(v: Tensor) -> tuple[Tensor, Tensor]:
        with forward_mode("mode='jvp': {} has no forward-mode derivative; use mode='vjp'"):
            parts = [vmap(one, out_dims=(None, 0))(part) for part in v.split(chunk_size or len(v))]
        return parts[0][0], torch.cat([products for _, products in parts])

    if probes is None:
        return f(x), lambda v: both(v)[1]
    value, first = both(probes)
    return value, lambda v: first if v is probes else both(v)[1]


_MODES = {"vjp": _vjp, "jvp": _jvp}


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products [m, batch] of a and b [m, batch, *event]."""
    return (a * b).flatten(2).sum(2)


def _exact(products: Products, x: Tensor, chunk_size: int) -> Tensor:
    """Σ_i e_iᵀ J e_i [batch, 1], ``chunk_size`` unit vectors at a time."""
    size = x.shape[1:].numel()
    total = x.new_zeros(len(x))
    for start in range(0, size, chunk_size):
        index = torch.arange(start, min(start + chunk_size, size), device=x.device)
        units = (torch.arange(size, device=x.device) == index[:, None]).to(x.dtype)
        units = units.reshape(len(index), 1, *x.shape[1:]).expand(-1, *x.shape)
        total = total + _dot(products(units), units).sum(0)
    return total[:, None]


def _hutchinson(products: Products, probes: Tensor) -> Tensor:
    return _dot(probes, products(probes)).mT


def _columns(v: Tensor) -> Tensor:
    """[m, batch, *event] → [batch, D, m]."""
    return v.flatten(2).permute(1, 2, 0)


def _rows(columns: Tensor, like: Tensor) -> Tensor:
    """[batch, D, m] → [m, batch, *event]."""
    return columns.permute(2, 0, 1).reshape(-1, *like.shape[1:])


def _hutchpp(products: Products, probes: Tensor) -> Tensor:
    """A third of the products finds the range, a third is exact there, the last third estimates the rest."""
    rank = len(probes) // 3
    if rank < 1 or 3 * rank != len(probes):
        raise ValueError(f"probes={len(probes)}: 'hutch++' divides them into three equal parts; give a multiple of 3")
    if rank > probes[0, 0].numel():
        raise ValueError(f"probes={len(probes)}: more than 3 D with D = {probes[0, 0].numel()}; use 'exact'")
    sketch, rest = probes[:rank], probes[rank : 2 * rank]
    basis = torch.linalg.qr(_columns(products(sketch)))[0]
    columns = _columns(rest)
    rest = _rows(columns - basis @ (basis.mT @ columns), rest)
    inner = _rows(basis, rest)
    both = products(torch.cat([inner, rest]))
    return (_dot(inner, both[:rank]).sum(0) + _dot(rest, both[rank:])).mT


def _xtrace(products: Products, probes: Tensor) -> Tensor:
    """Each probe estimates what the range found by the others leaves out; for probes of either radius, unbiased."""
    count, size = len(probes), probes[0, 0].numel()
    if not 2 <= count <= size:
        raise ValueError(f"probes={count}: 'xtrace' takes from 2 to D = {size} probes; use 'exact' or 'hutchinson'")
    omega, image = _columns(probes), _columns(products(probes))
    basis, upper = torch.linalg.qr(image)
    inner = _columns(products(_rows(basis, probes)))
    # the direction of Q that only probe i gives: column i of R^{-T}, of length one
    eye = torch.eye(count, dtype=upper.dtype, device=upper.device)
    alone = torch.linalg.solve_triangular(upper, eye, upper=True).mT
    alone = alone / alone.norm(dim=1, keepdim=True)
    core = basis.mT @ inner
    found = core.diagonal(dim1=1, dim2=2).sum(1)[:, None] - (alone * (core @ alone)).sum(1)
    weights = basis.mT @ omega
    weights = weights - alone * (alone * weights).sum(1, keepdim=True)
    rest, image_of_rest = omega - basis @ weights, image - inner @ weights
    return found + (rest * image_of_rest).sum(1)


def _refuse(products: Products, probes: Tensor) -> Tensor:
    raise ValueError("probes: divergence 'exact' takes none")


METHODS: dict[str, Callable[[Products, Tensor], Tensor]] = {
    "exact": _refuse,
    "hutchinson": _hutchinson,
    "hutch++": _hutchpp,
    "xtrace": _xtrace,
}
"""Estimators: products with J (or Jᵀ) and probes [m, batch, *event] → estimates [batch, k]."""
