# SPDX-License-Identifier: Apache-2.0
"""`send` and `echo`: an SCU on the command line."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adapter.cli.which import AsJson, settings_of
from adapter.dicom.ae_titles import check_ae_title
from adapter.dicom.rejections import (
    CALLED_AE_TITLE_NOT_RECOGNIZED,
    CALLING_AE_TITLE_NOT_RECOGNIZED,
)
from adapter.embedded.roles import local
from adapter.errors import AdapterError, ConfigurationError
from adapter.ledger import configuration
from adapter.models import DicomDestination, EntityKind, Outcome
from adapter.settings import Scu
from adapter.terminal import complain, errors, print_json, print_table, say
from adapter.timeline import count

if TYPE_CHECKING:
    from adapter.scu.association import AssociationRejected
    from adapter.scu.echo import EchoResult
    from adapter.scu.files import Outgoing
    from adapter.scu.store import StoreResult

Calling = Annotated[
    str | None, typer.Option(help="The calling AE title; by default that of our SCU.")
]


def send(
    ctx: typer.Context,
    ae_title: Annotated[str, typer.Argument(metavar="AET", help="The called AE title.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", exists=True)],
    *,
    host: Annotated[str | None, typer.Option(help="By default this adapter's.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="The same.")] = None,
    calling: Calling = None,
    as_json: AsJson = False,
) -> None:
    """Send files and folders by C-STORE, as they are; those not answered are sent again."""
    dicom = settings_of(ctx).dicom
    peer = _peer(ae_title, host or local(dicom.scp.host), port or dicom.scp.port)
    scu = _calling_as(dicom.scu, calling)
    from adapter.scu.files import find_files  # noqa: PLC0415 - see the package's docstring

    found = find_files(paths)
    if not found.files:
        raise AdapterError(f"no DICOM file to send ({_skipped(found.skipped + found.unfit)})")
    from adapter.scu.association import AssociationRejected  # noqa: PLC0415 - the same

    try:
        stored, failures = _send(found.files, peer, scu)
    except AssociationRejected as rejected:
        raise AdapterError(f"{peer.ae_title} {rejected}{_advice(rejected, peer, scu)}") from None
    failures += found.unfit
    total = len(found.files) + found.unfit.total()
    if as_json:
        document = {"stored": stored, "skipped": found.skipped, "failed": failures}
        print_json(document)
    else:
        where = f"{peer.host_ip}:{peer.port}"
        say(f"{stored} of {count(total, 'file')} stored by {peer.ae_title} at {where}")
        if found.skipped:
            say(f"skipped: {_skipped(found.skipped)}")
        if failures:
            rows = [(number, why) for why, number in failures.most_common()]
            print_table(("failed", "why"), rows, "")
    if failures:
        raise typer.Exit(1)


def echo(
    ctx: typer.Context,
    ae_title: Annotated[str, typer.Argument(metavar="AET", help="The called AE title.")],
    host: Annotated[str, typer.Argument(help="Its address or host name.")],
    port: Annotated[int, typer.Argument(min=1, max=65535, help="Its TCP port.")],
    *,
    calling: Calling = None,
    accept_rejection: Annotated[
        bool,
        typer.Option(
            "--accept-rejection",
            help="Count a rejected association as an answer too: the peer speaks DICOM.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send a C-ECHO to any address, and say in plain words what came of it."""
    from adapter.scu import echo as verification  # noqa: PLC0415 - see the package's docstring

    scu = _calling_as(settings_of(ctx).dicom.scu, calling)
    answer = verification.echo(_peer(ae_title, host, port), scu)
    print_echo(answer, as_json=as_json)
    if not (answer.ok or (accept_rejection and answer.rejected)):
        raise typer.Exit(1)


def print_echo(answer: EchoResult, *, as_json: bool, **more: Any) -> None:
    """Say what came of a C-ECHO."""
    if as_json:
        print_json({**more, **asdict(answer)})
    elif answer.ok:
        say(f"{answer.text} ({answer.seconds:.2f} s)")
    if not answer.ok:
        complain(answer.text, as_json=as_json)


def _peer(ae_title: str, host: str, port: int) -> DicomDestination:
    body = {"name": "the peer", "aeTitle": ae_title, "hostIp": host, "port": port}
    peer = configuration.parse(EntityKind.DESTINATION, body)
    assert isinstance(peer, DicomDestination)
    return peer


def _advice(rejected: AssociationRejected, peer: DicomDestination, scu: Scu) -> str:
    """Return what to do about a rejected association, whether the peer is this adapter or not."""
    if rejected.code == CALLING_AE_TITLE_NOT_RECOGNIZED:
        return (
            f"; call as somebody whom it knows (`--calling`), or let it know {scu.ae_title}: "
            f"`dicom-adapter source add {scu.ae_title} ADDRESS` if it is this adapter"
        )
    if rejected.code == CALLED_AE_TITLE_NOT_RECOGNIZED:
        return f"; {peer.ae_title} is none of its AE titles (`dicom-adapter aet list` names ours)"
    return ""


def _calling_as(scu: Scu, calling: str | None) -> Scu:
    if calling is None:
        return scu
    try:
        return scu.model_copy(update={"ae_title": check_ae_title(calling)})
    except ValueError as error:
        raise ConfigurationError([f"--calling: {error}"]) from None


def _send(files: list[Outgoing], peer: DicomDestination, scu: Scu) -> tuple[int, Counter[str]]:
    from adapter.scu import sender  # noqa: PLC0415 - see the package's docstring

    failures: Counter[str] = Counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    shown = Progress(
        *columns,
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )
    with shown as progress:
        task = progress.add_task(f"to {peer.ae_title}", total=len(files))

        def settled(result: StoreResult) -> None:
            if result.outcome is not Outcome.STORED:
                failures[result.reason or ""] += 1
            progress.advance(task)

        sender.send(files, peer, scu, settled)
    return len(files) - failures.total(), failures


def _skipped(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in counts.items()) or "none"
