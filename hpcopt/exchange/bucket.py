"""Parameters in flat buckets: a backward pass writes straight into what a collective sends."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from hpcopt.compress import Layout
from hpcopt.errors import UnsupportedError


@dataclass
class Bucket:
    """Gradients of some parameters, side by side in one flat tensor.

    Attributes:
        index: its place in the order in which buckets are exchanged.
        kind: what the parameters have in common, such as their codec.
        values: shape (n,); gaps between parameters are zero.
        views: each parameter's gradient, in values.
        layout: names and shapes as they lie in values; a gap has a name of its own.
        offsets: where each parameter begins in values.
        ready_s: when its gradients were last complete, by ``time.perf_counter``.
    """

    index: int
    kind: Hashable
    values: Tensor
    views: dict[nn.Parameter, Tensor]
    layout: Layout
    offsets: dict[nn.Parameter, int] = field(default_factory=dict)
    ready_s: float = 0.0

    @property
    def name(self) -> str:
        """For seeds and messages."""
        return f"bucket {self.index}"

    @property
    def nbytes(self) -> int:
        """Of the values."""
        return self.values.nbytes

    def fits(self, p: nn.Parameter) -> bool:
        """Whether the bucket can still hold a parameter's gradient."""
        return p.dtype == self.values.dtype and p.device == self.values.device and p.shape == self.views[p].shape

    def take(self, p: nn.Parameter) -> None:
        """Bring a parameter's gradient to its place, whoever made it and however; none counts as zero."""
        place = self.views[p]
        if place.data_ptr() != self.values.data_ptr() + self.offsets[p] * self.values.element_size():
            # model.to() has moved it away; an empty one has no place
            place = self.views[p] = self._view(p)
        if p.grad is None:
            place.zero_()
        elif p.grad is not place:
            place.copy_(p.grad if p.grad.layout == torch.strided else p.grad.to_dense())
        p.grad = place

    def replace(self, old: nn.Parameter, new: nn.Parameter) -> None:
        """Let one parameter stand where another stood."""
        for table in (self.views, self.offsets):
            items = [(new if p is old else p, value) for p, value in table.items()]
            table.clear()
            table.update(items)  # type: ignore[arg-type]

    def at(self, values: Tensor) -> "Bucket":
        """The same bucket, whose values lie elsewhere, shape (n,)."""
        ends = [(p, begin, begin + p.numel()) for p, begin in self.offsets.items()]
        return replace(self, values=values, views={p: values[begin:end].view(p.shape) for p, begin, end in ends})

    def _view(self, p: nn.Parameter) -> Tensor:
        return self.values[self.offsets[p] : self.offsets[p] + p.numel()].view(p.shape)


def make_buckets(
    parameters: Sequence[tuple[str, nn.Parameter]],
    bucket_bytes: int,
    kind: Callable[[str, nn.Parameter], Hashable],
    grain: int = 1,
) -> list[Bucket]:
    """Put parameters into buckets of about ``bucket_bytes``, last parameter first: a backward pass finishes them in
    about that order.

    Parameters of unlike kind, dtype or device do not share a bucket. Each begins at a multiple of ``grain`` values.

    Raises:
        UnsupportedError: two parameters have one name; what is kept for them goes by it.
    """
    again = [name for name, count in Counter(name for name, _ in parameters).items() if count > 1]
    if again:
        raise UnsupportedError(
            f"parameters share the name {again[0]!r}: give each a name of its own, as model.named_parameters() does, "
            "or a prefix for each of several models"
        )
    if grain < 1:
        raise UnsupportedError(f"a reducer's grain is a number of values, at least 1, not {grain}").everywhere()
    open_groups: dict[Hashable, list[tuple[str, nn.Parameter]]] = {}
    closed: list[tuple[Hashable, list[tuple[str, nn.Parameter]]]] = []
    for name, p in reversed(parameters):
        key = (p.dtype, p.device, kind(name, p))
        group = open_groups.setdefault(key, [])
        group.append((name, p))
        if sum(q.numel() * q.element_size() for _, q in group) >= bucket_bytes:
            closed.append((key[-1], open_groups.pop(key)))
    closed += [(key[-1], group) for key, group in open_groups.items() if isinstance(key, tuple)]
    return [_bucket(index, what, group, grain) for index, (what, group) in enumerate(closed)]


def _bucket(index: int, kind: Hashable, group: list[tuple[str, nn.Parameter]], grain: int) -> Bucket:
    layout: dict[str, tuple[int, ...]] = {}
    offsets: dict[nn.Parameter, int] = {}
    length = 0
    for name, p in group:
        offsets[p] = length
        layout[name] = tuple(p.shape)
        length += p.numel()
        if gap := -length % grain:
            layout[f"{name} (gap)"] = (gap,)
            length += gap
    values = torch.zeros(length, dtype=group[0][1].dtype, device=group[0][1].device)
    views = {p: values[offset : offset + p.numel()].view_as(p) for p, offset in offsets.items()}
    return Bucket(index, kind, values, views, layout, offsets)
