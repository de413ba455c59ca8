"""Whether MPI takes tensors where they lie on a GPU, found out in a process of its own:

    python hpcopt/comm/mpi_trial.py DEVICE

An MPI that knows nothing of GPUs takes such an address for one of main memory, and its process is gone. This one asks
the library, and only where it says yes imports torch, sends itself tensors and looks at what has come. Its last line is
``FIT``, or why not.
"""

import ctypes
import sys
from typing import Any

from mpi4py import MPI

FIT = "yes"
LENGTHS = (1, 1 << 8, 1 << 20)  # some go at once, others once the receiver is there
CUDA = 0  # MPIX_GPU_SUPPORT_CUDA


def says(library: Any) -> bool | None:
    """The library's own word, by Open MPI's function or MPICH's; None if it gives none."""
    if hasattr(library, "MPIX_Query_cuda_support"):
        return bool(library.MPIX_Query_cuda_support())
    if hasattr(library, "MPIX_GPU_query_support"):
        answer = ctypes.c_int(0)
        library.MPIX_GPU_query_support(CUDA, ctypes.byref(answer))
        return bool(answer.value)
    return None


def carries(device: str) -> bool:
    """Whether a message to oneself, and a sum, bring what was sent."""
    import torch

    for n in LENGTHS:
        x, message, total = torch.arange(n, device=device).float(), *torch.zeros(2, n, device=device)
        if x.is_cuda:
            torch.cuda.synchronize(device)  # MPI knows no streams
        MPI.COMM_SELF.Sendrecv(_floats(x), 0, recvbuf=_floats(message), source=0)
        MPI.COMM_SELF.Allreduce(_floats(x), _floats(total))
        if not (torch.equal(x, message) and torch.equal(x, total)):
            return False
    return True


def _floats(x: Any) -> list[Any]:
    return [MPI.buffer.fromaddress(x.data_ptr(), x.nbytes), MPI.FLOAT]


def verdict(library: Any, device: str) -> str:
    """``FIT``, or why tensors have to go by way of main memory."""
    word = says(library)
    if word is None:
        return "MPI does not say whether it knows GPUs"
    if not word:
        return "MPI says that it knows no GPUs"
    return FIT if carries(device) else "MPI says that it knows GPUs, but what it brought in a trial was wrong"


if __name__ == "__main__":
    print(verdict(ctypes.CDLL(MPI.__file__), sys.argv[1]))
