"""Exits 0 when a process of the given name holds a connection to the given port, or over a unix socket ("unix").

A service without an API of its own answers over the message bus alone: one that
has lost its connection runs and does nothing.
"""

import glob
import os
import sys

ESTABLISHED = "01"


def processes(name):
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                words = [os.path.basename(word.decode(errors="replace")) for word in file.read().split(b"\0")[:3]]
        except OSError:
            continue
        if name in words or any(word.startswith(name) for word in words):
            yield os.path.dirname(path)


def sockets(process):
    for path in glob.glob(process + "/fd/*"):
        try:
            target = os.readlink(path)
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target[8:-1]


def connected_unix():
    with open("/proc/net/unix", encoding="ascii", errors="replace") as file:
        for line in list(file)[1:]:
            fields = line.split()
            # 03: connected; databases of this host are reached by nothing else.
            if fields[5] == "03":
                yield fields[6]


def connected(port):
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table, encoding="ascii") as file:
            for line in list(file)[1:]:
                fields = line.split()
                if fields[3] == ESTABLISHED and int(fields[2].split(":")[1], 16) == port:
                    yield fields[9]


name, target = sys.argv[1:]
open_sockets = set(connected_unix() if target == "unix" else connected(int(target)))
for process in processes(name):
    if open_sockets.intersection(sockets(process)):
        sys.exit(0)
sys.exit(f"no process {name} is connected to {target}")
