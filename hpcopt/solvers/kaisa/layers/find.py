"""Find the layers of a model that K-FAC knows, and listen to their use.

A layer's input and the gradient of its output meet in a hook on the output tensor, so that each use is counted once and
as often as backward comes by: layers used several times or not at all, in-place activations and activation
checkpointing need no special care. An output that nothing backpropagates through leaves no trace.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hpcopt.errors import JobError
from hpcopt.lean_torch import uncompiled
from hpcopt.solvers.kaisa.layers.attention import PackedProjection, WatchedAttention
from hpcopt.solvers.kaisa.layers.embedding import AS_OUTPUT, Embedding
from hpcopt.solvers.kaisa.layers.follow import Parameters
from hpcopt.solvers.kaisa.layers.free import FreeUses, OnUse
from hpcopt.solvers.kaisa.layers.known import kind_of, require_shapes, why_not
from hpcopt.solvers.kaisa.layers.layer import WITHOUT_BIAS, Input, Layer, Options, Sums
from hpcopt.solvers.kaisa.layers.matrix import Choice, Matrix, Source
from hpcopt.solvers.kaisa.layers.norm import ScaleShift

Choose = Callable[[str, nn.Module], Choice | None]  # None: it is the output layer, for the optimizer
UNWATCHED: tuple[Source, ...] = ("gradients", "nothing")  # for which nobody looks at what goes through a layer


class Layers:
    """The layers of a model, in its order.

    Attributes:
        found: those that are preconditioned.
        skipped: names of modules with parameters of their own that are not, and why.
        parameters: the model's, to follow what happens to them.
    """

    def __init__(
        self,
        model: nn.Module,
        options: Options,
        skip: Sequence[str] = (),
        choose: Choose = lambda name, module: Choice(),
    ) -> None:
        """Look at every module whose name, or class, no pattern of ``skip`` is found in; ``choose`` says by which
        method a module goes.

        Raises:
            JobError: a parameter has no shape yet, or no whole number of rows for each head.
        """
        require_shapes(model)
        self.found: list[Layer] = []
        self.skipped: dict[str, str] = {}
        self._model, self._options = model, options
        self._watches: list[tuple[nn.Module, Layer] | WatchedAttention] = []
        of_weight: dict[int, Layer] = {}
        inside: set[nn.Module] = set()  # modules that stand for parameters of another
        for name, module in sorted(model.named_modules(), key=lambda item: isinstance(item[1], nn.Embedding)):
            if module in inside:
                continue
            inside |= set(_parts(module))
            if not list(module.parameters(recurse=False)) and not hasattr(module, "parametrizations"):
                continue
            if any(re.search(pattern, name) or re.search(pattern, type(module).__name__) for pattern in skip):
                self.skipped[name] = "skip"
            elif (choice := choose(name, module)) is None:
                self.skipped[name] = "the output layer"
            elif isinstance(module, nn.MultiheadAttention):
                self._add_attention(name, module, choice)
            elif isinstance(kind := kind_of(module), str):
                self.skipped[name] = kind
            else:
                self._add(name, module, kind, choice, of_weight)
        order = {id(p): i for i, p in enumerate(model.parameters())}
        self.found.sort(key=lambda layer: order[id(layer.weight)])
        self._free = FreeUses([x for x in of_weight.values() if type(x) is Layer or isinstance(x, Embedding)])
        self.parameters = Parameters(model, self.found, self.skipped)

    def _add(
        self,
        name: str,
        module: nn.Module,
        kind: Callable[..., Layer],
        choice: Choice,
        of_weight: dict[int, Layer],
    ) -> None:
        tied = of_weight.get(id(module.weight))
        if tied is None and choice.alone and _is_no_matrix(kind, choice):
            self.skipped[name] = f"no matrix for {choice.method}"
        elif tied is None and choice.source in UNWATCHED:
            self._add_matrix(name, module, choice, of_weight)
        elif tied is None:
            layer = of_weight[id(module.weight)] = kind(name, module, self._options_of(choice))
            layer.method, layer.source = choice.method, choice.source
            self.found.append(layer)
            self._watches.append((module, layer))
        elif isinstance(tied, Matrix):
            return
        elif isinstance(tied, Embedding) or not isinstance(module, nn.Embedding):  # an output layer tells more
            self._watches.append((module, tied))

    def _options_of(self, choice: Choice) -> Options:
        return replace(self._options, bias=not choice.alone, outputs=choice.source != "inputs")

    def _add_matrix(self, name: str, module: nn.Module, choice: Choice, of_weight: dict[int, Layer]) -> None:
        weight, batch = module.weight, getattr(module, "groups", 1) * choice.heads
        assert isinstance(weight, nn.Parameter)
        _require_whole_heads(name, len(weight), batch)
        self.found.append(Matrix(name, weight, self._options, choice, batch))
        of_weight[id(weight)] = self.found[-1]

    def _add_attention(self, name: str, module: nn.MultiheadAttention, choice: Choice) -> None:
        names = ("in_proj_weight", "in_proj_bias", "bias_k", "bias_v")
        separate = "its projections have weights of their own" if module.in_proj_weight is None else ""
        why = separate or why_not(module, nn.MultiheadAttention, *names)
        why = why or why_not(module.out_proj, nn.Linear, "weight", "bias")
        if why:
            self.skipped[name] = why
            return
        if choice.source not in UNWATCHED:
            attention = WatchedAttention(name, module, self._options_of(choice))
            for layer in attention.layers:
                layer.method, layer.source = choice.method, choice.source
            self.found += attention.layers
            self._watches.append(attention)
        else:
            packed, output = module.in_proj_weight, module.out_proj.weight
            assert isinstance(packed, nn.Parameter)
            assert isinstance(output, nn.Parameter)
            _require_whole_heads(name, len(packed) // 3, choice.heads)
            self.found.append(Matrix(f"{name}.in_proj", packed, self._options, choice, batch=3 * choice.heads))
            self.found.append(Matrix(f"{name}.out_proj", output, self._options, choice))
        if module.bias_k is not None:
            self.skipped[f"{name}.bias_k, bias_v"] = "not known"

    def watch(self, active: Callable[[], bool], on_use: OnUse) -> list[RemovableHandle]:
        """Call ``on_use(layer, input, output, part)`` after every use of a layer while ``active()``; ``part`` is the
        first of attention's projections that it is a use of, ``AS_OUTPUT`` or ``WITHOUT_BIAS``; otherwise 0. Give
        what ends it.
        """
        handles = []
        for watched in self._watches:
            if isinstance(watched, WatchedAttention):
                handles += watched.watch(active, on_use)
            else:
                module, layer = watched
                hook = uncompiled(_hook(module, layer, self._free, active, on_use), self._model)
                handles.append(module.register_forward_hook(hook, prepend=True, with_kwargs=True))
        if self._free.layers:
            handles += self._free.watch(self._model, active, on_use)
        return handles


def add(layer: Layer, sums: Sums, source: Input, gradient: Tensor, part: int) -> None:
    """Add a use that ``watch`` told of, once its gradient is there. Without rows it adds nothing."""
    if not gradient.numel():
        return
    if isinstance(layer, PackedProjection):
        layer.record_part(sums, source.x, gradient, part)
    elif isinstance(layer, Embedding) and part == AS_OUTPUT:
        layer.record_output(sums, source.x, gradient)
    elif isinstance(layer, Embedding) and layer.is_output:
        return
    elif type(layer) is Layer and part == WITHOUT_BIAS:
        layer.record_without_bias(sums, source.x, gradient)
    elif type(layer) is Layer:
        source.add_to(sums, layer)
        layer.record_gradient(sums, gradient.detach())
    else:
        layer.record(sums, source.x, gradient)


def _require_whole_heads(name: str, rows: int, parts: int) -> None:
    if rows % parts:
        raise JobError(f"the {rows} rows of {name} do not make {parts} equal heads").everywhere()


def _is_no_matrix(kind: object, choice: Choice) -> bool:
    """A method that takes weights alone is for maps; one that has no factors of outputs, not for a table of words."""
    return kind is ScaleShift or (kind is Embedding and choice.source in ("inputs", "nothing"))


def _parts(module: nn.Module) -> list[nn.Module]:
    """Modules inside another that only hold its parameters: it does not call them."""
    parts = [module.out_proj] if isinstance(module, nn.MultiheadAttention) else []
    lists = getattr(module, "parametrizations", nn.Module())
    return parts + list(lists.modules())


def _hook(
    watched: nn.Module, layer: Layer, free: FreeUses, active: Callable[[], bool], on_use: OnUse
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        # a copy of the model has this hook too
        if module is watched and output.requires_grad and active() and not free.told(output):
            on_use(layer, args[0] if args else kwargs["input"], output, 0)

    return hook
