# SPDX-License-Identifier: Apache-2.0
"""`exports`: a task's results, sent to one destination each."""

from __future__ import annotations

from typing import Annotated

import typer

from adapter.cli.decisions import All, check_selection, decide, report
from adapter.cli.which import After, AsJson, Limit, opened
from adapter.errors import AdapterError
from adapter.ledger import exports as verbs
from adapter.ledger.exports import WAITING
from adapter.ledger.queries import find_export, list_exports, whole_ids
from adapter.models import ExportState
from adapter.terminal import print_json, print_page, print_table
from adapter.timeline import short

exports = typer.Typer(help="Results of pipelines, sent to destinations.", no_args_is_help=True)

Exports = Annotated[list[str] | None, typer.Argument(metavar="EXPORT...")]
Destination = Annotated[
    str | None,
    typer.Option("--destination", help="All parked and partial exports to this destination."),
]


@exports.command("list")
def list_(
    ctx: typer.Context,
    state: Annotated[ExportState | None, typer.Option(help="Only exports in this state.")] = None,
    destination: Annotated[str | None, typer.Option(help="Only exports to this one.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only exports with this reason.")] = None,
    *,
    limit: Limit = 100,
    after: After = None,
    as_json: AsJson = False,
) -> None:
    """List the exports, the newest first."""
    with opened(ctx) as adapter:
        page = list_exports(
            adapter.ledger,
            state=state,
            destination=destination,
            reason=reason,
            limit=limit,
            after=after,
        )
    columns = ("export", "destination", "state", "stored", "tries", "reason", "message", "on hold")
    rows = [
        (
            short(export.id),
            export.destination,
            f"{export.state} (at work)" if export.working else export.state,
            f"{export.stored} of {export.files}",
            export.tries,
            export.reason,
            export.message,
            export.hold.reason if export.hold else None,
        )
        for export in page.items
    ]
    print_page(page, columns, rows, "no export", as_json=as_json)


@exports.command("show")
def show(
    ctx: typer.Context,
    export: Annotated[str, typer.Argument(metavar="EXPORT", help="Its id.")],
    as_json: AsJson = False,
) -> None:
    """Show an export, and the files that its destination has not confirmed."""
    with opened(ctx) as adapter:
        found = find_export(adapter.ledger, export)
    if found is None:
        raise AdapterError(f"there is no export {export}")
    document = found.model_dump(mode="json", by_alias=True)
    if as_json:
        print_json(document)
        return
    files = document.pop("unconfirmed")
    print_table(("", "export"), document.items(), "")
    rows = [
        (file.number, file.sop_instance_uid, file.outcome, file.reason, file.tries)
        for file in found.unconfirmed
    ]
    columns = ("file", "SOP instance", "outcome", "reason", "tries")
    if files:
        print_table(columns, rows, "")


@exports.command("retry")
def retry(
    ctx: typer.Context,
    ids: Exports = None,
    destination: Destination = None,
    state: Annotated[
        ExportState | None, typer.Option(help="All in this state: parked or partial.")
    ] = None,
    reason: Annotated[
        str | None, typer.Option(help="All that wait for an operator for this reason.")
    ] = None,
    *,
    everything: All = False,
    as_json: AsJson = False,
) -> None:
    """Send the unconfirmed files of parked or partial exports again, with all tries.

    With --destination alone, what only waits for that destination is tried now, too.
    """
    check_selection(
        ids, "export", destination=destination, state=state, reason=reason, all=everything
    )
    if state not in {None, *WAITING}:
        raise typer.BadParameter(
            "only parked or partial exports can be retried", param_hint="--state"
        )
    failed: dict[str, str] = {}
    with opened(ctx) as adapter:
        if ids:
            chosen = whole_ids(adapter.ledger, "export", ids)
            done, failed = decide(chosen, lambda export: verbs.retry(adapter.ledger, export))
        else:
            retried = verbs.retry_all(
                adapter.ledger, destination=destination, state=state, reason=reason
            )
            done = dict.fromkeys(retried, str(ExportState.PENDING))
    report("export", done, failed, words=" again", as_json=as_json)


@exports.command("discard")
def discard(
    ctx: typer.Context,
    ids: Exports = None,
    destination: Destination = None,
    as_json: AsJson = False,
) -> None:
    """Give up exports for good; their files are deleted when nothing else needs them."""
    check_selection(ids, "export", destination=destination)
    with opened(ctx) as adapter:
        policy = adapter.settings.dicom.scu.export
        if ids:
            chosen = whole_ids(adapter.ledger, "export", ids)
        else:
            chosen = verbs.waiting(adapter.ledger, str(destination))
        done, failed = decide(chosen, lambda export: verbs.discard(adapter.ledger, export, policy))
    report("export", done, failed, as_json=as_json)
