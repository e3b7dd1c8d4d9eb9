"""Which metrics a comparison measures: by name, each with its floor, its error and what it needs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import sdekit as sk
from sdekit import report
from sdekit.comparison import Comparison
from sdekit.jackknife import left_out, standard_error
from sdekit.metrics import DEFAULT, METRICS, mode_weights_error, nll_gap, prdc
from sdekit.targets import GaussianMixture

LAW = GaussianMixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 0.5, torch.tensor([0.3, 0.7]))
DATA, TRAIN = LAW.sample(60, seed=1), LAW.sample(50, seed=2)
MODEL = LAW.model(sk.VP())


def run(**given: Any) -> Comparison:
    return sk.compare(MODEL, DATA, **{"solvers": ["ddim"], "nfe": [5], "samples": 30, **given})


def test_every_metric_is_measured_with_its_floor_and_where_it_has_one_its_error() -> None:
    pytest.importorskip("ot")
    result = run(metrics=list(METRICS), law=LAW, train=TRAIN)
    (cell,) = result.cells
    assert set(cell.metrics) == set(cell.floor) == set(result.floor) == set(METRICS)
    assert all(math.isfinite(value) for value in cell.metrics.values())
    assert set(cell.jackknife) == {name for name, metric in METRICS.items() if metric.jackknife}
    text = report.text(result)
    assert all(metric.label in text for metric in METRICS.values())


def test_values_are_the_metrics_own_against_the_data_half_and_the_law() -> None:
    result = run(metrics=["nll_gap", "mode_weights", "1-recall"], law=LAW)
    (cell,) = result.cells
    x, reference, real = result.samples[cell.key], DATA[::2], DATA[1::2]
    assert cell.metrics["nll_gap"] == pytest.approx(nll_gap(x, reference, LAW).item(), rel=1e-6)
    assert cell.metrics["mode_weights"] == pytest.approx(mode_weights_error(x, LAW).item(), rel=1e-6)
    assert cell.metrics["1-recall"] == pytest.approx(1 - prdc(x, reference, 3).recall.item(), rel=1e-9)
    assert result.floor["mode_weights"] == pytest.approx(mode_weights_error(real, LAW).item(), rel=1e-6)


def test_features_are_of_samples_data_and_training_set_alike() -> None:
    """A feature that is the same for all makes each sample a copy; the law's metrics see the samples themselves."""
    plain = run(metrics=["copied", "nll_gap"], law=LAW, train=TRAIN)
    flat = run(metrics=["copied", "nll_gap"], law=LAW, train=TRAIN, features=lambda x: 0 * x)
    assert plain.cells[0].metrics["copied"] < 1 == flat.cells[0].metrics["copied"]
    assert plain.cells[0].metrics["nll_gap"] == flat.cells[0].metrics["nll_gap"]


def test_the_default_is_the_cheap_ones() -> None:
    assert set(run().cells[0].metrics) == set(DEFAULT)


def test_without_paired_metrics_the_endpoint_is_not_computed() -> None:
    totals = set[int]()
    run(metrics="energy", progress=lambda what, done, total: totals.add(total))
    assert totals == {5 * 30}


def test_a_stored_cell_counts_for_the_same_metrics_law_and_training_set_alone(tmp_path: Path) -> None:
    def fresh(**given: Any) -> bool:
        before = len((tmp_path / "results.jsonl").read_text().splitlines()) if list(tmp_path.iterdir()) else 0
        run(out=tmp_path, **given)
        return len((tmp_path / "results.jsonl").read_text().splitlines()) > before

    assert fresh(metrics=["energy", "kernel"])
    assert not fresh(metrics=["kernel", "energy", "kernel"])
    assert fresh(metrics=["energy"])
    assert fresh(metrics=["mode_weights"], law=LAW)
    assert not fresh(metrics=["mode_weights"], law=LAW)
    assert fresh(metrics=["mode_weights"], law=GaussianMixture(LAW.location, 0.5))
    assert fresh(metrics=["copied"], train=TRAIN)
    assert fresh(metrics=["copied"], train=TRAIN + 1)


def test_values_below_0_are_shown(tmp_path: Path) -> None:
    """Unbiased distances are: a logarithm of them is none."""
    result = run(metrics="mmd", nfe=[50])
    value = result.cells[0].metrics["mmd"]
    assert value < 0
    assert f"{value:.4f}" in report.text(result)
    assert report.picture(result, tmp_path / "picture.png") is not None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metrics": ["precision"]}, "unknown metric 'precision': did you mean '1-precision'"),
        ({"metrics": []}, "metrics: none given"),
        ({"metrics": ["nll_gap"]}, "metrics: 'nll_gap' needs law="),
        ({"metrics": ["copied"], "law": LAW}, "metrics: 'copied' needs train="),
        ({"metrics": ["copied"], "train": TRAIN[:, :1]}, "must be equal"),
        ({"metrics": ["copied"], "train": TRAIN / 0}, "train=<tensor .* with .*(nan|inf) at "),
        (
            {"metrics": ["mode_weights"], "law": sk.targets.Gaussian(torch.zeros(2), torch.eye(2))},
            "Gaussian has no modes",
        ),
    ],
)
def test_bad_choices_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**given)


QUICK = ["median_error", "q90_error", "kernel", "mmd", "1-recall", "1-coverage", "vendi_gap", "copied", "mode_weights"]


@pytest.mark.parametrize("name", QUICK)
def test_the_jackknife_tells_the_error_or_more(name: str) -> None:
    """Against the spread over sets drawn anew: never far too small, at most about twice too large."""
    metric, runs, n = METRICS[name], 30, 100
    values, errors = list[float](), list[float]()
    for r in range(runs):
        x, y = LAW.sample(n, seed=100 + r) + 0.5, LAW.sample(n, seed=1000 + r)
        needed = {"law": LAW, "train": TRAIN}.get(metric.needs)

        def distance(a: torch.Tensor, b: torch.Tensor, needed: Any = needed) -> torch.Tensor:
            return metric.distance(a, b, *[needed] * bool(metric.needs))

        values.append(distance(x, y).item())
        errors.append(standard_error(left_out(distance, x, y, paired=metric.paired)))
    spread = torch.tensor(values).std().item()
    # the spread of 30 values is off by 13%, that of 30 errors by less
    assert 0.6 * spread < torch.tensor(errors).square().mean().sqrt().item() < 2.4 * spread
