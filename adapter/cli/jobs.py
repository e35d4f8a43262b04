# SPDX-License-Identifier: Apache-2.0
"""`jobs`: each pipeline's work on each group."""

from __future__ import annotations

from typing import Annotated

import typer

from adapter.cli.decisions import All, check_selection, decide, report
from adapter.cli.which import After, AsJson, Limit, opened
from adapter.errors import AdapterError
from adapter.ledger import jobs as verbs
from adapter.ledger.queries import find_job, list_jobs, whole_ids
from adapter.models import JobState
from adapter.terminal import print_json, print_page, print_table
from adapter.timeline import amount, short

jobs = typer.Typer(help="Each pipeline's work on each group.", no_args_is_help=True)

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
        for name in ("stdout", "stderr"):
            path = folder / f"{name}.txt"
            document[name] = str(adapter.spool.outside(path)) if path.exists() else None
    if as_json:
        print_json(document)
    else:
        print_table(("", "job"), document.items(), "")


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
