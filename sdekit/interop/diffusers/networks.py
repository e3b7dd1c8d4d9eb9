"""A network of diffusers as a plain ``net(x, times, **conditions)``: what it returns is a tensor of x's shape."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.interop.diffusers.config import Preconditioning
from sdekit.names import unknown


class Network(nn.Module):
    """``network(x, timestep=…, return_dict=False, …)`` without the output object and without a learned variance.

    Conditions of floating-point type are cast to the network's. Raises ValueError for a network that is told more than
    x, or called otherwise, and at a call for x of other channels, for conditions that it does not take, and for those
    that it needs and that are missing or have other than one row for each sample.
    """

    def __init__(self, network: nn.Module, preconditioning: Preconditioning | None = None) -> None:
        super().__init__()
        self.network = network
        self.preconditioning = preconditioning
        kind, parameters = type(bare(network)).__name__, inspect.signature(bare(network).forward).parameters
        if not {"timestep", "return_dict"} <= parameters.keys():
            raise ValueError(
                f"network: {kind}.forward takes no timestep= and return_dict=, so it is no denoiser"
                " of diffusers; a network that is called net(x, t) is given to ScoreModel itself"
            )
        config: dict[str, Any] = dict(getattr(network, "config", {}))
        self.channels = _channels(kind, config)
        self.known = frozenset(list(parameters)[1:]) - {"timestep", "return_dict"}
        self.needed = _needed(config, parameters)
        self.training = network.training

    def forward(self, x: Tensor, times: Tensor, **conditions: Any) -> Tensor:
        if self.channels is not None and x.ndim > 3 and x.shape[1] != self.channels:  # of tokens they are the last
            raise ValueError(
                f"x has shape {list(x.shape)}, but the network takes [n, {self.channels}, …]: {self.channels} channels"
            )
        if conditions or self.needed:
            conditions = self._checked(x, conditions)
        if self.preconditioning is None:
            return self._split(x, self.network(x, timestep=times, return_dict=False, **conditions)[0])
        return self._denoised(self.preconditioning, x, times, conditions)

    def _denoised(self, how: Preconditioning, x: Tensor, times: Tensor, conditions: dict[str, Any]) -> Tensor:
        """c_skip x + c_out F(c_in x), outside the network in x's precision: σ x has no place in half."""
        sigma = torch.exp(4 * times).reshape(-1, *[1] * (x.ndim - 1))
        c_in, c_skip, c_out = how(sigma)
        dtype = self._dtype(x)
        output = self.network((c_in * x).to(dtype), timestep=times, return_dict=False, **conditions)[0]
        return c_skip * x + c_out * self._split(x, output).to(x.dtype)

    def _dtype(self, x: Tensor) -> torch.dtype:
        """The network's: what ``ScoreModel`` casts x to, but for EDM networks, which are cast to it here."""
        parameter = None if self.preconditioning is None else next(self.network.parameters(), None)
        return x.dtype if parameter is None else parameter.dtype

    def _split(self, x: Tensor, output: Tensor) -> Tensor:
        """Without the channels that predict a variance (Nichol & Dhariwal 2021)."""
        return output[:, : x.shape[1]] if output.shape[1] == 2 * x.shape[1] else output

    def _checked(self, x: Tensor, conditions: dict[str, Any]) -> dict[str, Any]:
        for name in self.needed - conditions.keys():
            raise ValueError(f"{name}: the network was trained with it: give {name}=, a tensor with a row each sample")
        for name, value in conditions.items():
            if name not in self.known:
                raise unknown("condition", name, self.known)
            rows = isinstance(value, Tensor) and value.shape[:1] == x.shape[:1]
            if name in self.needed and not (rows or isinstance(value, dict)):
                given = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"{name}: it must be a tensor with one row for each of the {x.shape[0]} samples, got {given}"
                )
        dtype = self._dtype(x)
        return {name: _cast(value, dtype) for name, value in conditions.items()}


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {key: _cast(one, dtype) for key, one in value.items()}
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _channels(name: str, config: dict[str, Any]) -> int | None:
    """The channels of x, where the configuration says them."""
    before, after = config.get("in_channels"), config.get("out_channels")
    if before is None or after in (None, before, 2 * before):
        return before
    raise ValueError(
        f"network: {name} takes {before} channels and returns {after}: it is told more than the noisy sample (a mask,"
        " an image); join those to x in a function of (x, t), and give it to ScoreModel"
    )


def _needed(config: dict[str, Any], parameters: Any) -> frozenset[str]:
    """The conditions without which the network cannot run."""
    required = [name for name, one in list(parameters.items())[1:] if one.default is one.empty]
    needed = {name for name in required if name != "timestep" and one_by_name(parameters[name])}
    for name, settings in _SIGNS_OF.items():
        if name in parameters and any(config.get(setting) is not None for setting in settings):
            needed.add(name)
    return frozenset(needed)


# conditions that a signature leaves open, and the settings of networks that were trained with them
_SIGNS_OF = {
    "class_labels": ("class_embed_type", "num_class_embeds", "num_embeds_ada_norm"),
    "encoder_hidden_states": ("joint_attention_dim", "caption_channels"),
    "pooled_projections": ("pooled_projection_dim",),
    "added_cond_kwargs": ("addition_embed_type",),
    "timestep_cond": ("time_cond_proj_dim",),
}


def bare(network: nn.Module) -> nn.Module:
    """What torch.compile was given."""
    return getattr(network, "_orig_mod", network)


def one_by_name(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
