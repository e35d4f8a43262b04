# SPDX-License-Identifier: Apache-2.0
"""`ledger`: upgrade its schema, check its health, back it up and restore it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from adapter import heartbeat
from adapter.cli.which import AsJson, settings_of
from adapter.core import open_adapter, open_ledger, upgrade_ledger
from adapter.embedded.supervisor import only_one
from adapter.errors import AdapterError, SpoolError
from adapter.ledger import dumps
from adapter.ledger.health import LedgerHealth, examine
from adapter.spool import Spool
from adapter.terminal import print_json, say
from adapter.timeline import count

ledger = typer.Typer(help="The ledger's schema and health, and copies of it.", no_args_is_help=True)

DumpFile = Annotated[Path, typer.Argument(metavar="FILE", help="The file of the dump.")]


@ledger.command()
def upgrade(
    ctx: typer.Context,
    *,
    create_spool: Annotated[
        bool,
        typer.Option("--create-spool", help="Create the spool too if the ledger names none."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Upgrade the ledger's schema; needs no spool, and may run while roles run."""
    settings = settings_of(ctx)
    revision = upgrade_ledger(settings)
    if create_spool:
        open_adapter(settings, create=True).close()
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


@ledger.command()
def dump(ctx: typer.Context, file: DumpFile, as_json: AsJson = False) -> None:
    """Copy the ledger to a file, whatever its database is; roles may go on meanwhile."""
    opened = open_ledger(settings_of(ctx))
    try:
        rows = dumps.dump(opened, file)
    finally:
        opened.close()
    if as_json:
        print_json({"file": str(file), "rows": rows})
    else:
        say(f"{count(rows, 'row')} of the ledger copied to {file}")


@ledger.command()
def restore(
    ctx: typer.Context,
    file: DumpFile,
    *,
    replace: Annotated[
        bool, typer.Option("--replace", help="Delete what the ledger has now, for good.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Restore the ledger from a dump, also one of the other database; no role may run meanwhile."""
    settings = settings_of(ctx)
    upgrade_ledger(settings)
    with only_one(settings.data / "up.lock"):
        beats = heartbeat.read_all(Spool(settings.spool_path))
        running = {beat["role"] for beat in beats if beat["age"] < heartbeat.SILENCE_SECONDS}
        if running:
            raise AdapterError(f"stop every role first; these run: {', '.join(sorted(running))}")
        opened = open_ledger(settings)
        try:
            rows = dumps.restore(opened, file, replace=replace)
        finally:
            opened.close()
    if as_json:
        print_json({"file": str(file), "rows": rows})
    else:
        say(f"{count(rows, 'row')} of the ledger restored from {file}")


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
