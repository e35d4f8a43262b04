# SPDX-License-Identifier: Apache-2.0
"""Small programs as roles, and what is left of processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from adapter.embedded.roles import Role

#: Writes its process id into a file, runs until SIGTERM, and records its time in another file.
_PROGRAM = """
import os, pathlib, signal, subprocess, sys, time
name, folder, stubborn = sys.argv[1:]
folder = pathlib.Path(folder)
def end(*_):
    (folder / f"{name}.ended").write_text(str(time.monotonic()))
    if stubborn != "yes":
        os._exit(0)
signal.signal(signal.SIGTERM, end)
if stubborn == "yes":
    child = subprocess.Popen(["sleep", "1000"])
    (folder / f"{name}.child").write_text(str(child.pid))
(folder / f"{name}.{os.getpid()}").touch()
while True:
    signal.pause()
"""


def make_role(name, folder, *, stubborn=False, **values):
    """Return a role that is ready when it runs; a stubborn one ignores SIGTERM and has a child."""
    return Role(
        name,
        [sys.executable, "-c", _PROGRAM, name, str(folder), "yes" if stubborn else "no"],
        lambda pid: (folder / f"{name}.{pid}").exists(),
        **values,
    )


def runs(pid):
    """Return whether a process is there and not a zombie."""
    return _state_and_parent(Path(f"/proc/{pid}"))[0] not in {"", "Z"}


def children(pid):
    """Return the ids of a process's children, by role, from their command lines."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        state, parent = _state_and_parent(path)
        if state not in {"", "Z"} and parent == pid:
            found[_role((path / "cmdline").read_bytes().decode().split("\0"))] = int(path.name)
    return found


def _state_and_parent(path):
    try:
        state, parent, *_ = (path / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    return state, int(parent)


def _role(words):
    if "--hostname" in words:
        return words[words.index("--hostname") + 1].partition("@")[0]
    if any("redis-server" in word or "valkey-server" in word for word in words):
        return "redis"
    if "demo-pacs" in words:
        return "pacs"
    return [word for word in words if word][-1]


def environment(**settings):
    """Return the environment of a program under test, without any adapter of the caller's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DICOMADAPTER")}
    return {**kept, **settings}
