"""A network behind another signature, which stays a module where it is one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

Net = Callable[..., Tensor]
Call = Callable[..., Tensor]


class Adapter(nn.Module):
    """``call(net, x, t, **conditions)`` as a module that holds ``net``: device, parameters and mode are the net's."""

    def __init__(self, net: nn.Module, call: Call) -> None:
        super().__init__()
        self.net, self.call = net, call

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        return self.call(self.net, x, t, **conditions)


def adapted(net: Net, call: Call) -> Net:
    """``net`` as a function of (x, t, **conditions) by ``call(net, x, t, **conditions)``.

    >>> adapted(lambda t, x: t * x, lambda net, x, t: net(t, x))(3.0, 2.0)
    6.0
    """
    return Adapter(net, call) if isinstance(net, nn.Module) else partial(call, net)
