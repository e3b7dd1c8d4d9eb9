r"""Networks of score_sde (Song et al. 2021) and of what followed its conventions: net(x, labels).

| process | labels | the score is | their setting |
|---|---|---|---|
| ``VP``, ``SubVP`` | 999 t | −net/σ(t) | ``training.continuous = True`` |
| ``DiscreteVP`` | the entry n of the table | −net/σ(t) | ``continuous = False`` (DDPM) |
| ``VE`` | σ(t), or log σ(t) | net | ``continuous = True`` |
| ``VE`` | ⌊(1 − t)(N − 1)⌉, 0 at the most noise | net | ``continuous = False`` (NCSN, SMLD) |
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sdekit.door import Count, door
from sdekit.interop.weights import load
from sdekit.model import TIMES, ScoreModel, TimeMap
from sdekit.names import lookup
from sdekit.process import VE, VP, DiscreteVP, Process, SubVP

__all__ = ["load", "wrap"]


def _level(process: Process, t: float | Tensor, count: int) -> int | Tensor:
    """The nearest of ``count`` noise levels, 0 the highest."""
    place = (1 - t) * (count - 1)
    return place.round().long() if isinstance(place, Tensor) else round(place)


# by process: the prediction, and how the network may be told the time, the first by default
_CONVENTIONS: dict[type[Process], tuple[str, tuple[str, ...]]] = {
    VP: ("eps", ("999t",)),
    SubVP: ("eps", ("999t",)),
    DiscreteVP: ("eps", ("index",)),
    VE: ("score", ("sigma", "log-sigma", "level")),
}


@door
def wrap(
    net: Callable[..., Tensor], process: Process, *, labels: str | None = None, scales: Count = 1000
) -> ScoreModel:
    """score_sde's network as a ``ScoreModel`` under ``process``, told the time and scaled as ``get_score_fn`` does.

    Their CIFAR-10 settings are ``VP()``, ``SubVP()``, ``VE(sigma_min=0.01, sigma_max=50)``; with ``data.centered`` the
    data lie in [−1, 1], else in [0, 1]. ``load`` reads their checkpoints, averages (EMA) included.

    Args:
        net: takes x [batch, *event] and labels [batch], and returns x's shape.
        process: ``VP``, ``SubVP``, ``DiscreteVP`` or ``VE`` with the parameters it was trained under.
        labels: for ``VE`` ``"sigma"`` (the default; ``ncsnpp`` takes the logarithm itself), ``"log-sigma"``, or
            ``"level"``, the number of one of ``scales`` levels, 0 the highest.
        scales: how many levels there are with ``labels="level"`` (``model.num_scales``).

    Raises ValueError for another process, or labels that it does not have.

    >>> import torch
    >>> model = wrap(lambda x, labels: x * labels[:, None] / 999, VP())
    >>> x = torch.ones(2, 3)
    >>> torch.allclose(model.score(x, 0.5), -0.5 * x / VP().sigma(0.5))
    True
    """
    if type(process) not in _CONVENTIONS:
        known = ", ".join(kind.__name__ for kind in _CONVENTIONS)
        raise ValueError(f"process={process}: score_sde's networks are of {known}")
    predicts, allowed = _CONVENTIONS[type(process)]
    maps: dict[str, TimeMap] = {
        **TIMES,
        "log-sigma": lambda process, t: process.log_sigma(t),
        "level": lambda process, t: _level(process, t, scales),
    }
    time = lookup("labels", allowed[0] if labels is None else labels, {name: maps[name] for name in allowed})
    return ScoreModel(net, process, predicts, time)
