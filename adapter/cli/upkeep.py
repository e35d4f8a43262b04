# SPDX-License-Identifier: Apache-2.0
"""`status`, `verify` and `rebuild`: check the adapter, and recover it."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any

import typer
from sqlalchemy.exc import SQLAlchemyError

from adapter.cli.which import AsJson, opened, settings_of
from adapter.core import find_id
from adapter.embedded.roles import local
from adapter.errors import AdapterError
from adapter.rebuild import rebuild as rebuild_ledger
from adapter.settings import Settings
from adapter.terminal import print_json, print_table, say
from adapter.timeline import count
from adapter.verify import verify as find_differences

#: Seconds that `status` looks for the adapter's id.
_LOOK_SECONDS = 0.5


def verify(
    ctx: typer.Context,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every file and compare its digest too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check that spool and ledger account for each other; exit code 1 if they do not."""
    with opened(ctx) as adapter:
        differences = find_differences(adapter, deep=deep)
    if as_json:
        print_json([asdict(difference) for difference in differences])
    elif differences:
        columns = ("of", "id", "problem", "what to do")
        rows = [(item.kind, item.id, item.problem, item.remedy) for item in differences]
        print_table(columns, rows, "")
    else:
        say("Spool and ledger account for each other.")
    if differences:
        raise typer.Exit(1)


def rebuild(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Fill an empty ledger from a spool whose ledger is lost; no role may run meanwhile."""
    settings = settings_of(ctx)
    if not settings.spool_path.exists():
        raise AdapterError(f"there is no spool in {settings.spool_path}: nothing to rebuild from")
    rebuilt = rebuild_ledger(settings)
    if as_json:
        print_json(asdict(rebuilt))
        return
    say(f"{count(rebuilt.configuration, 'version')} of the configuration restored")
    say(f"{count(rebuilt.instances, 'instance')} to be registered again as soon as `up` runs")
    say(f"{count(rebuilt.incoming, 'instance')} not registered yet")
    say(f"{count(rebuilt.quarantined, 'quarantined file')} entered")


def status(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show health, processes, waiting work and what needs an operator; exit code 1 if red."""
    health = _ask_health(ctx)
    if as_json:
        print_json(health)
    else:
        _show(health)
    if health["status"] == "red":
        raise typer.Exit(1)


def _ask_health(ctx: typer.Context) -> dict[str, Any]:
    import httpx  # noqa: PLC0415 - see the package's docstring

    settings = settings_of(ctx)
    own_id = _find_id(settings)
    api = settings.api
    host = f"[{local(api.host)}]" if ":" in local(api.host) else local(api.host)
    url = f"http://{host}:{api.port}/health/status"
    try:
        health: dict[str, Any] = httpx.get(url, timeout=3, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        raise AdapterError(f"no answer from {url}: is the adapter running?") from None
    if "status" not in health or "reasons" not in health:
        raise AdapterError(f"the answer from {url} is no adapter's")
    if None not in {own_id, health.get("spool")} and own_id != health["spool"]:
        raise AdapterError(
            f"at {url} answers another adapter than the one in {settings.data}, which does not run "
            "or has another api > port"
        )
    return health


def _find_id(settings: Settings) -> str | None:
    """Return the adapter's own id; None if neither spool nor ledger tells it in time.

    Raises
    ------
    AdapterError
        If there is no adapter.
    """
    found: list[str | None] = []

    def look() -> None:
        with suppress(SQLAlchemyError):
            found.append(find_id(settings))

    # A volume or a server that hangs must not keep an operator from what the API knows.
    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(_LOOK_SECONDS)
    if found == [None]:
        raise AdapterError(f"there is no adapter in {settings.data}; --data or --config select one")
    return found[0] if found else None


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds)


def _show(health: dict[str, Any]) -> None:
    say(f"health is {health['status']}")
    for reason in health["reasons"]:
        say(f"  {reason}")
    rows = [
        (role, process["host"], process["pid"], process["alive"], process["facts"])
        for role, processes in health["services"].items()
        for process in processes
    ]
    print_table(("role", "host", "process", "alive", "facts"), rows, "no role has a heartbeat")
    queues = health["queues"] or {}
    waiting = [
        (stage, work["amount"], _whole(work["oldestSeconds"]), queues.get(stage))
        for stage, work in (health["unfinished"] or {}).items()
    ]
    print_table(("stage", "unfinished", "oldest (s)", "wake-ups"), waiting, "the ledger is down")
    disk = health["disk"]
    if disk:
        say(f"disk: {disk['free'] / 1e9:.1f} GB of {disk['total'] / 1e9:.1f} GB free")
    say(count(health["activeDimseConnections"], "association") + " open")
