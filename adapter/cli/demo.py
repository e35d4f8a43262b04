# SPDX-License-Identifier: Apache-2.0
"""`demo`: the whole way once; `demo-sender` and `demo-pacs`: the same around a running adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapter.cli.which import settings_of
from adapter.embedded.roles import local
from adapter.embedded.supervisor import end_by_interrupt
from adapter.errors import ConfigurationError

#: TCP port of the demo's PACS where nothing else is said.
_PACS_PORT = 11113

Study = Annotated[Path | None, typer.Option(exists=True, help="A folder of your own DICOM files.")]


def demo(
    study: Study = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the scratch folder.")] = False,
) -> None:
    """Run the whole way once on real DICOM files, in a scratch folder."""
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
    patience: Annotated[
        float, typer.Option(min=1, help="Seconds without any progress before it gives up.")
    ] = 120.0,
    study: Study = None,
) -> None:
    """Send a study to an adapter that runs, and prove that its results reach `demo-pacs` whole."""
    from adapter.demo import command, scene  # noqa: PLC0415 - see the package's docstring

    settings = settings_of(ctx)
    receiver = settings.dicom.scp
    there = (local(receiver.host), receiver.port) if scp is None else _address("--scp", scp)
    stage = scene.join(settings, there, _address("--pacs", pacs), received)
    command.visit(stage, study, patience=patience)


def demo_pacs(
    folder: Annotated[Path, typer.Argument(help="Where to keep what is received.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = _PACS_PORT,
) -> None:
    """Play a PACS that takes everything and keeps it byte for byte; for demos only."""
    from adapter.demo import pacs  # noqa: PLC0415 - see the package's docstring

    pacs.serve(host, port, folder)


def _address(option: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigurationError([f"{option}: {text!r} is not HOST:PORT"])
    return host, int(port)
