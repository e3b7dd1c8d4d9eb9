"""What computes other values has another digest, equal things have one in every process, and what hides has none."""

from __future__ import annotations

import enum
import functools
import importlib
import io
import math
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sdekit as sk
from sdekit.identity import UnidentifiedError, alike, behaviour, identify
from sdekit.prediction import PREDICTIONS

GAIN = 1.0


class Net(nn.Module):
    """A network with a number, a list, a function and a buffer that no state_dict holds."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale, self.powers = scale, [1, 2]
        self.activation: Callable[[torch.Tensor], torch.Tensor] = torch.tanh
        self.layer = nn.Linear(2, 2)
        for parameter in self.layer.parameters():
            nn.init.constant_(parameter, 0.5)
        self.register_buffer("shift", torch.zeros(2), persistent=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.scale * self.activation(self.layer(x)) + self.get_buffer("shift")


class Guided:
    """The wrapper of the documentation, without conditions."""

    def __init__(self, model: Any, scale: float) -> None:
        self.model, self.scale, self.process = model, scale, model.process

    @property
    def nfe(self) -> int:
        return self.model.nfe

    @property
    def device(self) -> torch.device:
        return self.model.device

    def predict(self, kind: str, x: torch.Tensor, t: Any) -> torch.Tensor:
        return self.scale * self.model.predict(kind, x, t)


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: float) -> None:
        self.value = value


@dataclass
class Settings:
    value: float
    table: dict[str, float] = field(default_factory=dict)

    @functools.cached_property
    def doubled(self) -> float:
        return 2 * self.value


class Mode(enum.Enum):
    SLOW = 1
    FAST = 2


class Ohm(sk.VP):
    """A process with a number that is no field of a dataclass."""

    def __init__(self, resistance: float) -> None:
        super().__init__()
        object.__setattr__(self, "resistance", resistance)


def model(net: Any = None, **options: Any) -> sk.ScoreModel:
    return sk.ScoreModel(Net() if net is None else net, options.pop("process", sk.VP()), **options)


def closure(scale: float) -> Callable[..., torch.Tensor]:
    return lambda x, t: scale * x


def changed(net: Net, change: Callable[[Any], object]) -> sk.ScoreModel:
    change(net)
    return model(net)


def add_hook(scale: float) -> Callable[[Net], object]:
    return lambda net: net.register_forward_hook(lambda module, given, output: scale * output)


def class_of(scale: float) -> type:
    if scale > 1:

        class Local:
            def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
                return 6 * x
    else:

        class Local:
            def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
                return x

    return Local


def autograd_function(scale: float) -> type[torch.autograd.Function]:
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(x: torch.Tensor) -> torch.Tensor:  # pyright: ignore
            return scale * x

    return Scaled


PAIRS: dict[str, Callable[[float], object]] = {
    "time map": lambda v: model(time="t" if v == 1 else "999t"),
    "time function": lambda v: model(time=lambda process, t: v * t),
    "prediction": lambda v: model(predicts="eps" if v == 1 else "v"),
    "dtype": lambda v: model(dtype=torch.float32 if v == 1 else torch.float64),
    "number of the process": lambda v: model(process=sk.VP(beta_max=19 + v)),
    "entry of a table": lambda v: model(process=sk.DiscreteVP([0.1, 0.1 * v, 0.2])),
    "attribute of a process": lambda v: model(process=Ohm(v)),
    "attribute": lambda v: model(Net(v)),
    "list": lambda v: changed(Net(), lambda net: net.powers.append(v)),
    "function held": lambda v: changed(
        Net(), lambda net: setattr(net, "activation", torch.tanh if v == 1 else torch.sin)
    ),
    "weights": lambda v: changed(Net(), lambda net: net.layer.weight.data.fill_(v)),
    "buffer not stored": lambda v: changed(Net(), lambda net: net.shift.fill_(v)),
    "weights' dtype": lambda v: model(Net() if v == 1 else Net().double()),
    "training mode": lambda v: model(Net().train(v == 1)),
    "hook": lambda v: changed(Net(), add_hook(v)),
    "method replaced": lambda v: changed(Net(), lambda net: setattr(net, "forward", closure(v))),
    "wrapper": lambda v: Guided(model(), v),
    "network in wrappers": lambda v: Guided(Guided(model(Net(v)), 2.0), 3.0),
    "closure": lambda v: closure(v),
    "default": lambda v: lambda x, t, scale=v: scale * x,
    "keyword default": lambda v: lambda x, t, *, scale=v: scale * x,
    "partial": lambda v: functools.partial(torch.mul, other=v),
    "method": lambda v: Slotted(v).__init__,
    "slot": Slotted,
    "dataclass": Settings,
    "dict": lambda v: Settings(1.0, {"a": v}),
    "enumeration": lambda v: Settings(Mode.SLOW if v == 1 else Mode.FAST),  # pyright: ignore
    "class of one name": lambda v: class_of(v)(),
    "code": lambda v: (lambda x, t: x + 1) if v == 1 else (lambda x, t: x - 1),
    "array": lambda v: np.full(3, v),
    "array's dtype": lambda v: np.ones(3, np.float32 if v == 1 else np.float64),
    "tensor's shape": lambda v: torch.zeros(2, 3) if v == 1 else torch.zeros(3, 2),
    "complex": lambda v: torch.tensor([1 + 1j * v]).conj(),
    "type of a number": lambda v: [1] if v == 1 else [1.0],
    "text": lambda v: ["1"] if v == 1 else [1],
    "long text": lambda v: f"the same at the beginning {v}",
    "nesting": lambda v: [[1], 2] if v == 1 else [1, [2]],
    "order": lambda v: [1, 2] if v == 1 else [2, 1],
    "order of a dict": lambda v: dict.fromkeys("ab" if v == 1 else "ba"),
    "bytes": lambda v: b"1" if v == 1 else b"2",
    "lru_cache": lambda v: functools.lru_cache(closure(v)),
    "decorated": lambda v: torch.no_grad()(closure(v)),
    "autograd function": lambda v: autograd_function(v).apply,
    "targets": lambda v: sk.targets.Gaussian(torch.zeros(2), v * torch.eye(2)).model(sk.VP()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_another_value_is_another_digest_and_an_equal_thing_the_same(name: str) -> None:
    make = PAIRS[name]
    assert identify(make(1.0)) == identify(make(1.0))
    assert identify(make(1.0)) != identify(make(6.0))


def test_a_global_that_a_function_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def inner(x: torch.Tensor) -> torch.Tensor:
        return GAIN * x

    before = identify(lambda x, t: [inner(part) for part in x])
    monkeypatch.setitem(globals(), "GAIN", 6.0)
    assert identify(lambda x, t: [inner(part) for part in x]) != before


HELPER = "SCALE = {0}\nUNUSED = {1}\n\ndef helped(x):\n    return SCALE * x\n"


def test_a_module_of_ones_own_by_what_is_read_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ownhelper.py").write_text(HELPER.format(1, 1))
    helper = importlib.import_module("ownhelper")
    scope: dict[str, Any] = {"ownhelper": helper, "__name__": "own"}
    exec("import math\nas_global = lambda x, t: ownhelper.helped(x)", scope)
    exec("def as_import(x, t):\n    from ownhelper import helped\n    return helped(x)", scope)
    for name in ("as_global", "as_import"):
        found = {}
        for values in ((1, 1), (1, 6), (6, 1)):
            helper.SCALE, helper.UNUSED = values  # pyright: ignore
            found[values] = identify(scope[name])
        assert found[1, 1] == found[1, 6] != found[6, 1], name


def test_a_prediction_of_ones_own_by_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PREDICTIONS, "own", lambda process, t: (1.0, -1.0))
    before = identify(model(predicts="own"))
    monkeypatch.setitem(PREDICTIONS, "own", lambda process, t: (1.0, -2.0))
    assert identify(model(predicts="own")) != before


def test_what_decides_nothing_changes_nothing() -> None:
    used, settings = model(), Settings(1.0)
    before = identify([used, settings])
    used.eps(torch.zeros(2, 2), 0.5)
    assert settings.doubled == 2
    assert used.nfe == 1
    assert identify([used, settings]) == before
    assert identify(model(torch.compile(Net(), backend="eager"))) == identify(model())
    assert identify(torch.compile(closure(2.0), backend="eager")) == identify(closure(2.0))


def test_hooks_count_by_what_they_do_not_by_how_many_there_were() -> None:
    one = identify(changed(Net(), add_hook(2.0)))
    Net().register_forward_hook(lambda *_: None)  # takes the number that the next would have had
    assert identify(changed(Net(), add_hook(2.0))) == one


def test_a_cycle_ends() -> None:
    rings = []
    for value in (1, 1, 6):
        ring: list[Any] = [value]
        ring.append({"back": ring})
        rings.append(identify(ring))
    assert rings[0] == rings[1] != rings[2]


class Hostile:
    def __getattribute__(self, name: str) -> Any:
        if name == "__dict__":
            raise RuntimeError("no")
        return object.__getattribute__(self, name)


def scripted() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(nn.Linear(2, 2))


UNREADABLE: dict[str, Callable[[], object]] = {
    "generator": lambda: (i for i in range(3)),
    "iterator": lambda: iter([1]),
    "Lock": threading.Lock,
    "Generator": torch.Generator,
    "Random": np.random.default_rng,
    "TextIOWrapper": lambda: open(os.devnull),  # noqa: SIM115
    "Script": lambda: torch._C.Graph(),
    "Hostile": Hostile,
    "RecursiveScriptModule": scripted,
    "meta": lambda: torch.zeros(2, device="meta"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_said_with_its_place(name: str) -> None:
    net, held = Net(), UNREADABLE[name]()
    net.source = held  # pyright: ignore
    with pytest.raises(UnidentifiedError, match=r"net\.(_modules\.)?source.* is a .*, whose state cannot be read"):
        identify(model(net))
    if isinstance(held, io.IOBase):
        held.close()


def test_the_digest_is_the_same_in_every_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import math, torch, sdekit as sk\n"
        "from dataclasses import dataclass, field\n"
        "from sdekit.identity import identify\n"
        "from sdekit.nn import digits_model\n"
        "@dataclass\nclass Own:\n    names: set = field(default_factory=lambda: {'a', 'b', 'c', ('d', 1.0)})\n"
        "    thing: object = None\n    def run(self, x): return x in {'p', 'q', 'r'} or math.sin(x)\n"
        "class Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__(); self.own = Own()\n"
        "        self.register_forward_hook(lambda *a: None)\n"
        "    def forward(self, x, t): return self.own.run(x) if torch.is_grad_enabled() else digits_model\n"
        "class Bare(sk.Flow): pass\n"
        "things = [Net(), Own(thing=object()), Bare(), digits_model(), frozenset('xyz'), sk.DiscreteVP.linear(99)]\n"
        "print(identify(things))\n"
    )
    found = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed}
        found.add(subprocess.run([sys.executable, script], env=environment, capture_output=True, check=True).stdout)
    assert len(found) == 1


def test_behaviour_is_the_output_projected() -> None:
    """With a network that is linear in x, every number is linear in the factor."""
    one, six = (behaviour(sk.ScoreModel(closure(scale), sk.VP()), [3]) for scale in (1.0, 6.0))
    assert len(one) == 12
    assert len(set(one)) == 12
    assert [6 * value for value in one if value is not None] == pytest.approx(six, rel=1e-6)


def test_behaviour_leaves_the_counters_of_every_model_as_they_were() -> None:
    inner = model()
    inner.eps(torch.zeros(1, 2), 0.5)
    behaviour(Guided(Guided(inner, 2.0), 3.0), [2])
    assert inner.nfe == 1


@pytest.mark.parametrize("process", [sk.VP(), sk.VE(), sk.Flow(), sk.CosineVP(), sk.DiscreteVP(), sk.SubVP()])
@pytest.mark.parametrize("predicts", ["eps", "x0", "score", "v", "flow"])
def test_behaviour_is_alike_for_rounding_and_not_for_a_percent(process: sk.Process, predicts: str) -> None:
    target = sk.targets.GaussianMixture(torch.tensor([[-1.0, 0.5], [1.0, 0.0]]), 0.3)
    exact = target.model(process, predicts)
    found = behaviour(exact, [2])

    def times(factor: float) -> Any:
        return behaviour(sk.ScoreModel(lambda x, t: factor * exact.net(x, t), process, predicts), [2])

    assert alike(found, times(1 + 1e-5))
    assert not alike(found, times(1.01))


def test_nan_is_alike_only_to_nan() -> None:
    found = behaviour(sk.ScoreModel(lambda x, t: x * math.nan, sk.VP()), [2])
    assert found == (None,) * 12
    assert alike(found, found)
    assert not alike(found, (0.0,) * 12)
