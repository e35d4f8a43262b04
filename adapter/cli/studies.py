# SPDX-License-Identifier: Apache-2.0
"""`studies`: the list of received studies, and a study's timeline."""

from __future__ import annotations

from typing import Annotated

import typer

from adapter.cli.which import After, AsJson, Limit, opened
from adapter.errors import AdapterError
from adapter.ledger.queries import find_timeline, list_studies
from adapter.models import ArrivalState
from adapter.terminal import print_json, print_page, print_table, say
from adapter.timeline import HEADINGS, amount, count, export_line, job_line, timeline_lines

studies = typer.Typer(help="Received studies and their timelines.", no_args_is_help=True)


@studies.command("list")
def list_(
    ctx: typer.Context, limit: Limit = 100, after: After = None, as_json: AsJson = False
) -> None:
    """List the studies, newest first."""
    with opened(ctx) as adapter:
        page = list_studies(adapter.ledger, limit=limit, after=after)
    columns = ("study", "last received", "AE titles", "series", "instances", "groups", "jobs")
    rows = [
        (
            study.study_instance_uid,
            f"{study.last_received_at:%Y-%m-%d %H:%M:%S}",
            study.called_ae_titles,
            study.series,
            amount(study.instances, study.arrivals.get(ArrivalState.QUARANTINED, 0)),
            study.groups,
            study.jobs,
            study.exports,
            "several" if study.patient_conflict else "",
        )
        for study in page.items
    ]
    print_page(
        page, (*columns, "exports", "patients"), rows, "no study was received yet", as_json=as_json
    )


@studies.command("show")
def show(
    ctx: typer.Context,
    uid: Annotated[str, typer.Argument(metavar="UID", help="Its Study Instance UID.")],
    as_json: AsJson = False,
) -> None:
    """Show a study's timeline: associations, groups and why they closed, jobs, exports."""
    with opened(ctx) as adapter:
        timeline = find_timeline(adapter.ledger, uid)
    if timeline is None:
        raise AdapterError(f"no instance of the study {uid} was received")
    if as_json:
        print_json(timeline.model_dump(mode="json", by_alias=True))
        return
    say(
        f"{count(timeline.instances, 'instance')} in {timeline.series} series, "
        f"{timeline.size} bytes; in quarantine: {sum(timeline.quarantined.values())}, "
        f"discarded: {sum(timeline.discarded.values())}"
    )
    if timeline.patient_conflict:
        say("instances of several patients have this Study Instance UID")
    print_table(HEADINGS, timeline_lines(timeline), "nothing happened yet")
    for job in timeline.jobs:
        say(job_line(job))
    for export in timeline.exports:
        say(export_line(export))
        for file in export.unconfirmed:
            say(f"  not confirmed: {file.sop_instance_uid}: {file.reason or 'not tried yet'}")
