"""Messages to a rank's neighbours and from them, a round of gossip after the other."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.comm.receipts import Receipts
from hpcopt.comm.transport import Request, Transport, wait_all


@dataclass(frozen=True)
class Heard:
    """What came of a round.

    Attributes:
        present: whether this rank was, so that what it sent counts.
        targets: of its messages, those where they count.
        messages: those that count, from each source that was present, in the order of the sources.
    """

    present: bool
    targets: Sequence[int]
    messages: Sequence[tuple[int, Tensor]]


class Neighbours:
    """Those of one rank. Where no rank can be absent all messages count, those of a round ``tau`` rounds later, so that
    a slow link delays nobody until then.

    Attributes:
        receipts: who is present in rounds; None where all must be.
    """

    def __init__(self, transport: Transport, tau: int = 0, patience_s: float | None = None) -> None:
        """Begin. Collective.

        Raises:
            JobError: on all ranks: ``patience_s`` is given where no rank can be absent.
        """
        self.receipts: Receipts | None = None if tau else transport.receipts(patience_s)
        self._transport, self._tau = transport, tau
        self._under_way: deque[tuple[list[tuple[int, Request, Tensor]], list[Request]]] = deque()

    def round(
        self,
        number: int,
        message: Tensor,
        targets: Sequence[int],
        sources: Sequence[int],
        *,
        most_bytes: int | None = None,
    ) -> Heard:
        """Send a message to the targets, and hear those of the sources. Collective: over a rank's neighbours, or over
        those who are there.

        Args:
            number: of the round, above 0; rising, and the same on all ranks.
            message: flat, not to be changed before the messages of this round have been heard.
            targets, sources: ranks.
            most_bytes: of a message, where they differ in length: uint8; None: all are like this one.

        Raises:
            LostRankError: the others have gone on, or form anew, without the round.
        """
        if self.receipts is not None:
            return self._among_those_present(self.receipts, number, message, targets, sources)
        like = message.new_empty(message.numel() if most_bytes is None else most_bytes)
        rooms = [(source, torch.empty_like(like)) for source in sources]
        exact = most_bytes is None
        receives = [(source, self._transport.receive(room, source, exact=exact), room) for source, room in rooms]
        self._under_way.append((receives, [self._transport.send(message, to) for to in targets]))
        return Heard(True, targets, self.rest(self._tau))

    def rest(self, keep: int = 0) -> list[tuple[int, Tensor]]:
        """The messages that are under way, but for those of so many newest rounds. Collective: over neighbours."""
        heard: list[tuple[int, Tensor]] = []
        traffic = self._transport.traffic
        while len(self._under_way) > keep:
            receives, sends = self._under_way.popleft()
            with traffic.waiting():
                heard += [(source, room[: receive.wait() // room.element_size()]) for source, receive, room in receives]
                wait_all(sends)
        return heard

    def _among_those_present(
        self, receipts: Receipts, number: int, message: Tensor, targets: Sequence[int], sources: Sequence[int]
    ) -> Heard:
        traffic = self._transport.traffic
        with traffic.encoding():
            body = message.detach().cpu().view(torch.uint8).numpy()
        with traffic.waiting():
            decided, messages, sent_bytes = receipts.exchange(number, body, targets, sources)
        traffic.sent_bytes += sent_bytes
        heard = [
            (source, torch.from_numpy(messages[source]).view(message.dtype).to(message.device))
            for source in sources
            if source in messages
        ]
        present = set(decided.present)
        return Heard(self._transport.rank in present, [to for to in targets if to in present], heard)
