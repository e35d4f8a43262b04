# SPDX-License-Identifier: Apache-2.0
"""`demo`: the whole road once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapter.embedded.supervisor import end_by_interrupt


def demo(
    study: Annotated[
        Path | None, typer.Option(exists=True, help="A folder of your own DICOM files.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the scratch folder.")] = False,
) -> None:
    """Run the whole road once on real DICOM files, in a scratch folder."""
    from adapter.demo import command  # noqa: PLC0415 - see the package's docstring

    end_by_interrupt()
    command.run(study, keep=keep)
