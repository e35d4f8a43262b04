# SPDX-License-Identifier: Apache-2.0
"""The submission stage: step by step to the platform, and every way a step may fail."""

from __future__ import annotations

import json

import pytest
from pydicom import dcmread
from sqlalchemy import update

from adapter.errors import NotYetVisible, PermanentError, TemporaryError
from adapter.ledger import jobs, schema
from adapter.models import JobState
from tests.support_jobs import (
    CT_SERIES,
    add_group,
    change,
    kinds,
    make_work,
    row,
    rows,
    submit_due,
)
from tests.support_ledger import everything_in
from tests.support_waiting import eventually
from workers import submission
from workers.stage import take_all

pytestmark = pytest.mark.every_ledger

PIPELINES = {"one": {"command": ["true"]}, "two": {"command": ["true"]}}
STEPS = ["create", "describe", "upload", "start"]


class Crash(BaseException):
    """The worker is killed: nothing of ours gets to run."""


class FlakyPlatform:
    """A platform that remembers its calls, and raises what it is told to."""

    def __init__(self, errors=None):
        self.calls = []
        self.errors = errors or {}

    def create(self, job):
        self._call("create", job)
        return f"platform-{job.id}"

    def describe(self, job, metadata):
        self._call("describe", job)
        self.metadata = metadata

    def upload(self, job, files):
        self._call("upload", job)
        self.files = files
        return ()

    def start(self, job):
        self._call("start", job)

    def _call(self, verb, job):
        self.calls.append((verb, job.id))
        if self.errors.get(verb):
            raise self.errors[verb].pop(0)

    @property
    def verbs(self):
        return [verb for verb, _ in self.calls]


def due_now(adapter, job):
    change(adapter, job, due_at=0.0)


def group_state(adapter):
    (group,) = rows(adapter, schema.groups)
    return group.state


# --- what a submission does -----------------------------------------------------------------------


def test_a_job_is_handed_over_step_by_step(adapter):
    """Create, describe, upload and start are called once each; then the pipeline stage is woken."""
    work, platform = make_work(adapter), FlakyPlatform()
    (job,) = add_group(adapter)

    assert submit_due(work, platform) == {"started": 1}

    submitted = row(adapter, job)
    assert platform.calls == [(verb, job) for verb in STEPS]
    assert (submitted.state, submitted.platform_job_id) == ("started", f"platform-{job}")
    assert (submitted.tries, submitted.lease_token) == (0, None)
    assert submitted.due_at <= adapter.ledger.now()
    assert [file.name for file in platform.files] == [
        f"{dcmread(path).SOPInstanceUID}.dcm" for path in CT_SERIES
    ]
    assert kinds(adapter, job) == ["job-submitted"]
    assert work.queues == ["pipeline"]
    assert group_state(adapter) == "submitted"
    assert submit_due(work, platform) == {}


def test_every_step_is_recorded_before_the_next(adapter):
    """While the platform is asked for a step, the ledger has the one before."""
    seen = []
    (job,) = add_group(adapter)

    class Watching(FlakyPlatform):
        def _call(self, verb, called):
            seen.append((verb, row(adapter, job).state, called.state))

    submit_due(make_work(adapter), Watching())

    states = ["queued", "created", "described", "uploaded"]
    assert seen == list(zip(STEPS, states, states, strict=True))


def test_a_group_is_submitted_when_its_last_job_is(adapter):
    """A group with two jobs stays closed until both have been handed over, or one is discarded."""
    work = make_work(adapter)
    first, second = add_group(adapter, pipelines=("one", "two"))
    refuses_second = FlakyPlatform()
    refuses_second.create = lambda job: refuse() if job.id == second else job.id

    def refuse():
        raise PermanentError("no", "unknown-pipeline")

    assert submit_due(work, refuses_second) == {"started": 1, "parked": 1}
    assert group_state(adapter) == "closed"

    jobs.discard(adapter.ledger, second)

    assert group_state(adapter) == "submitted"
    assert row(adapter, first).state == "started"


def test_jobs_of_higher_priority_go_first(adapter):
    """Priority orders what waits, then age."""
    ids = add_group(adapter, pipelines=("a", "b", "c"))
    platform = FlakyPlatform()
    change(adapter, ids[1], priority=4)
    change(adapter, ids[2], created_at=1.0)

    submit_due(make_work(adapter), platform)

    assert [job for verb, job in platform.calls if verb == "create"] == [ids[1], ids[2], ids[0]]


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_tried_1_and_max_retries_times_and_then_parked(adapter, step):
    """Each failed try waits; the last parks the job where it stood, and a retry goes on there."""
    work = make_work(adapter)
    retries = work.adapter.settings.services.platform.max_retries
    platform = FlakyPlatform({step: [TemporaryError("away") for _ in range(retries + 1)]})
    (job,) = add_group(adapter)
    stood_in = ["queued", "created", "described", "uploaded"][STEPS.index(step)]

    for attempt in range(retries):
        assert submit_due(work, platform) == {"failed": 1}
        failed = row(adapter, job)
        assert (failed.state, failed.tries, failed.outcome) == (stood_in, attempt + 1, "failed")
        assert 170 < failed.due_at - adapter.ledger.now() <= 180
        assert submit_due(work, platform) == {}
        due_now(adapter, job)
    assert submit_due(work, platform) == {"parked": 1}

    parked = row(adapter, job)
    assert platform.verbs.count(step) == retries + 1
    assert (parked.state, parked.parked_in, parked.message) == ("parked", stood_in, "away")
    assert kinds(adapter, job) == ["job-failed-try"] * retries + ["job-parked"]
    assert jobs.retry(adapter.ledger, job) == stood_in
    assert row(adapter, job).tries == 0
    assert submit_due(work, platform) == {"started": 1}
    assert platform.verbs.count("create") == (retries + 2 if step == "create" else 1)


def test_tries_are_counted_for_each_step(adapter):
    """A step that succeeds at last leaves the next one all its tries."""
    work = make_work(adapter)
    platform = FlakyPlatform(
        {"create": [TemporaryError("away", delay=0.0)] * 3, "start": [TemporaryError("away")]}
    )
    tries = []
    platform.upload = lambda called, _files: [tries.append(row(adapter, called.id).tries)]
    (job,) = add_group(adapter)

    assert submit_due(work, platform) == {"failed": 4}

    assert tries == [0]
    assert (row(adapter, job).state, row(adapter, job).tries) == ("uploaded", 1)


def test_a_permanent_failure_parks_at_once(adapter):
    """What will not pass is parked with its code, without another try."""
    platform = FlakyPlatform({"create": [PermanentError("no such pipeline", "unknown-pipeline")]})
    (job,) = add_group(adapter)

    assert submit_due(make_work(adapter), platform) == {"parked": 1}

    parked = row(adapter, job)
    assert (parked.state, parked.parked_in, parked.outcome) == (
        "parked",
        "queued",
        "unknown-pipeline",
    )


def test_a_file_that_is_not_visible_yet_costs_no_try(adapter):
    """For visibilitySeconds a missing file is waited for; after that every look is a try."""
    work = make_work(adapter, pipelines=PIPELINES)
    (job,) = add_group(adapter)
    path = next(adapter.spool.instances.rglob("*.dcm"))
    hidden = path.rename(path.with_suffix(".hidden"))

    assert take_all(work, submission.take) == {"waits": 1}
    waiting = row(adapter, job)
    change(adapter, job, due_at=0.0, updated_at=adapter.ledger.now() - 1000)
    assert take_all(work, submission.take) == {"failed": 1}
    failed = row(adapter, job)
    path.write_bytes(hidden.read_bytes()[:-1])
    due_now(adapter, job)
    assert take_all(work, submission.take) == {"failed": 1}
    hidden.rename(path)
    due_now(adapter, job)

    assert (waiting.state, waiting.tries) == ("described", 0)
    assert 0 < waiting.due_at - adapter.ledger.now() <= submission.VISIBILITY_PAUSE
    assert (failed.state, failed.tries, failed.outcome) == ("described", 1, "not-visible")
    assert take_all(work, submission.take) == {"started": 1}


def test_a_step_that_a_crash_interrupted_is_taken_again_with_the_same_id(adapter):
    """Killed after the platform has created the job and before that is recorded: the same id."""
    work = make_work(adapter, workers={"lease_seconds": 0.3})
    platform = FlakyPlatform({"create": [Crash()]})
    (job,) = add_group(adapter)

    with pytest.raises(Crash):
        submit_due(work, platform)
    outcome = eventually(lambda: submit_due(work, platform))

    assert outcome == {"started": 1}
    assert platform.calls[:2] == [("create", job), ("create", job)]
    assert platform.verbs == ["create", *STEPS]
    assert (row(adapter, job).tries, row(adapter, job).lease_expiries) == (0, 0)


def test_a_job_that_kills_its_workers_is_parked(adapter):
    """Ten expired leases park a job; the platform is not asked again."""
    platform = FlakyPlatform()
    (job,) = add_group(adapter)
    change(adapter, job, lease_token="dead", lease_until=1.0, lease_expiries=9)

    assert submit_due(make_work(adapter), platform) == {"parked": 1}

    assert (row(adapter, job).outcome, platform.calls) == ("kills-its-worker", [])
    assert jobs.retry(adapter.ledger, job) == "queued"
    assert submit_due(make_work(adapter), platform) == {"started": 1}


def test_a_worker_that_lost_its_job_writes_nothing_more(adapter):
    """If the job is discarded while the platform is asked, no later step is taken."""
    (job,) = add_group(adapter)
    platform = FlakyPlatform()
    platform.create = lambda called: jobs.discard(adapter.ledger, called.id) or called.id

    assert submit_due(make_work(adapter), platform) == {"lost": 1}

    assert (row(adapter, job).state, platform.calls) == ("discarded", [])
    assert kinds(adapter, job) == ["job-discarded"]


def test_a_stopping_worker_gives_its_job_back_between_steps(adapter):
    """A step that was taken is recorded; the next worker goes on from there, at once."""
    work = make_work(adapter)
    platform = FlakyPlatform()
    platform.create = lambda called: work.stopping.set() or called.id
    (job,) = add_group(adapter)

    assert submit_due(work, platform) == {"waits": 1}

    given_back = row(adapter, job)
    assert (given_back.state, given_back.tries, given_back.lease_token) == ("created", 0, None)
    assert submit_due(make_work(adapter), platform) == {"started": 1}


# --- the embedded platform ------------------------------------------------------------------------


def test_a_pipeline_that_is_not_defined_is_refused(adapter):
    """The message names the pipeline's id and says where to define it."""
    (job,) = add_group(adapter, pipelines=("three",))

    assert take_all(make_work(adapter, pipelines=PIPELINES), submission.take) == {"parked": 1}

    parked = row(adapter, job)
    assert parked.outcome == "unknown-pipeline"
    assert "'three': define it in appsettings.json" in parked.message


def metadata_of(adapter, job):
    path = adapter.spool.work_folder(job) / "metadata.json"
    assert path.stat().st_mode & 0o777 == 0o600
    return json.loads(path.read_text())


def test_metadata_says_where_a_job_comes_from(adapter):
    """Source and Instances as in the original, the generation, and earlier jobs of the same key."""
    work = make_work(adapter, pipelines=PIPELINES)
    (first, _) = add_group(adapter, CT_SERIES[:3], pipelines=("one", "two"))
    (second,) = add_group(adapter, CT_SERIES[3:], generation=2)
    (_,) = add_group(adapter, CT_SERIES[3:], key="9.9", pipelines=("one",))

    assert take_all(work, submission.take) == {"started": 4}

    source = "BRAIN (AE Title Job Processor)"
    assert metadata_of(adapter, first) == {"Source": source, "Instances": "3", "Generation": "1"}
    assert metadata_of(adapter, second) == {
        "Source": source,
        "Instances": "1",
        "Generation": "2",
        "EarlierJobs": first,
    }


def test_metadata_values_are_unique_cut_and_kept_out_of_the_ledger(adapter, tmp_path, capfd):
    """Every unique value of each tag is in metadata.json, and nowhere else."""
    files = []
    for number, path in enumerate(CT_SERIES):
        ds = dcmread(path)
        ds.PatientName = "Doe^Jane^Hush"
        ds.DerivationDescription = "y" * 500
        ds.SeriesDescription = f"slab {number % 2}"
        files.append(tmp_path / f"{number}.dcm")
        ds.save_as(files[-1])
    work = make_work(adapter, pipelines=PIPELINES)
    tags = ["00100010", "0008103E", "00082111", "00080060", "00104000"]
    platform = work.adapter.settings.services.platform.model_copy(
        update={"upload_metadata": True, "metadata_dicom_source": tags}
    )
    work = make_work(adapter, pipelines=PIPELINES, services={"platform": platform})
    (job,) = add_group(adapter, files)

    assert take_all(work, submission.take) == {"started": 1}

    found = metadata_of(adapter, job)
    assert found.pop("Source").startswith("BRAIN")
    assert found == {
        "Instances": "4",
        "Generation": "1",
        "00100010": "Doe^Jane^Hush",
        "0008103E-0": "slab 0",
        "0008103E-1": "slab 1",
        "00082111": "y" * 256,
        "00080060": "CT",
    }
    assert b"Jane" not in everything_in(adapter)
    assert "Jane" not in "".join(capfd.readouterr())


# --- what operators may ask for -------------------------------------------------------------------


def test_only_parked_jobs_can_be_retried(adapter):
    """A job that is on its way, or that nobody knows, is refused with a clear text."""
    (job,) = add_group(adapter)

    with pytest.raises(PermanentError, match=f"job {job} is queued: only a parked job"):
        jobs.retry(adapter.ledger, job)
    with pytest.raises(PermanentError, match="there is no job x"):
        jobs.retry(adapter.ledger, "x")


def test_a_job_that_has_ended_cannot_be_discarded(adapter):
    """Succeeded and discarded are final."""
    (job,) = add_group(adapter)
    jobs.discard(adapter.ledger, job)

    for state in (JobState.DISCARDED, JobState.SUCCEEDED):
        with adapter.ledger.write() as connection:
            connection.execute(update(schema.jobs).values(state=state))
        with pytest.raises(PermanentError, match=f"job {job} is {state}: a job that has ended"):
            jobs.discard(adapter.ledger, job)
    with pytest.raises(PermanentError, match="there is no job x"):
        jobs.discard(adapter.ledger, "x")


def test_an_error_says_when_to_try_again(adapter):
    """The delay that comes with an error goes before the setting."""
    platform = FlakyPlatform({"upload": [TemporaryError("later", delay=7.0)]})
    (job,) = add_group(adapter)

    submit_due(make_work(adapter), platform)

    assert 5 < row(adapter, job).due_at - adapter.ledger.now() <= 7


def test_a_platform_may_not_see_a_file_yet_either(adapter):
    """NotYetVisible from any step costs no try."""
    platform = FlakyPlatform({"start": [NotYetVisible("not yet")]})
    (job,) = add_group(adapter)

    assert submit_due(make_work(adapter), platform) == {"waits": 1}

    assert (row(adapter, job).state, row(adapter, job).tries) == ("uploaded", 0)
