"""Exits 0 when a process of the given name holds a connection to the given port, or over a unix socket ("unix").
With "running" the process alone is enough: it is for workers that connect only when their time has come.

A service without an API of its own answers over the message bus alone: one that
has lost its connection runs and does nothing.
"""

import glob
import os
import sys

ESTABLISHED = "01"


def processes(name):
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        process = os.path.dirname(path)
        try:
            with open(path, "rb") as file:
                # Services rename their workers: "neutron-server: maintenance worker (/usr/bin/python3 …)".
                text = file.read().decode(errors="replace")
        except OSError:
            continue
        if name in text and process != f"/proc/{os.getpid()}":
            yield process


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
if target == "running":
    sys.exit(None if any(processes(name)) else f"no process {name}")
open_sockets = set(connected_unix() if target == "unix" else connected(int(target)))
for process in processes(name):
    if open_sockets.intersection(sockets(process)):
        sys.exit(0)
sys.exit(f"no process {name} is connected to {target}")
