"""An MPI that takes a GPU's memory is given it as it is, after the stream's work: nothing is copied. The simulated
device's memory is one that any MPI can read.
"""

from tests.launching import mpirun

PROGRAM = """
import torch
from hpcopt.comm import dense, two_phase
from hpcopt.comm.mpi import MpiTransport
from hpcopt.compress import QSGD
from tests.simulated_gpu.device import LEDGER, SIM
from tests.simulated_gpu.run import interpreted_kernels

transport = MpiTransport(host_memory_only=False)
rank, size = transport.rank, transport.size
everyones = [torch.randn(3000, generator=torch.Generator().manual_seed(r)) for r in range(size)]
seeds = {"sender_seed": rank, "owner_seed": 9}
expected = two_phase.all_reduce(transport, everyones[rank].clone(), QSGD(), **seeds)

def message(t, x):
    out = torch.empty_like(x)
    receive = t.receive(out, (t.rank + 1) % t.size)
    t.send(x, (t.rank - 1) % t.size).wait()
    receive.wait()
    return out

def gathered(t, x):
    out = x.new_empty(t.size, *x.shape)
    t.all_gather(x, out)
    return out

def broadcast(t, x):
    t.broadcast(x, 1)
    return x

OPERATIONS = {
    "sum": (lambda t, x: dense.all_reduce(t, x), sum(everyones)),
    "greatest": (lambda t, x: dense.all_reduce(t, x, "max"), torch.stack(everyones).amax(0)),
    "two-phase": (lambda t, x: two_phase.all_reduce(t, x, QSGD(), **seeds), expected),
    "message": (message, everyones[(rank + 1) % size]),
    "all-gather": (gathered, torch.stack(everyones)),
    "broadcast": (broadcast, everyones[1]),
}
with interpreted_kernels():
    for part in (transport, transport.duplicate()):
        for name, (operation, right) in OPERATIONS.items():
            x = everyones[rank].to(SIM)
            LEDGER.clear()
            found = operation(part, x)
            assert not LEDGER.copies, (name, LEDGER.copies)
            assert LEDGER.waits, name
            assert torch.equal(found.cpu(), right), name
assert not LEDGER.refused, LEDGER.refused
transport.close()
"""


def test_tensors_go_from_where_they_lie():
    done = mpirun(2, "-c", PROGRAM, forked=False, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
