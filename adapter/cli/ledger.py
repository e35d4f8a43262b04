# SPDX-License-Identifier: Apache-2.0
"""`ledger`: upgrade its schema, and check its health."""

from __future__ import annotations

from dataclasses import asdict

import typer

from adapter.cli.which import AsJson, settings_of
from adapter.core import open_ledger, upgrade_ledger
from adapter.errors import SpoolError
from adapter.ledger.health import LedgerHealth, examine
from adapter.spool import Spool
from adapter.terminal import print_json, say

ledger = typer.Typer(help="The ledger's schema and health.", no_args_is_help=True)


@ledger.command()
def upgrade(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Upgrade the ledger's schema; needs no spool, and may run while roles run."""
    revision = upgrade_ledger(settings_of(ctx))
    if as_json:
        print_json({"revision": revision})
    else:
        say(f"the ledger is at revision {revision}")


@ledger.command()
def check(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Check that the ledger answers and fits this release and the spool; exit code 1 if not."""
    settings = settings_of(ctx)
    opened = open_ledger(settings)
    try:
        found = examine(opened)
    finally:
        opened.close()
    try:
        here = Spool(settings.spool_path).id
    except SpoolError:
        here = None
    if None not in {here, found.spool} and here != found.spool:
        found.problems.append(
            "the ledger belongs to another spool: check storage > temporary and database > url"
        )
    if as_json:
        print_json({**asdict(found), "spool": _tie(found, here)})
    else:
        _show(found, here)
    if found.problems:
        raise typer.Exit(1)


def _tie(found: LedgerHealth, here: str | None) -> str:
    if found.spool is None:
        return "none yet"
    if here is None:
        return "not visible from here"
    return "this one" if here == found.spool else "another one"


def _show(found: LedgerHealth, here: str | None) -> None:
    if found.reachable:
        say(f"{found.database} {found.server or ''}".rstrip())
        say(f"revision {found.revision}, this release's is {found.expected}")
        say(f"spool: {_tie(found, here)}")
        for name, value in found.durability.items():
            say(f"{name}: {value}")
        if found.clock_ahead_seconds is not None:
            say(f"its clock is {found.clock_ahead_seconds:+.3f} s from this host's")
    for problem in found.problems:
        say(f"problem: {problem}")
    if not found.problems:
        say("The ledger is well.")
