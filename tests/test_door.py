"""What a public function is given: wrong values are refused by a sentence, what means the same is taken."""

from __future__ import annotations

import collections
import copy
import inspect
import json
import math
import os
import pickle
import re
import subprocess
import sys
import typing
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sdekit as sk
from sdekit.door import Positive, Seed, door, guard, kind_of, record
from sdekit.testing import simgpu

CALLS = int(os.environ.get("SDEKIT_DOOR_CALLS", "300"))
"""How many calls hypothesis draws; 10,000 also try every plain odd value in every place."""


def net(x: Tensor, t: Tensor) -> Tensor:
    return 0.1 * x


MODEL = sk.ScoreModel(net, sk.VP())


def test_bad_calls_of_everything_public_are_named() -> None:
    """In a process of its own: the tests check the package's signatures a second time, with messages of their own."""
    script = Path(__file__).with_name("door_calls.py")
    done = subprocess.run(
        [sys.executable, script, str(CALLS)], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(sk.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert "uncovered" not in found, f"give a good call of each in {script.name}: {found['uncovered']}"
    assert not found["good calls that fail"]
    assert found["calls"] >= CALLS
    assert found["counts"]["refused"] > found["calls"] / 2  # most odd values are wrong
    assert not found["failures"], "\n".join(found["failures"][:20])


SAME: dict[str, Callable[[], Any]] = {
    "numpy integers": lambda: sk.sample(MODEL, (np.int64(3), np.int32(2)), nfe=np.int16(4), seed=np.uint8(1)),
    "an array as shape": lambda: sk.sample(MODEL, np.array([3, 2]), nfe=4, seed=1),
    "torch.Size": lambda: sk.sample(MODEL, torch.Size([3, 2]), nfe=torch.tensor(4), seed=torch.tensor(1)),
    "a list": lambda: sk.sample(MODEL, [3, 2], nfe=4, seed=1),
}


@pytest.mark.parametrize("how", SAME)
def test_numbers_of_other_libraries_are_numbers(how: str) -> None:
    assert torch.equal(SAME[how]().x, sk.sample(MODEL, (3, 2), nfe=4, seed=1).x)


def test_numbers_of_any_kind_make_the_same_process() -> None:
    for number in (np.float64(20), np.int64(20), torch.tensor(20.0), Fraction(20), Decimal(20), 20):
        made = sk.VP(beta_max=number)
        assert made == sk.VP(beta_max=20.0)
        assert type(made.beta_max) is float


def test_an_array_is_a_start() -> None:
    start = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    before = start.copy()
    x = sk.sample(MODEL, (3, 2), nfe=4, start=start, solver="ddim").x
    assert torch.equal(x, sk.sample(MODEL, (3, 2), nfe=4, start=torch.from_numpy(start), solver="ddim").x)
    assert (start == before).all()


@pytest.mark.parametrize("arguments", [{"nfe": True}, {"nfe": 4.0}, {"shape": (2.0, 2)}, {"seed": 1.0}, {"nfe": [5]}])
def test_a_flag_or_a_fraction_is_no_count(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name}="):
        sk.sample(MODEL, **{"shape": (2, 2), **arguments})


def test_the_sentence_holds_name_value_and_what_is_allowed() -> None:
    for arguments, sentence in {
        ("solver", None): "solver=None: it must be text or a Solver",
        ("nfe", 10**9): "nfe=1000000000: it must be a whole number from 1 to 100000 or None",
        ("device", "cuda:9"): "device='cuda:9': it must be a device that is here: cpu",
        ("start", torch.full((2, 2), math.nan)): "start=<tensor [2, 2], torch.float32, on cpu with nan at [0, 0]>",
    }.items():
        with pytest.raises(ValueError, match="^" + re.escape(sentence)):
            sk.sample(MODEL, **{"shape": (2, 2), arguments[0]: arguments[1]})


def test_a_gradient_is_not_lost_at_the_door() -> None:
    with pytest.raises(ValueError, match=r"beta_max=<tensor \[\]"):
        sk.VP(beta_max=torch.tensor(20.0, requires_grad=True))


def test_an_error_from_inside_that_names_nothing_tells_the_call() -> None:
    @door
    def outer(count: int) -> None:
        raise ValueError("it went wrong")

    with pytest.raises(ValueError, match=r"^it went wrong \(in outer\(count=3\)\)$"):
        outer(3)


def test_a_record_keeps_nan_and_a_value_to_compute_with_may_not_be_nan() -> None:
    @record
    class Found:
        def __init__(self, value: float) -> None:
            self.value = value

    @door
    def use(value: float) -> float:
        return value

    assert math.isnan(Found(math.nan).value)
    with pytest.raises(ValueError, match=r"^value=nan: it must be a finite number$"):
        use(math.nan)


def test_types_and_signatures_stay() -> None:
    assert "nfe" in inspect.signature(sk.sample).parameters
    assert (sk.sample.__doc__ or "").startswith("Draw samples")
    assert kind_of(Positive, True).words() == "a finite number above 0"
    assert typing.get_type_hints(sk.sample)["seed"] == (Seed | None)
    assert inspect.isclass(sk.VP)
    for thing in (sk.sample, sk.VP(), MODEL.process):
        assert pickle.loads(pickle.dumps(thing)) == thing
        assert copy.deepcopy(thing) == thing


LOOPS: dict[str, Callable[[int], object]] = {
    "sample": lambda n: sk.sample(MODEL, (4, 2), nfe=n, solver="unipc-3", seed=0),
    "sample, corrected": lambda n: sk.sample(MODEL, (4, 2), nfe=2 * n, seed=0, corrector=sk.Langevin(steps=1)),
    "sample_adaptive": lambda n: sk.sample_adaptive(MODEL, (4, 2), rtol=0.1**n, seed=0),
    "parallel.sample": lambda n: sk.parallel.sample(MODEL, (4, 2), solver="ddim", nfe=10 * n, seed=0, window=2),
    "encode": lambda n: sk.encode(MODEL, X, method="heun", steps=n),
    "encode, adaptive": lambda n: sk.encode(MODEL, X, rtol=0.1**n, atol=0.1**n),
    "log_prob": lambda n: sk.log_prob(MODEL, X, method="ddim", steps=n, probes=2),
    "elbo": lambda n: sk.elbo(MODEL, X, times=n),
}
X = torch.linspace(-1, 1, 8).reshape(4, 2)


def doors(run: Callable[[], object]) -> collections.Counter[str]:
    """How often each door was entered, once whatever a first call makes and keeps is there."""
    run()
    seen = collections.Counter[str]()

    def look(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "enter" and frame.f_code.co_filename == guard.__file__:
            seen[frame.f_locals["function"].__qualname__] += 1

    sys.setprofile(look)
    try:
        run()
    finally:
        sys.setprofile(None)
    return seen


@pytest.mark.parametrize("name", LOOPS)
def test_a_step_reads_no_arguments(name: str) -> None:
    few, many = (doors(lambda n=n: LOOPS[name](n)) for n in (2, 4))
    assert few == many
    assert few[name.partition(",")[0].split(".")[-1]] == 1


def test_an_array_of_an_accelerator_is_not_looked_into() -> None:
    """The host would wait there for all that is queued."""
    with simgpu.device() as gpu:
        x = torch.zeros(2, 2).to(gpu.device)
        with gpu.forbid_host_reads():
            assert kind_of(Tensor, True).read(x) is x
