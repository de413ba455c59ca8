"""Stands in for ``python -m hpcopt.train`` under a launcher: has a warm process (warm.py) fork the rank, passes signals
on to it and ends as it ended. Imports next to nothing; HPCOPT_WARM names the warm process's socket.
"""

import json
import os
import signal
import socket
import struct
import sys

HEAD = struct.Struct("<q")
HOST = [f"/proc/self/ns/{kind}" for kind in ("net", "uts")]  # what makes a host of the development cluster


def main() -> None:
    inherited = [0, 1, 2, *filter(None, [int(os.environ.get("PMI_FD", 0))])]
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), inherited]).encode()  # noqa: PTH109
    host = [os.open(path, os.O_RDONLY) for path in HOST]
    with socket.socket(socket.AF_UNIX) as warm:
        warm.connect(os.environ["HPCOPT_WARM"])
        socket.send_fds(warm, [HEAD.pack(len(request))], [*host, *inherited])
        warm.sendall(request)
        (rank,) = HEAD.unpack(warm.recv(HEAD.size, socket.MSG_WAITALL))
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: os.kill(rank, number))
        (status,) = HEAD.unpack(warm.recv(HEAD.size, socket.MSG_WAITALL))
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
