"""Looks at a run while it trains: when, at what, early stops, and that a kill changes none of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sdekit as sk
from sdekit.training import Batches, Checkpoint, Denoising, HeldOut, Optimisation, Watch, fit, train_denoiser

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
PLAN = Optimisation(steps=60, lr=1e-2, warmup=1, ema=0.5)


class Point(nn.Module):
    def __init__(self, at: float = 3.0) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * self.at


def pull(net: nn.Module, step: int) -> Tensor:
    return net.at.square()  # towards 0


def off(net: nn.Module, steps: int) -> float:
    """Least where the point, on its way from 3 to 0, passes 2.85: some steps after the start."""
    return (net.at - 2.85).abs().item()


def test_looks_see_the_average_in_evaluation_mode_without_gradients_after_every_so_many_steps_and_the_last() -> None:
    seen = dict[int, float]()

    def look(net: nn.Module, steps: int) -> None:
        assert not net.training
        assert not torch.is_grad_enabled()
        seen[steps] = net.at.item()

    average = fit(Point(), pull, PLAN, {}, watch=Watch(look, every=25))
    assert list(seen) == [25, 50, 60]
    assert seen[60] == average.at.item() == fit(Point(), pull, PLAN, {}).at.item()
    half = fit(Point(), pull, PLAN, {}, watch=Watch(lambda net, steps: seen.update({steps: net.at.item()}), every=5))
    assert half.at.item() == average.at.item()


def test_patience_stops_the_run_and_gives_the_weights_of_the_least_value() -> None:
    values = dict[int, tuple[float, float]]()

    def look(net: nn.Module, steps: int) -> float:
        values[steps] = off(net, steps), net.at.item()
        return values[steps][0]

    average = fit(Point(), pull, PLAN, {}, watch=Watch(look, every=2, patience=3))
    best = min(values, key=lambda steps: values[steps][0])
    assert 2 < best < 50
    assert max(values) == best + 3 * 2
    assert average.at.item() == values[best][1]


@pytest.mark.parametrize("killed", [3, 10, 21, 24, 26])
def test_a_run_that_was_stopped_ends_early_where_one_that_was_not_does(tmp_path: Path, killed: int) -> None:
    watch = Watch(off, every=2, patience=3)
    whole = fit(Point(), pull, PLAN, {}, Checkpoint(tmp_path / "a.ckpt", 0, tmp_path / "a.jsonl"), watch=watch)

    def stops(net: nn.Module, step: int) -> Tensor:
        if step == killed:
            raise KeyboardInterrupt
        return pull(net, step)

    files = Checkpoint(tmp_path / "b.ckpt", 0, tmp_path / "b.jsonl")
    try:
        fit(Point(), stops, PLAN, {}, files, watch=watch)
        ended = True
    except KeyboardInterrupt:
        ended = False
    resumed = fit(Point(), pull, PLAN, {}, files, watch=watch)
    assert resumed.at.item() == whole.at.item()

    def watched(name: str) -> list[tuple[int, float]]:
        lines = map(json.loads, (tmp_path / name).read_text().splitlines())
        return [(line["step"], line["watched"]) for line in lines if "watched" in line]

    assert watched("a.jsonl") == watched("b.jsonl") != []
    assert not ended or killed > watched("a.jsonl")[-1][0] - 1
    with pytest.raises(ValueError, match=r"watch\.patience"):
        fit(Point(), pull, PLAN, {}, files, watch=Watch(off, every=2, patience=4))


@pytest.mark.parametrize("value", [math.nan, math.inf, "low"])
def test_a_value_that_is_no_finite_number_is_said(value: object) -> None:
    with pytest.raises(ValueError, match="watch: after 20 steps its look gave"):
        fit(Point(), pull, PLAN, {}, watch=Watch(lambda net, steps: value, every=20))  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="gave None"):
        fit(Point(), pull, PLAN, {}, watch=Watch(lambda net, steps: None, every=20, patience=1))


@pytest.mark.parametrize("predicts", ["x0", "eps"])
def test_held_out_loss_of_a_network_is_the_loss_in_closed_form(predicts: str) -> None:
    """F = c x_t, x0 ~ N(0, I): E|c x_t − x0|² = (cα − 1)² + (cσ)² a component, over uniform times."""
    process, c = sk.VP(), 0.3
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1))
    x = (x - x.mean(0)) / x.std(0, correction=0)
    t = process.t_min + (process.t_max - process.t_min) * torch.arange(0.5, 2000) / 2000
    alpha, sigma = process.alpha(t), process.sigma(t)
    wanted = {"x0": (c * alpha - 1) ** 2 + (c * sigma) ** 2, "eps": (c * alpha) ** 2 + (c * sigma - 1) ** 2}[predicts]
    task = Denoising(predicts=predicts, times="uniform")
    found = HeldOut(process, x, task=task)(Point(c), 0)
    assert found == pytest.approx(wanted.mean().item(), rel=0.02)


def test_held_out_loss_is_one_number_whatever_the_batch() -> None:
    losses = [HeldOut(sk.VP(), X, task=Denoising(batch=batch))(Point(0.3), 0) for batch in (7, 40, 128)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    labels = torch.arange(40) % 3

    class Labelled(Point):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            assert torch.equal(label.unique(), torch.arange(3))
            return x * 0

    zero = HeldOut(sk.VP(), X, labels, Denoising(times="uniform"))(Labelled(), 0)
    assert zero == pytest.approx(X.square().mean().item(), rel=1e-5)


def test_a_watched_denoiser_resumes(tmp_path: Path) -> None:
    watch = Watch(HeldOut(sk.VP(), X[20:]), every=10, patience=2)
    files = Checkpoint(tmp_path / "a.ckpt", 0)

    def run(data: Tensor, look: Watch = watch) -> Tensor:
        torch.manual_seed(0)
        model = train_denoiser(sk.nn.MLP(2, width=8), sk.VP(), data, plan=PLAN, checkpoint=files, watch=look)
        return next(iter(model.net.parameters()))

    assert torch.equal(run(X[:20]), run(X[:20]))
    with pytest.raises(ValueError, match=r"watch\.look"):
        run(X[:20], Watch(HeldOut(sk.VP(), X[19:]), every=10, patience=2))


def test_a_denoiser_of_few_data_stops_and_has_the_least_held_out_loss() -> None:
    """20 points, of which it soon learns what is theirs alone."""
    more = torch.randn(400, 2, generator=torch.Generator().manual_seed(2))
    task, plan = Denoising(batch=32, times="uniform"), Optimisation(steps=2000, lr=5e-3)
    look, losses = HeldOut(sk.VP(), more, task=task), dict[int, float]()

    def kept(net: nn.Module, steps: int) -> float:
        losses[steps] = look(net, steps)
        return losses[steps]

    def net() -> nn.Module:
        torch.manual_seed(0)
        return sk.nn.MLP(2, width=32)

    watch = Watch(kept, every=50, patience=4)
    watched = train_denoiser(net(), sk.VP(), X[:20], None, task, plan, watch=watch)
    assert max(losses) < 2000
    assert look(watched.net, 0) == min(losses.values())
    blind = train_denoiser(net(), sk.VP(), X[:20], None, task, plan)
    assert look(watched.net, 0) < look(blind.net, 0)


class Span(Point):
    def forward(self, x: Tensor, t: Tensor, end: Tensor) -> Tensor:
        return x * self.at * (t - end + 1)[:, None]


TRAINERS = {
    "consistency": lambda net, watch: sk.training.train_consistency(net, X, plan=PLAN, watch=watch),
    "progressive": lambda net, watch: sk.training.train_progressive(
        net, X, task=Batches(batch=8), plan=PLAN, watch=watch
    ),
    "reflow": lambda net, watch: sk.training.train_reflow(
        net, X, X.flip(0), task=Batches(batch=8), plan=PLAN, watch=watch
    ),
    "mean-flow": lambda net, watch: sk.training.train_mean_flow(
        sk.ScoreModel(Span(0.5), sk.Flow(), "flow"), X, plan=PLAN, watch=watch
    ),
}


@pytest.mark.parametrize("name", TRAINERS)
def test_every_training_takes_a_watch(name: str) -> None:
    seen = list[int]()
    TRAINERS[name](sk.ScoreModel(Point(0.5), sk.VP(), "v"), Watch(lambda net, steps: seen.append(steps), every=50))
    assert seen == [50, 60]
