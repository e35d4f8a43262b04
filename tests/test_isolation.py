# SPDX-License-Identifier: Apache-2.0
"""Isolated runs: a hostile pipeline gets at nothing, fills nothing up and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest

from adapter.models import JobState
from adapter.settings import Pipeline
from adapter.stages import EXPORT, PIPELINE
from tests import peers
from tests.support_jobs import add_group, make_work, row
from tests.support_waiting import eventually
from workers import pipeline
from workers.background import WorkerBackgroundTasks
from workers.clients import isolation
from workers.clients.pipeline_process import Ending, How
from workers.metrics import WorkerMetrics
from workers.stage import take_all

ROOT = Path(__file__).parents[1]

#: Tries everything, and prints what it got.  Arguments: paths to read, paths to write to, each
#: joined by colons; a process to look at and to kill; a TCP port of this machine; its mark.
HOSTILE = r"""
import ctypes, json, os, socket, subprocess, sys, time
reads, writes, pid, port, mark = sys.argv[1:]
found = {}

def tries(name, call):
    try:
        call()
    except Exception:
        return
    found.setdefault("got", []).append(name)

def read(path):
    if os.path.isdir(path):
        assert os.listdir(path)
    else:
        assert open(path, "rb").read()

for path in reads.split(":"):
    tries("read " + path, lambda: read(path))
for path in writes.split(":"):
    tries("write " + path, lambda: open(path + "/x", "w").close())
tries("rename its input", lambda: os.rename("input", "elsewhere"))
tries("kill", lambda: os.kill(int(pid), 0))
tries("look at a process", lambda: read(f"/proc/{pid}/environ"))
tries("connect", lambda: socket.create_connection(("127.0.0.1", int(port)), timeout=2))
tries("reach the host of a virtual machine", lambda: socket.socket(40, socket.SOCK_STREAM))
tries("become root", lambda: os.setuid(0))
tries("make a device", lambda: os.mknod("output/device", 0o20666, os.makedev(1, 5)))

libc = ctypes.CDLL(None, use_errno=True)

def succeeds(answer):
    assert answer >= 0

tries("make a namespace", lambda: succeeds(libc.unshare(0x10000000)))
tries("mount", lambda: succeeds(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)))
tries("use a key ring", lambda: succeeds(libc.syscall(250, 0, -3, 1, 0, 0)))
tries("use sudo's way", lambda: succeeds(subprocess.run(
    ["setpriv", "--reuid", "0", "true"], stderr=subprocess.DEVNULL).returncode * -1))

status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines())
found["capabilities"] = int(status["CapEff"], 16) | int(status["CapPrm"], 16)
found["no new privileges"] = status["NoNewPrivs"]
found["user"] = os.getuid()
found["interfaces"] = [name for _, name in socket.if_nameindex()]
found["processes"] = sum(name.isdigit() for name in os.listdir("/proc"))
found["host"] = socket.gethostname()
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()

# What is not ours to fail: the run's own places, shared memory, and this interpreter's packages.
for path in (".", "output", "/tmp", "/var/tmp", "/dev/shm", os.environ["TMPDIR"]):
    open(path + "/mine", "w").write("x")
    os.remove(path + "/mine")
assert os.listdir("input")
if "DICOM_ADAPTER_METADATA" in os.environ:
    assert open(os.environ["DICOM_ADAPTER_METADATA"]).read()

# Outlives its run: forks twice into a session of its own, without an environment.
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    code = "import time; time.sleep(600)"
    os.execve(sys.executable, [sys.executable, "-c", code, mark], {})
time.sleep(0.2)
print(json.dumps(found))
"""


@pytest.fixture(scope="module", autouse=True)
def _isolation():
    if isolation.why_not():
        peers.cannot(peers.Lack.ISOLATION)


@pytest.fixture
def port():
    """A TCP port of this machine that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def marked(mark):
    """Return the processes that have a mark among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def started(adapter, text, *arguments, **definition):
    """Return work, and a job that is to be run by a piece of Python."""
    command = ["{python}", "-c", text, *map(str, arguments)]
    work = make_work(adapter, pipelines={"one": {"command": command} | definition})
    (job,) = add_group(adapter, state=JobState.STARTED)
    folder = adapter.spool.work_folder(job)
    folder.mkdir(exist_ok=True)
    (folder / "metadata.json").write_text("{}")
    return work, job


def test_a_hostile_pipeline_gets_at_nothing_and_leaves_nothing(adapter, port, tmp_path):
    """No secret, other study, process, network or right is reached, and no process outlives it."""
    password = adapter.settings.data / "redis.password"
    password.write_text("hush")
    other = tmp_path / "other"
    other.write_text("hush")
    spool = adapter.spool
    another_job = str(uuid.UUID(int=1))
    spool.make_work_folder(another_job)
    metadata = spool.work_folder(another_job) / "metadata.json"
    metadata.write_text("hush")
    reads = [
        password,
        other,
        metadata,
        adapter.settings.data / "ledger.sqlite",
        spool.root / "key",
        spool.instances / "00",
        Path("/etc/shadow"),
        Path("/proc/1/environ"),
        ROOT / "pyproject.toml",
    ]
    writes = [spool.instances / "00", spool.root, "input", "/usr", "/opt", "/etc", "/", "/dev"]
    mark = uuid.uuid4().hex
    arguments = (":".join(map(str, reads)), ":".join(map(str, writes)), os.getpid(), port, mark)
    work, job = started(adapter, HOSTILE, *arguments)

    take_all(work, pipeline.take)

    folder = spool.work_folder(job)
    assert (folder / "stderr.txt").read_text() == ""
    found = json.loads((folder / "stdout.txt").read_text())
    assert row(adapter, job).outcome == "no-output"
    check(found)
    if os.geteuid() == 0:
        assert 61184 <= found["user"] <= 65519
    assert marked(mark) == []
    assert password.read_text() == "hush"
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []


def check(found):
    assert "got" not in found
    assert (found["capabilities"], found["no new privileges"]) == (0, "1")
    assert found["interfaces"] == ["lo"]
    assert found["host"] == "pipeline"
    assert found["processes"] <= 3


#: Runs one command in a sandbox, whoever runs this.
DRIVER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from workers.clients.pipeline_process import Command, run_command
folder, sandbox, arguments = Path(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4:]
for name in ("input", "output", "tmp"):
    (folder / "run" / name).mkdir(parents=True)
(folder / "run" / "input" / "one").write_text("one")
(folder / "secret").write_text("hush")
command = Command([sys.executable, "-c", *arguments], folder / "run",
                  {"TMPDIR": str(folder / "run" / "tmp")}, 60, 10**9, 10**7, 1000, 0,
                  folder / "stdout.txt", folder / "stderr.txt", sandbox)
print(run_command(command, lambda: False))
"""


def test_a_pipeline_of_an_ordinary_user_is_isolated_too(port):
    """Without root the run keeps its uid, and in a user namespace reaches nothing else of it."""
    if os.geteuid() != 0:
        peers.cannot(peers.Lack.OTHER_USERS)  # and the test above has been this one
    python = Path("/usr/bin/python3")
    user = {"user": 12345, "group": 12345, "extra_groups": []}
    text = "import sys, os; os.listdir(sys.argv[1]); assert sys.version_info > (3, 11)"
    probe = [python, "-c", text, ROOT]
    if not python.exists() or subprocess.run(probe, check=False, **user).returncode != 0:
        peers.cannot(peers.Lack.OTHER_USERS)
    if subprocess.run(["unshare", "--user", "true"], check=False, **user).returncode != 0:
        peers.cannot(peers.Lack.ISOLATION)
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        os.chown(folder, 12345, 12345)
        system = [path for path in map(Path, ("/usr", "/bin", "/lib", "/lib64")) if path.exists()]
        sandbox = {
            "readable": list(map(str, system)),
            "hidden": [str(folder)],
            "network": False,
            "processes": 100,
        }
        mark = uuid.uuid4().hex
        reads = f"{folder}/secret:/etc/passwd:/proc/1/environ"
        arguments = (HOSTILE, reads, "input:/usr:/dev:/", os.getpid(), port, mark)
        done = subprocess.run(
            [python, "-c", DRIVER, ROOT, folder, json.dumps(sandbox), *map(str, arguments)],
            check=True,
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin"},
            **user,
        )
        said = (folder / "stdout.txt").read_text()
        assert done.stdout == "Ending(how=<How.ENDED: 'ended'>, code=0, problem='')\n", (
            folder / "stderr.txt"
        ).read_text()
        found = json.loads(said)
        check(found)
        assert found["user"] == 12345
        assert marked(mark) == []
    finally:
        shutil.rmtree(folder)


#: What a hostile pipeline does to the machine, the outcome, and a word of the message.
EXCESS = {
    "many small files": (
        "for n in range(10**6): open(f'output/{n}', 'w').close()",
        "over-limit",
        "1000 files",
    ),
    "many folders": (
        "import os\nfor n in range(10**6): os.mkdir(f'tmp/{n}')",
        "over-limit",
        "1000 files",
    ),
    "much in many files": (
        "for n in range(900): open(f'output/{n}', 'wb').write(bytes(100_000))",
        "over-limit",
        "20 MB",
    ),
    "one large file": (
        "open('output/x', 'wb').write(bytes(30_000_000))",
        "over-limit",
        "20 MB",
    ),
    "a large file of nothing": ("open('output/x', 'wb').truncate(1 << 40)", "exit-code", "1"),
    "deep folders": (
        "import os\nfor n in range(2000): os.mkdir('d'); os.chdir('d')",
        "over-limit",
        "64 deep",
    ),
    "a socket": (
        "import socket; socket.socket(socket.AF_UNIX).bind('output/s')",
        "invalid-output",
        "s: is no regular file",
    ),
    "closed folders": (
        "import os; os.mkdir('output/d'); os.mkdir('output/d/e'); os.chmod('output/d', 0)",
        "no-output" if os.geteuid() == 0 else "invalid-output",
        "",
    ),
}


@pytest.mark.parametrize("what", EXCESS)
def test_a_run_takes_no_more_than_it_may(adapter, what):
    """What a run makes too much of ends it or fails within it, and all of it is deleted."""
    text, outcome, word = EXCESS[what]
    limits = {"diskMB": 20, "maximumFiles": 1000}
    work, job = started(adapter, text, **limits)

    assert take_all(work, pipeline.take) == {outcome: 1}

    assert word in row(adapter, job).message
    assert [path for path in adapter.spool.work_folder(job).iterdir() if path.is_dir()] == []


def test_a_run_forks_no_more_than_it_may(adapter):
    """A run that forks without end gets as many processes as its pipeline says, then none."""
    text = (
        "import os, time\n"
        "n = 0\n"
        "try:\n"
        "    while n < 500:\n"
        "        if os.fork() == 0: time.sleep(600)\n"
        "        n += 1\n"
        "except BlockingIOError: pass\n"
        "print(n)\n"
    )
    work, job = started(adapter, text, maximumProcesses=50)

    take_all(work, pipeline.take)

    said = (adapter.spool.work_folder(job) / "stdout.txt").read_text()
    assert 40 <= int(said) <= 50


def test_a_run_that_waits_dies_with_its_launcher(adapter, tmp_path):
    """SIGKILL of the launcher ends every process in the namespace."""
    mark = uuid.uuid4().hex
    work, _job = started(
        adapter,
        "import os, subprocess, sys, time\n"
        "if os.fork() == 0: os.setsid()\n"
        "subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)', sys.argv[1]])",
        mark,
    )

    thread = threading.Thread(target=lambda: take_all(work, pipeline.take))
    thread.start()
    eventually(lambda: len(marked(mark)) >= 4)

    for pid in marked_launchers():
        os.kill(pid, 9)
    thread.join(20)

    eventually(lambda: not marked(mark), timeout=2)


def marked_launchers():
    own = Path(f"/proc/{os.getpid()}/task")
    children = {pid for task in own.iterdir() for pid in (task / "children").read_text().split()}
    return [
        int(pid) for pid in children if b"launcher.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_isolation_that_is_required_and_impossible_parks_the_job(adapter, monkeypatch):
    """`required` runs nothing without isolation, `preferred` does, and both are complained of."""
    monkeypatch.setattr(isolation, "why_not", lambda: "no namespaces")
    work, job = started(adapter, "print('ran')", isolation="required")

    assert take_all(work, pipeline.take) == {"not-isolated": 1}

    assert "no namespaces" in row(adapter, job).message
    complaints = isolation.complaints(work.adapter.settings)
    assert complaints == ["pipelines are not isolated: no namespaces"]


def test_a_trial_that_fails_for_now_is_made_again(adapter, monkeypatch):
    """A busy machine is not one that cannot isolate: nothing runs without isolation meanwhile."""
    isolation.why_not.cache_clear()
    ending = Ending(How.TIMED_OUT)
    monkeypatch.setattr(isolation, "run_command", lambda *_: ending)
    work, _job = started(adapter, "print('ran')")

    assert take_all(work, pipeline.take) == {"failed": 1}
    assert "on trial: timed-out" in isolation.complaints(work.adapter.settings)[0]

    monkeypatch.undo()
    assert isolation.why_not() == ""


def test_a_worker_says_that_pipelines_are_not_isolated(settings, monkeypatch):
    """The heartbeat, which health and `status` show, has the cause; another worker's has none."""
    monkeypatch.setattr(isolation, "why_not", lambda: "no namespaces")
    pipelines = {"one": Pipeline.model_validate({"name": "1", "command": ["x"], "export": False})}
    changed = settings.model_copy(update={"pipelines": pipelines})
    told = ["pipelines are not isolated: no namespaces"]
    for stage, problems in ((PIPELINE, told), (EXPORT, None)):
        own = SimpleNamespace(stages=[stage])
        tasks = WorkerBackgroundTasks(changed, lambda: 1 / 0, WorkerMetrics(), "name", own)
        with pytest.raises(ZeroDivisionError):
            tasks._open()
        tasks._consumer = object()
        assert tasks._say().get("problem") == problems


@pytest.mark.parametrize(("readable", "read"), [("model", "toolmodel"), (".", "toolmodelother")])
def test_what_a_pipeline_names_may_be_read(adapter, tmp_path, readable, read):
    """A program's folder and what `readable` names are there, the adapter's data in them is not."""
    names = ("tool", "model", "other", "data")
    for folder in (tmp_path, *(tmp_path / name for name in names)):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        (folder / "file").write_text(folder.name)
        (folder / "file").chmod(0o644)
    script = tmp_path / "tool" / "run.sh"
    script.write_text(
        f"#!/bin/sh\nfor name in {' '.join(names)}; do cat {tmp_path}/$name/file; done"
    )
    script.chmod(0o755)
    definition = {"command": [str(script)], "readable": [str(tmp_path / readable)]}
    work, job = started(adapter, "", **definition)

    take_all(work, pipeline.take)

    folder = adapter.spool.work_folder(job)
    assert (folder / "stdout.txt").read_text() == read
    assert "data/file: No such file" in (folder / "stderr.txt").read_text()
