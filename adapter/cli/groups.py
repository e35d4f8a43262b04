# SPDX-License-Identifier: Apache-2.0
"""`groups`: the instances that become jobs together, and what holds a group up."""

from __future__ import annotations

from typing import Annotated

import typer

from adapter.cli.decisions import decide, report
from adapter.cli.which import After, AsJson, Limit, opened
from adapter.ledger import groups as verbs
from adapter.ledger.queries import list_groups, whole_ids
from adapter.models import GroupState
from adapter.terminal import print_page
from adapter.timeline import short

groups = typer.Typer(help="Instances that become jobs together.", no_args_is_help=True)

Groups = Annotated[list[str], typer.Argument(metavar="GROUP...")]


@groups.command("list")
def list_(
    ctx: typer.Context,
    state: Annotated[GroupState | None, typer.Option(help="Only groups in this state.")] = None,
    limit: Limit = 100,
    after: After = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List the groups, the newest first."""
    with opened(ctx) as adapter:
        page = list_groups(adapter.ledger, state=state, limit=limit, after=after)
    columns = ("group", "to", "generation", "state", "instances", "reason", "message")
    rows = [
        (
            short(group.id),
            group.called_ae_title,
            group.generation,
            group.state,
            group.instances,
            group.reason or group.close_reason,
            group.message,
        )
        for group in page.items
    ]
    print_page(page, columns, rows, "no group", as_json=as_json)


@groups.command("retry")
def retry(ctx: typer.Context, ids: Groups, as_json: AsJson = False) -> None:
    """Have parked groups closed, or the files of stuck ones deleted, when the cause is gone."""
    with opened(ctx) as adapter:
        chosen = whole_ids(adapter.ledger, "group", ids)
        done, failed = decide(chosen, lambda group: verbs.retry(adapter.ledger, group))
    report("group", done, failed, as_json=as_json)


@groups.command("discard")
def discard(ctx: typer.Context, ids: Groups, as_json: AsJson = False) -> None:
    """Give parked groups up for good; their files are deleted, and may be sent again."""
    with opened(ctx) as adapter:
        chosen = whole_ids(adapter.ledger, "group", ids)
        done, failed = decide(chosen, lambda group: verbs.discard(adapter.ledger, group))
    report("group", done, failed, as_json=as_json)
