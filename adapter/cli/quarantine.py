# SPDX-License-Identifier: Apache-2.0
"""`quarantine`: acknowledged files that could not be processed."""

from __future__ import annotations

from typing import Annotated

import typer

from adapter.cli.which import After, AsJson, Limit, opened
from adapter.errors import AdapterError
from adapter.ledger import quarantine as verbs
from adapter.ledger.arrivals import RETRIED
from adapter.ledger.queries import whole_ids
from adapter.terminal import print_json, print_page, print_table, say

quarantine = typer.Typer(help="Files that could not be processed.", no_args_is_help=True)


@quarantine.command("list")
def list_(
    ctx: typer.Context,
    reason: Annotated[str | None, typer.Option(help="Only those for this reason.")] = None,
    limit: Limit = 100,
    after: After = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List the quarantined files, the last received first."""
    with opened(ctx) as adapter:
        page = verbs.list_quarantined(adapter.ledger, reason=reason, limit=limit, after=after)
    columns = ("file", "received", "from", "to", "reason", "message")
    rows = [
        (
            file.id,
            f"{file.received_at:%Y-%m-%d %H:%M:%S}",
            file.calling_ae_title,
            file.called_ae_title,
            file.reason,
            file.message,
        )
        for file in page.items
    ]
    print_page(page, columns, rows, "nothing is in quarantine", as_json=as_json)


@quarantine.command("show")
def show(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Its id.")],
    as_json: AsJson = False,
) -> None:
    """Show a quarantined file, why it is there, and where its bytes are."""
    with opened(ctx) as adapter:
        found = verbs.find_quarantined(adapter.ledger, file)
        if found is None:
            raise AdapterError(f"{file} is not in quarantine")
        document = found.model_dump(mode="json", by_alias=True)
        document["path"] = str(adapter.spool.outside(adapter.spool.find_quarantined(found.id)))
    if as_json:
        print_json(document)
    else:
        print_table(("", "file"), document.items(), "")


@quarantine.command("retry")
def retry(
    ctx: typer.Context,
    ids: Annotated[list[str] | None, typer.Argument(metavar="FILE...")] = None,
    reason: Annotated[
        str | None, typer.Option(help="All files that are quarantined for this reason.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Have quarantined files registered again, when the cause is gone."""
    if bool(ids) == bool(reason):
        raise typer.BadParameter("name files, or a --reason")
    with opened(ctx) as adapter:
        if reason:
            done = verbs.retry_reason(adapter.ledger, reason)
        else:
            ids = whole_ids(adapter.ledger, "file", ids or [])
            done = verbs.retry(adapter.ledger, ids)
    missing = [file for file in ids or [] if file not in done]
    if as_json:
        print_json({"files": done, "missing": missing})
    else:
        for file, state in done.items():
            again = "is registered again" if state == RETRIED else f"is {state} already"
            say(f"{file} {again}")
        if reason and not done:
            say(f"nothing is in quarantine for the reason {reason}")
    if missing:
        raise AdapterError(f"not in quarantine: {', '.join(missing)}")


@quarantine.command("discard")
def discard(
    ctx: typer.Context,
    ids: Annotated[list[str], typer.Argument(metavar="FILE...")],
    as_json: AsJson = False,
) -> None:
    """Give quarantined files up; their bytes are deleted."""
    with opened(ctx) as adapter:
        ids = whole_ids(adapter.ledger, "file", ids)
        done = verbs.discard(adapter.ledger, ids)
    missing = [file for file in ids if file not in done]
    if as_json:
        print_json({"files": dict.fromkeys(done, "discarded"), "missing": missing})
    else:
        for file in done:
            say(f"{file} is discarded")
    if missing:
        raise AdapterError(f"not in quarantine: {', '.join(missing)}")
