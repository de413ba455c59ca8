"""How a rank leaves a run: whatever ends it on any rank becomes a message and an exit code, for all ranks."""

import socket
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from hpcopt.comm.launch import launch_from, leave_exit_code
from hpcopt.errors import EXIT_DONE, HpcoptError, exit_code_of, printable

if TYPE_CHECKING:
    from hpcopt.comm.world import World

HEAD_START_S = 1.0


class Ending:
    """Around all that a rank does; takes in what is raised there, an exit and Ctrl-C, too: the others would wait.

    Attributes:
        world: of this rank, once there is one; it is closed in the end.
        abort: ends every rank of the job; None: as MPI does it.
        exit_code: of this rank.
    """

    def __init__(self, *, alone: bool = False, wording: Callable[[str], str] = str) -> None:
        """Get ready.

        Args:
            alone: the ranks do not wait for each other.
            wording: of messages.
        """
        self._launch, self._alone, self._wording = launch_from(), alone, wording
        self.world: World | None = None
        self.abort: Callable[[int], NoReturn] | None = None
        self.exit_code = EXIT_DONE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
        if error is not None:
            self._tell(error)
        if self.world is not None:
            self.world.close()
        return True

    def leave_exit_code(self) -> None:
        """Tell the batch script, for all ranks."""
        if self._launch.rank == 0:
            leave_exit_code(self.exit_code)

    def _tell(self, error: BaseException) -> None:
        """Say what went wrong; what the other ranks do not know of ends them all."""
        self.exit_code = exit_code_of(error)
        agreed = isinstance(error, HpcoptError) and error.on_every_rank
        ends_all = self._launch.size > 1 and not agreed and not self._alone
        if ends_all:
            abort = self.abort or _abort_of_mpi()
            if self.world is None and self._launch.rank > 0:
                time.sleep(HEAD_START_S)  # it may be the same on all ranks: then rank 0 says it for all
        if self._launch.rank == 0 or not agreed:
            print(f"hpcopt: {self._wording(account(error, self._launch.rank))}", file=sys.stderr, flush=True)
        if ends_all:
            leave_exit_code(self.exit_code)
            abort(self.exit_code)


def _abort_of_mpi() -> Callable[[int], NoReturn]:
    """Starts MPI, if need be: ranks that start it wait for this one."""
    from hpcopt.comm.mpi import abort

    return abort


def account(error: BaseException, rank: int) -> str:
    """What a person is told of what ended a rank."""
    where = f"rank {rank} on {socket.gethostname()}"
    match error:
        case HpcoptError():
            return f"error{f' on {where}' if rank else ''}: {error}"
        case KeyboardInterrupt():
            return f"{where} was interrupted; what came after the last checkpoint is lost"
        case _:
            return f"{where} failed:\n{printable(''.join(traceback.format_exception(error)))}"
