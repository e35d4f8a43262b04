# SPDX-License-Identifier: Apache-2.0
"""`demo`: all stages once; `demo-sender` and `demo-pacs`: the same with an adapter that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapter.cli.which import settings_of
from adapter.embedded.roles import local
from adapter.embedded.supervisor import end_by_interrupt
from adapter.errors import ConfigurationError

#: Default TCP port of the demo's PACS.
_PACS_PORT = 11113

Study = Annotated[Path | None, typer.Option(exists=True, help="A folder of your own DICOM files.")]


def demo(
    study: Study = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the scratch folder.")] = False,
) -> None:
    """Run all stages once on real DICOM files, in a scratch folder."""
    from adapter.demo import command  # noqa: PLC0415 - see the package's docstring

    end_by_interrupt()
    command.run(study, keep=keep)


def demo_sender(
    ctx: typer.Context,
    received: Annotated[
        Path, typer.Argument(exists=True, metavar="FOLDER", help="Where the PACS keeps its files.")
    ],
    *,
    scp: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="By default this adapter's.")
    ] = None,
    pacs: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The PACS, as the adapter reaches it.")
    ] = f"127.0.0.1:{_PACS_PORT}",
    stall_seconds: Annotated[
        float,
        typer.Option("--patience", min=1, help="Seconds without any progress before it gives up."),
    ] = 120.0,
    study: Study = None,
) -> None:
    """Send a study to a running adapter, and check that its results reach `demo-pacs` unchanged."""
    from adapter.demo import command, scene  # noqa: PLC0415 - see the package's docstring

    settings = settings_of(ctx)
    receiver = settings.dicom.scp
    there = (local(receiver.host), receiver.port) if scp is None else _address("--scp", scp)
    stage = scene.join(settings, there, _address("--pacs", pacs), received)
    command.visit(stage, study, stall_seconds=stall_seconds)


def demo_pacs(
    folder: Annotated[Path, typer.Argument(help="Where to keep what is received.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = _PACS_PORT,
) -> None:
    """Act as a PACS that stores everything unchanged; for demos only."""
    from adapter.demo import pacs  # noqa: PLC0415 - see the package's docstring

    pacs.serve(host, port, folder)


def _address(option: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigurationError([f"{option}: {text!r} is not HOST:PORT"])
    return host, int(port)
