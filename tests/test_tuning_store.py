"""Tuned solvers in files: what was written comes back, another model is refused, each number is checked."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import sdekit as sk
from sdekit.cli import app
from sdekit.targets import Gaussian

CHOICES = [("ddim", "time"), ("unipc-2", "logsnr")]


def model(width=0.1):
    return Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, width]))).model(sk.VP())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    plan = sk.tune(model(), (1, 2), nfe=3, starts=60, budget=10_000, choices=CHOICES)
    path = tmp_path_factory.mktemp("plans") / "new" / "three.json"
    plan.save(path)
    return plan, path


def test_what_was_written_comes_back(saved):
    plan, path = saved
    again = sk.solvers.load(path, model())
    assert again == plan
    assert again.record == json.loads(json.dumps(plan.record))
    x, y = (sk.sample(model(), (4, 2), solver=solver, seed=0).x for solver in (plan, again))
    assert torch.equal(x, y)
    contents = json.loads(path.read_text())
    assert contents["process"] == {"name": "VP", "beta_min": 0.1, "beta_max": 20.0, "t_min": 0.001, "t_max": 1.0}
    assert contents["rows"][0]["t"] == 1.0
    assert contents["record"]["validation"]["rmse"] > 0


def test_another_model_or_process_is_refused(saved):
    plan, path = saved
    with pytest.raises(ValueError, match="was fitted to another model"):
        sk.solvers.load(path, model(0.3))
    assert sk.solvers.load(path, model(0.3), force=True) == plan
    flow = Gaussian(torch.zeros(2), torch.eye(2)).model(sk.Flow())
    with pytest.raises(ValueError, match=r"is for VP.*the model's process is Flow"):
        sk.solvers.load(path, flow, force=True)


def test_a_conditional_model_is_known_by_its_digest(tmp_path):
    shifts = torch.tensor([-1.0, 1.0])

    def made(scale):
        def net(x, t, label):
            return torch.tanh(scale * x + shifts[label][:, None])

        return sk.ScoreModel(net, sk.VP())

    plan = sk.tune(made(1.0), (1, 2), nfe=2, starts=60, budget=0, choices=CHOICES, label=torch.arange(60) % 2)
    plan.save(tmp_path / "two.json")
    assert sk.solvers.load(tmp_path / "two.json", made(1.0)) == plan
    with pytest.raises(ValueError, match="another model"):
        sk.solvers.load(tmp_path / "two.json", made(2.0))


def change(contents, where, value):
    *path, last = where
    for step in path:
        contents = contents[step]
    contents[last] = value


@pytest.mark.parametrize(
    ("where", "value", "error"),
    [
        (("format",), "other", "holds no tuned solver"),
        (("process", "name"), "VX", "process is .*did you mean"),
        (("process", "t_min"), 2.0, "process is "),
        (("process",), [], "process is .*must be an object"),
        (("predicts",), "epsilon", "predicts .*did you mean 'eps'"),
        (("nfe",), 4, "nfe is 4: it must count the 3 rows"),
        (("rows",), 3, "rows is 3: it must be a list"),
        (("rows", 1, "t"), 1.5, r"rows\[1\].t is 1.5: it must be a finite number from 0.001 to 1"),
        (("rows", 2, "t"), 0.9999, r"rows\[2\].t is 0.9999: it must be below"),
        (("rows", 0, "t"), 0.9, r"rows\[0\].t is 0.9: the first evaluation is at t_max=1"),
        (("rows", 1, "anchor"), "1", r"rows\[1\].anchor is '1'"),
        (("rows", 1, "anchor"), float("nan"), r"rows\[1\].anchor is nan"),
        (("rows", 1, "anchor"), True, r"rows\[1\].anchor is True"),
        (("rows", 1, "anchor"), 1e9, r"rows\[1\].anchor is 1000000000.0"),
        (("rows", 1, "history"), [1.0], r"rows\[1\].history is \[1.0\]: it must be a list of 2 numbers"),
        (("rows", 1, "history", 1), None, r"rows\[1\].history\[1\] is None"),
        (("record",), None, "record is None"),
        (("record", "validation", "rmse"), -1, "record.validation.rmse is -1"),
        (("record", "start", "train", "median"), "x", "record.start.train.median is 'x'"),
        (("record", "starts", "train"), 0, "record.starts.train is 0"),
        (("record", "event"), [0], r"record.event is \[0\]"),
        (("record", "behaviour"), [True], r"record.behaviour is \[True\]"),
        (("record", "seconds"), None, "record.seconds is None"),
    ],
)
def test_each_number_is_checked(saved, tmp_path, where, value, error):
    contents = json.loads(saved[1].read_text())
    change(contents, where, value)
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=error):
        sk.solvers.load(path)


def test_what_is_no_json_is_refused(tmp_path):
    path = tmp_path / "broken.json"
    with pytest.raises(ValueError, match="no readable JSON"):
        sk.solvers.load(path)
    for text in ("{", "[" * 100_000, "[]", "3"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"no readable JSON|holds no tuned solver"):
            sk.solvers.load(path)


def test_the_command_writes_a_plan_for_each_number_of_evaluations(tmp_path):
    arguments = ["tune", "--target", "mixture-2d", "--nfe", "2,3", "--starts", "60", "--budget", "2000"]
    run = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "plans")])
    assert run.exit_code == 0, run.output
    for nfe in (2, 3):
        plan = sk.solvers.load(tmp_path / "plans" / f"tuned-{nfe}.json")
        assert plan.nfe == nfe
        assert f"NFE {nfe}: " in run.output
    wrong = CliRunner().invoke(app, ["tune", "--target", "mixture-2d", "--nfe", "1"])
    assert wrong.exit_code == 2
    assert "at least 2" in wrong.output
