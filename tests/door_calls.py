"""Bad calls of everything public: one argument at a time replaced by an odd value. See ``test_door.py``.

    python tests/door_calls.py 10000    # so many calls drawn by hypothesis, beside every plain odd value once

Prints one JSON object. It runs in a process of its own, since the tests check sdekit's signatures by beartype as well.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import decimal
import fractions
import inspect
import io
import json
import math
import os
import re
import signal
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import sdekit as sk

SECONDS = 5
UNCOVERED = {
    "elementwise": "formulas of a process, called at each time of a run: what they do not know math or torch refuses",
    "interop": "its modules are walked by themselves, those that need no other library",
}
INTEROP = ("edm", "flow_matching", "k_diffusion", "score_sde", "torchcfm")
ERRORS = ("Interrupted", "WeightsWarning")
"""Exceptions and warnings: they carry a result out, nobody calls them."""


def net(x: Tensor, t: Tensor, label: Tensor | None = None, **_: object) -> Tensor:
    return 0.1 * x


class Timed(torch.nn.Module):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return 0.1 * x


def model() -> sk.ScoreModel:
    return sk.ScoreModel(net, sk.VP())


def x(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or (6, 2), generator=torch.Generator().manual_seed(seed))


def mixture() -> sk.targets.GaussianMixture:
    return sk.targets.GaussianMixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 0.5)


def line() -> sk.targets.GaussianMixture:
    return sk.targets.GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.5)


def fields_of(record: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(record):
        return {field.name: getattr(record, field.name) for field in dataclasses.fields(record) if field.init}
    return dict(record._asdict())


def guided() -> sk.guidance.ClassifierFree:
    return sk.guidance.ClassifierFree(model(), 2.0, null={"label": torch.tensor(0)})


def seen() -> sk.inverse.Measurement:
    keep = sk.inverse.Mask(torch.tensor([True, False]))
    return sk.inverse.Measurement(keep, torch.tensor([0.5]), sk.inverse.GaussianNoise(0.5))


def comparison() -> sk.Comparison:
    if not _COMPARISON:
        result = sk.compare(model(), x(8, 2), solvers=["ddim"], nfe=[2], samples=8, metrics=["rmse"])
        _COMPARISON.append(result)
    return _COMPARISON[0]


_COMPARISON: list[sk.Comparison] = []


def plan() -> sk.solvers.Plan:
    return sk.solvers.get("ddim").plan(sk.VP(), nfe=3)


def statistics() -> dict[str, Any]:
    ends = [sk.VP().half_log_snr(t) for t in (1.0, 1e-3)]
    at = torch.linspace(*ends, 20, dtype=torch.float64)
    return {"process": sk.VP(), "half_log_snr": at, "linear": at * 0 + 1, "scaling": at * 0, "bias": at * 0}


def tuned() -> Any:
    return sk.tune(model(), (1, 2), 2, starts=12, budget=20_000, choices=[("ddim", "logsnr")])


def family() -> Any:
    if not _FAMILY:
        _FAMILY.append(sk.tune_family(model(), (1, 2), range(3, 5), starts=200, budget=0))
    return _FAMILY[0]


_FAMILY: list[Any] = []


def saved() -> str:
    sk.nn.save_network("net.safetensors", sk.nn.UNet(widths=(4,), embedding=4, groups=2, heads=1), {})
    return "net.safetensors"


def shipped(name: str) -> str:
    return os.path.join(os.path.dirname(sk.__file__), "weights", f"{name}.safetensors")


def folder() -> str:
    sk.nn.save(sk.ScoreModel(sk.nn.UNet(widths=(4,), embedding=4, groups=2, heads=1), sk.VP()), "model")
    return "model"


def solver_file() -> str:
    if not os.path.exists("tuned.json"):
        tuned().save("tuned.json")
    return "tuned.json"


def report_folder() -> str:
    if not os.path.exists("report"):
        sk.compare(model(), x(8, 2), solvers=["ddim"], nfe=[2], samples=8, metrics=["rmse"], out="report")
    return "report"


def console() -> Any:
    from rich.console import Console

    return Console(file=io.StringIO())


def two(**more: Any) -> dict[str, Any]:
    return {"x": x(), "y": x(seed=1), **more}


def sampled(**more: Any) -> dict[str, Any]:
    return {"model": model(), "shape": (2, 2), **more}


def small() -> torch.nn.Module:
    return sk.nn.Classifier(width=2, features=2, classes=2)


def step_loss(network: torch.nn.Module, step: int) -> Tensor:
    return sum(parameter.square().sum() for parameter in network.parameters())  # type: ignore[return-value]


def no_look(network: torch.nn.Module, steps: int) -> float:
    return 1.0


class Dense(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, 2))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return x * self.weight.sum()


class Velocity(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Linear(2, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        return self.gain(torch.stack([t, end], 1)) * x


def mean_velocity() -> sk.ScoreModel:
    return sk.ScoreModel(Velocity(), sk.Flow(), "flow")


def optimisation() -> sk.training.Optimisation:
    return sk.training.Optimisation(steps=2, lr=1e-3, warmup=1)


VP = sk.VP
SEED = {"seed": 0}
DOORS: dict[str, Callable[[], dict[str, Any]]] = {
    # processes, models, grids
    "EDM": lambda: {"t_min": 0.002, "t_max": 80.0},
    "VE": lambda: {"sigma_min": 0.01, "sigma_max": 50.0, "t_min": 0.0, "t_max": 1.0},
    "VP": lambda: {"beta_min": 0.1, "beta_max": 20.0, "t_min": 1e-3, "t_max": 1.0},
    "SubVP": lambda: {"beta_min": 0.1, "beta_max": 20.0, "t_min": 1e-3, "t_max": 1.0},
    "SigmoidVP": lambda: {"start": -3.0, "end": 3.0, "tau": 1.0, "t_min": 1e-3, "t_max": 0.99},
    "LearnedVP": lambda: {
        "curve": sk.process.MonotoneCurve(4), "first": 4.0, "last": -4.0, "t_min": 0.01, "t_max": 0.99
    },
    "process.MonotoneCurve": lambda: {"width": 4},
    "LaplaceVP": lambda: {"mu": 0.0, "b": 1.0, "t_min": 1e-3, "t_max": 0.99},
    "CosineVP": lambda: {"s": 0.008, "t_min": 1e-3, "t_max": 0.99},
    "DiscreteVP": lambda: {"betas": [0.1, 0.2]},
    "DiscreteVP.linear": lambda: {"steps": 100},
    "Flow": lambda: {"t_min": 1e-3, "t_max": 0.999},
    "ScoreModel": lambda: {
        "net": net, "process": VP(), "predicts": "eps", "time": "t", "dtype": torch.float32, "check_finite": False
    },
    "Grid": lambda: fields_of(sk.Grid.make(VP(), "time", 3)),
    "Grid.make": lambda: {"process": VP(), "grid": "time", "evaluations": [1, 1, 1]},
    "table_times": lambda: {"process": sk.DiscreteVP.linear(100), "spacing": "leading", "count": 5, "steps_offset": 0},
    # sampling
    "sample": lambda: sampled(
        solver="ddim", nfe=3, steps=None, grid="time", seed=0, noise="independent",
        corrector=sk.Langevin(steps=1), start=None, final="auto", keep="last", callback=lambda step, t, x: None,
        progress=False, batch_size=2, first=0, dtype=torch.float32, device="cpu",
    ) | {"nfe": 8},
    "sample#start": lambda: sampled(solver="ddim", nfe=3, start=x(2, 2), label=1),
    "sample_adaptive": lambda: sampled(
        method="dpm-solver-12", rtol=0.5, atol=0.1, control="pi", noise="brownian", seed=0, start=x(2, 2), final="auto",
        max_nfe=200, progress=False, batch_size=2, dtype=torch.float32, device="cpu",
    ),
    "march": lambda: {
        "plan": plan(), "model": model(), "x": x(2, 2), "draw": lambda start, end: torch.zeros(2, 2), "correct": None,
        "look": True,
    },
    "Solution": lambda: fields_of(sk.sample(model(), (2, 2), nfe=2, keep="all", seed=0)),
    "AdaptiveSolution": lambda: fields_of(sk.sample_adaptive(model(), (2, 2), rtol=0.5, atol=0.1, seed=0)),
    "Adaptive": lambda: {"method": "dpm-solver-12", "rtol": 0.1, "atol": 0.1, "control": "pi"},
    "parallel.sample": lambda: sampled(
        solver="ddim", nfe=3, steps=None, grid="time", seed=0, noise="independent", start=x(2, 2), final="auto",
        window=4, tolerance=1e-3, progress=False, batch_size=2, first=0, dtype=torch.float32, device="cpu",
    ),
    "parallel.Parallel": lambda: {"solver": "ddim", "tolerance": 1e-3, "window": 4},
    "parallel.ParallelSolution": lambda: fields_of(sk.parallel.sample(model(), (2, 2), nfe=2, seed=0)),
    "parallel.named": lambda: {"spec": "parallel(solver='ddim')"},
    "Langevin": lambda: {"snr": 0.1, "steps": 1, "norms": "sample"},
    "Thresholded": lambda: {"model": model(), "rule": lambda x0: x0.clamp(-1, 1)},
    "Latent": lambda: {"model": model(), "decoder": lambda z: z, "scale": 1.0, "shift": 0.0, "encoder": lambda z: z},
    "latent": lambda: {"model": model(), "decoder": lambda z: z, "scale": 1.0, "shift": 0.0, "encoder": lambda z: z},
    # ODE and likelihood
    "encode": lambda: {"model": model(), "x0": x(2, 2), "method": "heun", "steps": 3},
    "decode": lambda: {"model": model(), "z": x(2, 2), "method": "heun", "steps": 3},
    "flow": lambda: {"model": model(), "x": x(2, 2), "t0": 0.9, "t1": 0.5, "method": "heun", "steps": 3},
    "ode.integrate": lambda: {
        "model": model(), "x": x(2, 2), "t0": 0.9, "t1": 0.5, "method": "per-sample", "variable": "half-log-snr",
        "rtol": 0.1, "atol": 0.1, "steps": None, "grid": "auto", "gradients": "none", "max_attempts": 50,
        "options": None, "evaluate": None, "probes": 0,
    },
    "ode.plan_between": lambda: {
        "solver": "ddim", "process": VP(), "t0": 0.9, "t1": 0.5, "steps": 3, "grid": "auto"
    },
    "ode.rows_of": lambda: {"conditions": {"label": x(2)}, "rows": torch.tensor([0]), "n": 2},
    "ode.state_of": lambda: {"model": model(), "x": x(2, 2), "t": 0.5},
    "ode.Path": lambda: fields_of(sk.ode.integrate(model(), x(2, 2), 0.9, 0.5, rtol=0.1, atol=0.1)),
    "log_prob": lambda: {
        "model": model(), "x": x(2, 2), "t": None, "divergence": "hutchinson", "probes": 2,
        "distribution": "rademacher", "mode": "vjp", "chunk_size": None, "seed": 0, "first": 0, "quantization": None,
        "dequantisation": "uniform", "draws": 1, "prior": None, "method": "per-sample", "variable": "half-log-snr",
        "rtol": 0.1, "atol": 0.1, "steps": None, "grid": "auto", "gradients": "none", "max_attempts": 50,
        "options": None,
    },
    "LogLikelihood": lambda: fields_of(sk.log_prob(model(), x(2, 2), rtol=0.1, atol=0.1, probes=1)),
    "elbo": lambda: {
        "model": model(), "x": x(2, 2), "kind": "score-flow", "times": 2, "quantization": None, "steps": None,
        "grid": "time", "seed": 0, "first": 0,
    },
    "divergence.divergence": lambda: {
        "f": lambda x: x * 2, "x": x(2, 2), "probes": sk.divergence.draw_probes(x(2, 2), 2), "method": "hutchinson",
        "mode": "vjp", "chunk_size": 1,
    },
    "divergence.draw_probes": lambda: {
        "x": x(2, 2), "count": 2, "distribution": "rademacher", "seed": 0, "first": 0
    },
    "divergence.forward_mode": lambda: {"message": "no forward mode"},
    # comparing, fitting, tuning
    "compare": lambda: {
        "model": model(), "reference": x(8, 2), "solvers": ["ddim"], "nfe": [2], "grid": "auto", "samples": 8,
        "seed": 0, "real": x(8, 2, seed=2), "features": None, "metrics": ["rmse"], "law": mixture(), "train": x(8, 2),
        "target": "model", "out": None, "batch_size": 8, "progress": None,
    },
    "Comparison": lambda: fields_of(comparison()),
    "fit_ays": lambda: {
        "model": model(), "x0": x(8, 2), "steps": 2, "start": "logsnr", "sweeps": 1, "candidates": 5, "seed": 0
    },
    "fit_gits": lambda: {
        "model": model(), "start": x(4, 2), "steps": 2, "solver": "ddim", "gammas": (1.0, 1.1), "teacher": "ddim",
        "candidates": "logsnr", "teacher_steps": 6,
    },
    "fit_statistics": lambda: {
        "model": model(), "data": x(8, 2), "knots": 5, "seed": 0, "batch_size": 8, "progress": False
    },
    "fit_dpm_v3": lambda: {
        "model": model(), "data": x(8, 2), "order": 2, "predictor": "full", "corrector": "full", "half": False,
        "lower_order_final": True, "knots": 5, "seed": 0, "batch_size": 8, "progress": False,
    },
    "tune": lambda: {
        "model": model(), "shape": (1, 2), "nfe": 2, "starts": 12, "budget": 20_000, "memory": 2,
        "choices": [("ddim", "logsnr")], "endpoints": None, "batch_size": None, "seed": 0, "progress": None,
    },
    "tune_family": lambda: {
        "model": model(), "shape": (1, 2), "nfe": range(3, 5), "starts": 200, "budget": 0, "endpoints": None,
        "batch_size": None, "seed": 0, "progress": None,
    },
    "tuning.Family": lambda: fields_of(family()),
    "load_solver": lambda: {"path": solver_file(), "model": model(), "force": False},
    "tuning.Table": lambda: {"predicts": "x0", "times": (1.0,), "anchor": (0.0,), "history": ((1.0,),)},
    "tuning.Tuned": lambda: fields_of(tuned()),
    "tuning.starts": lambda: {"model": model(), "event": (2,), "stream": "train", "n": 2, "seed": 0},
    # data
    "Quantization": lambda: {"bins": 256, "mean": 0.5, "scale": 0.5, "position": 0.0},
    "data.Images": lambda: {
        "train": x(3, 1, 2, 2), "train_labels": torch.arange(3), "held_out": x(2, 1, 2, 2),
        "held_out_labels": torch.arange(2), "classes": 3,
    },
    "data.Standardise": lambda: {"shift": torch.zeros(2), "scale": torch.ones(2)},
    "data.as_tensor": lambda: {"x": x(2, 2), "device": "cpu"},
    "data.digits": dict,
    "data.every_third": lambda: {"labels": torch.tensor([0, 0, 1])},
    # guidance
    "guidance.Autoguided": lambda: {"model": model(), "weak": model(), "scale": 2.0, "rule": None},
    "guidance.ClassifierFree": lambda: {
        "model": model(), "scale": 2.0, "null": {"label": torch.tensor(0)}, "rule": None, "doubled": True
    },
    "guidance.ClassifierGuided": lambda: {
        "model": model(), "log_prob": lambda x, t: -x.square().sum(1), "scale": 1.0, "only": ()
    },
    "guidance.Given": lambda: {"model": model(), "label": 3},
    "guidance.Interval": lambda: {"guided": guided(), "low": 0.1, "high": 2.0},
    "guidance.Projected": lambda: {"eta": 0.0, "norm": 2.0, "kind": "x0"},
    "guidance.Renoised": lambda: {"omega": 0.5, "times": (1.0, 0.5)},
    "guidance.Rescaled": lambda: {"phi": 0.7, "kind": "v"},
    "guidance.Tilted": lambda: fields_of(sk.guidance.tilted(guided(), (16, 2), steps=2, seed=0, label=1)),
    "guidance.sample_plus_plus": lambda: sampled(
        scale=0.5, null={"label": torch.tensor(0)}, steps=2, grid="logsnr", doubled=True, label=torch.tensor([1, 1])
    ),
    "guidance.tilted": lambda: {
        "guided": guided(), "shape": (16, 2), "steps": 2, "grid": "logsnr", "noise_level": 1.0, "resample_below": 0.9,
        "seed": 0, "final": "denoise", "dtype": torch.float32, "label": 1,
    },
    # inverse problems
    "inverse.Blur": lambda: {"event": (1, 4, 4), "std": 1.0},
    "inverse.Differentiable": lambda: {"function": lambda x: x**2, "event": (2,)},
    "inverse.Downsample": lambda: {"event": (1, 4, 4), "factor": 2},
    "inverse.GaussianNoise": lambda: {"std": 0.1},
    "inverse.Linear": lambda: {"function": lambda x: 2 * x, "event": (2,)},
    "inverse.Mask": lambda: {"keep": torch.tensor([True, False])},
    "inverse.Measurement": lambda: fields_of(seen()),
    "inverse.Method": lambda: fields_of(sk.inverse.method("dps")),
    "inverse.PoissonNoise": lambda: {"rate": 2.0, "offset": 1.0},
    "inverse.Posterior": lambda: fields_of(sk.inverse.sample_posterior(model(), seen(), (2, 2), nfe=3, seed=0)),
    "inverse.Projection": lambda: {"event": (4,), "size": 2, "seed": 0},
    "inverse.RotatedMixture": lambda: {
        "means": torch.zeros(2, 2), "variances": torch.ones(2, 2), "basis": torch.eye(2), "log_weights": torch.zeros(2)
    },
    "inverse.Spectrum": lambda: fields_of(sk.inverse.Spectrum.of(seen().operator)),
    "inverse.coverage": lambda: {"x": x(3, 19, 2), "truth": x(3, 2), "level": 0.9},
    "inverse.draw": lambda: {"x": x(3, 2), "operator": seen().operator, "noise": seen().noise, "seed": 0},
    "inverse.log_evidence": lambda: {"target": mixture(), "measurement": seen()},
    "inverse.method": lambda: {"name": "dps"},
    "inverse.operator": lambda: {"task": "inpaint", "event": (1, 4, 4)},
    "inverse.posterior": lambda: {"target": mixture(), "measurement": seen()},
    "inverse.psnr": lambda: {"x": x(2), "truth": x(2, seed=1), "span": 2.0},
    "inverse.register": lambda: {
        "name": "odd", "reference": "", "solver": "ddim", "grid": "logsnr", "exact": False, "operators": "linear"
    },
    "inverse.sample_posterior": lambda: {
        "model": model(), "measurement": seen(), "shape": (2, 2), "method": "dps", "nfe": 3, "seed": 0,
        "solver": "ddim", "grid": "logsnr", "measured": torch.zeros(2, 1), "populations": 1,
        "dtype": torch.float32, "batch_size": 2,
    },
    "inverse.scores": lambda: {"x": x(3, 2), "truth": x(2), "measurement": seen(), "span": 2.0, "law": mixture()},
    "inverse.ssim": lambda: {"x": x(1, 8, 8), "truth": x(1, 8, 8, seed=1), "span": 2.0},
    # metrics
    "metrics.Metric": lambda: fields_of(sk.metrics.METRICS["rmse"]),
    "metrics.PRDC": lambda: fields_of(sk.metrics.prdc(x(8, 2), x(8, 2, seed=1), 3)),
    "metrics.authenticity": lambda: {"x": x(), "train": x(seed=1)},
    "metrics.classifier_accuracy": lambda: two(classifier=None, seed=0) | {"x": x(20, 2), "y": x(20, 2, seed=1)},
    "metrics.cmmd": lambda: two(sigma=10.0, scale=1000.0),
    "metrics.ct_statistic": lambda: {
        "x": x(40, 2), "y": x(40, 2, seed=1), "train": x(40, 2, seed=2), "cells": 1
    },
    "metrics.energy_distance": two,
    "metrics.frechet_distance": two,
    "metrics.frechet_infinity": lambda: {"x": x(40, 2), "y": x(40, 2, seed=1), "points": 3},
    "metrics.kernel_distance": lambda: two(block=10),
    "metrics.mmd": lambda: two(sigma=1.0),
    "metrics.mode_weights_error": lambda: {"x": x(), "law": mixture()},
    "metrics.negative_log_likelihood": lambda: {"x": x(), "law": mixture()},
    "metrics.nll_gap": lambda: two(law=mixture()),
    "metrics.prdc": lambda: two(k=2),
    "metrics.quantile_error": lambda: {"x": x(), "reference": x(seed=1), "q": 0.5},
    "metrics.rmse": lambda: {"x": x(), "reference": x(seed=1)},
    "metrics.sliced_wasserstein": lambda: two(p=2, projections=4, seed=0),
    "metrics.vendi_gap": two,
    "metrics.vendi_score": lambda: {"x": x()},
    "metrics.wasserstein": two,
    # networks and training
    "nn.Classifier": lambda: {"width": 2, "features": 2, "classes": 2},
    "nn.UNet": lambda: {
        "channels": 1, "widths": (4, 8), "blocks": 1, "embedding": 4, "heads": 2, "groups": 2, "classes": 2,
        "slowest": 0.1, "fastest": 4.0,
    },
    "capture": lambda: {
        "model": model(), "shape": (4, 2), "solver": "ddim", "nfe": 3, "steps": None, "grid": "auto", "final": "auto",
        "dtype": torch.float32,
    },
    "interpolants.Interpolant": lambda: {
        "alpha": lambda t: 1 - t, "beta": lambda t: t, "gamma": lambda t: t * (1 - t)
    },
    "interpolants.InterpolantProcess": lambda: {"curve": sk.interpolants.linear(), "t_min": 0.01, "t_max": 0.99},
    "interpolants.linear": lambda: {"gamma": 1.0},
    "interpolants.trigonometric": lambda: {"gamma": 1.0},
    "interpolants.interpolant": lambda: {"name": "linear", "gamma": 1.0},
    "interpolants.interpolant_losses": lambda: {
        "curve": sk.interpolants.linear(), "velocity": lambda x, t: x, "denoiser": lambda x, t: x, "x0": x(2, 2),
        "x1": x(2, 2, seed=1), "t": torch.tensor([0.1, 0.9]), "z": x(2, 2, seed=2),
    },
    "interpolants.follow": lambda: {
        "velocity": lambda x, t: -x, "x": x(2, 2), "start": 1.0, "end": 0.0, "rtol": 1e-2, "atol": 1e-2
    },
    "interpolants.diffuse": lambda: {
        "curve": sk.interpolants.linear(), "velocity": lambda x, t: -x, "denoiser": lambda x, t: x, "x": x(2, 2),
        "noise_level": lambda t: t * (1 - t), "start": 1.0, "end": 0.0, "steps": 3, "seed": 0,
    },
    "transport.entropic_plan": lambda: {"costs": x(3, 3)},
    "nn.MLP": lambda: {
        "size": 2, "width": 4, "blocks": 1, "classes": 2, "condition": 2, "ends": False, "slowest": 0.1, "fastest": 4.0,
    },
    "nn.DiT": lambda: {
        "channels": 1, "patch": 2, "width": 4, "blocks": 1, "heads": 1, "classes": 2, "condition": 2, "ends": False,
        "slowest": 0.1, "fastest": 4.0,
    },
    "nn.preconditioned": lambda: {"net": Dense(), "process": VP(), "sigma_data": 0.5},
    "nn.digits_features": lambda: {"device": "cpu"},
    "nn.digits_few_model": lambda: {"device": "cpu"},
    "nn.digits_model": lambda: {"device": "cpu"},
    "nn.load": lambda: {"folder": folder(), "device": "cpu"},
    "nn.load_model": lambda: {"path": shipped("digits"), "device": "cpu"},
    "nn.load_network": lambda: {"path": saved(), "device": "cpu"},
    "nn.save": lambda: {"model": sk.ScoreModel(small_unet(), VP()), "folder": "model"},
    "nn.save_network": lambda: {"path": "net.safetensors", "net": small_unet(), "metadata": {}},
    "training.Batches": lambda: {"batch": 4, "label_dropout": 0.0, "null_label": 0, "seed": 0},
    "training.MeanFlow": lambda: {
        "mean": 0.0, "std": 1.0, "instant": 0.5, "power": 1.0, "batch": 4, "label_dropout": 0.0, "null_label": 0,
        "seed": 0,
    },
    "training.mean_flow_loss": lambda: {
        "model": mean_velocity(), "x0": x(2, 2), "t": torch.tensor([0.1, 0.9]), "r": torch.tensor([0.0, 0.5]),
        "eps": x(2, 2, seed=1),
    },
    "training.mean_flow_steps": lambda: {"model": mean_velocity(), "start": x(2, 2), "nfe": 2},
    "training.pairs": lambda: {
        "teacher": model(), "shape": (4, 2), "solver": "ddim", "nfe": 3, "seed": 0, "batch_size": None,
        "progress": False,
    },
    "training.train_mean_flow": lambda: {
        "model": mean_velocity(), "data": x(8, 2), "labels": None, "task": sk.training.MeanFlow(batch=4),
        "plan": optimisation(), "checkpoint": None, "progress": False, "watch": None,
    },
    "training.train_progressive": lambda: {
        "teacher": sk.ScoreModel(Dense(), VP()), "data": x(8, 2), "labels": None, "steps": 2, "grid": "logsnr",
        "task": sk.training.Batches(batch=4), "plan": optimisation(), "checkpoint": None, "progress": False,
        "watch": None,
    },
    "training.train_reflow": lambda: {
        "model": sk.ScoreModel(Dense(), VP()), "x0": x(8, 2), "eps": x(8, 2, seed=1), "labels": None,
        "times": "uniform", "task": sk.training.Batches(batch=4), "plan": optimisation(), "checkpoint": None,
        "progress": False, "watch": None,
    },
    "training.two_steps": lambda: {
        "teacher": model(), "x": x(2, 2), "t": torch.tensor([0.8, 0.9]), "between": torch.tensor([0.5, 0.6]),
        "s": torch.tensor([0.2, 0.3]),
    },
    "training.Snapshot": lambda: {"sigma_rel": 0.1, "step": 2, "weights": {"w": torch.zeros(2)}},
    "training.decay_at": lambda: {"sigma_rel": 0.1, "step": 2},
    "training.exponent": lambda: {"sigma_rel": 0.1},
    "training.reconstructed": lambda: {
        "snapshots": [sk.training.Snapshot(0.1, 5, {"w": torch.zeros(2)})], "sigma_rel": 0.1, "step": 5
    },
    "training.Checkpoint": lambda: {"path": "a.ckpt", "every": 20.0, "log": "a.jsonl"},
    "training.Consistency": lambda: {
        "times": "importance", "stages": 2, "base": 2.0, "batch": 4, "label_dropout": 0.0, "null_label": 0, "seed": 0
    },
    "training.consistency_loss": lambda: {
        "model": model(), "x0": x(2, 2), "t": torch.tensor([0.1, 0.9]), "r": torch.tensor([0.0, 0.5]),
        "eps": x(2, 2, seed=1), "teacher": None,
    },
    "training.log_normal_times": lambda: {"process": VP(), "u": torch.rand(3), "mean": -1.2, "std": 1.2},
    "training.score_matching_loss": lambda: {
        "model": model(), "x0": x(2, 2), "t": torch.tensor([0.1, 0.9]), "eps": x(2, 2, seed=1), "probes": None
    },
    "training.time_sampler": lambda: {"spec": "uniform"},
    "training.train_consistency": lambda: {
        "model": sk.ScoreModel(Dense(), VP()), "data": x(8, 2), "labels": None,
        "task": sk.training.Consistency(batch=4), "plan": optimisation(), "teacher": None, "checkpoint": None,
        "progress": False, "watch": None,
    },
    "training.coupling": lambda: {"spec": "optimal"},
    "training.weighting": lambda: {"spec": "simple"},
    "training.Denoising": lambda: {
        "predicts": "x0", "time": "half-log-snr", "times": "importance", "weights": None,
        "coupling": "independent", "batch": 4,
        "label_dropout": 0.0, "null_label": 0, "seed": 0,
    },
    "training.Optimisation": lambda: {"steps": 2, "lr": 1e-3, "warmup": 1, "ema": 0.9},
    "training.batch_rows": lambda: {"count": 6, "batch": 4, "seed": 0, "step": 0},
    "training.denoising_loss": lambda: {
        "model": model(), "x0": x(2, 2), "t": torch.tensor([0.1, 0.9]), "eps": x(2, 2, seed=1)
    },
    "training.denoising_risk": lambda: {
        "model": model(), "x0": x(2, 2), "times": "uniform", "seed": 0, "step": 0
    },
    "training.fit": lambda: {
        "net": small(), "loss_at": step_loss, "plan": optimisation(), "identity": {}, "checkpoint": None,
        "progress": False, "watch": None,
    },
    "training.Watch": lambda: {"look": no_look, "every": 2, "patience": None},
    "training.HeldOut": lambda: {
        "process": VP(), "data": x(8, 2), "labels": None, "task": sk.training.Denoising(batch=4), "draws": 2
    },
    "training.importance_times": lambda: {"process": VP(), "u": torch.rand(3)},
    "training.lerp_weights": lambda: {"average": [torch.zeros(2)], "weights": [torch.ones(2)], "decay": 0.5},
    "training.stratified": lambda: {"count": 3, "seed": 0, "step": 0, "device": "cpu"},
    "training.train_denoiser": lambda: {
        "net": Dense(), "process": VP(), "data": x(8, 2), "labels": None, "task": sk.training.Denoising(batch=4),
        "plan": optimisation(), "checkpoint": None, "progress": False, "watch": None,
    },
    "training.uniform_times": lambda: {"process": VP(), "u": torch.rand(3)},
    # pictures and reports
    "plots.DensityImage": lambda: {"t": torch.rand(3), "edges": torch.rand(4), "values": torch.rand(3, 3)},
    "plots.Plane": lambda: {"x": torch.rand(3), "y": torch.rand(2), "values": torch.rand(2, 3)},
    "plots.denoising": lambda: {
        "model": model(), "shape": (1, 1, 4, 4), "solver": "ddim", "nfe": 4, "grid": "auto", "columns": 2, "seed": 0
    },
    "plots.forward_diffusion": lambda: {
        "target": line(), "process": VP(), "paths": 2, "samples": 20, "panels": 2, "seed": 0
    },
    "plots.reverse_diffusion": lambda: {
        "target": line(), "process": VP(), "model": None, "solvers": ["ddim"], "nfe": 4, "grid": "time", "paths": 2,
        "samples": 20, "seed": 0,
    },
    "plots.samplers": lambda: {
        "target": mixture(), "process": VP(), "solvers": ["ddim"], "nfe": [2], "model": None, "grid": "auto",
        "samples": 20, "seed": 0,
    },
    "plots.schedules": lambda: {"processes": [VP()]},
    "plots.score_field": lambda: {
        "target": mixture(), "process": VP(), "times": [0.5], "model": None, "arrows": 3
    },
    "plots.single_value": lambda: {
        "value": 8.0, "std": 0.25, "process": VP(), "short": None, "nfe": 4, "paths": 2, "samples": 20, "seed": 0
    },
    "plots.trajectories": lambda: {
        "model": model(), "shape": (2, 2), "solvers": ["ddim"], "nfe": 3, "grid": "auto", "seed": 0, "data": x(8, 2)
    },
    "report.Origin": lambda: {"model": model(), "law": mixture(), "conditions": {}},
    "report.contact_sheet": lambda: {"result": comparison(), "path": "sheet.png"},
    "report.csv": lambda: {"result": comparison()},
    "report.frame": lambda: {"result": comparison()},
    "report.html": lambda: {"result": comparison(), "command": "", "hardware": ""},
    "report.latex": lambda: {"result": comparison(), "metrics": ["rmse"]},
    "report.picture": lambda: {"result": comparison(), "path": "picture.png"},
    "report.pictures_of": lambda: {"x": x(2, 1, 4, 4), "real": x(2, 1, 4, 4), "path": "pictures.png"},
    "report.read": lambda: {"folder": report_folder()},
    "report.rebuild": lambda: {"folder": report_folder()},
    "report.show": lambda: {"result": comparison(), "console": console()},
    "report.show_solvers": lambda: {"console": console(), "chosen": [sk.solvers.get("ddim")]},
    "report.tables": lambda: {"result": comparison()},
    "report.text": lambda: {"result": comparison()},
    "report.write": lambda: {"result": comparison(), "out": "written", "command": "", "origin": None},
    # solvers
    "solvers.Draw": lambda: {"coefficient": 1.0, "start": -0.5, "end": 0.5},
    "solvers.Row": lambda: fields_of(plan().rows[0]),
    "solvers.Plan": lambda: fields_of(plan()),
    "solvers.Solver": lambda: fields_of(sk.solvers.get("ddim")),
    "solvers.Solver.plan": lambda: {
        "self": sk.solvers.get("ddim"), "process": VP(), "nfe": 3, "steps": None, "grid": "auto", "final": "auto"
    },
    "solvers.Statistics": statistics,
    "solvers.Between": lambda: {"low": 0, "high": 1},
    "solvers.exponential": lambda: {"kind": "eps", "s": VP().knot(0.9), "t": VP().knot(0.5), "count": 2},
    "solvers.full_steps": lambda: {"evaluations": 2},
    "solvers.get": lambda: {"solver": "ddim"},
    "solvers.names": dict,
    "solvers.phi": lambda: {"order": 1, "h": 0.5},
    "solvers.quadrature": lambda: {"nodes": [0.0, -1.0], "moments": [1.0, 0.5]},
    "solvers.register": lambda: {
        "name": "odd", "order": 1, "predicts": "eps", "reference": "", "evaluations": 1, "split": None,
        "invariant": True, "pathwise": True, "vary": None, "choose": None,
    },
    "solvers.starting": lambda: {"evaluations": 2, "steps": 1},
    # targets
    "targets.Empirical": lambda: {"data": x(4, 2), "bandwidth": 0.1},
    "targets.Gaussian": lambda: {"mean": torch.zeros(2), "cov": torch.eye(2)},
    "targets.GaussianMixture": lambda: {
        "means": torch.zeros(2, 2), "stds": 0.5, "weights": torch.tensor([0.5, 0.5])
    },
    "targets.Target": lambda: {"event": torch.Size([2])},
    "targets.Target.sample": lambda: {"self": mixture(), "n": 2, "seed": 0, "t": 0.5, "process": VP()},
    "targets.Target.log_prob": lambda: {"self": mixture(), "x": x(2, 2), "t": 0.5, "process": VP()},
    "targets.Target.model": lambda: {"self": mixture(), "process": VP(), "predicts": "eps"},
    # other libraries' networks
    "interop.edm.load": lambda: {"net": small_unet(), "path": saved(), "ema": False},
    "interop.edm.wrap": lambda: {"net": net, "sigma_min": 0.002, "sigma_max": 80.0},
    "interop.edm.sigma_range": lambda: {"net": net, "sigma_min": 0.002, "sigma_max": 80.0},
    "interop.flow_matching.wrap": lambda: {"model": net, "process": None},
    "interop.k_diffusion.sampler": lambda: {
        "solver": "ddim", "coordinates": "auto", "seed": 0, "noise": "independent"
    },
    "interop.k_diffusion.sigmas": lambda: {"solver": tuned()},
    "interop.k_diffusion.wrap": lambda: {"denoiser": net, "sigma_min": 0.02, "sigma_max": 80.0},
    "interop.score_sde.load": lambda: {"net": small_unet(), "path": saved(), "ema": False},
    "interop.score_sde.wrap": lambda: {"net": net, "process": VP(), "labels": None, "scales": 1000},
    "interop.torchcfm.wrap": lambda: {"net": Timed(), "one_time": False},
}  # fmt: skip


NEEDED = {"report.frame": "pandas"}
"""Packages that only some users have; without them there is no good call."""
for _name, _package in NEEDED.items():
    if find_spec(_package) is None:
        DOORS.pop(_name)


def small_unet() -> torch.nn.Module:
    return sk.nn.UNet(widths=(4,), embedding=4, groups=2, heads=1)


def public() -> dict[str, Callable[..., Any]]:
    """Every function and class that a user is offered: the package's names, and those of its public modules."""
    found = {name: getattr(sk, name) for name in sk.__all__}
    modules = {name: thing for name, thing in found.items() if inspect.ismodule(thing) and name not in UNCOVERED}
    modules |= {f"interop.{name}": getattr(sk.interop, name) for name in INTEROP}
    for place, module in modules.items():
        for name in getattr(module, "__all__", None) or vars(module):
            thing = getattr(module, name)
            home = getattr(thing, "__module__", "")
            own = home.startswith("sdekit") if hasattr(module, "__all__") else home == module.__name__
            if own and not name.startswith("_"):
                found[f"{place}.{name}"] = thing
    return {name: thing for name, thing in _first_names(found).items() if name.split(".")[-1] not in ERRORS}


def _first_names(found: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Without a second name of one thing, and without what nobody calls: protocols, abstract classes, constants."""
    seen = set[int]()
    called = dict[str, Callable[..., Any]]()
    for name, thing in found.items():
        kind = inspect.isfunction(thing) or inspect.isclass(thing)
        if (
            kind
            and id(thing) not in seen
            and not getattr(thing, "_is_protocol", False)
            and not inspect.isabstract(thing)
        ):
            called[name] = thing
            seen.add(id(thing))
    return called


def uncovered() -> list[str]:
    """What is public and has no good call here."""
    known = {*DOORS, *NEEDED}
    return [name for name, thing in public().items() if name not in known and not _takes_nothing(thing)]


def _takes_nothing(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return all(parameter.kind is parameter.VAR_POSITIONAL or parameter.name == "self" for parameter in parameters)


def function_of(name: str) -> Callable[..., Any]:
    thing: Any = sk
    for part in name.partition("#")[0].split("."):
        thing = getattr(thing, part)
    return thing


class Odd:
    def __repr__(self) -> str:
        return "<an object>"


def plain_odd() -> dict[str, Any]:
    """Odd values that every argument meets."""
    return {
        "None": None, "0": 0, "-1": -1, "True": True, "1.5": 1.5, "nan": math.nan, "inf": math.inf, "''": "",
        "'x'": "x",
        "[]": [], "[5]": [5], "['x']": ["x"], "{}": {}, "{'a': 1}": {"a": 1}, "set": {1}, "bytes": b"x",
        "tensor": torch.ones(3), "0-d": torch.tensor(2.0), "nan tensor": torch.full((2, 2), math.nan),
        "int tensor": torch.arange(4).reshape(2, 2), "empty tensor": torch.zeros(0, 2), "array": np.zeros((3, 3)),
        "object": Odd(), "dtype": torch.float32, "int dtype": torch.int64, "cuda:9": "cuda:9", "meta": "meta",
        "10**9": 10**9, "-10**9": -(10**9), "1e300": 1e300, "function": lambda: None, "module": math, "type": int,
        "complex": 1j, "Fraction": fractions.Fraction(1, 3), "Decimal": decimal.Decimal("0.5"), "np int": np.int64(3),
        "np float": np.float32(0.5), "tuple": (1, "x"), "None list": [None], "slice": slice(1), "...": ...,
        "generator": (i for i in "ab"), "exception": ValueError("odd"), "model": model(), "process": VP(),
        "strings": ("a", "b"), "nan list": [math.nan, math.nan], "huge int": 10**40,
        "namespace": types.SimpleNamespace(),
    }  # fmt: skip


scalars = (
    st.none() | st.booleans() | st.integers(-(10**12), 0) | st.integers(10**9, 10**30) | st.floats()
    | st.text(max_size=8) | st.binary(max_size=4) | st.complex_numbers() | st.fractions() | st.decimals()
)  # fmt: skip
parts = scalars.filter(lambda value: not (isinstance(value, int) and 10**7 < value < 10**13))  # sizes that fill memory
tensors = st.builds(
    lambda shape, value, dtype: torch.full(shape, value).to(dtype),
    st.lists(st.integers(0, 3), max_size=4),
    st.sampled_from([0.0, math.nan, math.inf, -1.0, 1e30]),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64]),
)
odd_values = (
    scalars | tensors | tensors.filter(lambda t: t.dtype != torch.bool).map(lambda t: t.numpy())
    | st.lists(parts | tensors, max_size=3) | st.lists(parts, max_size=3).map(tuple)
    | st.dictionaries(st.text(max_size=3) | st.integers(), scalars, max_size=2)
    | st.sampled_from(["cuda:9", "cuda", "meta", "mps", "xpu", "cpu:7", torch.device("meta"), torch.bool, torch.int8])
    | st.sampled_from([int, print, len, math.sin, torch.nn.Linear(2, 2), sk, Odd()])
)  # fmt: skip


def arguments_of(name: str) -> list[str]:
    return [argument for argument in DOORS[name]() if argument != "self"]


class Slow(BaseException):
    """A call that took longer than it may."""


def _stop(*_: object) -> None:
    raise Slow


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def has_nan(result: Any, depth: int = 3) -> bool:
    if isinstance(result, Tensor):
        return result.is_meta or (result.is_floating_point() and bool(result.isnan().any()))
    if isinstance(result, float):
        return math.isnan(result)
    if dataclasses.is_dataclass(result) and not isinstance(result, type) and depth:
        return any(has_nan(getattr(result, field.name), depth - 1) for field in dataclasses.fields(result))
    if isinstance(result, tuple | list) and depth:
        return any(has_nan(part, depth - 1) for part in result)
    return isinstance(result, Mapping) and bool(depth) and any(has_nan(part, depth - 1) for part in result.values())


def call(name: str, changed: Mapping[str, Any]) -> tuple[str, str]:
    """What came of one call: ``("fine" or "refused" or what is wrong, the text)``."""
    arguments = {**DOORS[name](), **changed}
    own = arguments.pop("self", None)
    args = () if own is None else (own,)
    if name in POSITIONAL:
        args = (*args, *(arguments.pop(word) for word in POSITIONAL[name]))
    try:
        with limited(SECONDS), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            result = function_of(name)(*args, **arguments)
            if inspect.isgenerator(result):
                result = list(result)
    except (ValueError, TypeError) as error:
        text = str(error)
        named = any(re.search(rf"(?<![A-Za-z]){re.escape(argument)}(?![A-Za-z])", text) for argument in changed)
        return ("refused", text) if named else ("not named", f"{type(error).__name__}: {text}")
    except Slow:
        return "slow", f"more than {SECONDS} s"
    except Exception as error:
        return "other exception", f"{type(error).__name__}: {error}"
    return ("silent NaN", "") if has_nan(result) and name not in UNKNOWN else ("fine", "")


UNKNOWN = (
    "log_prob", "LogLikelihood", "Solution", "AdaptiveSolution", "parallel.ParallelSolution", "metrics.PRDC",
    "ode.Path", "Comparison", "guidance.Tilted", "inverse.Posterior", "plots.DensityImage", "plots.Plane",
)  # fmt: skip
"""Where NaN is a part of the good answer: an error that a run did not measure, records of what was found."""
POSITIONAL: dict[str, tuple[str, ...]] = {}


def pairs() -> list[tuple[str, str]]:
    return [(name, argument) for name in DOORS for argument in arguments_of(name)]


def close() -> None:
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def run(drawn: int, only: str = "") -> dict[str, Any]:
    """Every plain odd value for every argument where ``drawn`` is large, some of them else; then hypothesis' draws."""
    counts, failures = collections.Counter[str](), list[str]()

    def note(name: str, argument: str, shown: str, value: Any) -> None:
        verdict, text = call(name, {argument: value})
        counts[verdict] += 1
        if verdict not in ("fine", "refused"):
            failures.append(f"{name}({argument}={shown}): {verdict}: {text[:300]}")
        close()

    every = [pair for pair in pairs() if re.match(only, pair[0])]
    for place, (name, argument) in enumerate(every):
        for number, (shown, value) in enumerate(plain_odd().items()):
            if drawn >= 10_000 or (number + place) % 20 == 0:
                note(name, argument, shown, value)

    @settings(
        max_examples=max(drawn, 1), database=None, deadline=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(every), odd_values)
    def odd(pair: tuple[str, str], value: Any) -> None:
        note(*pair, repr(value)[:60], value)

    if drawn:
        odd()
    return {"calls": sum(counts.values()), "counts": counts, "failures": failures}


def main() -> None:
    drawn, only = int(sys.argv[1]) if len(sys.argv) > 1 else 0, sys.argv[2] if len(sys.argv) > 2 else ""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    before = time.process_time()
    if missing := uncovered():
        sys.stdout.write(json.dumps({"uncovered": missing}))
        return
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        good = [f"{name}: {call(name, {})}" for name in DOORS if call(name, {})[0] != "fine"]
        result = run(drawn, only)
        os.chdir("/")
    told = {"good calls that fail": good, **result, "seconds": time.process_time() - before}
    sys.stdout.write(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
