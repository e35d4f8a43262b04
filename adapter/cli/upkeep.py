# SPDX-License-Identifier: Apache-2.0
"""`status`, `verify` and `rebuild`: check the adapter, and recover it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from adapter.cli.which import AsJson, opened, settings_of
from adapter.embedded.roles import local
from adapter.errors import AdapterError
from adapter.rebuild import rebuild as rebuild_ledger
from adapter.terminal import print_json, print_table, say
from adapter.timeline import count
from adapter.verify import verify as find_differences


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
    rebuilt = rebuild_ledger(settings_of(ctx))
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

    api = settings_of(ctx).api
    host = f"[{local(api.host)}]" if ":" in local(api.host) else local(api.host)
    url = f"http://{host}:{api.port}/health/status"
    try:
        health: dict[str, Any] = httpx.get(url, timeout=3, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        raise AdapterError(f"no answer from {url}: is the adapter running?") from None
    if "status" not in health or "reasons" not in health:
        raise AdapterError(f"the answer from {url} is not this adapter's")
    return health


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
