"""What is looked at while a network trains, and when the looks are reason to stop: a held-out loss, pictures, anything.

A look sees the averaged network, which is what a run gives. What an early stop needs, the best value and its weights,
is in the run's checkpoint: a run that was killed stops where one that was not would have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sdekit.door import Count, door

Best = MutableMapping[str, Any]
"""With patience: the least value seen, after how many steps, and the averaged network's weights then."""


@door
@dataclass(frozen=True)
class Watch:
    """Looks at the averaged network after every ``every`` steps and after the last.

    Attributes:
        look: f(network, steps made): a number, or None where there is nothing to compare. It is called without
            gradients, with the network in evaluation mode; a process of several calls it like any other.
        every: steps between two looks.
        patience: looks in a row without a new least number, after which the run stops and gives the weights of the
            least. None: the run goes to its end and gives the last weights, whatever the looks saw.

    ``HeldOut`` is a look at the loss on data that are not trained on.

    >>> seen = []
    >>> net = nn.Linear(1, 1)
    >>> from sdekit.training import Optimisation, fit
    >>> def loss_at(net, step):
    ...     return (net(torch.ones(4, 1)) - 3).square().mean()
    >>> average = fit(net, loss_at, Optimisation(steps=50, lr=0.1, warmup=1), {},
    ...               watch=Watch(lambda net, steps: seen.append(steps), every=20))
    >>> seen
    [20, 40, 50]
    """

    look: Callable[[nn.Module, int], float | None]
    every: Count = 500
    patience: Count | None = None

    def identity(self) -> Mapping[str, Any]:
        """What of it decides the result of a run: nothing where it only looks."""
        return {} if self.patience is None else {f"watch.{name}": part for name, part in vars(self).items()}

    def see(self, average: nn.Module, steps: int, last: int, best: Best) -> float | None:
        """The value after ``steps`` of ``last`` steps, where it is due; with patience ``best`` learns of it.

        Raises ValueError for a value that is not finite or, with patience, none.
        """
        if steps % self.every and steps != last:
            return None
        with torch.no_grad():
            value = self.look(average, steps)
        if value is None and self.patience is None:
            return None
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"watch: after {steps} steps its look gave {value!r}: it must be a finite number")
        if self.patience is not None and value < best.get("value", math.inf):
            weights = {name: part.clone() for name, part in average.state_dict().items()}
            best.update(value=value, steps=steps, weights=weights)
        return float(value)

    def over(self, steps: int, best: Best) -> bool:
        """Whether its patience has ended by the look after ``steps`` steps."""
        return self.patience is not None and bool(best) and steps - best["steps"] >= self.patience * self.every

    def settle(self, average: nn.Module, best: Best) -> None:
        """Give the network the best weights, where there is patience to have kept them."""
        if best:
            average.load_state_dict(best["weights"])
