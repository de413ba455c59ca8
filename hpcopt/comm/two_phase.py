"""Two-phase all-reduce: for payloads that cannot be summed on the way.

Phase 1: every rank owns one shard; each other rank sends it its encoded part of that shard. The owner decodes, and
sums in float32 beside its own values, which have not left and so are exact. Phase 2: the owner encodes the sum once and
sends it to all, and itself decodes what it sent, so that the result is bit-equal on all ranks.

Each value so passes two codecs, whatever P is; a codec at every hop of a ring would err P - 1 times. Error feedback
therefore has two residuals, one at each place where something is lost (Tang et al. 2021, arXiv:2102.02888, alg. 1): the
sender's and the owner's.

Cost with latency alpha, bandwidth B, payloads r times smaller than the n bytes, and codec rates e and u: ``2 (P - 1)
alpha + 2 (P - 1) / P n / (r B) + n / e + n / u + n / (P e) + n / u``.
"""

import torch
from torch import Tensor

from hpcopt.comm import slots
from hpcopt.comm.shards import grain, longest, shards
from hpcopt.comm.transport import Request, Transport, wait_all
from hpcopt.compress import Codec


def all_reduce(
    transport: Transport,
    x: Tensor,
    codec: Codec,
    *,
    sender_seed: int,
    owner_seed: int,
    sender_residual: Tensor | None = None,
    owner_residual: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """Replace x, shape (n,), float32, contiguous, by (nearly) its sum over all ranks, bit-equal on all of them.

    Collective: over the transport's ranks, with one n, codec and owner_seed.

    Args:
        sender_seed: of this rank's payloads; ranks differ, unless ``codec.shared_seed``.
        owner_seed: of the payloads of sums.
        sender_residual: shape (n,): what this rank's earlier payloads lacked, added to x; updated.
        owner_residual: shape (n,): the same of the sums that this rank sent; only its own shard is used.
        first: index of x[0] in the whole tensor, if x is a part of it.

    Returns:
        x itself. With one rank nothing travels, and nothing is lost.

    Raises:
        NonFiniteError: x holds Inf or NaN, and the codec does not carry them.
    """
    size, rank, traffic = transport.size, transport.rank, transport.traffic
    stretches = shards(x.numel(), size, grain(codec))
    mine = stretches[rank]
    own = x[mine]
    if sender_residual is not None:
        own += sender_residual[mine]
        sender_residual[mine] = 0
    if size == 1:
        return x
    if transport.sums(x) or not (x.is_cpu and transport.carries(x)):
        return slots.all_reduce(transport, x, codec, sender_seed, owner_seed, sender_residual, owner_residual, first)
    # Nearest rank first, on all ranks alike: at every moment each link has one sender.
    others = [(rank + distance) % size for distance in range(1, size)]
    sources = [(rank - distance) % size for distance in range(1, size)]
    room = codec.max_bytes(longest(stretches))
    landing = {source: torch.empty(room, dtype=torch.uint8, device=x.device) for source in sources}
    receives = {source: transport.receive(landing[source], source, exact=False) for source in sources}

    sends: list[Request] = []
    for owner in others:
        with traffic.encoding():
            shard = stretches[owner]
            owed = None if sender_residual is None else sender_residual[shard]
            payload = codec.encode_feedback(x[shard], owed, seed=sender_seed, first=first + shard.start)
        sends.append(transport.send(payload, owner))
    for source in sources:
        with traffic.waiting():
            received_bytes = receives[source].wait()
        with traffic.decoding():
            codec.decode_add(landing[source][:received_bytes], own)

    receives = {source: transport.receive(landing[source], source, exact=False) for source in sources}
    with traffic.encoding():
        owed = None if owner_residual is None else owner_residual[mine]
        payload = codec.encode_feedback(own, owed, seed=owner_seed, first=first + mine.start)
    sends += [transport.send(payload, other) for other in others]
    with traffic.decoding():
        codec.decode(payload, own.numel(), out=own)
    for source in sources:
        with traffic.waiting():
            received_bytes = receives[source].wait()
        with traffic.decoding():
            part = x[stretches[source]]
            codec.decode(landing[source][:received_bytes], part.numel(), out=part)
    with traffic.waiting():
        wait_all(sends)
    return x


def planned_bytes(n: int, size: int, rank: int, codec: Codec) -> int:
    """The most bytes that a rank sends for n values."""
    lengths = [s.stop - s.start for s in shards(n, size, grain(codec))]
    others = sum(codec.max_bytes(length) for owner, length in enumerate(lengths) if owner != rank)
    return others + (size - 1) * codec.max_bytes(lengths[rank]) if size > 1 else 0
