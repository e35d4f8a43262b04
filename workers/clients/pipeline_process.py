# SPDX-License-Identifier: Apache-2.0
"""Runs a command: bounded, without our environment and descriptors, and gone when we are.

The command runs below a small program of ours (`workers.clients.launcher`), which kills everything
of it when it has ended, takes too long, is not wanted any more, or its worker dies.  Only with a
`sandbox` it is kept from what its user may read, write and signal.
"""

from __future__ import annotations

import marshal
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

_LAUNCHER = Path(__file__).with_name("launcher.py")

#: Seconds between questions whether a run is still wanted.
_QUESTION = 0.2

#: Seconds that the launcher gets to clear up before it is killed itself.
_CLEAR_UP = 15.0


class How(StrEnum):
    """How a command came to its end."""

    ENDED = "ended"  #: by itself; `code` says how
    TIMED_OUT = "timed-out"  #: killed because its time was over
    STOPPED = "stopped"  #: killed because it was not wanted any more
    COULD_NOT_START = "could-not-start"  #: there is no such program, or it cannot be executed
    OVER_LIMIT = "over-limit"  #: killed because it took more of the disk than it may
    DISK_FULL = "disk-full"  #: killed because nearly nothing of the disk was left
    LAUNCHER_DIED = "launcher-died"  #: killed because the program that watched over it was


@dataclass(frozen=True, slots=True)
class Command:
    """A command and its bounds.

    Attributes
    ----------
    arguments : sequence of str
        The program, looked up on the PATH of `environment`, and its arguments.  There is no shell.
    folder : Path
        Its current directory; named in `environment`, too, so that its processes are known by it.
        In it are ``output`` and ``tmp``, which it may write to.
    input, metadata : str
        What else is in the folder, and may only be read by an isolated command.
    environment : mapping of str to str
        All of its environment.
    seconds : float
        How long it may take.
    memory : int
        Bytes of address space that each of its processes may have.
    disk, files : int
        Bytes and files that it may have in its folder.
    floor : int
        Free bytes of the disk below which it is killed.
    stdout, stderr : Path
        Where its output is kept: the first and the last 128 KiB of each stream.
    sandbox : dict, optional
        How it is isolated (`workers.clients.isolation`); None if it is not.
    """

    arguments: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    seconds: float
    memory: int
    disk: int
    files: int
    floor: int
    stdout: Path
    stderr: Path
    sandbox: Mapping[str, Any] | None = None
    input: str = "input"
    metadata: str = "metadata.json"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ended: its exit code (negative: a signal's number), or why it was not let."""

    how: How
    code: int | None = None
    problem: str = ""


def run_command(command: Command, cancelled: Callable[[], bool]) -> Ending:
    """Run a command to its end; nothing of it is left then.

    Parameters
    ----------
    command : Command
        What to run.
    cancelled : callable
        Asked several times a second; once it is true the command is killed.
    """
    order = {
        "command": list(command.arguments),
        "folder": str(command.folder),
        "environment": dict(command.environment),
        "seconds": command.seconds,
        "memory": command.memory,
        "disk": command.disk,
        "files": command.files,
        "floor": command.floor,
        "input": command.input,
        "metadata": command.metadata,
        "sandbox": command.sandbox,
        "stdout": str(command.stdout),
        "stderr": str(command.stderr),
        "parent": os.getpid(),
    }
    launcher = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_LAUNCHER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ},
        start_new_session=True,  # a Ctrl-C in the terminal is for the worker
    )
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    try:
        with suppress(BrokenPipeError):
            launcher.stdin.write(marshal.dumps(order))
            launcher.stdin.flush()
        if not _answers(launcher.stdout, cancelled):
            launcher.stdin.close()
            with selectors.DefaultSelector() as selector:
                selector.register(launcher.stdout, selectors.EVENT_READ)
                selector.select(_CLEAR_UP)
            launcher.kill()
        answer = launcher.stdout.read()
    finally:
        with suppress(BrokenPipeError):
            launcher.stdin.close()
        launcher.stdout.close()
        launcher.wait()
    try:
        document = marshal.loads(answer)  # noqa: S302 - from our own program
    except (EOFError, ValueError, TypeError):
        _kill_leftovers(str(command.folder))
        return Ending(How.LAUNCHER_DIED)
    return Ending(How(document["how"]), document["code"], document["problem"])


def _answers(stream: IO[bytes], cancelled: Callable[[], bool]) -> bool:
    """Wait for the launcher's answer or its end; false if the command is not wanted any more."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not selector.select(_QUESTION):
            if cancelled():
                return False
    return True


def _kill_leftovers(mark: str) -> None:
    """Kill the processes that carry `mark` in their environment, after nobody watched over them."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
