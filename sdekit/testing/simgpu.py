r"""A simulated accelerator, ``simgpu``, that computes on the CPU: to find on any machine what only a GPU would show.

A tensor on it lies, to torch, on the device ``simgpu:0``; each operation runs on the CPU tensor inside it. So

- numbers equal the CPU's to the bit (``scaled_dot_product_attention`` takes the CPU's choice of kernel too);
- a CPU tensor with dimensions that meets a device tensor is an error, as on CUDA, where 0-d CPU tensors pass as
  numbers (stricter than CUDA in one thing: there index tensors may come from the CPU, and are copied);
- each read of the device's numbers by the host is counted, by the operation's name: ``.item()``, ``float``, ``if``,
  ``nonzero``, indexing by a boolean mask and whatever else has a size that depends on data, ``equal``, copies to
  the CPU, ``print``. ``uploads`` are counted apart: on CUDA a copy from the CPU makes the host wait as well;
- random operations draw from a stream of the device's own, as an accelerator's do: ``torch.manual_seed`` sets it,
  and it differs from the CPU's. It has no ``torch.Generator``, and refuses one of the CPU.

What a passing test proves: everything is put on the device, no number is read back, the device changes no result.
What it does not: speed, memory, streams, how another device's kernels round, or that it has them for a dtype.
Reads that torch does not mark (``histc`` without a range, ``linalg.eig``) are not counted. Autocast, pinned memory and
in-place changes of shape raise; weights are saved from ``.cpu()``.

The device's name stays registered with torch for the life of the process, and ``torch.accelerator`` then names it: use
it in tests, not in programs, and ``register`` it before the session's first backward pass. It rests on an experimental
interface of torch; tested with torch 2.13.

>>> import torch
>>> from sdekit.testing import simgpu
>>> def step(x, dt):
...     return x - dt * x if x.norm() > 1 else x  # the `if` reads a number back at every step
>>> with simgpu.device() as gpu:
...     y = step(torch.full((3,), 2.0, device=gpu.device), 0.5)
...     y.device, gpu.host_reads, gpu.reads
(device(type='simgpu', index=0), 1, ['aten._local_scalar_dense'])
"""

# pyright: reportPrivateUsage=false
# torch's hooks for a device written in Python are private as yet

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tag, Tensor, nn
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

aten = torch.ops.aten
_NAME = "simgpu"
_CPU = torch.device("cpu")
_DATA: Any = Tensor.data
_HOST = attrgetter("host")


class HostReadError(RuntimeError):
    """The host read a number back from the device inside ``forbid_host_reads``."""


class SimTensor(Tensor):
    """A tensor on the simulated device: ``host`` holds its numbers, this shell its place and its gradient."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls: type[SimTensor], host: Tensor) -> SimTensor:
        with torch.inference_mode(host.is_inference()):
            return Tensor._make_wrapper_subclass(
                cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(),
                dtype=host.dtype, layout=host.layout, device=torch.device(_NAME, 0),
            )  # fmt: skip

    def __init__(self, host: Tensor) -> None:
        self.host = host

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})  # outside `device()`: computed, not watched

    @property
    def data(self) -> Tensor:
        return _DATA.__get__(self)

    @data.setter
    def data(self, new: SimTensor) -> None:
        _DATA.__set__(self, new)  # swaps the shell, and leaves the numbers
        self.host = new.host

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = self.detach().clone()
        if isinstance(self, nn.Parameter):
            return nn.Parameter(copy, self.requires_grad)
        return copy.requires_grad_(self.requires_grad)

    def __repr__(self, **_: Any) -> str:
        return f"{_NAME}:{self.cpu()!r}"

    def __format__(self, spec: str) -> str:
        return format(self.cpu(), spec)

    def tolist(self) -> Any:
        return self.cpu().tolist()


class _Backend(_DummyBackendModule):
    """What torch asks of ``torch.simgpu``: a random stream, and the dtypes of autocast."""

    def __init__(self) -> None:
        self.manual_seed_all(0)

    def manual_seed_all(self, seed: int) -> None:
        self.random_state = torch.Generator().manual_seed(seed ^ 0x51319D).get_state()  # not the CPU's stream

    def get_rng_state(self, device: Any = None) -> Tensor:
        return self.random_state

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        self.random_state = state

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


@cache
def _is_composite(func: Any) -> bool:
    if func is aten.scaled_dot_product_attention.default:
        return False  # its parts depend on the device
    return func._can_decompose() and not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CPU")


def _has_mask(indices: Sequence[Tensor | None]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _put_reads(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False, **_: Any) -> bool:
    return _has_mask(indices) and (accumulate or values.numel() != 1)  # one value under a mask is a fill


_READS: dict[Any, Callable[..., bool]] = {  # where torch's tags alone do not tell
    aten.index.Tensor: lambda x, indices: _has_mask(indices),
    aten.index_put_.default: _put_reads,
    aten.index_put.default: _put_reads,
    aten._index_put_impl_.default: _put_reads,
    aten.repeat_interleave.Tensor: lambda repeats, output_size=None: output_size is None,
    aten._linalg_check_errors.default: lambda *args, **kwargs: True,
    aten.copy_.default: lambda x, source, *args: not isinstance(x, SimTensor),
    aten._to_copy.default: lambda x, device=None, **kwargs: device is not None and device.type == "cpu",
}


def _reads(func: Any, args: Any, kwargs: Any) -> bool:
    if func in _READS:
        return _READS[func](*args, **kwargs)
    return Tag.data_dependent_output in func.tags or Tag.dynamic_output_shape in func.tags


def _leaves(args: Any, kwargs: Any) -> list[Any]:
    return [x for value in (*args, *kwargs.values()) for x in (value if isinstance(value, (list, tuple)) else (value,))]


def _map(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """``function`` of what is of ``kind``: of ``value``, or of its entries (operations do not nest deeper)."""
    if isinstance(value, (list, tuple)):
        return type(value)([function(x) if isinstance(x, kind) else x for x in value])
    return function(value) if isinstance(value, kind) else value


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    """Run ``func`` on the CPU tensors inside; its result lies on the device unless ``device=`` says otherwise."""
    tensors = [x for x in _leaves(args, kwargs) if isinstance(x, Tensor)]
    known = {id(x.host if isinstance(x, SimTensor) else x): x for x in tensors}
    place = kwargs.get("device")
    on_device = any(isinstance(x, SimTensor) for x in tensors) if place is None else place.type == _NAME
    func = _PLAIN.get(func, func)
    args = [_map(x, SimTensor, _HOST) for x in args]
    kwargs = {name: _map(x, SimTensor, _HOST) for name, x in kwargs.items()}
    if place is not None:
        kwargs["device"] = _CPU
    if on_device and Tag.nondeterministic_seeded in func.tags:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(_backend.random_state)
            out = func(*args, **kwargs)
            _backend.random_state = torch.get_rng_state()
    else:
        out = func(*args, **kwargs)

    return _map(out, Tensor, partial(_shell, known)) if on_device else out


def _shell(known: dict[int, Tensor], host: Tensor) -> Tensor:
    """The tensor that stands for ``host`` outside: the same one where an operation wrote to it."""
    if id(host) not in known:
        return SimTensor(host)
    if known[id(host)].shape != host.shape:
        raise NotImplementedError(f"{_NAME} cannot change a tensor's shape in place")
    return known[id(host)]


def _is_foreign(x: Any, strict: bool) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, SimTensor) and (strict or x.ndim > 0)


def _misplaced(func: Any, args: Any, kwargs: Any) -> str | None:
    """What of the CPU's may not meet the device here; a 0-d tensor may, unless it is written to or one of a list."""
    leaves = _leaves(args, kwargs)
    if any(isinstance(x, torch.Generator) for x in leaves):
        return "a torch.Generator of the CPU"
    if func is aten.copy_.default or not any(isinstance(x, SimTensor) for x in leaves):
        return None
    arguments = func._schema.arguments
    values = {argument.name: value for argument, value in zip(arguments, args, strict=False)} | kwargs
    for argument in arguments:
        value = values.get(argument.name)
        written = argument.alias_info is not None and argument.alias_info.is_write
        several = isinstance(value, (list, tuple)) and any(isinstance(x, SimTensor) for x in value)
        for x in value if isinstance(value, (list, tuple)) else (value,):
            if _is_foreign(x, strict=written or several):
                return f"a CPU tensor of shape {list(x.shape)}"
    return None


class Simulation(TorchDispatchMode):
    """The device while ``device()`` is open.

    Attributes:
        device: ``simgpu:0``.
        reads: the operation of each read of the device by the host, in order.
        uploads: the operation of each copy from the CPU; on CUDA each of them waits for the device, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device(_NAME, 0)
        self.reads: list[str] = []
        self.uploads: list[str] = []
        self._forbidden = False
        self._late: RuntimeError | None = None

    @property
    def host_reads(self) -> int:
        """How often the host has read from the device."""
        return len(self.reads)

    def reset(self) -> None:
        """Forget the reads and uploads so far."""
        self.reads.clear()
        self.uploads.clear()

    @contextmanager
    def forbid_host_reads(self) -> Generator[None, None, None]:
        """Raise ``HostReadError``, which names the operation, where the host reads (in a backward pass: after it).

        >>> with device() as gpu, gpu.forbid_host_reads():
        ...     torch.zeros(2, device=gpu.device).sum().item()
        Traceback (most recent call last):
        sdekit.testing.simgpu.HostReadError: aten._local_scalar_dense reads from simgpu to the host
        """
        self._forbidden, before = True, self._forbidden
        try:
            yield
            self._raise_late()
        finally:
            self._forbidden = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and _is_composite(func):
            with self:  # outside inference mode torch has done this already
                return func.decompose(*args, **kwargs)
        place = kwargs.get("device")
        if (place is not None and place.type == _NAME) or any(isinstance(x, SimTensor) for x in _leaves(args, kwargs)):
            self._watch(func, args, kwargs)
        return _compute(func, args, kwargs)

    def _watch(self, func: Any, args: Any, kwargs: Any) -> None:
        self._raise_late()
        name = str(func.overloadpacket)
        if foreign := _misplaced(func, args, kwargs):
            self._raise(RuntimeError(f"{name}: {foreign} meets {_NAME} tensors; all must be on the same device"))
        if _reads(func, args, kwargs):
            self.reads.append(name)
            if self._forbidden:
                self._raise(HostReadError(f"{name} reads from {_NAME} to the host"))
        elif func in _COPIES and any(_is_foreign(x, strict=True) for x in args):
            self.uploads.append(name)

    def _raise(self, error: RuntimeError) -> None:
        # an error inside a backward pass over a Python backend ends the process (torch 2.13): keep it till after
        if torch._C._current_graph_task_id() == -1:
            raise error
        self._late = self._late or error

    def _raise_late(self) -> None:
        if self._late is not None and torch._C._current_graph_task_id() == -1:
            late, self._late = self._late, None
            raise late


@contextmanager
def device() -> Generator[Simulation, None, None]:
    """Open the simulated device: inside, ``device="simgpu"`` works everywhere, and reads and uploads are recorded.

    >>> with device() as gpu:
    ...     net = torch.nn.Linear(2, 1).to(gpu.device)
    ...     net(torch.zeros(3, 2))
    Traceback (most recent call last):
    RuntimeError: aten.addmm: a CPU tensor of shape [3, 2] meets simgpu tensors; all must be on the same device
    """
    register()
    # autograd's thread for the device would outlive the interpreter
    with torch.autograd.set_multithreading_enabled(False), Simulation() as gpu:
        yield gpu
        gpu._raise_late()


_KERNELS = (
    # called with the dispatch modes switched off, as inside torch.tensor(..., device=)
    aten.empty.memory_format, aten.empty_strided.default, aten._local_scalar_dense.default,
    # have a CPU kernel; without one for this device torch takes them apart, and they round otherwise
    aten.silu_backward.default, aten.mish_backward.default, aten.native_channel_shuffle.default,
)  # fmt: skip
_PLAIN = {  # for what marks a tensor instead of computing it: a shell does not show the mark
    aten._efficientzerotensor.default: aten.zeros.default,
    aten._conj.default: aten._conj_physical.default,
    aten._neg_view.default: aten.neg.default,
}
_COPIES = (aten.copy_.default, aten._to_copy.default)
_backend = _Backend()


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """The kernel the CPU would choose: torch itself gives an unknown device the unfused one."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, -torch.inf).to(q.dtype)
    options = {"scale": scale, "enable_gqa": enable_gqa}
    if aten._fused_sdp_choice(q, k, v, attn_mask, dropout_p, is_causal, **options) == SDPBackend.FLASH_ATTENTION.value:
        fused = aten._scaled_dot_product_flash_attention_for_cpu
        return fused(q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return aten._scaled_dot_product_attention_math(q, k, v, attn_mask, dropout_p, is_causal, None, **options)[0]


def _kernel(func: Any) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        for mode in _get_current_dispatch_mode_stack():
            if isinstance(mode, Simulation):
                return mode.__torch_dispatch__(func, (), args, kwargs)
        return _compute(func, args, kwargs)

    return kernel


@cache
def register() -> torch.library.Library:
    """Make the device known to torch, once; the registrations last as long as what is returned.

    ``device`` does it. Call it at the start of a test session, before any backward pass: autograd counts the devices at
    its first, and later refuses one that it did not know.

    >>> register() is register()
    True
    """
    _setup_privateuseone_for_python_backend(_NAME, backend_module=_backend)
    copy, library = _kernel(aten.copy_.default), torch.library.Library("aten", "IMPL")
    for func in _KERNELS:
        library.impl(func, _kernel(func), "PrivateUse1")
    library.impl("_copy_from", lambda source, target, *_: copy(target, source), "PrivateUse1")
    library.impl("scaled_dot_product_attention", _attention, "AutogradPrivateUse1")
    return library
