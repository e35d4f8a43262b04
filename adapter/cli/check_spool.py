# SPDX-License-Identifier: Apache-2.0
"""`check-spool`: checks whether a volume is fit for a spool."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from adapter.cli.which import AsJson, settings_of
from adapter.errors import SpoolError
from adapter.terminal import print_json, print_table
from adapter.volume import UNUSABLE, check, meet


def check_spool(
    ctx: typer.Context,
    peer: Annotated[
        str | None,
        typer.Option(
            metavar="WORD",
            help="Meet the same command with the same word on another host, started by hand.",
        ),
    ] = None,
    wait: Annotated[
        float, typer.Option(min=1, max=3600, help="Seconds to wait for the peer, and to watch.")
    ] = 90.0,
    as_json: AsJson = False,
) -> None:
    """Check the volume of the spool; exit code 1 and the reason if it cannot be used."""
    settings = settings_of(ctx)
    if peer is not None and not peer.isalnum():
        raise typer.BadParameter("letters and digits only", param_hint="--peer")
    folder = settings.spool_path
    findings = check(folder, settings.storage)
    if peer is not None:
        findings += meet(folder, peer, wait, settings.lag_seconds)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        rows = [(finding.probe, finding.result, finding.found) for finding in findings]
        print_table(("probe", "result", "found"), rows, "")
    reasons = [f"{item.probe}: {item.found}" for item in findings if item.result == UNUSABLE]
    if reasons:
        raise SpoolError(f"{folder} is not fit for a spool: {'; '.join(reasons)}")
