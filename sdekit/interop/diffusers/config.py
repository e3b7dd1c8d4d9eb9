r"""What a scheduler's configuration says about a network: process, prediction, the time it is told, thresholding.

    β tables         ``DiscreteVP``; entry n of the table is t = (n + 1)/T, and the network is told n
    flow matching    ``Flow``; the network is told T t. The shift is one of grids and leaves the process as it is
    EDM              ``EDM``; told log(σ)/4, x scaled by c_in, its output F made x_0 = c_skip x + c_out F
    score_sde's VE   ``VE``; told σ

Everything else that a configuration holds (spacings, Karras sigmas, steps_offset, the solver's order) says how to
sample, which is the solver's and the grid's business here.
"""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import Tensor

from sdekit.elementwise import exp, log
from sdekit.names import lookup, unknown
from sdekit.process import EDM, VE, DiscreteVP, Flow, Process
from sdekit.solvers.registry import check_count
from sdekit.thresholding import Dynamic, Static

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Linear:
    """The network is told scale·t + offset.

    >>> Linear(1000.0, -1.0)(DiscreteVP(), 0.5), Linear(1000.0, -1.0).time(DiscreteVP(), 499.0)
    (499.0, 0.5)
    """

    scale: float
    offset: float = 0.0

    def __call__(self, process: Process, t: float | Tensor) -> float | Tensor:
        return t * self.scale + self.offset

    def time(self, process: Process, told: float | Tensor) -> float | Tensor:
        """The t at which the network is told that."""
        return (told - self.offset) / self.scale


@dataclass(frozen=True)
class NoiseLevel:
    """The network is told κ = σ/α, or scale·log κ where ``scale`` is given: 1/4 of EDM's c_noise (Karras et al. 2022).

    >>> NoiseLevel()(EDM(), 2.0), NoiseLevel(0.25)(EDM(), math.exp(2.0)), NoiseLevel(0.25).time(EDM(), 0.0)
    (2.0, 0.5, 1.0)
    """

    scale: float | None = None

    def __call__(self, process: Process, t: float | Tensor) -> float | Tensor:
        exponent = -process.half_log_snr(t)
        return exp(exponent) if self.scale is None else exponent * self.scale

    def time(self, process: Process, told: float | Tensor) -> float | Tensor:
        """The t at which the network is told that."""
        return process.t_of_half_log_snr(-log(told) if self.scale is None else -(told / self.scale))


@dataclass(frozen=True)
class Preconditioning:
    """EDM's c_in, c_skip and c_out (Karras et al. 2022, table 1); ``sign`` −1 is a network that predicts v.

    >>> Preconditioning(0.5)(0.5)
    (1.414..., 0.5, 0.353...)
    """

    sigma_data: float
    sign: float = 1.0

    def __call__(self, sigma: Any) -> tuple[Any, Any, Any]:
        total = sigma**2 + self.sigma_data**2
        c_in = total**-0.5
        return c_in, self.sigma_data**2 / total, self.sign * sigma * self.sigma_data * c_in


@dataclass(frozen=True)
class Trained:
    """How a network was trained, as ``read`` finds it in a configuration.

    Attributes:
        process: the forward process.
        predicts: what the network predicts, in ``prediction.PREDICTIONS``; after preconditioning, where there is one.
        clock: what it is told at time t.
        rule: the thresholding of x_0 that the configuration asks for.
        preconditioning: of an EDM network.
    """

    process: Process
    predicts: str
    clock: Linear | NoiseLevel
    rule: Static | Dynamic | None = None
    preconditioning: Preconditioning | None = None


def read(scheduler: Any) -> Trained:
    """What a scheduler of diffusers, its configuration, or the path of either says about the network.

    Raises ValueError for a scheduler, a schedule or a prediction that is not known, each with what is.

    >>> read({"num_train_timesteps": 500, "beta_schedule": "linear", "prediction_type": "v_prediction"})
    Trained(process=DiscreteVP(t_min=0.002, t_max=1.0), predicts='v', clock=Linear(scale=500.0, offset=-1.0), ...
    """
    name, values = settings(scheduler)
    if values.get("use_flow_sigmas") or name in _FLOW:
        return _flow(values)
    if name in _EDM or (values.get("timestep_type") == "continuous" and values["prediction_type"] == "v_prediction"):
        return _edm(values)
    if name == "ScoreSdeVeScheduler":
        return Trained(VE(values["sigma_min"], values["sigma_max"]), "score", NoiseLevel())
    if "beta_schedule" in values and values.get("snr_shift_scale", 1.0) == 1:
        return _table(values)
    raise ValueError(
        f"scheduler: {name or 'a configuration without _class_name'} is none whose networks are known here: known are"
        f" those with a table of betas (DDPM, DDIM, PNDM, Euler, DPMSolver, UniPC, …), {', '.join((*_FLOW, *_EDM))}"
        " and ScoreSdeVeScheduler; build a ScoreModel with the process yourself"
    )


_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
PREDICTS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}


def settings(scheduler: Any) -> tuple[str, dict[str, Any]]:
    """The scheduler's class name, and what its class makes of the configuration: its parameters, with their defaults.

    Entries that a class keeps for others are left out: ``clip_sample`` in the configuration of a solver without it.
    """
    name, given = _given(scheduler)
    if not name:
        if not {"num_train_timesteps", "beta_schedule", "prediction_type"} <= given.keys():
            raise ValueError(
                "scheduler: a configuration without _class_name, which says whose defaults it leaves out: give the"
                " scheduler itself, or add _class_name"
            )
        return name, given
    import diffusers
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    cls = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, SchedulerMixin)):
        raise unknown("scheduler", name, [known for known in dir(diffusers) if known.endswith("Scheduler")])
    parameters = inspect.signature(cls.__init__).parameters.values()
    known = {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
    return name, {key: given.get(key, default) for key, default in known.items()}


def _given(scheduler: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(scheduler, str | os.PathLike):
        scheduler = _json(Path(scheduler))
    config = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise ValueError(
            f"scheduler: a {type(scheduler).__name__} is neither a scheduler of diffusers, nor its configuration, nor a"
            " path of one"
        )
    named = str(config.get("_class_name", "")) if config is scheduler else type(scheduler).__name__
    # a Scheduler of this package keeps the configuration of the one that it takes the place of
    return str(config.get("trained_class", named)), {key: config[key] for key in config if not key.startswith("_")}


def _json(path: Path) -> dict[str, Any]:
    folders = (path / "scheduler_config.json", path / "scheduler" / "scheduler_config.json")
    file = next((one for one in folders if one.is_file()), path)
    if not file.is_file():
        raise ValueError(
            f"scheduler: {str(path)!r} holds no scheduler_config.json: scheduler.save_pretrained(folder) writes it, or"
            " give the scheduler or its configuration itself"
        )
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"scheduler: {str(file)!r} is no JSON object ({error})") from error


def _prediction(values: Values) -> str:
    return PREDICTS[_known("prediction_type", str(values.get("prediction_type", "epsilon")), PREDICTS)]


def _known(kind: str, name: str, table: Mapping[str, Any]) -> str:
    lookup(kind, name, table)
    return name


def _rule(values: Values) -> Static | Dynamic | None:
    if values.get("thresholding"):
        return Dynamic(values["dynamic_thresholding_ratio"], values["sample_max_value"])
    return Static(values.get("clip_sample_range", 1.0)) if values.get("clip_sample") else None


def _flow(values: Values) -> Trained:
    predicts = _prediction(values) if "prediction_type" in values else "flow"
    steps = float(values["num_train_timesteps"])
    if values.get("invert_sigmas"):  # Mochi: told T(1 − t), and the velocity leads to the data
        return Trained(Flow(), "flow-to-data", Linear(-steps, steps), _rule(values))
    return Trained(Flow(), predicts, Linear(steps), _rule(values))


def _edm(values: Values) -> Trained:
    kind = _known("prediction_type of an EDM scheduler", values["prediction_type"], _SIGNS)
    ends = values["sigma_min"], values["sigma_max"]
    if None in ends:  # Euler's continuous times between the ends of its table
        table = _table(values).process
        ends = tuple(math.exp(-table.half_log_snr(t)) for t in (table.t_min, table.t_max))
    how = Preconditioning(values.get("sigma_data", 1.0), _SIGNS[kind])
    return Trained(EDM(*ends), "x0", NoiseLevel(0.25), _rule(values), how)


_SIGNS = {"epsilon": 1.0, "v_prediction": -1.0}


def _table(values: Values) -> Trained:
    betas = values.get("trained_betas")
    if betas is None:
        schedule = lookup("beta_schedule", str(values["beta_schedule"]), SCHEDULES)
        steps, low, high = (values.get(name, default) for name, default in _TABLE.items())
        check_count("num_train_timesteps", steps, 2, "it is the length of the table of betas")
        if not (0 < low < 1 and 0 < high < 1):
            raise ValueError(f"beta_start={low}, beta_end={high}: both must lie in (0, 1)")
        betas = schedule(steps, low, high)
    betas = list(DiscreteVP(betas).betas)  # checked
    betas = zero_terminal_snr(betas) if values.get("rescale_betas_zero_snr") else betas
    predicts = _prediction(values)
    if predicts == "flow":
        raise ValueError(
            "prediction_type='flow_prediction' with a table of betas: flow networks need use_flow_sigmas=True in the"
            " scheduler's configuration"
        )
    return Trained(DiscreteVP(betas), predicts, Linear(float(len(betas)), -1.0), _rule(values))


_TABLE = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}


def _line(steps: int, first: float, last: float) -> list[float]:
    return [first + (last - first) * n / (steps - 1) for n in range(steps)]


def _of_alpha_bar(alpha_bar: Callable[[float], float], steps: int) -> list[float]:
    return [min(1 - alpha_bar((n + 1) / steps) / alpha_bar(n / steps), 0.999) for n in range(steps)]


def _cosine(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


# β of each entry from (T, beta_start, beta_end)
SCHEDULES: dict[str, Callable[[int, float, float], list[float]]] = {
    "linear": _line,  # Ho et al. 2020
    "scaled_linear": lambda steps, low, high: [b**2 for b in _line(steps, low**0.5, high**0.5)],  # Rombach et al. 2022
    "squaredcos_cap_v2": lambda steps, low, high: _of_alpha_bar(_cosine, steps),  # Nichol & Dhariwal 2021, eq. 17
    "exp": lambda steps, low, high: _of_alpha_bar(lambda t: math.exp(-12 * t), steps),
    "sigmoid": lambda steps, low, high: [
        low + (high - low) / (1 + math.exp(-u)) for u in _line(steps, -6.0, 6.0)
    ],  # Xu et al. 2022 (GeoDiff)
}
_LEAST = (
    2.0**-24
)  # ᾱ of the last entry where it would be 0, as diffusers' Euler, DPM-Solver and UniPC schedulers have it


def zero_terminal_snr(betas: Sequence[float]) -> list[float]:
    """The table shifted and scaled so that √ᾱ ends at 0 and keeps its first entry (Lin et al. 2024, algorithm 1).

    The last ᾱ is 2^−24, not 0, where λ would be −∞: a start from noise leaves out α = 2.4e-4 of the data.

    >>> betas = zero_terminal_snr([0.1, 0.2, 0.5])
    >>> round(betas[0], 12), round(math.prod(1 - beta for beta in betas) * 2**24, 6)
    (0.1, 1.0)
    """
    roots = [math.exp(value) for value in accumulate(0.5 * math.log1p(-beta) for beta in betas)]
    first, last = roots[0], roots[-1]
    kept = [((root - last) * first / (first - last)) ** 2 for root in roots[:-1]] + [_LEAST]
    return [betas[0], *(1 - after / before for before, after in zip(kept, kept[1:]))]
