#!/usr/bin/python3 -IS
"""Stands in for `vagrant` and `ssh`: machines whose whole state is a JSON file in $FAKE_HOSTS."""

import json
import os
import sys

HOSTS = os.environ["FAKE_HOSTS"]
COMMITS = {"1.0.0": "a" * 64, "1.1.0": "b" * 64}
IMAGE = "sha256:" + "1" * 64


def vagrant(arguments):
    names = ["control", "compute-1", "compute-2"]
    if arguments[0] == "status":
        for name in names:
            print(f"1,{name},state,running")
        print("1,provisioner,state,not_created")
        return 0
    assert arguments == ["ssh-config", *names], arguments
    for name in names:
        print(f"Host {name}\n  HostName {name}.test\n  User root\n  Port 22\n  IdentityFile /nowhere/{name}\n")
    return 0


def deployment(state, version):
    role = "rollback"
    if version == state["next"]:
        role = "staged"
    if version == state["booted"]:
        role = "booted"
    return {"stateroot": "rackstep", "commit": COMMITS[version], "serial": 0, "role": role, "version": version,
            "next_boot": version == state["next"], "path": "", "images": []}


def status(state):
    order = sorted(state["releases"], key=lambda version: (version != state["next"], version != state["booted"]))
    running = None if state["fails"] == "services" and state["booted"] == "1.1.0" else IMAGE
    return {"format": 1, "host": None, "booted": COMMITS[state["booted"]], "kernel": "6.12", "waiting": [],
            "deployments": [deployment(state, version) for version in order],
            "services": [{"pod": "db", "container": "db", "image": "db", "expected": IMAGE, "running": running}]}


def ssh(arguments):
    target, command = arguments[-2:]
    path = os.path.join(HOSTS, target.removeprefix("root@").removesuffix(".test") + ".json")
    with open(path) as file:
        state = json.load(file)
    if state["fails"] == "silent":
        print("ssh: connect to host: Connection refused", file=sys.stderr)
        return 255
    if command == "cat /proc/sys/kernel/random/boot_id && rackstep status --json":
        print(f"boot-{state['boot']}\n{json.dumps(status(state))}")
        return 0
    if command == "cat /etc/rackstep/host.json":
        print(json.dumps({"format": 1, "name": "", "address": "", "ref": "rackstep/x86_64/host", "repo": state["repo"]}))
        return 0
    if command.startswith("rackstep upgrade --commit --json"):
        revision = command.removeprefix("rackstep upgrade --commit --json").strip()
        state["log"].append(f"upgrade {revision}".strip())
        if state["fails"] == "upgrade":
            print("error: no space left\nstate: nothing changed", file=sys.stderr)
            return 1
        import urllib.request  # slow to load, and needed here alone

        with urllib.request.urlopen(state["repo"] + "/config") as answer:
            pulled = len(answer.read())
        print("pulling release", file=sys.stderr)
        state["next"] = revision or "1.1.0"
        state["releases"] = ["1.0.0", "1.1.0"]
        print(json.dumps({"format": 1, "bytes_pulled": pulled}))
    elif command == "rackstep rollback --json":
        state["log"].append("rollback")
        state["next"] = next(version for version in state["releases"] if version != state["next"])
        print("{}")
    elif command == "systemctl reboot":
        state["log"].append("reboot")
        state["boot"] += 1
        state["booted"] = state["next"]
    else:
        print(f"unknown command: {command}", file=sys.stderr)
        return 127
    with open(path, "w") as file:
        json.dump(state, file)
    return 0


sys.exit({"vagrant": vagrant, "ssh": ssh}[os.path.basename(sys.argv[0])](sys.argv[1:]))
