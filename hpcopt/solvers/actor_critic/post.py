"""What travels between collectors and learners: chunks of transitions one way, weights with a version the other."""

from collections import deque

import numpy as np
import torch
from torch import Tensor

from hpcopt.comm.transport import Request
from hpcopt.comm.world import World
from hpcopt.shapes.simulation import Ended
from hpcopt.solvers.actor_critic.collector import Chunk

CHUNK, WEIGHTS = 31, 32  # tags
HEAD = 5  # whole numbers before a chunk's rows


class Post:
    """This rank's messages. Those of one rank to another come in order."""

    def __init__(self, world: World, width: int) -> None:
        """``width`` numbers are a transition."""
        self._world, self._width = world, width
        self._sends: deque[tuple[Request, Tensor]] = deque()
        self._chunks: dict[int, deque[Chunk]] = {}

    def send_chunk(self, chunk: Chunk, to: int) -> None:
        """Start sending a chunk."""
        rounds, count, _ = chunk.rows.shape
        head = np.array([rounds, count, chunk.version, chunk.restarts, len(chunk.ended)], np.int64)
        ended = np.array(chunk.ended, np.float64)
        parts = [head.view(np.uint8), ended.reshape(-1).view(np.uint8), chunk.rows.reshape(-1).view(np.uint8)]
        self._send(torch.from_numpy(np.concatenate(parts)), to, CHUNK)

    def chunk(self, source: int) -> Chunk:
        """Wait for the next chunk of a rank."""
        while not (waiting := self._chunks.setdefault(source, deque())):
            rank, buffer = self._take(CHUNK, "transitions")
            self._chunks.setdefault(rank, deque()).append(self._unpacked(buffer.numpy()))
        return waiting.popleft()

    def send_weights(self, version: int, weights: Tensor, to: list[int]) -> None:
        """Start sending float32 weights, flat, to some ranks."""
        head = np.array([version], np.int64).view(np.uint8)
        buffer = torch.cat([torch.from_numpy(head), weights.cpu().view(torch.uint8)])
        for rank in to:
            self._send(buffer, rank, WEIGHTS)

    def weights(self) -> tuple[int, Tensor]:
        """Wait for the next weights, and their version."""
        _, buffer = self._take(WEIGHTS, "weights")
        return int(buffer[:8].view(torch.int64)), buffer[8:].view(torch.float32)

    def flush(self) -> None:
        """Wait until nothing that was sent is under way."""
        while self._sends:
            self._sends.popleft()[0].wait()

    def _send(self, buffer: Tensor, to: int, tag: int) -> None:
        while self._sends and self._sends[0][0].done():
            self._sends.popleft()[0].wait()
        self._sends.append((self._world.transport.send(buffer, to, tag), buffer))

    def _take(self, tag: int, what: str) -> tuple[int, Tensor]:
        transport = self._world.transport
        taken = transport.take(tag)
        if taken is None:
            ranks = list(self._world.ranks)
            with self._world.watch(f"rank {ranks[self._world.rank]}'s wait for {what}", ranks):
                taken = transport.take(tag, wait=True)
        assert taken is not None
        return taken

    def _unpacked(self, buffer: np.ndarray) -> Chunk:
        rounds, count, version, restarts, over = buffer[: 8 * HEAD].view(np.int64).tolist()
        start = 8 * HEAD + 16 * over
        ended = [Ended(total, int(steps)) for total, steps in buffer[8 * HEAD : start].view(np.float64).reshape(-1, 2)]
        rows = buffer[start:].view(np.float32).reshape(rounds, count, self._width)
        return Chunk(rows, version, ended, restarts)
