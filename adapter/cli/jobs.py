# SPDX-License-Identifier: Apache-2.0
"""`jobs`: each pipeline's work on each group."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import Annotated

import typer

from adapter.cli.decisions import All, check_selection, decide, report
from adapter.cli.which import After, AsJson, Limit, opened
from adapter.errors import AdapterError
from adapter.job_output import STDERR, STDOUT
from adapter.ledger import jobs as verbs
from adapter.ledger.queries import find_job, list_jobs, whole_ids
from adapter.models import JobState
from adapter.terminal import print_json, print_page, print_table
from adapter.timeline import amount, short

jobs = typer.Typer(help="Each pipeline's work on each group.", no_args_is_help=True)

#: States of a job whose pipeline may still print something.
RUNS = {JobState.QUEUED, JobState.CREATED, JobState.DESCRIBED, JobState.UPLOADED, JobState.STARTED}

#: Seconds between two looks at a job that is followed.
_LOOK = 0.3

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Its id.")]


@jobs.command("list")
def list_(
    ctx: typer.Context,
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only jobs with this outcome.")] = None,
    limit: Limit = 100,
    after: After = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List the jobs, the newest first."""
    with opened(ctx) as adapter:
        page = list_jobs(adapter.ledger, state=state, outcome=reason, limit=limit, after=after)
    columns = (
        "job",
        "name",
        "state",
        "instances",
        "pipeline",
        "platform",
        "tries",
        "outcome",
        "message",
    )
    rows = [
        (
            short(job.id),
            job.name,
            f"{job.state} (at work)" if job.working else job.state,
            amount(job.instances, job.in_quarantine),
            job.pipeline_id,
            job.platform,
            job.tries + job.failed_runs,
            job.outcome,
            job.message,
        )
        for job in page.items
    ]
    print_page(page, columns, rows, "no job", as_json=as_json)


@jobs.command("show")
def show(ctx: typer.Context, job: JobArgument, as_json: AsJson = False) -> None:
    """Show a job, and where the output of its pipeline is."""
    with opened(ctx) as adapter:
        found = find_job(adapter.ledger, job)
        if found is None:
            raise AdapterError(f"there is no job {job}")
        document = found.model_dump(mode="json", by_alias=True)
        folder = adapter.spool.work_folder(found.id)
        for name, file in (("stdout", STDOUT), ("stderr", STDERR)):
            path = folder / file
            document[name] = str(adapter.spool.outside(path)) if path.exists() else None
    if as_json:
        print_json(document)
    else:
        print_table(("", "job"), document.items(), "")


@jobs.command("logs")
def logs(
    ctx: typer.Context,
    job: JobArgument,
    *,
    stderr: Annotated[
        bool, typer.Option("--stderr", help="Standard error instead of standard output.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the job does not run any more.")
    ] = False,
) -> None:
    """Print what a job's pipeline has printed in its last run: the first and last 128 KiB."""
    with opened(ctx) as adapter:
        (found,) = whole_ids(adapter.ledger, "job", [job])
        path = adapter.spool.work_folder(found) / (STDERR if stderr else STDOUT)
        if not follow and not path.exists():
            raise AdapterError(
                f"nothing is kept of what job {job} printed; it may not have run yet"
            )
        shown, file = 0, 0
        while True:
            facts = find_job(adapter.ledger, found)
            with suppress(FileNotFoundError), path.open("rb") as stream:
                if file not in {0, os.fstat(stream.fileno()).st_ino}:
                    shown = 0  # another run has begun
                file = os.fstat(stream.fileno()).st_ino
                stream.seek(shown)
                data = stream.read()
                shown += len(data)
                _print(data)
            if not follow or facts is None or facts.state not in RUNS:
                break
            time.sleep(_LOOK)  # a file has no event that tells of what is added to it


def _print(data: bytes) -> None:
    """Print what a program has printed; a terminal gets no control characters of it."""
    if sys.stdout.isatty():
        text = data.decode("utf-8", errors="replace")
        data = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text).encode()
    typer.echo(data, nl=False)


@jobs.command("retry")
def retry(
    ctx: typer.Context,
    ids: Annotated[list[str] | None, typer.Argument(metavar="JOB...")] = None,
    state: Annotated[
        JobState | None, typer.Option(help="All in this state; only parked jobs can be retried.")
    ] = None,
    reason: Annotated[
        str | None, typer.Option(help="All that are parked with this outcome.")
    ] = None,
    *,
    everything: All = False,
    as_json: AsJson = False,
) -> None:
    """Resume parked jobs in the state that they were parked in, with all tries."""
    check_selection(ids, "job", state=state, reason=reason, all=everything)
    if state not in {None, JobState.PARKED}:
        raise typer.BadParameter("only parked jobs can be retried", param_hint="--state")
    with opened(ctx) as adapter:
        if ids:
            chosen = whole_ids(adapter.ledger, "job", ids)
        else:
            chosen = verbs.parked(adapter.ledger, reason)
        done, failed = decide(chosen, lambda job: verbs.retry(adapter.ledger, job))
    report("job", done, failed, words=" again", as_json=as_json)


@jobs.command("discard")
def discard(
    ctx: typer.Context,
    ids: Annotated[list[str], typer.Argument(metavar="JOB...")],
    as_json: AsJson = False,
) -> None:
    """Give up jobs for good: runs are stopped, at whatever platform, and files reclaimed."""
    with opened(ctx) as adapter:
        chosen = whole_ids(adapter.ledger, "job", ids)
        done, failed = decide(chosen, lambda job: verbs.discard(adapter.ledger, job))
    report("job", done, failed, as_json=as_json)
