# SPDX-License-Identifier: Apache-2.0
"""`send`: a modality on the command line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adapter.cli.which import AsJson, settings_of
from adapter.embedded.roles import local
from adapter.errors import AdapterError, ConfigurationError
from adapter.ledger import configuration
from adapter.models import Destination, EntityKind, check_ae_title
from adapter.settings import Scu
from adapter.story import count
from adapter.terminal import errors, print_json, print_table, say

if TYPE_CHECKING:
    from adapter.demo import modality


def send(
    ctx: typer.Context,
    ae_title: Annotated[str, typer.Argument(metavar="AET", help="The called AE title.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", exists=True)],
    *,
    host: Annotated[str | None, typer.Option(help="By default this adapter's.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="The same.")] = None,
    calling: Annotated[
        str | None, typer.Option(help="The calling AE title; by default that of our SCU.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send files and folders by C-STORE, as they are; what was not answered is sent again."""
    dicom = settings_of(ctx).dicom
    body = {
        "name": "peer",
        "aeTitle": ae_title,
        "hostIp": host or local(dicom.scp.host),
        "port": port or dicom.scp.port,
    }
    peer = configuration.parse(EntityKind.DESTINATION, body)
    assert isinstance(peer, Destination)
    scu = dicom.scu
    if calling is not None:
        try:
            scu = scu.model_copy(update={"ae_title": check_ae_title(calling)})
        except ValueError as error:
            raise ConfigurationError([f"--calling: {error}"]) from None
    from adapter.demo import modality  # noqa: PLC0415 - see the package's docstring

    found = modality.find_files(paths)
    if not found.files:
        raise AdapterError(f"no DICOM file to send ({_skipped(found.skipped)})")
    stored, failures = _send(found.files, peer, scu)
    if as_json:
        document = {"stored": stored, "skipped": found.skipped, "failed": failures}
        print_json(document)
    else:
        where = f"{peer.host_ip}:{peer.port}"
        say(f"{stored} of {count(len(found.files), 'file')} stored by {peer.ae_title} at {where}")
        if found.skipped:
            say(f"skipped: {_skipped(found.skipped)}")
        if failures:
            rows = [(number, why) for why, number in failures.most_common()]
            print_table(("failed", "why"), rows, "")
    if failures:
        raise typer.Exit(1)


def _send(files: list[modality.DicomFile], peer: Destination, scu: Scu) -> tuple[int, Counter[str]]:
    from adapter.demo import modality  # noqa: PLC0415 - see the package's docstring

    failures: Counter[str] = Counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=errors, transient=True) as progress:
        task = progress.add_task(f"to {peer.ae_title}", total=len(files))

        def settled(_file: modality.DicomFile, status: int | None, why: str) -> None:
            if not modality.is_stored(status):
                failures[why] += 1
            progress.advance(task)

        modality.send(files, peer, scu, settled)
    return len(files) - failures.total(), failures


def _skipped(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in counts.items()) or "none"
