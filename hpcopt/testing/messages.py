"""What a transport promises of messages between two ranks, a part of ``hpcopt.testing.transport``."""

from collections.abc import Callable
from threading import Thread

import torch
from torch import Tensor

from hpcopt.comm.transport import Transport
from hpcopt.errors import PeerError, UnsupportedError

LENGTHS = (0, 1, 7, 1 << 19)  # the last is more than any library sends unasked
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
PATIENCE_S = 60.0


def check_messages(transport: Transport, patience_s: float = PATIENCE_S) -> None:
    """Run every check below, or see messages refused, if the transport has none.

    Args:
        patience_s: after which ranks that all sent and wait are taken to wait for ever.
    """
    if not transport.point_to_point:
        check_refusal(transport)
        return
    in_time(transport, patience_s, lambda: check_order(transport))
    check_values(transport)
    check_buffers(transport)
    check_sizes(transport)
    check_any_source(transport)


def neighbours(transport: Transport) -> tuple[int, int]:
    """The next rank and the one before, around."""
    return (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size


def check_refusal(transport: Transport) -> None:
    """Without messages, both ends refuse by the transport's name."""
    ends: list[Callable[[], object]] = [
        lambda: transport.send(torch.ones(1), 0),
        lambda: transport.receive(torch.ones(1), 0),
    ]
    for end in ends:
        try:
            end()
        except UnsupportedError as refusal:
            assert transport.name in str(refusal), f"{transport.name}: messages are refused without its name"
            continue
        raise AssertionError(f"{transport.name} says that it has no messages, and does not refuse them")


def check_order(transport: Transport) -> None:
    """Sends do not wait for receives; messages of one source and tag arrive in order, those of other tags meanwhile."""
    after, before = neighbours(transport)

    def value(n: int, tag: int, source: int) -> Tensor:
        return _values(n, 10 * source + tag, torch.float32)

    sends = [transport.send(value(n, tag, transport.rank), after, tag) for tag in (3, 0) for n in LENGTHS]
    for tag in (0, 3):
        for n in LENGTHS:
            out = torch.empty(n)
            transport.receive(out, before, tag).wait()
            assert torch.equal(out, value(n, tag, before)), (
                f"{transport.name}: of messages with tag {tag} that of {n} values is not what was sent"
            )
    for send in sends:
        send.wait()


def check_values(transport: Transport) -> None:
    """Every dtype arrives to the bit, from every rank at once, this one too."""
    for dtype in DTYPES:
        outs = [torch.empty(9, dtype=dtype) for _ in range(transport.size)]
        receives = [transport.receive(out, source) for source, out in enumerate(outs)]
        sends = [transport.send(_values(9, transport.rank, dtype), to) for to in range(transport.size)]
        for request in (*receives, *sends):
            request.wait()
        for source, out in enumerate(outs):
            same = torch.equal(out.view(torch.uint8), _values(9, source, dtype).view(torch.uint8))
            assert same, f"{transport.name}: {dtype} from rank {source} arrives as {out}"


def check_buffers(transport: Transport) -> None:
    """A message is what it was when it was sent: once the send was waited for, its buffer may be written."""
    after, before = neighbours(transport)
    x, out = _values(100_000, transport.rank, torch.float32), torch.empty(100_000)
    receive = transport.receive(out, before)
    transport.send(x, after).wait()
    x.zero_()
    transport.barrier()
    receive.wait()
    wanted = _values(100_000, before, torch.float32)
    assert torch.equal(out, wanted), f"{transport.name}: a message changed after its send was waited for"


def check_sizes(transport: Transport) -> None:
    """A receive of at most so many bytes says how many came, and leaves the rest alone; one of exactly so many refuses
    others with PeerError.
    """
    after, before = neighbours(transport)
    for n in (0, 3, 5):
        send, out = transport.send(torch.ones(n), after), torch.full((5,), 7.0)
        receive = transport.receive(out, before, exact=False)
        came_bytes = receive.wait()
        assert receive.wait() == came_bytes, f"{transport.name}: a message waited for again has other bytes"
        send.wait()
        assert came_bytes == 4 * n, f"{transport.name}: a message of {4 * n} bytes is told as {came_bytes}"
        assert out.tolist() == [1.0] * n + [7.0] * (5 - n), f"{transport.name}: {n} ones into five 7s give {out}"
    for n, exact in ((4, True), (6, True), (6, False)):
        send = transport.send(torch.ones(n), after)
        try:
            transport.receive(torch.empty(5), before, exact=exact).wait()
        except PeerError:
            send.wait()
            continue
        raise AssertionError(f"{transport.name}: {n} values where 5 were expected (exact={exact}) are no PeerError")


def check_any_source(transport: Transport) -> None:
    """Messages of a tag are taken from whichever rank they come, each once, those of one rank in order; or the call is
    refused by the transport's name.
    """
    who, size, turns = transport.name, transport.size, 3
    try:
        none = transport.take(9)
    except UnsupportedError as refusal:
        assert who in str(refusal), f"{who}: messages from any rank are refused without its name"
        return
    assert none is None, f"{who}: of a tag that nobody sent with, {none} is taken"
    transport.barrier()
    lengths = [turns * transport.rank + turn for turn in range(turns)]
    sends = [transport.send(_values(n, n, torch.float32), to, 9) for n in lengths for to in range(size)]
    came: list[list[int]] = [[] for _ in range(size)]
    for _ in range(size * turns):
        taken = transport.take(9, wait=True)
        assert taken is not None, f"{who}: waiting for a message ended without one"
        source, values = taken[0], taken[1].view(torch.float32)
        came[source].append(len(values))
        assert torch.equal(values, _values(len(values), len(values), torch.float32)), f"{who}: took {values}"
    assert came == [[turns * source + turn for turn in range(turns)] for source in range(size)], f"{who}: took {came}"
    for send in sends:
        send.wait()


def in_time(transport: Transport, patience_s: float, body: Callable[[], None]) -> None:
    """Run a body that would wait for ever, where sends wait for receives, and say so then."""
    if not transport.threaded:
        body()
        return
    failures: list[BaseException] = []

    def watched() -> None:
        try:
            body()
        except BaseException as failure:
            failures.append(failure)

    thread = Thread(target=watched, daemon=True)
    thread.start()
    thread.join(patience_s)
    if failures:
        raise failures[0]
    assert not thread.is_alive(), f"{transport.name}: after {patience_s:g} s, sends still wait for their receives"


def _values(n: int, seed: int, dtype: torch.dtype) -> Tensor:
    values = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    return (values > 0 if dtype == torch.bool else 50 * values.abs()).to(dtype)
