r"""Which noise goes with which data in a batch.

Independent pairs make paths that cross, which a velocity can only average. Pairs of the batch that lie near each other
cross less: the trained ODE is straighter, and few steps follow it, at the same marginals (Tong et al. 2024, Improving
and generalizing flow-based generative models with minibatch optimal transport; Pooladian et al. 2023). A coupling is a
function f(x0, eps, seed) -> the row of eps for each row of x0. It is computed on the host; where processes share out a
batch, each couples its own share.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sdekit import noise
from sdekit.door import door
from sdekit.names import Above, check_options, lookup, options_of, parse
from sdekit.transport import entropic_plan

Rows = Float[Tensor, "batch *event"]
Coupling = Callable[[Rows, Rows, int], Int[Tensor, "batch"]]


def independent(x0: Tensor, eps: Tensor, seed: int) -> Tensor:
    """As they come."""
    return torch.arange(len(x0), device=x0.device)


def optimal(x0: Tensor, eps: Tensor, seed: int) -> Tensor:
    """The permutation with the least Σ ‖x_0 − ε‖²: optimal transport between the two halves of the batch."""
    _, rows = linear_sum_assignment(_costs(x0, eps).numpy())
    return torch.from_numpy(rows).to(x0.device)


def entropic(x0: Tensor, eps: Tensor, seed: int, *, sigma: Annotated[float, Above(0)] = 1.0) -> Tensor:
    """Drawn from the plan of entropic optimal transport with ε = 2σ², that of the Schrödinger bridge whose reference
    is a Brownian motion of variance σ² (Tong et al. 2024). σ → 0 is ``optimal``."""
    n, plan = len(x0), entropic_plan(_costs(x0, eps) / (2 * sigma**2))
    u = torch.special.ndtr(noise.normal(seed, 0, torch.arange(n), (1,), torch.float64))
    return torch.searchsorted(plan.cumsum(1), u).clamp(max=n - 1)[:, 0].to(x0.device)


def _costs(x0: Tensor, eps: Tensor) -> Tensor:
    return torch.cdist(x0.flatten(1).double().cpu(), eps.flatten(1).double().cpu()).square()


COUPLINGS: dict[str, Coupling] = {"independent": independent, "optimal": optimal, "entropic": entropic}


@door
def coupling(spec: str) -> Coupling:
    """The coupling of that name, with options as in ``"entropic(sigma=0.5)"``.

    Raises ValueError for an unknown name, option or value.

    >>> x0, eps = torch.tensor([[-1.0], [2.0]]), torch.tensor([[3.0], [0.0]])
    >>> coupling("optimal")(x0, eps, 0)
    tensor([1, 0])
    """
    name, options = parse(spec)
    function = lookup("coupling", name, COUPLINGS)
    check_options(name, options_of(function), options)
    return partial(function, **options) if options else function
