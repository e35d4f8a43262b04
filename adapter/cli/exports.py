# SPDX-License-Identifier: Apache-2.0
"""`exports`: a task's results, sent to one destination each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from adapter.cli.which import After, AsJson, Limit, opened
from adapter.core import Adapter
from adapter.errors import AdapterError
from adapter.ledger import exports as verbs
from adapter.ledger.queries import find_export, list_exports
from adapter.models import ExportState
from adapter.terminal import print_json, print_page, print_table, say
from adapter.timeline import count

exports = typer.Typer(help="Results of pipelines, sent to destinations.", no_args_is_help=True)

Exports = Annotated[list[str] | None, typer.Argument(metavar="EXPORT...")]
Everything = Annotated[
    str | None,
    typer.Option("--destination", help="All parked and partial exports to this destination."),
]


@exports.command("list")
def list_(
    ctx: typer.Context,
    state: Annotated[ExportState | None, typer.Option(help="Only exports in this state.")] = None,
    destination: Annotated[str | None, typer.Option(help="Only exports to this one.")] = None,
    limit: Limit = 100,
    after: After = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List the exports, the newest first."""
    with opened(ctx) as adapter:
        page = list_exports(
            adapter.ledger, state=state, destination=destination, limit=limit, after=after
        )
    columns = ("export", "destination", "state", "stored", "tries", "message", "on hold")
    rows = [
        (
            export.id,
            export.destination,
            f"{export.state} (at work)" if export.working else export.state,
            f"{export.stored} of {export.files}",
            export.tries,
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
def retry(ctx: typer.Context, ids: Exports = None, destination: Everything = None) -> None:
    """Send the unconfirmed files of parked or partial exports again, with all tries."""
    _one_of(ids, destination)
    with opened(ctx) as adapter:
        for export in ids or []:
            verbs.retry(adapter.ledger, export)
            say(f"export {export} is pending again")
        if destination:
            done = verbs.retry_destination(adapter.ledger, destination)
            say(f"{count(len(done), 'export')} to {destination} pending again")
            say("Its waiting exports are tried now, too.")


@exports.command("discard")
def discard(ctx: typer.Context, ids: Exports = None, destination: Everything = None) -> None:
    """Give up exports for good; their files are deleted when nothing else needs them."""
    _one_of(ids, destination)
    with opened(ctx) as adapter:
        for export in ids or list(_waiting(adapter, str(destination))):
            verbs.discard(adapter.ledger, export, adapter.settings.dicom.scu.export)
            say(f"export {export} is discarded")


def _one_of(ids: list[str] | None, destination: str | None) -> None:
    if bool(ids) == bool(destination):
        raise typer.BadParameter("name exports, or a --destination")


def _waiting(adapter: Adapter, destination: str) -> Iterator[str]:
    """Yield the exports to a destination that wait for an operator."""
    for state in (ExportState.PARKED, ExportState.PARTIAL):
        after = None
        while True:
            page = list_exports(
                adapter.ledger, state=state, destination=destination, limit=1000, after=after
            )
            yield from (export.id for export in page.items)
            if (after := page.next) is None:
                break
