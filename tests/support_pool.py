# SPDX-License-Identifier: Apache-2.0
"""A platform for tests: runs a pipeline's command on another pool of processes, and is polled.

``python -m tests.support_pool FOLDER`` is one process of the pool: it takes what is started, one
run at a time.  All that it and `PoolPlatform` say to each other are files of that folder::

    <run>/input/*, metadata.json   uploaded
    <run>/order.json               started: the command
    <run>/claimed                  locked by the process that runs it; free and no end: it died
    <run>/output/*, ended.json     how it ended
    <run>/cancel                   not wanted any more
    commands.txt                   a line for every command that was begun
    uploads.txt                    a line for every file that was copied

``die.txt`` names verbs, one a line: the worker that calls such a verb next is killed when the verb
is done and nothing of that is recorded, once for each line.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel

from adapter.errors import TemporaryError
from adapter.files import delete_tree, write_durably
from adapter.ledger.jobs import Failure
from workers.clients.pipeline_process import Command, How, run_command
from workers.clients.platform import Phase, PolledPlatform, RunLost, RunState

ROOT = Path(__file__).parents[1]


class PoolSettings(BaseModel, extra="forbid"):
    folder: Path


class PoolPipeline(BaseModel, extra="forbid"):
    command: list[str]


class PoolPlatform(PolledPlatform):
    """The adapter's side of the pool."""

    Settings = PoolSettings
    PipelineSettings = PoolPipeline

    def create(self, job):
        self._run(job).mkdir(exist_ok=True)
        self._die("create")
        return f"pool-{job.run_id}"

    def describe(self, job, metadata):
        write_durably(self._known(job) / "metadata.json", json.dumps(metadata).encode())
        self._die("describe")

    def upload(self, job, files):
        folder = self._known(job) / "input"
        folder.mkdir(exist_ok=True)
        for file in files:
            target = folder / file.name
            if not target.exists() or target.stat().st_size != file.size:
                shutil.copyfile(file.path, target.with_suffix(".part"))
                target.with_suffix(".part").rename(target)
                note(self.settings.folder / "uploads.txt", file.name)
            self._die("upload")
            yield

    def start(self, job):
        order = {"command": self.pipeline_settings(job).command}
        write_durably(self._known(job) / "order.json", json.dumps(order).encode())
        self._die("start")

    def state(self, job):
        run = self._known(job)
        self._die("state")
        claimed = (run / "claimed").exists()
        held = claimed and is_held(run / "claimed")
        with suppress(FileNotFoundError):
            ended = json.loads((run / "ended.json").read_text())
            if ended == {"how": "ended", "code": 0}:
                return RunState(Phase.SUCCEEDED)
            failure = Failure("exit-code", f"exit code {ended['code']}", ended["code"])
            return RunState(Phase.FAILED, failure, may_pass=ended["code"] != 78)
        if claimed and not held:
            raise RunLost("the process that had the run is gone")
        return RunState(Phase.RUNNING if claimed else Phase.WAITING)

    def collect(self, job, folder):
        for number, path in enumerate(sorted((self._known(job) / "output").iterdir())):
            shutil.copyfile(path, folder / f"{number}.dcm")
            self._die("collect")
            yield

    def cancel(self, job):
        run = self._run(job)
        if run.exists():
            (run / "cancel").touch()
            if (run / "claimed").exists() and is_held(run / "claimed"):
                raise TemporaryError("its process is ending it", delay=0.1)
            delete_tree(run)
        self._die("cancel")

    def _run(self, job):
        return self.settings.folder / job.run_id

    def _known(self, job):
        run = self._run(job)
        if not run.exists():
            raise RunLost("there is no such run")
        return run

    def _die(self, verb):
        path = self.settings.folder / "die.txt"
        words = path.read_text().split() if path.exists() else []
        if verb in words:
            words.remove(verb)
            write_durably(path, "\n".join(words).encode())
            os.kill(os.getpid(), signal.SIGKILL)


def note(path, line):
    with path.open("a") as file:
        file.write(f"{line}\n")


def is_held(path):
    """Tell whether the process that claimed a run lives; an end is written before it lets go."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def install(folder):
    """Make an installed package of this module, as an entry point sees it; return its folder."""
    info = folder / "pool-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: pool\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dicom_adapter.platforms]\npool = tests.support_pool:PoolPlatform\n"
    )
    return folder


# -- the pool's own side ---------------------------------------------------------------------------


def startable(folder: Path) -> Iterator[Path]:
    for order in sorted(folder.glob("*/order.json")):
        run = order.parent
        if not (run / "claimed").exists() and not (run / "cancel").exists():
            yield run


def execute(folder: Path, run: Path) -> None:
    with (run / "claimed").open("x") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (run / "output").mkdir()
        order = json.loads((run / "order.json").read_text())
        note(folder / "commands.txt", run.name)
        command = Command(
            arguments=order["command"],
            folder=run,
            environment={
                "PATH": os.environ["PATH"],
                "INPUT": str(run / "input"),
                "OUTPUT": str(run / "output"),
                "POOL_RUN": str(run),
            },
            seconds=60.0,
            memory=4_000_000_000,
            disk=1_000_000_000,
            files=1000,
            floor=0,
            stdout=run / "stdout.txt",
            stderr=run / "stderr.txt",
        )
        ending = run_command(command, (run / "cancel").exists)
        ended = {"how": ending.how, "code": ending.code}
        if ending.how is not How.STOPPED:
            write_durably(run / "ended.json", json.dumps(ended).encode())


def main() -> None:
    folder = Path(sys.argv[1])
    while True:
        for run in startable(folder):
            with suppress(FileNotFoundError, FileExistsError):  # cancelled, or another took it
                execute(folder, run)
        time.sleep(0.02)  # another process starts runs: nothing can wake us


if __name__ == "__main__":
    main()
