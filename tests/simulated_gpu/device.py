"""A GPU that is not there: the torch device ``sim``, in pure Python.

Its tensors hold values in main memory, so that results are the CPU's to the bit. What CUDA refuses is written into
``LEDGER``: an operation on tensors of both devices (but for numbers, and for indices), a CPU generator that draws for
the device, numpy's view of the device's memory. What starts a kernel, what makes the host wait, and what is copied is
counted there. Streams keep an order as CUDA's do (``tests.simulated_gpu.streams``): what it leaves open is refused.

Registering a device is for a whole process and torch calls it experimental: import this in a process of its own.
"""

from collections.abc import Callable, Iterator
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
        return super().__getitem__(tuple(torch.tensor(part) if isinstance(part, list) else part for part in parts))

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
        writes: whether it writes into an argument, by name.
    """

    name: str
    view: bool
    writes: dict[str, bool]


@cache
def _traits(operation: Any) -> Traits:
    schema = operation._schema
    aliases = [result.alias_info for result in schema.returns]
    view = bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)
    writes = {x.name: x.alias_info is not None and x.alias_info.is_write for x in schema.arguments}
    return Traits(schema.name.split("::")[1].rstrip("_"), view, writes)


def _tensors(found: Any) -> Iterator[Tensor]:
    """Of an operation's arguments or results, which are in lists at most."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, list | tuple):
        for each in found:
            yield from _tensors(each)


def _each(change: Callable[[Any], Any], found: Any) -> Any:
    """The same, with each that is no list changed."""
    return type(found)([_each(change, x) for x in found]) if isinstance(found, list | tuple) else change(found)


def _run(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Write an operation down and do it on the values."""
    name, view, writes = _traits(operation)
    tensors = [*_tensors(args), *_tensors([*kwargs.values()])]
    device = kwargs.get("device")
    theirs = any(isinstance(x, SimulatedTensor) for x in tensors)
    here = theirs if device is None else torch.device(device).type == "sim"
    waits = False
    if name in COPYING:
        if (copied := _copy(name, args, kwargs, here)) is not None:
            return copied
    else:
        _check(name, args, kwargs, tensors, here)
        waits = _count(name, view, args)
    wrapped = {id(x.values): x for x in tensors if isinstance(x, SimulatedTensor)}
    if "pin_memory" in kwargs:
        kwargs = {**kwargs, "pin_memory": False}
    values = {key: _each(_unwrapped, value) for key, value in kwargs.items()}
    found = ONE_KERNEL.get(name, operation)(*_each(_unwrapped, args), **values)
    if name not in MEMORY_ONLY and not view:
        given = [*zip(writes, args, strict=False), *kwargs.items()]
        _order(name, writes, given, found if here and name not in TO_HOST else None)
    if name in MEMORY_ONLY and here:
        streams.made(found)
    if waits:
        streams.wait_for()
    if not here or name in TO_HOST:
        return found
    hosts = {id(x) for x in tensors}  # one that was written into stays the host's

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor) or id(x) in hosts:
            return x
        return wrapped[id(x)] if id(x) in wrapped else SimulatedTensor(x)

    return _each(wrap, found)


def _order(name: str, writes: dict[str, bool], given: list[tuple[str, Any]], found: Any) -> None:
    """Let the current stream read and write what the operation does."""
    read, written = [], [x for x in _tensors(found) if not isinstance(x, SimulatedTensor)]
    for argument, value in given:
        mine = [x.values for x in _tensors(value) if isinstance(x, SimulatedTensor)]
        (written if writes[argument] else read).extend(mine)
    streams.use(read, written, name)


def _unwrapped(x: Any) -> Any:
    if isinstance(x, SimulatedTensor):
        return x.values
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == "sim" else x


def _check(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor], here: bool) -> None:
    """Refuse what CUDA does."""
    generator = kwargs.get("generator")
    if here and generator is not None and generator.device.type != "sim":
        LEDGER.note("refused", f"{name} by a CPU generator")
    if not any(isinstance(x, SimulatedTensor) for x in tensors):
        return
    hosts = [x for x in tensors if not isinstance(x, SimulatedTensor) and x.dim() > 0]
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
