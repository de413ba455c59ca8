"""A process that has imported all that a job needs, and forks ranks for launchers that ask for them by client.py.

A rank then starts in milliseconds of processor time instead of seconds, and is the launcher's in all else: it has the
launcher's host, pipes, environment and signals, and starts MPI for itself. It is killed when the process that the
launcher knows is killed.
"""

import ctypes
import fcntl
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from benchmarks.interruptions.client import HEAD, HOST

HIGH = 200  # above the numbers of descriptors that a launcher gives away


@contextmanager
def warm_process(jobs: list[Path]) -> Iterator[Path]:
    """A warm process for these jobs while the body runs; gives its socket."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "socket"
        command = [sys.executable, "-m", "benchmarks.interruptions.warm", str(path), *map(str, jobs)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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


def preload(jobs: list[str]) -> None:
    """Import what jobs import: a process that trains each of them says what that is."""
    from hpcopt.lean_torch import keep_dynamo_out

    keep_dynamo_out()
    ours, theirs = os.pipe()
    if (pid := os.fork()) == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        with tempfile.TemporaryDirectory() as folder:
            for number, job in enumerate(jobs):
                train(["-m", "hpcopt.train", job, "--run-dir", f"{folder}/{number}", "--set", "run.steps=5"])
        with os.fdopen(theirs, "w", encoding="utf-8") as out:
            json.dump(list(sys.modules), out)
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, encoding="utf-8") as said:
        names = json.load(said)
    os.waitpid(pid, 0)
    import mpi4py

    mpi4py.rc(initialize=False, finalize=False)
    for name in names:
        with suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a rank that looks through what was imported would copy it


def train(arguments: list[str]) -> int:
    """``python -m hpcopt.train``."""
    from hpcopt.train import main

    return main(arguments[2:])


def serve(path: str) -> None:
    """Fork a rank for each client, until standard input ends."""
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
                return
            if key.fileobj is listener:
                client = listener.accept()[0]
                with suppress(OSError, ValueError, struct.error):  # killed meanwhile
                    if (pid := fork(client, listener)) is not None:
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


def fork(client: socket.socket, listener: socket.socket) -> int | None:
    """Give the rank's process, of a client that says what it should be."""
    head, descriptors, _, _ = socket.recv_fds(client, HEAD.size, 8, socket.MSG_WAITALL)
    text = client.recv(HEAD.unpack(head)[0], socket.MSG_WAITALL)
    arguments, folder, environment, numbers = json.loads(text)
    if (pid := os.fork()) == 0:
        try:
            listener.close()
            become(arguments, folder, environment, numbers, descriptors)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    for descriptor in descriptors:
        os.close(descriptor)
    return pid


def become(
    arguments: list[str], folder: str, environment: dict[str, str], numbers: list[int], descriptors: list[int]
) -> NoReturn:
    """Be the rank that a launcher has started."""
    for path, namespace in zip(HOST, descriptors[: len(HOST)], strict=True):
        if not os.path.samestat(Path(path).stat(), os.fstat(namespace)) and ctypes.CDLL(None).setns(namespace, 0) != 0:
            raise OSError(f"cannot enter {path} of a host")
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, HIGH) for descriptor in descriptors[len(HOST) :]]
    os.closerange(3, HIGH)
    for number, descriptor in zip(numbers, high, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):  # of another kind than this process's
        setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-m", *arguments[2:]]
    sys.orig_argv = ["python", *arguments]
    from benchmarks.interruptions.places import note_places
    from hpcopt.train import leave

    note_places()
    leave(train(arguments))


if __name__ == "__main__":
    preload(sys.argv[2:])
    serve(sys.argv[1])
