r"""What a network can predict, and the table that turns each prediction into any other.

Every prediction is a combination F = a x_0 + b ε with a, b known at each time, and x_t = α x_0 + σ ε.
So any other prediction G is linear in x and F:  G = c_x x + c_F F  with scalars c_x, c_F.

| name  | F                 | a    | b     | source |
|-------|-------------------|------|-------|--------|
| eps   | ε                 | 0    | 1     | Ho et al. 2020 |
| x0    | x_0               | 1    | 0     | Karras et al. 2022 (denoiser D) |
| score | ∇ log p = −ε/σ    | 0    | −1/σ  | Song et al. 2021; for VP −ε/√(1−ᾱ) |
| v     | α ε − σ x_0       | −σ   | α     | Salimans & Ho 2022, eq. 9 |
| flow  | dx/dt = α' x_0 + σ' ε | α' | σ' | Esser et al. 2024 (SD3); ε − x_0 for ``Flow`` |
| flow-to-data | −dx/dt    | −α'  | −σ'   | Lipman et al. 2023; x_0 − ε for ``Flow`` |

Two conventions of flow matching differ in where the data are, and so in the velocity's sign. With the data at t = 0
(SD3, Flux, the networks of diffusers) a network predicts ``flow``. With the data at t = 1 (Lipman et al. 2023, Liu et
al. 2023, torchcfm, flow_matching) it predicts ``flow-to-data``, and ``ScoreModel`` tells it 1 − t.

A prediction of one's own is one more entry of ``PREDICTIONS``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sdekit.names import lookup
from sdekit.process import Process, remembered

Weights = tuple["float | Tensor", "float | Tensor"]
WeightsOf = Callable[[Process, "float | Tensor"], Weights]

PREDICTIONS: dict[str, WeightsOf] = {
    "eps": lambda process, t: (0.0, 1.0),
    "x0": lambda process, t: (1.0, 0.0),
    "score": lambda process, t: (0.0, -1 / process.sigma(t)),
    "v": lambda process, t: (-process.sigma(t), process.alpha(t)),
    "flow": lambda process, t: (process.alpha_rate(t), process.sigma_rate(t)),
    "flow-to-data": lambda process, t: (-process.alpha_rate(t), -process.sigma_rate(t)),
}


def convert(source: str, target: str, process: Process, t: float | Tensor) -> Weights:
    """(c_x, c_F) such that the prediction ``target`` is c_x x + c_F F, with F the prediction ``source``.

    Floats for a float t, otherwise of t's shape where they depend on it. The same name gives (0, 1).
    Raises ValueError for an unknown name.

    >>> from sdekit.process import VP
    >>> c_x, c_F = convert("eps", "score", VP(), 0.5)
    >>> c_x, round(c_F * VP().sigma(0.5), 12)
    (0.0, -1.0)
    """
    of_source, of_target = lookup("prediction", source, PREDICTIONS), lookup("prediction", target, PREDICTIONS)
    if source == target:
        return 0.0, 1.0
    solve = _solve if isinstance(t, Tensor) else _solve_once
    return solve(of_source, of_target, process, t)


def _solve(of_source: WeightsOf, of_target: WeightsOf, process: Process, t: float | Tensor) -> Weights:
    (a, b), (a_new, b_new) = of_source(process, t), of_target(process, t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    # x and F as functions of x_0 and ε, solved for x_0 and ε: a 2×2 system with this determinant
    determinant = a * sigma - b * alpha
    return (b_new * a - a_new * b) / determinant, (a_new * sigma - b_new * alpha) / determinant


_solve_once = remembered(4096)(_solve)  # a solver asks for the same knots at every batch and run
