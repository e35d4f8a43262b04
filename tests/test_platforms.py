# SPDX-License-Identifier: Apache-2.0
"""Platforms as kinds: whoever runs a job, each run is one, and one output is taken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from adapter import settings as settings_module
from adapter.core import open_adapter
from adapter.errors import ConfigurationError, PermanentError, TemporaryError
from adapter.ledger import jobs, queries, reclamation, runs, schema
from adapter.ledger.jobs import Failure
from adapter.stages import due_stages
from adapter.verify.steps import compare
from tests import support_pool
from tests.support_jobs import (
    CT_SERIES,
    Woken,
    add_group,
    change,
    gone,
    kinds,
    make_work,
    row,
    rows,
    take_steps,
)
from tests.support_pool import ROOT
from tests.support_waiting import eventually
from workers import pipeline, submission
from workers.clients.platform import Phase, PolledPlatform, RunLost, RunState
from workers.stage import Work, take_all

pytestmark = pytest.mark.every_ledger

COPY = ["sh", "-c", 'cp "$INPUT"/* "$OUTPUT"/']


# --- a platform whose answers a test gives --------------------------------------------------------


class Scripted(PolledPlatform):
    """Runs nothing: remembers what it was asked, and says what it was told to say."""

    def __init__(self, adapter):
        super().__init__(adapter, None)
        self.asked = []
        self.answer = RunState(Phase.RUNNING)
        self.output = CT_SERIES
        self.cancel_error = None

    def create(self, job):
        self.asked.append(("create", job.run))
        return f"scripted-{job.run_id}"

    def describe(self, job, metadata):
        self.asked.append(("describe", job.run))

    def upload(self, job, files):
        self.asked.append(("upload", job.run))
        yield

    def start(self, job):
        self.asked.append(("start", job.run))

    def state(self, job):
        self.asked.append(("state", job.run))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def collect(self, job, folder):
        for number, path in enumerate(self.output):
            (folder / str(number)).write_bytes(path.read_bytes())
            yield

    def cancel(self, job):
        self.asked.append(("cancel", job.run, job.platform_job_id))
        if self.cancel_error:
            raise self.cancel_error


def scripted(adapter, **platform):
    """Return work whose pipeline is for a scripted platform, that platform, and how to work."""
    settings = adapter.settings.services.platform.model_copy(update=platform)
    patient = {"header_seconds": 60.0}
    work = make_work(adapter, pipelines={"one": {"platform": "scripted"}}, notification=patient)
    changed = work.adapter.settings.model_copy(
        update={
            "services": work.adapter.settings.services.model_copy(update={"platform": settings})
        }
    )
    work = Work(SimpleNamespace(**{**vars(adapter), "settings": changed}), Woken())
    made = Scripted(work.adapter)
    found = SimpleNamespace(named=lambda _: made, polled=lambda _: made)
    return work, made, lambda: take_steps(work, found)


@pytest.fixture
def handed_over(adapter):
    """A job that a scripted platform runs."""
    (job,) = add_group(adapter)
    work, platform, submit = scripted(adapter, unreachable_seconds=1000.0)
    assert submit() == {"handed-over": 1}
    return SimpleNamespace(job=job, work=work, platform=platform, submit=submit)


def ask(adapter, handed_over):
    """Let the platform be asked now."""
    change(adapter, handed_over.job, due_at=0.0)
    return handed_over.submit()


def ago(adapter, seconds):
    return adapter.ledger.now() - seconds


def test_a_job_that_is_handed_over_is_not_for_our_own_workers(adapter, handed_over):
    """It is asked after by submission when that is due, and never claimed by the pipeline stage."""
    found = row(adapter, handed_over.job)
    assert (found.state, found.platform, found.run) == ("handed-over", "scripted", 1)
    assert (found.lease_token, found.running_since) == (None, None)
    assert found.handed_over_at <= adapter.ledger.now()
    assert "pipeline" not in handed_over.work.queues
    assert [group.state for group in rows(adapter, schema.groups)] == ["submitted"]
    assert not {"submission", "pipeline"} & set(due_stages(adapter))
    assert handed_over.submit() == {}

    change(adapter, handed_over.job, due_at=0.0)

    assert "submission" in due_stages(adapter)
    assert "pipeline" not in due_stages(adapter)
    assert take_all(handed_over.work, pipeline.take) == {}
    assert jobs.claim_run(adapter.ledger, 30) is None


def test_a_platform_is_asked_more_rarely_the_longer_a_run_takes(adapter, handed_over):
    """First after pollSeconds, then after a tenth of the run's time, at most longestPollSeconds."""

    def next_question():
        assert ask(adapter, handed_over) == {"asked": 1}
        found = row(adapter, handed_over.job)
        return found.due_at - adapter.ledger.now()

    assert 0 < next_question() <= 2
    since = row(adapter, handed_over.job).running_since
    assert since is not None
    change(adapter, handed_over.job, running_since=ago(adapter, 300))
    assert 28 < next_question() <= 31
    change(adapter, handed_over.job, running_since=ago(adapter, 3000))
    assert 55 < next_question() <= 60
    assert kinds(adapter, handed_over.job) == ["job-submitted", "job-started-run"]


def test_a_run_that_waits_at_its_platform_takes_no_time(adapter, handed_over):
    """Only what runs can be late: a platform may let runs wait for days."""
    handed_over.platform.answer = RunState(Phase.WAITING)
    change(adapter, handed_over.job, handed_over_at=ago(adapter, 10**6))

    assert ask(adapter, handed_over) == {"asked": 1}

    assert row(adapter, handed_over.job).running_since is None
    handed_over.platform.answer = RunState(Phase.RUNNING)
    assert ask(adapter, handed_over) == {"asked": 1}
    change(adapter, handed_over.job, running_since=ago(adapter, 3601))
    assert ask(adapter, handed_over) == {"run-failed": 1, "cancelled": 1}
    found = row(adapter, handed_over.job)
    assert (found.state, found.outcome, found.run) == ("queued", "timed-out", 2)


def test_a_run_that_succeeds_is_collected_and_forgotten_by_its_platform(adapter, handed_over):
    """Output, task, exports and success are one step, as everywhere; then the run is cancelled."""
    handed_over.platform.answer = RunState(Phase.SUCCEEDED)

    assert ask(adapter, handed_over) == {"succeeded": 1, "cancelled": 1}

    job, found = handed_over.job, row(adapter, handed_over.job)
    assert (found.state, found.outcome, found.exit_code) == ("succeeded", "succeeded", 0)
    assert len(list(adapter.spool.result_folder(job).iterdir())) == 4
    assert [export.destination for export in rows(adapter, schema.exports)] == ["PACS"]
    assert handed_over.work.queues == ["export"]
    assert handed_over.platform.asked[-1] == ("cancel", 1, f"scripted-{job}-1")
    assert rows(adapter, schema.cancellations) == []
    assert kinds(adapter, job) == ["job-submitted", "job-succeeded", "job-cancelled"]
    assert [path for path in adapter.spool.work_folder(job).iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("spoilt", ["nothing", "no DICOM"])
def test_output_that_cannot_be_used_fails_its_run_for_good(adapter, handed_over, spoilt, tmp_path):
    """It is parked at once; a retry by an operator begins another run."""
    bad = tmp_path / "bad"
    bad.write_bytes(b"no DICOM")
    handed_over.platform.answer = RunState(Phase.SUCCEEDED)
    handed_over.platform.output = [] if spoilt == "nothing" else [bad]

    assert ask(adapter, handed_over) == {"parked": 1, "cancelled": 1}

    found = row(adapter, handed_over.job)
    outcome = "no-output" if spoilt == "nothing" else "invalid-output"
    assert (found.state, found.parked_in, found.outcome) == ("parked", "queued", outcome)
    assert not adapter.spool.result_folder(handed_over.job).exists()
    handed_over.platform.output = CT_SERIES
    assert jobs.retry(adapter.ledger, handed_over.job) == "queued"
    assert handed_over.submit() == {"handed-over": 1}
    assert ("create", 2) in handed_over.platform.asked
    assert ask(adapter, handed_over) == {"succeeded": 1, "cancelled": 1}


def test_a_failed_run_is_judged_by_its_cause(adapter, handed_over):
    """What may pass gets other runs, 1 + maximumRetries in all; what will not is parked at once."""
    failure = Failure("evicted", "the node was drained", 137)
    handed_over.platform.answer = RunState(Phase.FAILED, failure)

    for run in (1, 2):
        assert ask(adapter, handed_over) == {"run-failed": 1, "cancelled": 1}
        found = row(adapter, handed_over.job)
        assert (found.state, found.run, found.failed_runs) == ("queued", run + 1, run)
        assert (found.outcome, found.exit_code) == ("evicted", 137)
        assert ask(adapter, handed_over) == {"handed-over": 1}
    assert ask(adapter, handed_over) == {"parked": 1, "cancelled": 1}

    assert [asked[1] for asked in handed_over.platform.asked if asked[0] == "create"] == [1, 2, 3]
    assert [asked[1] for asked in handed_over.platform.asked if asked[0] == "cancel"] == [1, 2, 3]
    assert jobs.retry(adapter.ledger, handed_over.job) == "queued"
    assert row(adapter, handed_over.job).failed_runs == 0
    handed_over.platform.answer = RunState(Phase.FAILED, failure, may_pass=False)
    assert ask(adapter, handed_over) == {"handed-over": 1}
    assert ask(adapter, handed_over) == {"parked": 1, "cancelled": 1}
    assert row(adapter, handed_over.job).run == 5


@pytest.mark.parametrize("verb", ["describe", "state", "collect"])
def test_a_run_that_its_platform_has_lost_is_run_again(adapter, verb):
    """Whichever verb tells: the next run has a number of its own, within the same bounds."""
    (job,) = add_group(adapter)
    work, platform, submit = scripted(adapter)
    handed_over = SimpleNamespace(job=job, work=work, platform=platform, submit=submit)
    platform.answer = RunState(Phase.SUCCEEDED)
    sound = getattr(platform, verb)

    def lose(*_):
        setattr(platform, verb, sound)
        raise RunLost("what run?")

    setattr(platform, verb, lose)
    counts = [submit()]
    if verb != "describe":
        counts.append(ask(adapter, handed_over))

    found = row(adapter, job)
    assert (found.state, found.outcome, found.run, found.failed_runs) == ("queued", "lost", 2, 1)
    assert counts[-1] == {"run-failed": 1, "cancelled": 1}
    change(adapter, job, due_at=0.0)
    assert submit() == {"handed-over": 1}
    assert ask(adapter, handed_over) == {"succeeded": 1, "cancelled": 1}


@pytest.mark.parametrize(
    "error", [TemporaryError("away"), OSError(111, "Connection refused"), KeyError("Doe^Jane")]
)
def test_a_platform_that_is_away_costs_no_run_and_is_asked_again(adapter, handed_over, error):
    """The longer it is away the later; after unreachableSeconds its jobs wait for an operator."""
    handed_over.platform.answer = error
    change(adapter, handed_over.job, updated_at=ago(adapter, 30))

    assert ask(adapter, handed_over) == {"unreachable": 1}

    away = row(adapter, handed_over.job)
    assert (away.state, away.outcome, away.run, away.failed_runs) == (
        "handed-over",
        "unreachable",
        1,
        0,
    )
    assert 28 < away.due_at - adapter.ledger.now() < 60
    assert "Doe" not in (away.message or "")
    change(adapter, handed_over.job, updated_at=ago(adapter, 1001))
    assert ask(adapter, handed_over) == {"parked": 1}
    assert row(adapter, handed_over.job).parked_in == "handed-over"
    assert jobs.retry(adapter.ledger, handed_over.job) == "handed-over"
    handed_over.platform.answer = RunState(Phase.SUCCEEDED)
    assert handed_over.submit() == {"succeeded": 1, "cancelled": 1}
    assert row(adapter, handed_over.job).run == 1


def test_a_discarded_job_is_cancelled_at_its_platform(adapter, handed_over):
    """It is owed until the platform takes it, and no file is reclaimed before that."""
    handed_over.platform.cancel_error = TemporaryError("not now", delay=0.0)

    jobs.discard(adapter.ledger, handed_over.job)

    assert "submission" in due_stages(adapter)
    assert len(rows(adapter, schema.cancellations)) == 1
    assert reclamation.claim_group(adapter.ledger, 0.0, 30) is None
    work = handed_over.work
    handed_over.platform.cancel = stop_after(handed_over.platform, work, times=2)
    assert handed_over.submit() == {"unreachable": 2}
    work.stopping.clear()
    assert [owed.tries for owed in rows(adapter, schema.cancellations)] == [2]
    handed_over.platform.cancel_error = None
    assert handed_over.submit() == {"cancelled": 1}
    assert rows(adapter, schema.cancellations) == []
    assert kinds(adapter, handed_over.job)[-2:] == ["job-discarded", "job-cancelled"]
    assert reclamation.claim_group(adapter.ledger, 0.0, 30) is not None


def stop_after(platform, work, times):
    """Return a `cancel` that tells the worker to stop at the given call."""
    calls, cancel = [], platform.cancel

    def counted(job):
        calls.append(job)
        if len(calls) == times:
            work.stopping.set()
        return cancel(job)

    return counted


def test_a_cancellation_that_nobody_takes_is_given_up_after_patience_seconds(adapter, handed_over):
    """An event says so; nothing waits for it any more."""
    handed_over.platform.cancel_error = PermanentError("no right to")
    jobs.discard(adapter.ledger, handed_over.job)
    with adapter.ledger.write() as connection:
        connection.execute(schema.cancellations.update().values(created_at=ago(adapter, 1001)))

    assert handed_over.submit() == {"not-cancelled": 1}

    assert rows(adapter, schema.cancellations) == []
    assert kinds(adapter, handed_over.job)[-1] == "job-not-cancelled"


@pytest.mark.parametrize("verb", ["create", "start"])
def test_a_job_discarded_while_its_platform_is_asked_leaves_no_run_there(adapter, verb):
    """The verb may be done after the cancellation: that is owed again when the worker finds out."""
    (job,) = add_group(adapter)
    _work, platform, submit = scripted(adapter)
    sound, cancelled_early = getattr(platform, verb), []

    def discard_meanwhile(called):
        jobs.discard(adapter.ledger, called.id)
        with adapter.ledger.write() as connection:  # as if another worker had cancelled already
            cancelled_early.append(connection.execute(schema.cancellations.delete()).rowcount)
        return sound(called)

    setattr(platform, verb, discard_meanwhile)

    assert submit() == {"lost": 1, "cancelled": 1}

    assert cancelled_early == [1]
    assert [asked[0] for asked in platform.asked][-2:] == [verb, "cancel"]
    assert row(adapter, job).state == "discarded"


def test_a_cancellation_waits_for_the_lease_of_the_worker_that_asks(adapter, handed_over):
    """A step that is under way when its job is discarded is over before the platform is told."""
    change(adapter, handed_over.job, due_at=0.0)
    claimed = runs.claim_step(adapter.ledger, 30)
    assert claimed is not None

    jobs.discard(adapter.ledger, handed_over.job)

    (owed,) = rows(adapter, schema.cancellations)
    assert 25 < owed.due_at - adapter.ledger.now() <= 30
    assert handed_over.submit() == {}


def test_an_embedded_job_is_owed_no_cancellation(adapter):
    """The loss of its lease is what ends its run."""
    (job,) = add_group(adapter, state="started")

    jobs.discard(adapter.ledger, job)

    assert rows(adapter, schema.cancellations) == []


def test_a_queued_job_follows_its_pipeline_to_another_platform(adapter, handed_over):
    """What the former platform may have created is cancelled; the next run has its own number."""
    change(adapter, handed_over.job, state="queued", due_at=0.0)
    work = make_work(adapter, pipelines={"one": {"platform": "other"}})
    found = SimpleNamespace(
        named=lambda _: handed_over.platform, polled=lambda _: handed_over.platform
    )

    assert take_steps(work, found) == {"handed-over": 1, "cancelled": 1}

    moved = row(adapter, handed_over.job)
    assert (moved.platform, moved.run) == ("other", 2)
    assert ("cancel", 1, f"scripted-{handed_over.job}-1") in handed_over.platform.asked
    back = make_work(adapter, pipelines={"one": {"command": ["true"]}})
    assert take_steps(back, found) == {}, "a run that was created stays where it is"


def test_results_that_are_published_are_taken_without_another_run(adapter):
    """As after a rebuild: the platform is not asked for anything but to forget the run."""
    (job,) = add_group(adapter)
    _work, platform, submit = scripted(adapter)
    folder = adapter.spool.result_folder(job)
    folder.mkdir()
    for number, path in enumerate(CT_SERIES):
        (folder / f"{number:06d}.dcm").write_bytes(path.read_bytes())

    assert submit() == {"succeeded": 1, "cancelled": 1}

    assert row(adapter, job).state == "succeeded"
    assert [group.state for group in rows(adapter, schema.groups)] == ["submitted"]
    assert [asked[0] for asked in platform.asked] == ["cancel"]


def test_a_job_of_a_platform_that_is_not_installed_any_more_is_parked(adapter, handed_over):
    """Where it stands, so that it goes on when the package is there again."""
    change(adapter, handed_over.job, due_at=0.0)

    assert take_all(handed_over.work, submission.take) == {"parked": 1}

    found = row(adapter, handed_over.job)
    assert (found.outcome, found.parked_in) == ("no-platform", "handed-over")
    assert "'scripted'" in found.message


def test_a_worker_that_dies_while_it_asks_counts_against_the_job(adapter, handed_over):
    """A run whose question or collection kills its workers is parked, not tried for ever."""
    change(
        adapter,
        handed_over.job,
        lease_token="dead",
        lease_until=1.0,
        lease_expiries=9,
        due_at=0.0,
    )

    assert handed_over.submit() == {"parked": 1}

    assert row(adapter, handed_over.job).outcome == "kills-its-worker"


def test_who_reads_the_ledger_sees_where_a_job_is(adapter, handed_over, cli):
    """Facts, counts, unfinished work and `verify` know jobs that are handed over."""
    found = queries.find_job(adapter.ledger, handed_over.job)
    assert (found.state, found.platform, found.run) == ("handed-over", "scripted", 1)
    assert found.handed_over_at is not None
    assert queries.count_states(adapter.ledger)["jobs"]["handed-over"] == 1
    unfinished = queries.unfinished(adapter.ledger, adapter.settings)
    assert (unfinished["submission"].amount, unfinished["pipeline"].amount) == (0, 1)
    assert queries.count_retrying(adapter.ledger)["jobs"] == 0
    handed_over.platform.answer = RunLost("?")
    ask(adapter, handed_over)
    assert queries.count_retrying(adapter.ledger)["jobs"] == 1
    assert list(compare(adapter)) == []
    change(adapter, handed_over.job, state="started")
    (difference,) = compare(adapter)
    assert "no stage looks after a job of platform 'scripted'" in str(difference)


# --- the settings ---------------------------------------------------------------------------------


def load(folder, pipeline, **sections):
    """Return the settings of a file with one pipeline."""
    folder.mkdir(exist_ok=True)
    section = {"pipelines": {"one": {"name": "one", "export": False, **pipeline}}, **sections}
    (folder / "appsettings.json").write_text(json.dumps({"DicomAdapter": section}))
    return settings_module.load(data=folder)


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """The pool's folder; its platform is installed."""
    monkeypatch.syspath_prepend(support_pool.install(tmp_path / "plugin"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "plugin"))
    folder = tmp_path / "pool"
    folder.mkdir()
    return folder


def test_a_pipeline_cannot_name_a_platform_that_is_not_installed(tmp_path):
    """The error names the key, the kind, and the kinds that there are."""
    with pytest.raises(ConfigurationError) as refused:
        load(tmp_path, {"platform": "clara"}, platforms={"argo": {}})

    assert refused.value.problems == [
        f"DicomAdapter > {path}: no installed package brings the platform {kind!r}; "
        "there is embedded"
        for path, kind in (("platforms > argo", "argo"), ("pipelines > one > platform", "clara"))
    ]


def test_a_kind_of_platform_validates_its_own_settings(tmp_path, pool):
    """Both sections, each problem with its path; what is right is loaded."""
    pipeline = {"platform": "pool", "platformSettings": {"command": COPY}}
    loaded = load(tmp_path / "data", pipeline, platforms={"pool": {"folder": str(pool)}})
    assert loaded.pipelines["one"].platform == "pool"

    with pytest.raises(ConfigurationError) as refused:
        load(tmp_path / "data", {"platform": "pool", "platformSettings": {"image": "x"}})

    assert refused.value.problems == [
        "DicomAdapter > platforms > pool > folder: Field required",
        "DicomAdapter > pipelines > one > platformSettings > command: Field required",
        "DicomAdapter > pipelines > one > platformSettings > image: unknown key",
    ]


def test_a_platform_that_cannot_be_loaded_is_a_settings_error(tmp_path, pool):
    """A broken plug-in names itself instead of ending every command with a traceback."""
    points = next((tmp_path / "plugin").glob("*/entry_points.txt"))
    points.write_text("[dicom_adapter.platforms]\npool = there.is.no:Module\n")

    with pytest.raises(ConfigurationError, match=r"'pool' cannot be loaded \(ModuleNotFoundError"):
        load(tmp_path / "data", {"platform": "pool"})


@pytest.mark.parametrize(
    ("pipeline", "problem"),
    [
        ({}, "command: Field required"),
        ({"command": []}, "command: List should have at least 1 item after validation, not 0"),
        ({"command": ["x"], "platform": "pool", "memoryMB": 1}, "command, memoryMB: for the emb"),
    ],
)
def test_command_is_for_the_embedded_platform_which_needs_it(tmp_path, pipeline, problem):
    """Another platform says under platformSettings what it needs."""
    with pytest.raises(ConfigurationError) as refused:
        load(tmp_path, pipeline)

    assert problem in str(refused.value)


# --- the pool: another program's processes --------------------------------------------------------

#: A worker of the submission stage that is started again whenever it is killed, until all is done.
WORKER = """
import os, sys, time
from pathlib import Path
from adapter import settings
from adapter.core import open_adapter
from sqlalchemy import select
from adapter.ledger import schema
from tests.support_jobs import Woken, rows
from workers import submission
from workers.stage import Work, take_all

def work():
    adapter = open_adapter(settings.load(data=Path(sys.argv[1])))
    ours = Work(adapter, Woken())
    while True:
        take_all(ours, submission.take)
        states = {job.state for job in rows(adapter, schema.jobs)}
        ended = states <= {"succeeded", "discarded", "parked"}
        if ended and not rows(adapter, schema.cancellations):
            ours.headers.close()
            os._exit(0)
        time.sleep(0.05)

while True:
    pid = os.fork()
    if pid == 0:
        work()
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status):
        sys.exit(os.WEXITSTATUS(status))
    print("killed", flush=True)
"""


@pytest.fixture
def processes():
    """Start programs from the root of the tree; none is left when the test is over."""
    started = []

    def start(*arguments, **options):
        words = [sys.executable, *map(str, arguments)]
        started.append(subprocess.Popen(words, cwd=ROOT, start_new_session=True, **options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def pooled(tmp_path, pool, database_url):
    """Make an adapter, found by its data folder, whose pipeline runs in the pool."""
    opened = []

    def make(command, **pipeline):
        settings = load(
            tmp_path / "data",
            {
                "platform": "pool",
                "platformSettings": {"command": command},
                "destinations": ["PACS"],
                "export": True,
                **pipeline,
            },
            platforms={"pool": {"folder": str(pool)}},
            services={"platform": {"pollSeconds": 0.05, "longestPollSeconds": 0.5}},
            workers={"leaseSeconds": 1.0},
            notification={"headerSeconds": 60.0},
        )
        opened.append(open_adapter(settings, create=True))
        return opened[-1]

    yield make
    for adapter in opened:
        adapter.close()


def runner(processes, pool):
    return processes("-m", "tests.support_pool", pool)


def deaths(printed):
    return printed.splitlines().count("killed")


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def test_a_worker_may_be_killed_after_every_verb(pooled, pool, processes):
    """SIGKILL between a verb and its record, each once: one command, one output, no file twice."""
    adapter = pooled(COPY)
    (job,) = add_group(adapter)
    verbs = ["create", "describe", "upload", "upload", "start", "state", "collect", "cancel"]
    (pool / "die.txt").write_text("\n".join(verbs))
    runner(processes, pool)

    worker = processes("-c", WORKER, adapter.settings.data, stdout=subprocess.PIPE, text=True)
    killed, _ = worker.communicate(timeout=100)

    assert (worker.returncode, deaths(killed)) == (0, len(verbs))
    found = row(adapter, job)
    assert (found.state, found.run, found.failed_runs) == ("succeeded", 1, 0)
    assert lines(pool / "commands.txt") == [f"{job}-1"]
    assert len(lines(pool / "uploads.txt")) == len(set(lines(pool / "uploads.txt"))) == 4
    assert len(list(adapter.spool.result_folder(job).iterdir())) == 4
    assert (len(rows(adapter, schema.tasks)), len(rows(adapter, schema.exports))) == (1, 1)
    assert not (pool / f"{job}-1").exists(), "the pool has forgotten the run"
    assert list(compare(adapter)) == []


def test_a_run_whose_process_of_the_pool_is_killed_is_run_again(pooled, pool, processes):
    """The platform lost it: run 2 is made, and the output of that one is taken."""
    once = 'if [ -e "$POOL_RUN/../begun" ]; then cp "$INPUT"/* "$OUTPUT"/; else '
    once += 'touch "$POOL_RUN/../begun"; exec sleep 600; fi'
    adapter = pooled(["sh", "-c", once])
    (job,) = add_group(adapter, retry_delay=0.0)
    first = runner(processes, pool)
    worker = processes("-c", WORKER, adapter.settings.data)
    eventually(lambda: row(adapter, job).running_since, timeout=60)
    eventually((pool / "begun").exists, timeout=60)

    first.kill()
    first.wait()
    runner(processes, pool)
    worker.wait(timeout=100)

    found = row(adapter, job)
    assert (found.state, found.run, found.failed_runs) == ("succeeded", 2, 1)
    assert lines(pool / "commands.txt") == [f"{job}-1", f"{job}-2"]
    assert list(pool.glob(f"{job}-*")) == []


def test_a_job_discarded_while_it_runs_is_ended_at_its_platform(pooled, pool, processes):
    """Its command is killed, also if the worker that cancels is killed meanwhile."""
    adapter = pooled(["sh", "-c", 'echo $$ > "$POOL_RUN/../pid"; exec sleep 600'])
    (job,) = add_group(adapter)
    (pool / "die.txt").write_text("cancel")
    runner(processes, pool)
    worker = processes("-c", WORKER, adapter.settings.data, stdout=subprocess.PIPE, text=True)
    eventually(lambda: row(adapter, job).running_since, timeout=60)
    pid = int(eventually(lambda: lines(pool / "pid"), timeout=60)[0])

    jobs.discard(adapter.ledger, job)
    killed, _ = worker.communicate(timeout=100)

    assert (worker.returncode, deaths(killed)) == (0, 1)
    assert gone(pid)
    assert not (pool / f"{job}-1").exists()
    assert not adapter.spool.result_folder(job).exists()
    assert kinds(adapter, job)[-2:] == ["job-discarded", "job-cancelled"]


def test_a_command_that_fails_is_parked_with_its_exit_code(pooled, pool, processes):
    """The pool's end of a run reaches the operator as an embedded run's does."""
    adapter = pooled(["sh", "-c", "exit 78"])
    (job,) = add_group(adapter)
    runner(processes, pool)

    processes("-c", WORKER, adapter.settings.data).wait(timeout=100)

    found = row(adapter, job)
    assert (found.state, found.outcome, found.exit_code) == ("parked", "exit-code", 78)


# --- the polls ------------------------------------------------------------------------------------


@pytest.mark.every_ledger("sqlite")
def test_what_every_poll_asks_is_found_by_an_index(adapter):
    """Jobs to ask after and cancellations are searched for, not scanned for."""
    from sqlalchemy import exists, select  # noqa: PLC0415

    from adapter.ledger import cancellations  # noqa: PLC0415

    asked = [
        select(exists().where(runs.ask_due(30.0))),
        select(exists().where(cancellations.cancel_due(30.0))),
    ]
    with adapter.ledger.read() as connection:
        for question in asked:
            compiled = question.compile(connection.engine, compile_kwargs={"literal_binds": True})
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}").all()
            words = " ".join(step[-1] for step in plan)
            assert "ix_jobs_state_due_at" in words or "ix_cancellations_due_at" in words, words
