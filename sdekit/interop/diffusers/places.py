"""Timesteps and sigmas, as diffusers states places of a run, and the times of the process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdekit.interop.diffusers.config import Trained
from sdekit.process import DiscreteVP, Flow, Knot

# σ of a table of diffusers is float32's: near the data 1 − ᾱ loses 3e-4 of it
_ROUNDING = 1e-3


def is_flow(trained: Trained) -> bool:
    """Whether ``sigmas`` are t, and not σ/α."""
    return isinstance(trained.process, Flow)


def sigma_of(trained: Trained, knot: Knot) -> float:
    """A knot as diffusers' ``sigmas`` state it."""
    return knot.t if is_flow(trained) else math.exp(-knot.half_log_snr)


def shifted(sigma: float, shift: float) -> float:
    """σ shifted: s σ/(1 + (s − 1) σ) (Esser et al. 2024, SD3, eq. 23).

    >>> shifted(0.5, 3.0)
    0.75
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


def times_of(trained: Trained, name: str, places: Sequence[float]) -> list[float]:
    """The times of places that ``timesteps`` or ``sigmas`` state; an end outside by a rounding is moved onto the end.

    Raises ValueError where they do not lead from noise to data, or lie outside.
    """
    process, clock = trained.process, trained.clock
    if name == "timesteps":
        times = [float(clock.time(process, told)) for told in places]
    elif all(place > 0 for place in places):
        times = [place if is_flow(trained) else process.t_of_half_log_snr(-math.log(place)) for place in places]
    else:
        raise ValueError(f"sigmas={[*places]}: they must be above 0, but for a last 0, which is the end")
    for s, t, before, after in zip(times, times[1:], places, places[1:]):
        if not s > t:
            raise ValueError(f"{name}: they must lead from noise to data, but {before:g} is followed by {after:g}")
    low, high = process.t_min - _ROUNDING * (process.t_min or 1), process.t_max * (1 + _ROUNDING)
    if is_flow(trained):  # λ is ∓∞ at both ends: the process stops just inside
        low, high = 0.0, 1.0
    for place, t in zip(places, times):
        if not low <= t <= high:
            ends = sorted(_place(trained, name, t) for t in (process.t_min, process.t_max))
            raise ValueError(
                f"{name}: {place:g} lies outside what the network was trained on, {ends[0]:.6g} to {ends[1]:.6g}"
            )
    return [min(max(t, process.t_min), process.t_max) for t in times]


def _place(trained: Trained, name: str, t: float) -> float:
    if name == "timesteps":
        return float(trained.clock(trained.process, t))
    return sigma_of(trained, trained.process.knot(t))


def tensor_of(trained: Trained, told: Sequence[float], device: Any) -> tuple[list[float], Tensor]:
    """What the network is told, as numbers and as a tensor: int64 for entries of a table, else float32."""
    whole = [float(round(value)) for value in told]
    if isinstance(trained.process, DiscreteVP) and all(math.isclose(a, b, abs_tol=1e-9) for a, b in zip(told, whole)):
        return whole, torch.tensor([int(value) for value in whole], device=device)
    tensor = torch.tensor([*told], dtype=torch.float32)
    return tensor.tolist(), tensor.to(device)


def number_of(timestep: Any) -> float | None:
    """A timestep as a number, where no accelerator has to be asked."""
    if isinstance(timestep, Tensor):
        return float(timestep) if timestep.device.type == "cpu" and timestep.numel() == 1 else None
    return None if timestep is None else float(timestep)


def equal(one: float, other: float) -> bool:
    """Whether two timesteps are one, but for rounding."""
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6)
