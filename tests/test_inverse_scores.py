"""What is said of posterior samples, the tasks by name, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import sdekit as sk
from sdekit import cli, inverse
from sdekit.targets import GaussianMixture


def test_samples_of_the_posterior_cover_as_often_as_they_say() -> None:
    """Exact draws of a Gaussian's posterior: each share within three standard errors of its level."""
    problems, generator = 4000, torch.Generator().manual_seed(0)
    truth = torch.randn(problems, 1, generator=generator, dtype=torch.float64)
    y = truth + 0.5 * torch.randn(problems, 1, generator=generator, dtype=torch.float64)
    mean, std = y / 1.25, math.sqrt(0.2)
    x = mean[:, None] + std * torch.randn(problems, 19, 1, generator=generator, dtype=torch.float64)
    for level in (0.5, 0.9):
        tolerance = 3 * math.sqrt(level * (1 - level) / problems)
        assert abs(inverse.coverage(x, truth, level) - level) < tolerance
        too_narrow = inverse.coverage(mean[:, None] + 0.5 * (x - mean[:, None]), truth, level)
        assert too_narrow < level - tolerance
    with pytest.raises(ValueError, match=r"level=0\.95: no interval between two of 19 samples"):
        inverse.coverage(x, truth, 0.95)


def test_scores_are_their_formulas() -> None:
    seen = inverse.Measurement(
        inverse.Mask(torch.tensor([True, False])), torch.tensor([1.0]), inverse.GaussianNoise(0.5)
    )
    x = torch.tensor([[1.5, 0.0], [0.5, 2.0]])
    found = inverse.scores(x, torch.tensor([1.0, 0.0]), seen)
    assert found["misfit"] == pytest.approx(1.0)
    assert found["psnr"] == pytest.approx(10 * math.log10(4 / 0.5))  # the mean is (1, 1)
    assert found["psnr_sample"] == pytest.approx(10 * math.log10(4 / ((0.25 + 0.25 + 4) / 4)))
    law = GaussianMixture(torch.tensor([[0.0, 0.0], [9.0, 9.0]]), 0.1)
    there = law.sample(500, seed=3)
    assert inverse.scores(there, None, seen, law=law)["mode_weights"] < 0.1
    assert inverse.scores(there[:1].expand(500, 2), None, seen, law=law)["mode_weights"] > 0.4


@pytest.mark.parametrize("task", inverse.TASKS)
def test_a_task_measures_pictures_and_rows(task: str) -> None:
    shapes = [(1, 8, 8), (3, 8, 8), (16,)] if task in ("inpaint", "compressed") else [(1, 8, 8), (3, 8, 8)]
    for event in shapes:
        operator = inverse.operator(task, event)
        x = torch.randn(2, *event, generator=torch.Generator().manual_seed(0))
        y = operator(x)
        assert y[0].numel() < x[0].numel() or task == "deblur"
        other = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        assert (y * other).sum().item() == pytest.approx((x * operator.adjoint(other)).sum().item(), rel=1e-4)


def test_the_command_writes_what_sample_posterior_gives(tmp_path: Path) -> None:
    words = ["invert", "--target", "gaussian", "--method", "pigdm", "--nfe", "6", "-n", "40", "--noise", "0.3"]
    done = CliRunner().invoke(cli.app, [*words, "--seed", "4", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    files, record = load_file(tmp_path / "samples.safetensors"), json.loads((tmp_path / "scores.json").read_text())
    target = sk.subjects.target("gaussian", torch.device("cpu"))
    seen = inverse.Measurement(inverse.operator("inpaint", target.event), files["y"], inverse.GaussianNoise(0.3))
    again = inverse.sample_posterior(target.model, seen, (40, *target.event), method="pigdm", nfe=6, seed=4)
    assert torch.equal(files["x"], again.x)
    assert (record["nfe"], record["gradients"], record["method"]) == (6, 6, "pigdm")
    assert record["misfit"] == pytest.approx(inverse.scores(again.x, files["truth"], seen)["misfit"])
    assert "sliced_wasserstein" in record  # the law is known
    assert (tmp_path / "samples.png").stat().st_size > 5000
