"""``Scheduler``: any solver of the registry in diffusers' own pipelines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from sdekit.elementwise import clock
from sdekit.grid import GridSpec
from sdekit.interop.diffusers.config import read, settings
from sdekit.interop.diffusers.places import equal, is_flow, number_of, shifted, sigma_of, tensor_of, times_of
from sdekit.interop.diffusers.run import Run, precise
from sdekit.interop.diffusers.stages import rest, stages, through
from sdekit.names import unknown
from sdekit.process import match
from sdekit.solvers import Plan, Solver, get
from sdekit.solvers.final import FINALS
from sdekit.solvers.registry import check_count


class Scheduler(SchedulerMixin, ConfigMixin):
    r"""A solver of this package in a pipeline of diffusers.

    ``pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, solver="dpmpp-2m", grid="logsnr")``, or
    ``Scheduler("dpmpp-2m", like=pipe.scheduler, grid="logsnr")``, which is the same. Each call of the network is one
    timestep: ``num_inference_steps`` is the number of evaluations, exactly, whatever the solver, that of a final
    denoising among them, and ``order`` is 1. A run is that of ``sample`` with the same solver, ``nfe``, ``grid`` and
    ``final``. ``set_timesteps`` begins a run and forgets the one before.

    x is the process's own: of unit variance for a table of betas (also where diffusers' Euler schedulers deal in x/α),
    σ-scaled for EDM, (1 − t) x_0 + t ε for flow matching. ``timesteps`` are entries of the table, as int64 where all
    are whole and as float32 otherwise, T t for flow matching, log(σ)/4 for EDM. A network that takes whole numbers
    alone needs a grid of entries: ``trailing``, ``leading``, ``linspace``, ``sgm``, or explicit timesteps, with a
    solver of one evaluation a step. ``sigmas`` are σ/α at each evaluation (t for flow matching), and at the end.

    A run may begin in the middle (``set_begin_index``, or a first timestep that is not the first one): the solver then
    starts anew on the knots that are left. Noise comes from the ``generator`` of ``step``, and from torch's global one
    where there is none, as everywhere in diffusers; with one generator for each sample, a sample is the same alone and
    in a batch. What the configuration says about clipping x_0 is taken over (see ``wrap``); ``clip=False`` leaves it
    out.

    Args:
        solver: a name in ``solvers.names()``, with options as in ``"ddim(eta=0.5)"``, or a ``Solver``, a fitted one
            too.
        like: the scheduler that the network was trained with, or comes with: an object, a configuration, or a path.
            None: what diffusers' own ``DDPMScheduler()`` takes a network to be (the linear table 1e-4 … 0.02 of 1000
            entries, ε, x_0 clipped to [−1, 1]). **Of a network that was trained otherwise that makes images that look
            right and are not**, as it does with any scheduler of diffusers that is made without a configuration.
        grid: of ``sample``: a name, or the times; ``"auto"`` is the solver's own.
        final: of ``sample``.
        clip: take over the thresholding of x_0 in ``like``.

    Raises ValueError for unknown names, and as ``read``.
    """

    order = 1

    def __init__(
        self,
        solver: str | Solver = "auto",
        like: Any = None,
        grid: GridSpec = "auto",
        final: str = "auto",
        clip: bool = True,
    ) -> None:
        like = _DDPM if like is None else like
        if final not in FINALS:
            raise unknown("final", final, FINALS)
        self._solver = get(solver)
        self._grid: GridSpec = grid if isinstance(grid, str) else tuple(float(t) for t in grid)
        self._final = final
        self._trained = read(like) if clip else replace(read(like), rule=None)
        self._plan: Plan | None = None
        self._rule = self._solver
        self._run: Run | None = None
        self._begin_index: int | None = None
        self._scaled = -1
        self.num_inference_steps: int | None = None
        self.timesteps = torch.zeros(0)
        self.sigmas = torch.zeros(0)
        own = {"solver": self._solver.label, "grid": grid, "final": final, "clip": clip}
        self.register_to_config(**{**_kept(like), **own})
        if is_flow(self._trained) and grid != "auto":
            # Flux's pipelines look for this and then leave the sigmas to the scheduler; no entry, so that another
            # scheduler made from this configuration does not inherit it
            object.__setattr__(self.config, "use_flow_sigmas", True)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """From another scheduler's configuration and this class's arguments, or from a configuration of this class.

        Raises ValueError where there is no configuration, and as the class itself.
        """
        if config is None:
            raise ValueError("config: none was given: from_config(pipe.scheduler.config) takes what the network needs")
        own = {name: config[name] for name in _OWN if name in config} if "trained_class" in config else {}
        scheduler = cls(like=config, **{**own, **kwargs})
        return (scheduler, {}) if return_unused_kwargs else scheduler

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """scheduler_config.json in that folder. Raises ValueError for a fitted solver, which JSON does not hold."""
        try:
            same = get(self._solver.label) == self._solver
        except ValueError:
            same = False
        if not same:
            raise ValueError(
                f"solver {self._solver.label!r} is a value of its own and cannot be kept as JSON: save what it was"
                " fitted from, and give it to Scheduler again"
            )
        super().save_config(save_directory, push_to_hub, **kwargs)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | np.ndarray | Tensor | None = None,
        sigmas: Sequence[float] | np.ndarray | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Begin a run of ``num_inference_steps`` evaluations, or one that evaluates at each of the given places.

        Args:
            num_inference_steps: evaluations, exactly.
            device: of ``timesteps``.
            timesteps: what the network is told, from noise to data. They are knots: a solver of several evaluations a
                step evaluates between them, too.
            sigmas: the same as noise levels, σ/α, or t for flow matching; a last 0 is the end and no evaluation. They
                are used as they are, without the configuration's shift. σ = 1 of flow matching is taken as 0.999.
            mu: the shift e^mu (mu itself where ``time_shift_type`` is linear) that pipelines of flow matching work out
                of the image's size, applied once: to ``sigmas``, or where there are none by the grid ``shift``. A
                ``grid`` of one's own takes its place.

        Raises ValueError where two of the arguments contradict each other, for places that do not lead from noise to
        data or lie outside, and for places given to a scheduler with a ``grid``, one of which would be ignored.
        """
        given = {"timesteps": timesteps, "sigmas": sigmas}
        given = {name: places for name, places in given.items() if places is not None}
        plan = self._explicit(given, num_inference_steps, mu) if given else self._counted(num_inference_steps, mu)
        every, trained = stages(plan), self._trained
        self._plan, self._run, self._begin_index, self._scaled = plan, None, None, -1
        self.num_inference_steps = len(every)
        told = [float(trained.clock(trained.process, stage.knot.t)) for stage in every]
        self._told, self.timesteps = tensor_of(trained, told, device)
        self.sigmas = torch.tensor([sigma_of(trained, k) for k in (*(one.knot for one in every), plan.rows[-1].to)])

    def _counted(self, count: int | None, mu: float | None) -> Plan:
        check_count("num_inference_steps", count, 1, "it is the number of network evaluations")
        grid = self._grid if mu is None or self._grid != "auto" else f"shift(shift={self._shift(mu)!r})"
        self._rule = self._solver.at(int(count or 1), grid)
        return self._solver.plan(self._trained.process, nfe=count, grid=grid, final=self._final)

    def _explicit(self, given: Mapping[str, Any], count: int | None, mu: float | None) -> Plan:
        (name, places), *more = given.items()
        if more:
            raise ValueError("timesteps and sigmas: give one of them")
        if self._grid != "auto":
            raise ValueError(
                f"{name}= and grid={self._grid!r} both say where to evaluate: make the Scheduler without grid="
            )
        places = [float(place) for place in places]
        places = places[:-1] if name == "sigmas" and places[-1:] == [0.0] else places
        if not places:
            raise ValueError(f"{name}: it is empty; it must hold one number for each evaluation")
        if count is not None and count != len(places):
            raise ValueError(f"num_inference_steps={count}, but {name} holds {len(places)}: give one of them")
        if mu is not None and not (name == "sigmas" and is_flow(self._trained)):
            raise ValueError(f"mu={mu}: it shifts sigmas of flow matching; {name} here are used as they are")
        if mu is not None:
            places = [shifted(place, self._shift(mu)) for place in places]
        times = times_of(self._trained, name, places)
        self._rule = self._solver.at(len(times), times)
        return through(times, self._rule, self._trained.process, self._final)

    def _shift(self, mu: float) -> float:
        return mu if self.config.get("time_shift_type") == "linear" else math.exp(mu)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of x at the first timestep, σ there; σ(t_max) before ``set_timesteps``."""
        return self._trained.process.prior_std if self._plan is None else self._plan.start.sigma

    @property
    def step_index(self) -> int | None:
        """The number of the next evaluation; None before the run's first."""
        return None if self._run is None else self._run.index

    @property
    def begin_index(self) -> int | None:
        """What ``set_begin_index`` was given."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say at which of ``timesteps`` the run begins, as pipelines with a strength do."""
        self._begin_index = begin_index

    def __len__(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """What the network is given: x, and c_in·x for an EDM network."""
        if self._trained.preconditioning is None:
            return sample
        run = self._ready(timestep, sample)
        self._scaled = run.index
        return sample * self._trained.preconditioning(run.stage.knot.sigma)[0]

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The solver's rows up to the next evaluation: x [n, …] after them, in ``sample``'s dtype, as ``prev_sample``.

        Computed in float32, in float64 for float64. Raises ValueError where ``timestep`` is not the run's next (of a
        tensor on an accelerator only the run's first is read), after the run's end, for ``eta`` other than 0, which is
        an option of solvers here, for ``use_clipped_model_output=False`` where x_0 is clipped, and where an EDM
        network's input was not scaled.
        """
        run = self._ready(timestep, sample)
        if eta:
            raise ValueError(f"eta={eta}: it is an option of the solver here: Scheduler('ddim(eta={eta})', …)")
        if use_clipped_model_output is False and self._trained.rule is not None:
            raise ValueError(
                "use_clipped_model_output=False: every prediction follows from the clipped x_0 here; give True or None,"
                " or make the Scheduler with clip=False"
            )
        if self._trained.preconditioning is not None and self._scaled != run.index:
            raise ValueError("step: an EDM network takes c_in·x: call scale_model_input(sample, timestep) before it")
        if model_output.shape[1] == 2 * sample.shape[1]:  # a learned variance
            model_output = model_output[:, : sample.shape[1]]
        if model_output.shape != sample.shape:
            raise ValueError(
                f"step: model_output has shape {list(model_output.shape)}, sample {list(sample.shape)}: they must be"
                " equal"
            )
        x = run.step(model_output, sample, generator)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def _ready(self, timestep: Any, sample: Tensor) -> Run:
        """The run, begun where ``timestep`` says if this is its first evaluation."""
        if self._plan is None:
            raise ValueError("set_timesteps must be called before a run")
        told = number_of(timestep)
        if self._run is None:
            index = self._begin_index
            if index is None:
                index = self._index_of(float(timestep) if told is None else told)
            plan = self._from(self._plan, index).to(sample.device, precise(sample.dtype), sample.shape[1:])
            self._run = Run(self._trained, plan, index)
        if told is not None and self._run.index < len(self._told) and not equal(told, self._told[self._run.index]):
            raise ValueError(
                f"timestep={told:.6g}, but the run's next is {self._told[self._run.index]:.6g}: take them from"
                " timesteps, in order, and call set_timesteps before another run"
            )
        return self._run

    def _from(self, plan: Plan, index: int) -> Plan:
        if index == 0:
            return plan
        if not 0 < index < len(self._told):
            raise ValueError(f"begin_index={index}: it must lie in 0 … {len(self._told) - 1}")
        return rest(self._rule, self._trained.process, plan, index)

    def _index_of(self, told: float) -> int:
        found = [i for i, one in enumerate(self._told) if equal(told, one)]
        if not found:
            raise ValueError(f"timestep={told:.6g} is none of the scheduler's timesteps")
        return found[-1]  # of two at one place the second begins a step

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x = α x_0 + σ ε at each timestep [n], any of the network's: nothing of the run is asked."""
        process, x0 = self._trained.process, original_samples
        told = torch.as_tensor(timesteps, device=x0.device)
        t = torch.as_tensor(self._trained.clock.time(process, told.to(clock(x0))))
        t = t.clamp(process.t_min, process.t_max) if is_flow(self._trained) else t
        dtype = precise(x0.dtype)
        alpha, sigma = (match(c.to(dtype), x0) for c in (process.alpha(t), process.sigma(t)))
        return (alpha * x0.to(dtype) + sigma * noise.to(dtype)).to(x0.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """``add_noise`` by the name that it has in flow matching's pipelines."""
        return self.add_noise(sample, noise, timestep)


_DDPM = {"_class_name": "DDPMScheduler"}
_OWN = ("solver", "grid", "final", "clip")


def _kept(like: Any) -> dict[str, Any]:
    """The configuration of ``like``, which stays readable for pipelines and for other schedulers' from_config."""
    name, values = settings(like)
    return {**{key: value for key, value in values.items() if key not in _OWN}, "trained_class": name}
