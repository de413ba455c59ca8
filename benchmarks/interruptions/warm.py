"""A process that has imported all that a job needs, and forks ranks for launchers that ask for them by client.py.

A rank then starts in milliseconds of processor time instead of seconds, and is the launcher's in all else: it has the
launcher's host, pipes, environment and signals, and starts MPI for itself, where its program imports it. It is killed
when the process that the launcher knows is killed.
"""

import atexit
import ctypes
import fcntl
import gc
import importlib
import importlib.util
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from benchmarks.interruptions import places
from benchmarks.interruptions.client import HEAD, HOST

ROOT = Path(__file__).parents[2]
HIGH = 200  # above the numbers of descriptors that a launcher gives away


@contextmanager
def warm_process(jobs: Sequence[Path], modules: Sequence[str] = ()) -> Iterator[Path]:
    """A warm process for these jobs, and for programs that import these modules, while the body runs; gives its
    socket.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "socket"
        needs = json.dumps([[str(job) for job in jobs], modules])
        command = [sys.executable, "-m", "benchmarks.interruptions.warm", str(path), needs]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.stdout.readline() != "ready\n":
                raise SystemExit("the warm process did not come up")
            yield path
        finally:
            process.stdin.close()
            process.wait()
            process.stdout.close()


def preload(jobs: list[str], modules: list[str]) -> None:
    """Import modules, and what jobs import."""
    from hpcopt.lean_torch import keep_dynamo_out

    keep_dynamo_out()
    import mpi4py

    mpi4py.rc(initialize=False, finalize=False)
    for name in [*modules, *(imported_by(jobs) if jobs else [])]:
        with suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a rank that looks through what was imported would copy it


def imported_by(jobs: list[str]) -> list[str]:
    """What is imported where these jobs are trained: by another process, which says so."""
    ours, theirs = os.pipe()
    if (pid := os.fork()) == 0:
        from hpcopt.train import main

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.modules["mpi4py"].rc(initialize=True, finalize=True)
        with tempfile.TemporaryDirectory() as folder:
            for number, job in enumerate(jobs):
                main([job, "--run-dir", f"{folder}/{number}", "--set", "run.steps=5"])
        with os.fdopen(theirs, "w", encoding="utf-8") as out:
            json.dump(list(sys.modules), out)
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, encoding="utf-8") as said:
        names: list[str] = json.load(said)
    os.waitpid(pid, 0)
    return names


class Request(NamedTuple):
    """What a client says that its rank should be: Python's arguments, the folder, the environment, and the numbers of
    the descriptors that it sends after those of its host.
    """

    arguments: list[str]
    folder: str
    environment: dict[str, str]
    numbers: list[int]


def serve(path: str) -> tuple[Request, list[int]] | None:
    """Fork a rank for each client, until standard input ends; gives, in the forked process, what it is to be."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    print("ready", flush=True)
    selector, ranks = selectors.DefaultSelector(), dict[int, tuple[int, socket.socket]]()
    for source in (sys.stdin, listener):
        selector.register(source, selectors.EVENT_READ, None)
    while True:
        for key, _ in selector.select():
            if key.fd not in selector.get_map():  # closed with the one before
                continue
            if key.fileobj is sys.stdin:
                for pid, _ in ranks.values():
                    os.kill(pid, signal.SIGKILL)
                return None
            if key.fileobj is listener:
                client = listener.accept()[0]
                with suppress(OSError, ValueError, struct.error):  # killed meanwhile
                    request, descriptors = asked_by(client)
                    if (pid := os.fork()) == 0:
                        for mine in (listener, client, selector, *(other for _, other in ranks.values())):
                            mine.close()
                        return request, descriptors
                    for descriptor in descriptors:
                        os.close(descriptor)
                    ended = os.pidfd_open(pid)
                    ranks[ended] = pid, client
                    selector.register(ended, selectors.EVENT_READ, ended)
                    selector.register(client, selectors.EVENT_READ, pid)
                    client.sendall(HEAD.pack(pid))
            elif key.fileobj in ranks:  # a rank has ended
                pid, client = ranks.pop(key.data)
                status = os.waitpid(pid, 0)[1]
                selector.unregister(key.fileobj)
                os.close(key.data)
                with suppress(OSError):
                    client.sendall(HEAD.pack(status))
                if client in selector.get_map():
                    selector.unregister(client)
                client.close()
            else:  # the process that the launcher knows is gone
                selector.unregister(key.fileobj)
                with suppress(ProcessLookupError):
                    os.kill(key.data, signal.SIGKILL)


def asked_by(client: socket.socket) -> tuple[Request, list[int]]:
    """What a client asks for, and the descriptors that it sends along."""
    head, descriptors, _, _ = socket.recv_fds(client, HEAD.size, 8, socket.MSG_WAITALL)
    return Request(*json.loads(client.recv(HEAD.unpack(head)[0], socket.MSG_WAITALL))), descriptors


class Rank:
    """A process that has been forked, and is to be the one that a launcher has started."""

    def __init__(self, request: Request, descriptors: list[int]) -> None:
        """Have the launcher's host, files, folder and environment."""
        self._exit_code, libc = 0, ctypes.CDLL(None)
        # Before what was loaded until now takes itself apart: a fifth of a second, for torch.
        libc.on_exit(libc._exit, None)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell lets its background ignore
        for path, namespace in zip(HOST, descriptors[: len(HOST)], strict=True):
            there = os.fstat(namespace)
            if not os.path.samestat(Path(path).stat(), there) and libc.setns(namespace, 0) != 0:
                raise OSError(f"cannot enter {path} of a host")
        high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, HIGH) for descriptor in descriptors[len(HOST) :]]
        os.closerange(3, HIGH)
        for number, descriptor in zip(request.numbers, high, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.chdir(request.folder)
        os.environ.clear()
        os.environ.update(request.environment)
        self._kind, *self._arguments = request.arguments
        sys.orig_argv = ["python", *request.arguments]
        if Path(places.BOARD).exists():
            places.note_places()
        sys.meta_path.insert(0, MpiStarts())

    def __call__(self) -> None:
        """Do what Python does with the arguments. Its program stands right above the interpreter, which ends it."""
        atexit.register(self._leave)  # the last that is called: those of what was imported before are left out
        beside = self._kind in ("-m", "-c")
        sys.argv = [self._kind, *self._arguments[beside:]]
        sys.path[0] = "" if beside else str(Path(self._kind).parent)
        sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(":"))
        try:
            if self._kind == "-m":
                runpy.run_module(self._arguments[0], run_name="__main__", alter_sys=True)
                return
            text = self._arguments[0] if self._kind == "-c" else Path(self._kind).read_text(encoding="utf-8")
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(text, self._kind, "exec"), main.__dict__)
        except SystemExit as leaving:
            code = leaving.code
            self._exit_code = code & 255 if isinstance(code, int) else int(code is not None)
            raise
        except BaseException:
            self._exit_code = 1
            raise

    def _leave(self) -> None:
        from hpcopt.train import leave

        leave(self._exit_code)


class MpiStarts(MetaPathFinder, Loader):
    """Has MPI, which is loaded, start where the rank imports it, as it does in any process."""

    def __init__(self) -> None:
        import mpi4py

        import hpcopt.comm.mpi

        self._mpi = sys.modules.pop("mpi4py.MPI")
        del mpi4py.MPI
        mpi4py.rc.initialize = True
        mpi4py.rc.thread_level = os.environ.get("MPI4PY_RC_THREAD_LEVEL", "multiple")
        abort = hpcopt.comm.mpi.abort

        def start_and_abort(exit_code: int) -> NoReturn:
            importlib.import_module("mpi4py.MPI")
            abort(exit_code)

        hpcopt.comm.mpi.abort = start_and_abort

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname == "mpi4py.MPI" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._mpi

    def exec_module(self, module: ModuleType) -> None:
        places.start_mpi(module)


if __name__ == "__main__":
    preload(*json.loads(sys.argv[2]))
    if (asked := serve(sys.argv[1])) is not None:
        Rank(*asked)()
