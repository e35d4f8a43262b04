# SPDX-License-Identifier: Apache-2.0
"""The pipeline stage: real commands, on real files, and every way they may end."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import select

from adapter.ledger import jobs, schema
from adapter.models import JobState
from tests.support_jobs import (
    CT_SERIES,
    TEST_FILES,
    add_group,
    change,
    gone,
    kinds,
    make_work,
    row,
    rows,
)
from tests.support_waiting import eventually
from workers import claimed_job, pipeline
from workers.clients.attempt import Attempt
from workers.stage import take_all
from workers.submission import payload_files

pytestmark = pytest.mark.every_ledger


def shell(text):
    """Return the command that runs a line of shell."""
    return ["sh", "-c", text]


def code(text):
    """Return the command that runs a piece of Python."""
    return ["{python}", "-c", text]


COPY = shell("cp {input}/* {output}/")


def started(adapter, command, **definition):
    """Return work, and a job that is to be run by `command`."""
    work = make_work(adapter, pipelines={"one": {"command": command, **definition}})
    (job,) = add_group(adapter, state=JobState.STARTED)
    write_metadata(adapter, job)
    return work, job


def write_metadata(adapter, job):
    folder = adapter.spool.work_folder(job)
    folder.mkdir(exist_ok=True)
    (folder / "metadata.json").write_text('{"Instances": "4"}')


def printed(adapter, job):
    return (adapter.spool.work_folder(job) / "stdout.txt").read_text()


def attempts(adapter, job):
    return [path for path in adapter.spool.work_folder(job).iterdir() if path.is_dir()]


def due_now(adapter, job):
    change(adapter, job, due_at=0.0)


# --- a run that ends well -------------------------------------------------------------------------


def test_a_run_that_ends_well_is_published_and_becomes_a_task(adapter):
    """The output's bytes are the results; job, task, files and exports are there in one step."""
    work, job = started(adapter, COPY, destinations=["PACS", "ARCHIVE"])

    assert take_all(work, pipeline.take) == {"succeeded": 1}

    results = sorted(adapter.spool.result_folder(job).iterdir())
    ended = row(adapter, job)
    (task,) = rows(adapter, schema.tasks)
    files = rows(adapter, schema.task_files)
    exports = rows(adapter, schema.exports)
    sources = payload_files(adapter, jobs_job(adapter, job))
    assert [p.name for p in results] == ["000001.dcm", "000002.dcm", "000003.dcm", "000004.dcm"]
    assert {p.read_bytes() for p in results} == {f.path.read_bytes() for f in sources}
    assert (ended.state, ended.outcome, ended.exit_code) == ("succeeded", "succeeded", 0)
    assert (job, False, "none", "ClaraSCU") == (
        task.job_id,
        task.remote,
        task.report,
        task.agent,
    )
    assert [(p.name, p.stat().st_size) for p in results] == [(f.path, f.size) for f in files]
    assert {f.path.stem for f in sources} != {f.sop_instance_uid for f in files}
    assert {f.name.removesuffix(".dcm") for f in sources} == {f.sop_instance_uid for f in files}
    assert {"PACS", "ARCHIVE"} == {e.destination for e in exports}
    assert {("pending", False, 0)} == {(e.state, e.failed, e.tries) for e in exports}
    assert kinds(adapter, job) == ["job-started-run", "job-succeeded"]
    assert attempts(adapter, job) == []
    assert work.queues == ["export"]


def jobs_job(adapter, job):
    found = row(adapter, job)
    return jobs.Job(**{name: getattr(found, name) for name in jobs.Job.__dataclass_fields__})


def test_results_without_a_destination_go_to_reclamation(adapter):
    """A pipeline that says "export": false makes a task that nobody has to send."""
    work, _job = started(adapter, COPY, destinations=[], export=False)

    assert take_all(work, pipeline.take) == {"succeeded": 1}

    assert len(rows(adapter, schema.tasks)) == 1
    assert rows(adapter, schema.exports) == []
    assert work.queues == ["reclamation"]


def test_output_is_taken_from_folders_below(adapter):
    """Files anywhere below the output folder are results, published flat."""
    work, job = started(
        adapter,
        shell("mkdir -p {output}/a/b && cp {input}/* {output}/a/b && chmod 0 -R {output}/a/b/*"),
    )

    assert take_all(work, pipeline.take) == {"succeeded": 1}

    results = list(adapter.spool.result_folder(job).iterdir())
    assert [path.stat().st_mode & 0o777 for path in results] == [0o600] * 4


def test_a_run_sees_its_input_under_uids_and_its_metadata(adapter):
    """The input holds <SOP Instance UID>.dcm for every instance; the metadata is beside it."""
    work, job = started(
        adapter,
        shell("ls {input}; echo /; pwd; echo /; cat $DICOM_ADAPTER_METADATA"),
    )

    take_all(work, pipeline.take)

    arrivals = rows(adapter, schema.arrivals)
    names = sorted(f"{a.sop_instance_uid}.dcm" for a in arrivals)
    listed, folder, metadata = printed(adapter, job).split("\n/\n")
    assert names == sorted(listed.split())
    assert metadata == '{"Instances": "4"}'
    assert str(adapter.spool.folder / "work") in folder


# --- every other end ------------------------------------------------------------------------------

ENDS = {
    "exit-code": (code("raise SystemExit(3)"), {}, 3),
    "timed-out": (["sleep", "60"], {"timeoutSeconds": 0.3}, None),
    "killed": (shell("kill -SEGV $$"), {}, -signal.SIGSEGV),
    "no-output": (["true"], {}, 0),
    "could-not-start": (["./no-such-program"], {}, None),
}


@pytest.mark.parametrize("outcome", ENDS)
def test_every_end_of_a_run_is_a_recorded_outcome(adapter, outcome):
    """What may pass is tried again after the job's delay; what will not is parked at once."""
    command, definition, exit_code = ENDS[outcome]
    work, job = started(adapter, command, **definition)

    assert {outcome: 1} == take_all(work, pipeline.take)

    may_pass = outcome in {"exit-code", "timed-out", "killed"}
    ended = row(adapter, job)
    assert (outcome, 1) == (ended.outcome, ended.tries)
    assert ended.exit_code in {exit_code, -signal.SIGKILL if outcome == "timed-out" else exit_code}
    assert ("started" if may_pass else "parked") == ended.state
    assert (None if may_pass else "started") == ended.parked_in
    if may_pass:
        assert 990 < ended.due_at - adapter.ledger.now() < 1000
    assert ["job-started-run", "job-failed-try" if may_pass else "job-parked"] == kinds(
        adapter, job
    )
    assert attempts(adapter, job) == []
    assert not adapter.spool.result_folder(job).exists()
    assert ended.lease_token is None


BAD_OUTPUT = {
    "no DICOM": "echo hello > {output}/a.dcm",
    "no DICOM beside DICOM": "cp {input}/* {output}; echo hello > {output}/readme.txt",
    "cut short": f"head -c 200 {CT_SERIES[0]} > {{output}}/a.dcm",
    "a symbolic link": "ln -s {input}/* {output}",
    "a hard link": "cp {input}/* {output}; set -- {output}/*; ln $1 {output}/x",
    "a pipe": "mkfifo {output}/pipe",
    "a link for the folder": "rmdir {output}; ln -s {input} {output}",
    "one instance twice": f"cp {CT_SERIES[0]} {{output}}/a; cp {CT_SERIES[0]} {{output}}/b",
    "no file meta information": f"cp {TEST_FILES}/no_meta.dcm {{output}}",
}


@pytest.mark.parametrize("what", BAD_OUTPUT)
def test_output_that_cannot_be_sent_is_parked(adapter, what):
    """Nothing of an output is published unless all of it is DICOM that can be sent as it is."""
    work, job = started(adapter, shell(BAD_OUTPUT[what]))

    assert take_all(work, pipeline.take) == {"invalid-output": 1}

    assert (
        row(adapter, job).state,
        row(adapter, job).outcome,
        row(adapter, job).exit_code,
    ) == ("parked", "invalid-output", 0)
    assert not adapter.spool.result_folder(job).exists()
    assert rows(adapter, schema.tasks) == []


@pytest.mark.parametrize(
    ("command", "outcome"), [(["rmdir", "{output}"], "no-output"), (["false"], "exit-code")]
)
def test_a_parked_run_is_told(adapter, monkeypatch, command, outcome):
    """Whoever watches the log is told of each job that waits for an operator, however it came."""
    told = []
    monkeypatch.setattr(claimed_job.log, "error", lambda what, **facts: told.append((what, facts)))
    work, job = started(adapter, command, maximumRetries=0)

    assert take_all(work, pipeline.take) == {outcome: 1}

    assert told == [("a job is parked", {"job": job, "outcome": outcome})]


#: What is wrong with the file meta information, and the bytes that make it so.
BAD_META = {
    "differ": (rb"(?s)(?<=\x02\x00\x03\x00UI..)1", b"9"),
    "names no syntax": (rb"\x02\x00\x10\x00UI", b"\x02\x00\x11\x00UI"),
}


@pytest.mark.parametrize("what", BAD_META)
def test_file_meta_information_has_to_name_the_instance_and_its_syntax(adapter, tmp_path, what):
    """A C-STORE names the UIDs of the data set and the syntax it is in (PS3.4 Annex B.2.1)."""
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(re.sub(*BAD_META[what], CT_SERIES[0].read_bytes(), count=1))
    work, job = started(adapter, ["cp", str(bad), "{output}"])

    assert take_all(work, pipeline.take) == {"invalid-output": 1}

    assert what in row(adapter, job).message


def test_a_run_fails_as_often_as_allowed_and_then_parks(adapter):
    """1 + maximumRetries runs, then parked; an operator's retry starts over where it stood."""
    work, job = started(adapter, ["false"], maximumRetries=2)

    outcomes = []
    for _ in range(3):
        due_now(adapter, job)
        outcomes.append(take_all(work, pipeline.take))
    parked = row(adapter, job)
    jobs.retry(adapter.ledger, job)
    retried = row(adapter, job)
    work = make_work(adapter, pipelines={"one": {"command": COPY}})

    assert outcomes == [{"exit-code": 1}] * 3
    assert (parked.state, parked.parked_in, parked.tries) == ("parked", "started", 3)
    assert (retried.state, retried.parked_in, retried.tries) == ("started", None, 0)
    assert take_all(work, pipeline.take) == {"succeeded": 1}


def test_a_pipeline_that_is_not_defined_is_parked(adapter):
    """The message says which pipeline is missing, and where to define it."""
    work, job = started(adapter, COPY)
    change(adapter, job, pipeline_id="two")

    assert take_all(work, pipeline.take) == {"unknown-pipeline": 1}

    assert "'two': define it in appsettings.json" in row(adapter, job).message


def test_a_job_that_kills_its_workers_is_parked(adapter):
    """Ten expired leases park a job without another run."""
    work, job = started(adapter, COPY)
    change(adapter, job, lease_token="dead", lease_until=1.0, lease_expiries=9)

    assert take_all(work, pipeline.take) == {"kills-its-worker": 1}

    assert (row(adapter, job).state, row(adapter, job).outcome) == ("parked", "kills-its-worker")
    assert kinds(adapter, job) == ["job-parked"]


# --- what a run cannot do -------------------------------------------------------------------------


def test_output_streams_are_kept_with_the_job_and_bounded(adapter):
    """Head and tail of both streams stay, whatever is written in between."""
    work, job = started(
        adapter,
        code(
            "import sys\n"
            "print('first'); sys.stdout.write('x' * 5_000_000); print('last')\n"
            "sys.stderr.write('only this')\n"
            "sys.exit(1)"
        ),
    )

    take_all(work, pipeline.take)

    folder = adapter.spool.work_folder(job)
    text = (folder / "stdout.txt").read_text()
    assert text.startswith("first\nxxx")
    assert text.endswith("xxxlast\n")
    assert "bytes left out" in text
    assert 256_000 < len(text) < 270_000
    assert (folder / "stderr.txt").read_text() == "only this"
    assert {0o600} == {
        (folder / f"{name}.txt").stat().st_mode & 0o777 for name in ("stdout", "stderr")
    }


def test_the_spool_keeps_its_bytes_whatever_a_run_does_to_its_input(adapter):
    """The input is a copy: rewriting, truncating and deleting it changes nothing in the spool."""
    work, _job = started(
        adapter,
        shell("set -- {input}/*; cp $1 {output}; echo x > $1; echo x >> $2; rm $3; chmod 0 $4"),
        isolation="none",
    )
    spool = {path: digest(path) for path in adapter.spool.instances.rglob("*.dcm")}

    assert take_all(work, pipeline.take) == {"succeeded": 1}

    assert len(spool) == 4
    assert spool == {path: digest(path) for path in adapter.spool.instances.rglob("*.dcm")}
    assert {1} == {path.stat().st_nlink for path in spool}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mode


def test_a_run_gets_no_secrets(adapter, monkeypatch):
    """Its environment is what is documented and what its pipeline adds; no descriptor is open."""
    monkeypatch.setenv("DICOMADAPTER__BROKER__URL", "redis://:hush@host")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    work, job = started(
        adapter,
        shell("env -0; echo; ls -l /proc/self/fd"),
        environment={"MODEL": "v1", "DICOM_ADAPTER_JOB_ID": "forged"},
    )

    take_all(work, pipeline.take)

    text, handles = printed(adapter, job).split("\0\n")
    pairs = text.split("\0")
    found = dict(pair.split("=", 1) for pair in pairs)
    ours = {
        f"DICOM_ADAPTER_{name}" for name in ("JOB_ID", "INPUT", "OUTPUT", "METADATA", "PIPELINE")
    }
    of_the_shell = {"PWD", "OLDPWD", "SHLVL", "_"}
    assert {"PATH", "LANG", "HOME", "TMPDIR", "MODEL", *ours} == set(found) - of_the_shell
    assert ("v1", job) == (found["MODEL"], found["DICOM_ADAPTER_JOB_ID"])
    assert "hush" not in text
    descriptors = {line.split()[8] for line in handles.splitlines() if "->" in line}
    assert {"0", "1", "2", "3"} == descriptors  # 3 is the folder that ls lists


def test_a_run_has_no_more_memory_than_its_pipeline_says(adapter):
    """An allocation beyond memoryMB fails within the run."""
    work, job = started(adapter, code("bytearray(600_000_000)"), memoryMB=500)

    assert take_all(work, pipeline.take) == {"exit-code": 1}

    assert "MemoryError" in (adapter.spool.work_folder(job) / "stderr.txt").read_text()


#: Forks twice, each time into a session of its own, and leaves a process that never ends.
DAEMON = (
    "import os, time, pathlib\n"
    "def daemon(pids):\n"
    "    if os.fork(): return\n"
    "    os.setsid()\n"
    "    if os.fork(): os._exit(0)\n"
    "    with open(pids, 'a') as file: file.write(f'{os.getpid()}\\n')\n"
    "    time.sleep(600)\n"
)


def test_nothing_of_a_run_that_has_ended_lives_on(adapter, tmp_path):
    """A process that a run leaves behind is killed before its output is taken."""
    pids = tmp_path / "pids"
    text = (
        f"{DAEMON}daemon({str(pids)!r})\n"
        f"while not pathlib.Path({str(pids)!r}).exists(): time.sleep(0.01)\n"
        "import shutil; shutil.copytree('input', 'output', dirs_exist_ok=True)"
    )
    work, _job = started(adapter, code(text), isolation="none")

    assert take_all(work, pipeline.take) == {"succeeded": 1}

    assert [gone(pid) for pid in pids.read_text().split()] == [True]


def test_arguments_are_not_seen_by_a_shell(adapter):
    """Placeholders are filled within an argument; nothing else in it has a meaning."""
    work, job = started(
        adapter,
        [
            "{python}",
            "-c",
            "import sys; print('\\n'.join(sys.argv[1:]))",
            *("--job={job}", "$HOME", "{unknown}", "a b", "*"),
        ],
    )

    take_all(work, pipeline.take)

    assert [f"--job={job}", "$HOME", "{unknown}", "a b", "*"] == (
        printed(adapter, job).splitlines()
    )


# --- crashes, stops and lost leases ---------------------------------------------------------------

#: The first run hangs, with a daemon beside it; a later run copies its input.
HANGS_ONCE = (
    DAEMON + "import shutil, sys\n"
    "pids = pathlib.Path(sys.argv[1])\n"
    "if pids.exists():\n"
    "    shutil.copytree('input', 'output', dirs_exist_ok=True)\n"
    "    sys.exit()\n"
    "daemon(str(pids))\n"
    "with open(pids, 'a') as file: file.write(f'{os.getpid()}\\n')\n"
    "shutil.copytree('input', 'output', dirs_exist_ok=True)\n"
    "time.sleep(600)\n"
)

#: A worker of the pipeline stage in a process of its own.
WORKER = (
    "import sys\n"
    "from pathlib import Path\n"
    "from adapter import settings\n"
    "from adapter.core import open_adapter\n"
    "from tests.support_jobs import make_work\n"
    "from workers import pipeline\n"
    "from workers.stage import take_all\n"
    "adapter = open_adapter(settings.load(data=Path(sys.argv[1])))\n"
    "command = ['{python}', '-c', sys.argv[2], sys.argv[3]]\n"
    "pipelines = {'one': {'command': command, 'isolation': 'none'}}\n"
    "work = make_work(adapter, pipelines=pipelines, workers={'lease_seconds': 1.0})\n"
    "take_all(work, pipeline.take)\n"
)


@pytest.fixture
def hanging_worker(adapter, tmp_path):
    """A worker process whose run hangs: the process, the job, and the pids of the run."""
    pids = tmp_path / "pids"
    (job,) = add_group(adapter, state=JobState.STARTED)
    write_metadata(adapter, job)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(adapter.settings.data), HANGS_ONCE, str(pids)],
        cwd=Path(__file__).parents[1],
    )
    try:
        yield worker, job, eventually(lambda: pids.exists() and two(pids), 60)
    finally:
        worker.kill()
        worker.wait()
    for pid in pids.read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):
            if str(pids).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGKILL)


def two(pids):
    found = [int(pid) for pid in pids.read_text().split()]
    return found if len(found) == 2 else None


def test_a_run_dies_with_its_worker_and_is_done_again(adapter, tmp_path, hanging_worker):
    """SIGKILL of a worker in mid-run: its run is gone within 2 s, and one output is published."""
    worker, job, pids = hanging_worker
    command = ["{python}", "-c", HANGS_ONCE, str(tmp_path / "pids")]
    work = make_work(
        adapter,
        pipelines={"one": {"command": command, "isolation": "none"}},
        workers={"lease_seconds": 1.0},
    )

    worker.kill()
    eventually(lambda: all(gone(pid) for pid in pids), timeout=2)
    outcome = eventually(lambda: take_all(work, pipeline.take))

    assert outcome == {"succeeded": 1}
    assert len(list(adapter.spool.result_folder(job).iterdir())) == 4
    assert [job] == [path.name for path in adapter.spool.results.iterdir()]
    assert (len(rows(adapter, schema.tasks)), len(rows(adapter, schema.exports))) == (1, 1)
    assert kinds(adapter, job) == ["job-started-run", "job-started-run", "job-succeeded"]
    assert (row(adapter, job).tries, row(adapter, job).lease_expiries) == (0, 0)
    assert attempts(adapter, job) == []


def launcher_of(worker):
    tasks = Path(f"/proc/{worker}/task").iterdir()
    children = {pid for task in tasks for pid in (task / "children").read_text().split()}
    return next(
        int(pid) for pid in children if b"launcher.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


def test_a_run_whose_launcher_is_killed_is_gone_and_tried_again(adapter, hanging_worker):
    """SIGKILL of the program that watches over a run leaves nothing of the run either.

    That is no try of the pipeline's, as little as the death of its worker.
    """
    worker, job, pids = hanging_worker

    os.kill(launcher_of(worker.pid), signal.SIGKILL)
    eventually(lambda: all(gone(pid) for pid in pids), timeout=2)
    worker.wait(10)

    failed = row(adapter, job)
    assert (failed.state, failed.outcome) == ("started", "kills-its-worker")
    assert (failed.tries, failed.lease_expiries) == (0, 1)


def test_a_command_dies_with_its_launcher_even_if_nobody_can_kill_it(adapter, hanging_worker):
    """The command itself goes at once, while its worker is stopped and cannot notice."""
    worker, _job, pids = hanging_worker
    launcher = launcher_of(worker.pid)

    worker.send_signal(signal.SIGSTOP)
    os.kill(launcher, signal.SIGKILL)

    eventually(lambda: any(gone(pid) for pid in pids), timeout=2)


def test_results_published_before_a_crash_are_adopted(adapter, tmp_path):
    """A worker that died between publishing and recording is made good without another run."""
    work, job = started(adapter, ["false"])
    folder = tmp_path / "publish"
    folder.mkdir()
    (folder / "000001.dcm").write_bytes(CT_SERIES[0].read_bytes())
    adapter.spool.publish_results(job, folder)
    (adapter.spool.work_folder(job) / ("0" * 32)).mkdir()

    assert take_all(work, pipeline.take) == {"succeeded": 1}

    assert kinds(adapter, job) == ["job-succeeded"]
    assert [file.path for file in rows(adapter, schema.task_files)] == ["000001.dcm"]
    assert attempts(adapter, job) == []
    assert take_all(work, pipeline.take) == {}


def test_a_run_that_was_given_up_can_publish_nothing(adapter):
    """Once the next run has begun, the folder of the one before is out of its owner's reach."""
    _work, job = started(adapter, COPY)
    folder = adapter.spool.work_folder(job)
    first, second = Attempt(folder, "a" * 32), Attempt(folder, "b" * 32)
    publish = first.folder / "publish"
    first.prepare([], folder / "metadata.json")
    publish.mkdir()

    second.clear_others()

    with pytest.raises(FileNotFoundError):
        adapter.spool.publish_results(job, publish)
    assert attempts(adapter, job) == []


def test_results_that_another_run_published_first_stand(adapter, tmp_path):
    """Publishing happens at most once: the second run takes what the first has published."""
    work, job = started(adapter, COPY)
    folder = tmp_path / "publish"
    folder.mkdir()
    (folder / "000001.dcm").write_bytes(CT_SERIES[0].read_bytes())
    publish = adapter.spool.publish_results

    def too_late(job, mine):
        assert publish(job, folder)
        return publish(job, mine)

    work.adapter.spool.publish_results = too_late
    try:
        assert take_all(work, pipeline.take) == {"succeeded": 1}
    finally:
        del work.adapter.spool.publish_results

    assert [file.path for file in rows(adapter, schema.task_files)] == ["000001.dcm"]
    assert [
        (len(list(adapter.spool.result_folder(job).iterdir())), len(rows(adapter, schema.tasks)))
    ] == [(1, 1)]


def running(adapter, tmp_path, **sections):
    """Return work, a job, and the thread that runs it; its command hangs, its pid is known."""
    pid = tmp_path / "pid"
    command = shell(f"echo $$ > {pid}; cp {{input}}/* {{output}}; exec sleep 600")
    definition = {"command": command, "isolation": "none"}
    work = make_work(adapter, pipelines={"one": definition}, **sections)
    (job,) = add_group(adapter, state=JobState.STARTED)
    write_metadata(adapter, job)
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(take_all(work, pipeline.take)))
    thread.start()
    eventually(lambda: pid.exists() and pid.read_text())
    return work, job, thread, int(pid.read_text()), outcome


def test_a_worker_that_stops_gives_its_run_back(adapter, tmp_path):
    """After half of stopSeconds the run is killed; its job is due at once with all its tries."""
    work, job, thread, pid, outcome = running(adapter, tmp_path, workers={"stop_seconds": 0.4})

    work.stopping.set()
    thread.join(10)

    assert outcome == [{"waits": 1}]
    assert gone(pid)
    given_back = row(adapter, job)
    assert (given_back.state, given_back.tries, given_back.lease_token) == ("started", 0, None)
    assert given_back.due_at <= adapter.ledger.now()


def test_a_run_may_end_while_its_worker_stops(adapter):
    """A run that ends within the time to stop is recorded; no other is begun."""
    work = make_work(
        adapter, pipelines={"one": {"command": shell("sleep 1; cp {input}/* {output}")}}
    )
    first, second = add_group(
        adapter, pipelines=("one", "two"), state=JobState.STARTED, pipeline_id="one"
    )
    for job in (first, second):
        write_metadata(adapter, job)
    threading.Thread(
        target=lambda: (
            eventually(lambda: kinds(adapter, first) + kinds(adapter, second)),
            work.stopping.set(),
        )
    ).start()

    assert take_all(work, pipeline.take) == {"succeeded": 1}

    assert {"succeeded", "started"} == {row(adapter, first).state, row(adapter, second).state}


def test_a_discarded_job_is_stopped_and_writes_nothing(adapter, tmp_path):
    """To discard a job that runs kills its run; nothing of it is published."""
    _work, job, thread, pid, outcome = running(adapter, tmp_path, workers={"lease_seconds": 0.5})

    jobs.discard(adapter.ledger, job)
    thread.join(10)

    assert outcome == [{"lost": 1}]
    assert gone(pid)
    assert row(adapter, job).state == "discarded"
    assert not adapter.spool.result_folder(job).exists()
    assert rows(adapter, schema.tasks) == []


# --- what a run waits for -------------------------------------------------------------------------


def test_a_run_waits_for_room_without_using_a_try(adapter, monkeypatch):
    """While the disk cannot take a copy of the input, nothing is begun and nothing fails."""
    work, job = started(adapter, COPY)
    monkeypatch.setattr(pipeline, "SPARE_ROOM", 1 << 60)

    assert take_all(work, pipeline.take) == {"waits": 1}

    waiting = row(adapter, job)
    assert (waiting.state, waiting.tries, kinds(adapter, job)) == ("started", 0, [])
    assert 0 < waiting.due_at - adapter.ledger.now() <= pipeline.ROOM_PAUSE


def test_a_run_waits_for_a_file_that_is_not_visible_yet(adapter):
    """A file with a row is "not yet" for visibilitySeconds; after that every look is a try."""
    work, job = started(adapter, COPY)
    path = next(adapter.spool.instances.rglob("*.dcm"))
    hidden = path.rename(path.with_suffix(".hidden"))

    first = take_all(work, pipeline.take)
    waiting = row(adapter, job)
    change(adapter, job, due_at=0.0, updated_at=adapter.ledger.now() - 1000)
    second = take_all(work, pipeline.take)
    failed = row(adapter, job)
    hidden.rename(path)
    due_now(adapter, job)

    assert (first, waiting.tries) == ({"waits": 1}, 0)
    assert (second, failed.tries) == ({"not-visible": 1}, 1)
    assert take_all(work, pipeline.take) == {"succeeded": 1}


def test_jobs_run_by_priority_and_then_by_age(adapter):
    """The job of the highest priority is run first."""
    work = make_work(adapter, pipelines={"one": {"command": COPY}})
    names = ("a", "b", "c")
    ids = add_group(adapter, pipelines=names, state=JobState.STARTED, pipeline_id="one")
    for number, job in enumerate(ids):
        write_metadata(adapter, job)
        change(adapter, job, priority=(2, 4, 2)[number], created_at=(100.0, 300.0, 50.0)[number])

    assert take_all(work, pipeline.take) == {"succeeded": 3}

    with adapter.ledger.read() as connection:
        order = connection.execute(
            select(schema.events.c.job_id)
            .where(schema.events.c.kind == "job-started-run")
            .order_by(schema.events.c.id)
        ).scalars()
        assert [ids[1], ids[2], ids[0]] == list(order)
