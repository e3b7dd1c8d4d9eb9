"""What networks and models consist of."""

from __future__ import annotations

import types
from typing import Any

from torch import nn

from sdekit.identity.parts import Parts, layout, reduced, register, state
from sdekit.model import ScoreModel
from sdekit.prediction import PREDICTIONS


def bare(thing: object) -> object:
    """What torch.compile was given: compiled, it computes the same."""
    inner: Any = thing
    if isinstance(thing, types.FunctionType):
        inner = vars(thing).get("_torchdynamo_orig_callable", thing)
    elif isinstance(thing, nn.Module):
        modules = vars(thing).get("_modules")
        inner = modules.get("_orig_mod", thing) if isinstance(modules, dict) else thing
    return thing if inner is thing else bare(inner)


@register(nn.Module)
def _network(thing: nn.Module) -> Parts:
    own = state(thing)
    if layout(type(thing))[2]:
        return reduced(thing)
    for name in [name for name in own if "_hooks" in name or name in _OF_COMPILING]:
        value = own.pop(name)
        if name.endswith("_hooks") and "state_dict" not in name and isinstance(value, dict) and value:
            own[name] = _hooks(thing, name, value)
    return [("", type(thing)), *sorted(own.items())]


_OF_COMPILING = frozenset({"_compiled_call_impl", "_is_torch_compile"})


def _hooks(network: nn.Module, name: str, hooks: dict[int, Any]) -> list[object]:
    """Each hook with how it is called. The keys count the hooks of the process: they say nothing."""
    ways = [getattr(network, f"{name}_{way}", {}) for way in ("with_kwargs", "always_called")]
    return [(hook, *(key in way for way in ways)) for key, hook in hooks.items()]


@register(ScoreModel)
def _score_model(thing: ScoreModel) -> Parts:
    return [("", type(thing)), ("", PREDICTIONS.get(thing.predicts)), *sorted(state(thing).items())]
