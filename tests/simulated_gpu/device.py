"""A GPU that is not there: the torch device ``sim``, in pure Python.

Its tensors hold values in main memory, so that results are the CPU's to the bit. What CUDA refuses is written into
``LEDGER``: an operation on tensors of both devices (but for numbers, and for indices), a CPU generator that draws for
the device, numpy's view of the device's memory. What starts a kernel, what makes the host wait, and what is copied is
counted there. Streams keep an order as CUDA's do (``tests.simulated_gpu.streams``): what it leaves open is refused.

Registering a device is for a whole process and torch calls it experimental: import this in a process of its own.
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from tests.simulated_gpu import streams
from tests.simulated_gpu.fused_lstm import ONE_KERNEL
from tests.simulated_gpu.ledger import LEDGER

INDEXING = {"index", "index_put", "_index_put_impl", "_unsafe_index"}
COPYING = {"copy", "_copy_from", "_copy_from_and_resize", "_to_copy"}
LISTS = (list, tuple)
TO_HOST = {"_local_scalar_dense", "equal", "is_nonzero"}  # their results are the host's
WAITING = TO_HOST | {
    *("nonzero", "masked_select", "bincount", "unique_dim", "_unique2", "repeat_interleave"),  # sizes by values
    *("_linalg_check_errors", "_linalg_eigh", "_linalg_svd"),  # ask whether it went well
}
MEMORY_ONLY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set", "resize"}


class _Backend(_DummyBackendModule):  # type: ignore[misc]
    """What ``torch.get_device_module`` gives."""

    Stream, Event = streams.Stream, streams.Event
    stream, current_stream = staticmethod(streams.stream), staticmethod(streams.current_stream)


_setup_privateuseone_for_python_backend("sim", backend_module=_Backend())
SIM = torch.device("sim:0")
torch.sim.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]  # type: ignore[attr-defined]


class SimulatedTensor(Tensor):
    """A tensor of the device.

    Attributes:
        values: where they really are, a CPU tensor.
    """

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: Tensor) -> "SimulatedTensor":
        like = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        made = Tensor._make_wrapper_subclass(cls, values.size(), device=SIM, requires_grad=False, **like)
        made.values = values
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"SimulatedTensor({self.values!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made: Tensor = SimulatedTensor(self.values.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    def __getitem__(self, where: Any) -> Tensor:
        """A list is an index tensor in main memory."""
        parts = where if isinstance(where, tuple) else (where,)
        if any(isinstance(part, list) for part in parts):
            where = tuple(torch.tensor(part) if isinstance(part, list) else part for part in parts)
        return super().__getitem__(where)

    @property
    def data(self) -> Tensor:
        return SimulatedTensor(self.values.detach())

    @data.setter
    def data(self, new: "SimulatedTensor") -> None:
        self.values = new.values

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return torch.tensor(data, dtype=options.get("dtype", self.dtype)).to(SIM)

    def numpy(self, **_: Any) -> Any:
        LEDGER.note("refused", "numpy() of the device's memory")
        return self.values.detach().numpy()

    def record_stream(self, s: Any) -> None:
        streams.record(self.values, s)

    def tolist(self) -> Any:
        LEDGER.note("waits", "tolist")
        if self.dim():
            LEDGER.note("copies", "tolist")
            LEDGER.note("pageable", "tolist")
        streams.wait_for()
        return self.values.detach().tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


class Traits(NamedTuple):
    """What an operation's schema says.

    Attributes:
        view: what it gives is memory that it was given.
        arguments: their names.
        written: those of them that it writes into.
    """

    name: str
    view: bool
    arguments: tuple[str, ...]
    written: frozenset[str]


@cache
def _traits(operation: Any) -> Traits:
    schema = operation._schema
    aliases = [result.alias_info for result in schema.returns]
    view = bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)
    written = {x.name for x in schema.arguments if x.alias_info is not None and x.alias_info.is_write}
    name = schema.name.split("::")[1].rstrip("_")
    return Traits(name, view, tuple(x.name for x in schema.arguments), frozenset(written))


def _tensors(found: Iterable[Any]) -> list[Tensor]:
    """Those of an operation's arguments or results, which are in lists at most."""
    tensors: list[Tensor] = []
    for x in found:
        if isinstance(x, Tensor):
            tensors.append(x)
        elif isinstance(x, LISTS):
            tensors += _tensors(x)
    return tensors


def _each(change: Callable[[Any], Any], found: Any) -> Any:
    """The same, with each that is no list changed."""
    return type(found)([_each(change, x) for x in found]) if isinstance(found, LISTS) else change(found)


def _run(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Write an operation down and do it on the values."""
    traits = _traits(operation)
    name, view = traits.name, traits.view
    tensors = _tensors((*args, *kwargs.values()))
    mine = _values(tensors)
    device = kwargs.get("device")
    here = bool(mine) if device is None else torch.device(device).type == "sim"
    waits = False
    if name in COPYING:
        if (copied := _copy(name, args, kwargs, here)) is not None:
            return copied
    else:
        _check(name, args, kwargs, tensors, here)
        waits = _count(name, view, args)
    values = {key: _each(_unwrapped, value) for key, value in kwargs.items() if key != "pin_memory"}
    found = ONE_KERNEL.get(name, operation)(*[_each(_unwrapped, x) for x in args], **values)
    results_here = here and name not in TO_HOST
    if name not in MEMORY_ONLY:
        if not view:
            _order(traits, args, kwargs, mine, found if results_here else None)
    elif here:
        streams.made(found)
    if waits:
        streams.wait_for()
    if not results_here:
        return found

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        for each in tensors:  # one that was written into stays what it was
            if x is (each.values if isinstance(each, SimulatedTensor) else each):
                return each
        return SimulatedTensor(x)

    return _each(wrap, found)


def _order(traits: Traits, args: tuple[Any, ...], kwargs: dict[str, Any], mine: list[Tensor], found: Any) -> None:
    """Let the current stream read and write what the operation does."""
    written = [x for x in _tensors([found]) if not isinstance(x, SimulatedTensor)]
    if not traits.written:
        streams.use(mine, written, traits.name)
        return
    given = [*zip(traits.arguments, args, strict=False), *kwargs.items()]
    read = _tensors(value for name, value in given if name not in traits.written)
    into = _tensors(value for name, value in given if name in traits.written)
    streams.use(_values(read), _values(into) + written, traits.name)


def _values(tensors: list[Tensor]) -> list[Tensor]:
    """Of those on the device."""
    return [x.values for x in tensors if isinstance(x, SimulatedTensor)]


def _unwrapped(x: Any) -> Any:
    if isinstance(x, SimulatedTensor):
        return x.values
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == "sim" else x


def _check(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor], here: bool) -> None:
    """Refuse what CUDA does."""
    generator = kwargs.get("generator")
    if here and generator is not None and generator.device.type != "sim":
        LEDGER.note("refused", f"{name} by a CPU generator")
    hosts = [x for x in tensors if not isinstance(x, SimulatedTensor)]
    if not hosts or len(hosts) == len(tensors):
        return
    hosts = [x for x in hosts if x.dim() > 0]
    if name in INDEXING:
        indices = [x for x in args[1] if x is not None]
        for index in indices:
            if not isinstance(index, SimulatedTensor):
                LEDGER.note("copies", "index to the device")
                LEDGER.note("pageable", "index to the device")
        hosts = [x for x in hosts if all(x is not index for index in indices)]
    if hosts:
        LEDGER.note("refused", f"{name} with {[tuple(x.shape) for x in hosts]} in main memory")


def _count(name: str, view: bool, args: tuple[Any, ...]) -> bool:
    """Give whether the host waits."""
    masks = name in INDEXING and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    if name in WAITING or masks:
        LEDGER.note("waits", f"{name} by a mask" if masks else name)
        return True
    if name not in MEMORY_ONLY and not view:
        LEDGER.note("launches", name)
    return False


def _copy(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], here: bool) -> Tensor | None:
    """Count a copy; give what comes of it if that is not to be done at once."""
    if name == "_to_copy":
        source, from_here, target = args[0], isinstance(args[0], SimulatedTensor), None
    else:
        target, source = args[:2] if name == "copy" else (args[1], args[0])
        here, from_here = isinstance(target, SimulatedTensor), isinstance(source, SimulatedTensor)
    beside = bool(kwargs.get("non_blocking") or args[2:3] == (True,))
    if here and from_here:
        LEDGER.note("launches", "copy")
    elif here and source.dim():  # a number travels with its kernel
        LEDGER.note("copies", "to the device")
        if not streams.is_pinned(source):
            LEDGER.note("pageable", "to the device")
        elif beside:
            streams.watch(source)
    elif from_here:
        return _fetch(source, target, beside)
    return None


def _fetch(source: SimulatedTensor, target: Tensor | None, beside: bool) -> Tensor | None:
    """A copy to main memory."""
    LEDGER.note("copies", "from the device")
    locked = target is not None and streams.is_pinned(target)
    if not locked:
        LEDGER.note("pageable", "from the device")
    streams.use([source.values], [], "copy")
    if locked and beside and target is not None:
        streams.fetch_later(target, source.values)
        return target
    LEDGER.note("waits", "copy from the device")
    streams.wait_for()
    return None


def _autocast(operation: Any) -> Callable[..., Any]:
    """An operation that rounds its tensors to autocast's type, as CUDA's matrix products do."""

    def rounded(*args: Any, **kwargs: Any) -> Any:
        def narrow(x: Any) -> Any:
            return x.to(torch.get_autocast_dtype("sim")) if isinstance(x, Tensor) and x.is_floating_point() else x

        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            return operation(*_each(narrow, args), **{key: _each(narrow, value) for key, value in kwargs.items()})

    return rounded


_NARROW = torch.library.Library("aten", "IMPL")
for _name in ("linear", "matmul", "mm", "bmm", "addmm", "conv2d", "scaled_dot_product_attention"):
    _packet = getattr(torch.ops.aten, _name)
    for _overload in {"conv2d": ("default", "padding")}.get(_name, ("default",)):
        _full = getattr(_packet, _overload)
        _NARROW.impl(_full, _autocast(_full), "AutocastPrivateUse1")
_LIBRARY = torch.library.Library("_", "IMPL")
_LIBRARY.fallback(lambda operation, *args, **kwargs: _run(operation, args, kwargs), "PrivateUse1")
_LIBRARY.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
