"""Guidance: each wrapper against its formula, on mixtures whose conditional and unconditional predictions are exact."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sdekit as sk
from sdekit import guidance
from sdekit.identity import behaviour, identify
from sdekit.model import networks
from sdekit.targets import GaussianMixture
from sdekit.testing import simgpu

MEANS = torch.tensor([[-2.0, 0.5], [0.3, -1.0], [1.5, 1.0]])
PROCESSES = [sk.VP(), sk.VE(sigma_max=20.0), sk.Flow(), sk.EDM(t_max=20.0)]
KINDS = ["eps", "x0", "score", "v", "flow"]
X = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(6, 2)
LABEL = torch.tensor([0, 1, 2, 2, 1, 0])


def classes(process: sk.Process) -> list[sk.ScoreModel]:
    """The exact models of each mode alone, and of all three."""
    parts = [MEANS[:1], MEANS[1:2], MEANS[2:], MEANS]
    return [GaussianMixture(means.double(), 0.5).model(process) for means in parts]


class Mixture(torch.nn.Module):
    """A network that takes labels 0 … 2, and 3 for none."""

    def __init__(self, process: sk.Process) -> None:
        super().__init__()
        nets: list[Any] = [model.net for model in classes(process)]
        self.exact = torch.nn.ModuleList(nets)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        assert label.shape == t.shape == x.shape[:1]
        outputs = torch.stack([net(x, t) for net in self.exact])
        return outputs[label, torch.arange(len(x), device=x.device)]


def model(process: sk.Process = PROCESSES[0]) -> sk.ScoreModel:
    return sk.ScoreModel(Mixture(process), process, "eps")


def cfg(scale: Any = 2.5, inner: Any = None, **options: Any) -> guidance.ClassifierFree:
    return guidance.ClassifierFree(inner or model(), scale, null={"label": 3}, **options)


def truth(kind: str, x: Tensor, t: float, label: int, process: sk.Process = PROCESSES[0]) -> Tensor:
    return classes(process)[label].predict(kind, x, t)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("doubled", [True, False])
def test_classifier_free_guidance_is_the_line_through_both_predictions(process: Any, kind: str, doubled: bool) -> None:
    t, w = process.t_of_half_log_snr(-0.3), 2.5
    guided = cfg(w, model(process), doubled=doubled)
    free = truth(kind, X, t, 3, process)
    given = torch.stack([truth(kind, x[None], t, c, process)[0] for x, c in zip(X, LABEL.tolist())])
    torch.testing.assert_close(guided.predict(kind, X, t, label=LABEL), (1 - w) * free + w * given)
    assert guided.nfe == 2


@pytest.mark.parametrize("doubled", [True, False])
def test_a_run_counts_two_evaluations_for_each_call(doubled: bool) -> None:
    out = sk.sample(cfg(doubled=doubled), (6, 2), nfe=7, seed=0, label=LABEL, batch_size=4)
    assert out.nfe == 14


def test_scale_one_is_the_conditional_model_and_zero_the_unconditional_one() -> None:
    given, none = {"label": LABEL}, {"label": torch.full_like(LABEL, 3)}
    assert torch.equal(cfg(1.0).predict("eps", X, 0.5, **given), model().predict("eps", X, 0.5, **given))
    assert torch.equal(cfg(0.0).predict("eps", X, 0.5, **given), model().predict("eps", X, 0.5, **none))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_an_interval_is_one_of_noise_levels_whatever_the_process(process: Any) -> None:
    guided = cfg(4.0, model(process))
    limited = guidance.Interval(guided, 0.4, 2.0)
    for sigma, inside in ((0.39, False), (0.41, True), (1.99, True), (2.01, False)):
        t, before = process.t_of_half_log_snr(-math.log(sigma)), limited.nfe
        plain = model(process).predict("eps", X, t, label=LABEL)
        wanted = cfg(4.0, model(process)).predict("eps", X, t, label=LABEL) if inside else plain
        assert torch.equal(limited.predict("eps", X, t, label=LABEL), wanted)
        assert limited.nfe - before == 1 + inside


class Posterior(torch.nn.Module):
    """log p(c | x_t) of the exact classifier, less log p(c)."""

    def __init__(self, process: sk.Process) -> None:
        super().__init__()
        self.process = process
        self.free = GaussianMixture(MEANS.double(), 0.5)
        self.classes: Any = torch.nn.ModuleList([GaussianMixture(mean[None].double(), 0.5) for mean in MEANS])

    def forward(self, x: Tensor, t: Tensor, c: int | Tensor = 2) -> Tensor:
        given = torch.stack([part.log_prob(x, t, self.process) for part in self.classes])[
            c, torch.arange(len(x), device=x.device)
        ]
        return given - self.free.log_prob(x, t, self.process)


def wrappers() -> dict[str, Any]:
    process = PROCESSES[0]
    weak = GaussianMixture(MEANS.double(), 0.9).model(process)
    alone = guidance.Given(model(), label=1)
    posterior = Posterior(process)
    return {
        "classifier-free": cfg(),
        "two calls": cfg(doubled=False),
        "scheduled": cfg(lambda process, t: 1.0 + process.sigma(t)),
        "rescaled": cfg(rule=guidance.Rescaled()),
        "projected": cfg(rule=guidance.Projected(norm=1.0)),
        "interval": guidance.Interval(cfg(), 0.2, 1.0),
        "given": guidance.Given(cfg(), label=2),
        "autoguided": guidance.Autoguided(alone, weak, 1.5),
        "classifier": guidance.ClassifierGuided(alone, posterior, 1.5),
        "classifier on guidance": guidance.ClassifierGuided(guidance.Given(cfg(), label=0), posterior, 0.5),
        "interval of a classifier": guidance.Interval(guidance.ClassifierGuided(alone, posterior, 1.5), 0.2, 1.0),
    }


NEED_LABEL = {"classifier-free", "two calls", "scheduled", "rescaled", "projected", "interval"}
NAMES = list(wrappers())


def conditions(name: str, label: Tensor = LABEL) -> dict[str, Any]:
    return {"label": label} if name in NEED_LABEL else {}


@pytest.mark.parametrize("name", NAMES)
def test_a_time_for_each_sample_gives_each_what_its_own_time_gives(name: str) -> None:
    times = torch.linspace(0.01, 0.9, 6, dtype=torch.float64)
    together = wrappers()[name].predict("x0", X, times, **conditions(name))
    for i, t in enumerate(times.tolist()):
        alone = wrappers()[name].predict("x0", X[i : i + 1], t, **conditions(name, LABEL[i : i + 1]))
        torch.testing.assert_close(together[i : i + 1], alone)


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_is_the_same_prediction(name: str) -> None:
    t, guided = 0.3, wrappers()[name]
    alpha, sigma = guided.process.alpha(t), guided.process.sigma(t)
    x0, eps, score = (guided.predict(kind, X, t, **conditions(name)) for kind in ("x0", "eps", "score"))
    torch.testing.assert_close(alpha * x0 + sigma * eps, X)
    torch.testing.assert_close(score, -eps / sigma)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_counts_every_row_that_reaches_a_network(name: str) -> None:
    guided, reached = wrappers()[name], list[int]()
    for net in networks(guided):
        net.register_forward_hook(lambda net, given, output: reached.append(len(given[0])))
    out = sk.sample(guided, (6, 2), nfe=5, seed=0, batch_size=4, dtype=torch.float64, **conditions(name))
    assert out.nfe == sum(reached) / 6 > 5


@pytest.mark.parametrize("name", NAMES)
def test_on_a_device_the_numbers_are_the_cpus_and_nothing_is_read(name: str) -> None:
    x, times = X.float(), torch.linspace(0.01, 0.9, 6)
    here = [wrappers()[name].predict("eps", x, t, **conditions(name)) for t in (0.4, times)]
    with simgpu.device() as gpu:
        guided = wrappers()[name]
        for net in networks(guided):
            net.to(gpu.device)
        given = {key: value.to(gpu.device) for key, value in conditions(name).items()}
        moved, later = x.to(gpu.device), times.to(gpu.device)
        with gpu.forbid_host_reads():
            there = [guided.predict("eps", moved, t, **given) for t in (0.4, later)]
        assert guided.device.type == "simgpu"
        for one, other in zip(here, there):
            torch.testing.assert_close(one, other.cpu())


@pytest.mark.parametrize("name", NAMES)
def test_stores_tell_guided_models_apart_and_evaluation_mode_reaches_them(name: str) -> None:
    one, same, other = wrappers()[name], wrappers()[name], wrappers()[name]
    assert identify(one) == identify(same)
    one.predict("eps", X, 0.5, **conditions(name))
    assert identify(one) == identify(same), "the count of evaluations is no part of a model"
    inner: Any = other
    while not hasattr(inner, "scale"):
        inner = inner.model
    inner.scale = 1.25
    assert identify(other) != identify(same)
    assert len(networks(one)) == (2 if {"weak", "log_prob"} & {*dir(one), *dir(one.model)} else 1)


def test_the_stores_behaviour_is_that_of_the_guided_model() -> None:
    plain, strong = (behaviour(guidance.Given(cfg(w), label=1), [2]) for w in (1.0, 4.0))
    assert plain != strong
    assert behaviour(guidance.Given(model(), label=1), [2]) == pytest.approx(plain)


@pytest.mark.parametrize("name", NAMES)
def test_guidance_is_computed_in_the_states_dtype(name: str) -> None:
    guided = wrappers()[name]
    half = X.to(torch.bfloat16)
    out = guided.predict("x0", half, 0.5, **conditions(name))
    assert out.dtype == torch.bfloat16
    exact = wrappers()[name].predict("x0", half.double(), 0.5, **conditions(name))
    torch.testing.assert_close(out.double(), exact, rtol=0.05, atol=0.05)


def test_a_schedule_in_float64_leaves_the_state_in_its_dtype() -> None:
    times = torch.linspace(0.01, 0.9, 6, dtype=torch.float64)
    for rule in (None, guidance.Rescaled(), guidance.Projected()):
        guided = cfg(lambda process, t: 1.0 + process.sigma(t), rule=rule)
        assert guided.predict(rule.kind if rule else "x0", X.float(), times, label=LABEL).dtype == torch.float32


def test_an_exact_classifier_makes_the_unconditional_model_conditional() -> None:
    process = PROCESSES[0]
    posterior = Posterior(process)
    free = guidance.Given(model(), label=3)
    guided = guidance.ClassifierGuided(free, posterior, 1.0, only=("c",))
    for t in (0.02, 0.3, 0.8):
        wanted = truth("eps", X, t, 1)
        torch.testing.assert_close(guided.predict("eps", X, t, c=torch.ones(6, dtype=torch.int64)), wanted)
    twice = guidance.ClassifierGuided(free, posterior, 2.0, only=("c",))
    line = 2 * truth("x0", X, 0.3, 1) - truth("x0", X, 0.3, 3)
    torch.testing.assert_close(twice.predict("x0", X, 0.3, c=torch.ones(6, dtype=torch.int64)), line)


def test_autoguidance_leads_away_from_the_weaker_model() -> None:
    good, weak = (GaussianMixture(MEANS.double(), std).model(PROCESSES[0]) for std in (0.5, 0.9))
    guided = guidance.Autoguided(good, weak, 2.0)
    for kind in KINDS:
        line = 2 * good.predict(kind, X, 0.3) - weak.predict(kind, X, 0.3)
        torch.testing.assert_close(guided.predict(kind, X, 0.3), line)


def test_an_adjoint_reaches_both_networks() -> None:
    def gradients(how: str) -> list[Tensor]:
        nets = [torch.nn.Linear(2, 2, dtype=torch.float64) for _ in range(2)]
        for net, sign in zip(nets, (0.3, -0.2)):
            torch.nn.init.constant_(net.weight, sign)
            torch.nn.init.zeros_(net.bias)
        good, weak = (sk.ScoreModel(lambda x, t, net=net: torch.tanh(net(x)), sk.VP()) for net in nets)
        guided = guidance.Autoguided(good, weak, 2.0)
        x = sk.flow(guided, X, 0.5, 0.1, method="dopri5", gradients=how, rtol=1e-9, atol=1e-9)
        x.square().sum().backward()
        return [net.weight.grad for net in nets if net.weight.grad is not None]

    direct, adjoint = gradients("direct"), gradients("adjoint")
    assert len(adjoint) == 2
    torch.testing.assert_close(adjoint, direct, rtol=1e-5, atol=1e-6)


IMAGES = [torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescaling_is_that_of_diffusers(phi: float) -> None:
    theirs = pytest.importorskip("diffusers.guiders.guider_utils").rescale_noise_cfg
    good, bad = IMAGES
    guided = bad + 5.0 * (good - bad)
    torch.testing.assert_close(guidance.Rescaled(phi)(good, bad, 5.0), theirs(guided, good, phi))


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("norm", [1.5, math.inf])
def test_projection_is_that_of_diffusers(eta: float, norm: float) -> None:
    theirs = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance").normalized_guidance
    good, bad = IMAGES
    options = {"norm_threshold": norm if norm < math.inf else 0.0, "use_original_formulation": True}
    wanted = theirs(good, bad, 5.0 - 1, eta=eta, **options)
    torch.testing.assert_close(guidance.Projected(eta, norm)(good, bad, 5.0), wanted)


def test_rules_are_applied_to_the_prediction_that_they_are_for() -> None:
    t, free = 0.4, {"label": torch.full_like(LABEL, 3)}
    for rule, kind in (
        (guidance.Rescaled(0.5), "v"),
        (guidance.Rescaled(0.5, "eps"), "eps"),
        (guidance.Projected(), "x0"),
    ):
        good, bad = (model().predict(kind, X, t, **given) for given in ({"label": LABEL}, free))
        torch.testing.assert_close(cfg(3.0, rule=rule).predict(kind, X, t, label=LABEL), rule(good, bad, 3.0))
    assert not torch.equal(*(cfg(3.0, rule=rule).predict("x0", X, t, label=LABEL) for rule in (rule, None)))


def test_conditions_of_every_shape_are_doubled() -> None:
    seen = dict[str, Any]()

    def net(x: Tensor, t: Tensor, text: Tensor, size: Tensor, word: str) -> Tensor:
        seen.update(text=text, size=size, word=word)
        return x * text.sum(1, keepdim=True)

    null = torch.tensor([0.5, 0.5, 0.0])
    guided = guidance.ClassifierFree(sk.ScoreModel(net, sk.VP()), 2.0, null={"text": null})
    text, size = torch.arange(18.0).reshape(6, 3), torch.arange(6)
    x = X.float()
    out = guided.predict("eps", x, 0.5, text=text, size=size, word="a dog")
    torch.testing.assert_close(out, 2 * x * text.sum(1, keepdim=True) - x)
    assert seen["word"] == "a dog"
    assert torch.equal(seen["text"], torch.cat([text, null.expand(6, 3)]))
    assert torch.equal(seen["size"], torch.cat([size, size]))


def test_a_condition_may_be_left_out() -> None:
    def net(x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return x if label is None else x * label[:, None]

    plain = sk.ScoreModel(net, sk.VP())
    guided = guidance.ClassifierFree(plain, 3.0, null={"label": None}, doubled=False)
    torch.testing.assert_close(guided.predict("eps", X, 0.5, label=LABEL), X * (3.0 * LABEL[:, None] - 2))
    with pytest.raises(ValueError, match=r"null: label=None leaves it out.*doubled=False"):
        guidance.ClassifierFree(plain, 3.0, null={"label": None}).predict("eps", X, 0.5, label=LABEL)


BAD: dict[str, tuple[Any, str]] = {
    "nan": (lambda: cfg(math.nan), r"scale=nan: it must be a finite number"),
    "infinite": (lambda: cfg(math.inf), r"scale=inf: it must be a finite number"),
    "nan at a time": (
        lambda: cfg(lambda process, t: math.nan).predict("eps", X, 0.5, label=LABEL),
        r"scale: the function gave nan at t=0.5",
    ),
    "no null": (lambda: guidance.ClassifierFree(model(), 2.0, null={}), r"null=\{\}: name each condition"),
    "no label": (lambda: cfg().predict("eps", X, 0.5), r"label: classifier-free guidance needs what null"),
    "no label in a run": (lambda: sk.sample(cfg(), (6, 2), nfe=5), r"label: classifier-free guidance needs"),
    "misspelt": (lambda: sk.sample(cfg(), (6, 2), nfe=5, label=LABEL, sead=1), r"did you mean 'seed'"),
    "swapped": (lambda: guidance.Interval(cfg(), 2.0, 0.2), r"low=2.0, high=0.2: bounds of σ/α"),
    "nan bound": (lambda: guidance.Interval(cfg(), math.nan, 0.2), r"low=nan: it must be a finite number"),
    "half a class": (
        lambda: guidance.ClassifierFree(model(), 2.0, null={"label": 2.5}).predict("eps", X, 0.5, label=LABEL),
        r"null: label holds torch.int64, its null torch.float64: give a whole number",
    ),
    "a number as label": (lambda: cfg().predict("eps", X, 0.5, label=2), r"label: what is given is int, .*two calls"),
    "other processes": (
        lambda: guidance.Autoguided(model(sk.VP()), model(sk.Flow()), 2.0),
        r"weak: its process is Flow.* the model's VP.*: they must be equal",
    ),
    "phi": (lambda: guidance.Rescaled(1.5), r"phi=1.5: it must be from 0 to 1"),
    "one element": (lambda: guidance.Rescaled()(X[:, :1], X[:, :1], 2.0), r"samples of shape \[1\] have no spread"),
    "norm": (lambda: guidance.Projected(norm=math.nan), r"norm=nan: it must be a number from 0 to inf"),
    "eta": (lambda: guidance.Projected(eta=math.nan), r"eta=nan: it must be a finite number"),
    "kind": (lambda: guidance.Rescaled(kind="epsilon"), r"unknown prediction 'epsilon'"),
    "fixed": (lambda: guidance.Given(cfg(), label=1).predict("eps", X, 0.5, label=LABEL), r"label: it is fixed"),
    "log_prob": (
        lambda: guidance.ClassifierGuided(guidance.Given(model(), label=1), lambda x, t: x, 1.0).predict("eps", X, 0.5),
        r"log_prob returned shape \[6, 2\]: it must be \[batch\]",
    ),
    "no class": (
        lambda: guidance.ClassifierGuided(model(), lambda x, t, c: x[:, 0], 1.0, only=("c",)).predict("eps", X, 0.5),
        r"c: the classifier needs it at every call",
    ),
    "a name": (lambda: guidance.ClassifierGuided(model(), lambda x, t: x[:, 0], 1.0, only="c"), "only='c': it must"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_no_model_is_refused() -> None:
    for give in (lambda net: cfg(2.0, net), lambda net: guidance.Autoguided(model(), net, 2.0)):
        untyped: Any = give
        with pytest.raises((ValueError, TypeError)):  # by name; the tests' own type checks come first
            untyped(torch.nn.Linear(2, 2))
