"""Two-phase all-reduce by slots: what ranks send each other lies side by side, one slot a rank.

For tensors outside main memory. All shards are encoded at once, and all payloads decoded at once, so that a device is
asked for as much on a thousand ranks as on two. Where messages go by way of main memory one copy brings all payloads
there, with the flag that says whether they are finite; the messages are then those of ``hpcopt.comm.two_phase``, and
ranks of both kinds understand each other. Where collectives take tensors of the device, or there are no messages, the
slots go by all-to-all and all-gather.

The result is that of ``hpcopt.comm.two_phase``, bit for bit.
"""

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from hpcopt.comm.shards import grain
from hpcopt.comm.staged import StagedTransport
from hpcopt.comm.transport import Transport, wait_all
from hpcopt.compress import Codec, parts
from hpcopt.compress.parts import Payloads
from hpcopt.kernels.cut import Cut


def all_reduce(
    transport: Transport,
    x: Tensor,
    codec: Codec,
    sender_seed: int,
    owner_seed: int,
    sender_residual: Tensor | None,
    owner_residual: Tensor | None,
    first: int,
) -> Tensor:
    """As ``two_phase.all_reduce``; where collectives carry the slots, the codec's payloads have the length of slots."""
    size, rank, traffic = transport.size, transport.rank, transport.traffic
    cut = Cut.of(x.numel(), size, grain(codec))
    mine = cut.stretches()[rank]
    own, sweep = x[mine], parts.at_once(codec, x)
    with traffic.encoding():
        if sweep and sender_residual is not None:
            x += sender_residual
        sent = parts.encode(codec, x, cut, seed=sender_seed, first=first, residual=None if sweep else sender_residual)
    landing, lengths = _swapped(transport, codec, sent)
    with traffic.encoding():
        if sender_residual is not None:
            if sweep:
                sender_residual.copy_(x)
                parts.decode(codec, sent.slots, sent.lengths, cut, sender_residual, weight=-1.0, add=True)
            sender_residual[mine] = 0
    with traffic.decoding():
        rows = x.new_full((size, own.numel()), -0.0)  # which changes no value that it is added to
        parts.decode(codec, landing, lengths, Cut.rows(size, own.numel()), rows.view(-1), add=True)
        parts.add_rows(rows, own, rank)
    with traffic.encoding():
        whole, owed = Cut.rows(1, own.numel()), None if owner_residual is None else owner_residual[mine]
        given = owed.add_(own) if sweep and owed is not None else own
        kept = None if sweep else owed
        told = parts.encode(codec, given, whole, seed=owner_seed, first=first + mine.start, residual=kept)
    landing, lengths = _told(transport, codec, told, cut)
    with traffic.encoding():
        if sweep and owed is not None:
            parts.decode(codec, told.slots, told.lengths, whole, owed, weight=-1.0, add=True)
    with traffic.decoding():
        parts.decode(codec, landing, lengths, cut, x)
    return x


def _swapped(transport: Transport, codec: Codec, sent: Payloads) -> tuple[Tensor, Sequence[int]]:
    """Send every rank its payload; give those that ranks sent here, in slots, and their lengths, 0 for one's own."""
    landing = torch.empty_like(sent.slots)
    if not _by_messages(transport, landing):
        sent.require_finite(codec)
        with transport.traffic.waiting():
            transport.all_to_all(sent.slots, landing)
        return landing, [sent.stride * (source != transport.rank) for source in range(transport.size)]
    with transport.traffic.waiting():
        leaving = transport.slots.fetched(sent.memory)
        here, place = sent.at(leaving.host), transport.slots.lend(landing)
        here.require_finite(codec)
        outgoing = [slot[:length] for slot, length in zip(here.slots, here.lengths, strict=True)]
        lengths = _messages(transport.inner, outgoing, place.host)
        leaving.give_back()
        place.deliver(landing)
    return landing, lengths


def _told(transport: Transport, codec: Codec, told: Payloads, cut: Cut) -> tuple[Tensor, Sequence[int]]:
    """Send one payload to all; give all ranks', in slots, and their lengths."""
    stride = parts.stride_bytes(codec, cut.longest)
    landing = told.memory.new_empty(transport.size, stride)
    if not _by_messages(transport, landing):
        told.require_finite(codec)
        padded = told.memory.new_zeros(stride)
        padded[: told.stride] = told.slots[0]
        with transport.traffic.waiting():
            transport.all_gather(padded, landing)
        return landing, [stride] * transport.size
    with transport.traffic.waiting():
        leaving = transport.slots.fetched(told.memory)
        here, place = told.at(leaving.host), transport.slots.lend(landing)
        here.require_finite(codec)
        payload = here.slots[0][: here.lengths[0]]
        lengths = _messages(transport.inner, [payload] * transport.size, place.host)
        place.host[transport.rank, : payload.numel()] = payload
        lengths[transport.rank] = payload.numel()
        leaving.give_back()
        place.deliver(landing)
    return landing, lengths


def _by_messages(transport: Transport, x: Tensor) -> TypeGuard[StagedTransport]:
    """Whether payloads are copied to main memory, and go from there."""
    return isinstance(transport, StagedTransport) and transport.point_to_point and not transport.carries(x)


def _messages(transport: Transport, outgoing: Sequence[Tensor], landing: Tensor) -> list[int]:
    """Swap messages with all other ranks; give the bytes of those that came."""
    size, rank = transport.size, transport.rank
    sources = [(rank - distance) % size for distance in range(1, size)]
    receives = {source: transport.receive(landing[source], source, exact=False) for source in sources}
    sends = [transport.send(outgoing[to], to) for to in ((rank + distance) % size for distance in range(1, size))]
    lengths = [0] * size
    for source, receive in receives.items():
        lengths[source] = receive.wait()
    wait_all(sends)
    return lengths
