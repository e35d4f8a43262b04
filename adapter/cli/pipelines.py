# SPDX-License-Identifier: Apache-2.0
"""`pipeline`: what the settings call a pipeline, tried without DICOM."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from adapter.cli.which import become, settings_of

pipelines = typer.Typer(help="Pipelines of the settings.", no_args_is_help=True)


@pipelines.callback()
def _group() -> None:
    """Keep `test` a command of its own: Typer would run a single one without its name."""


@pipelines.command("test")
def try_once(
    ctx: typer.Context,
    pipeline: Annotated[str, typer.Argument(metavar="ID", help="The pipeline's id.")],
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A folder of DICOM files.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="A new folder for the results; by default they are deleted.")
    ] = None,
) -> None:
    """Run a pipeline once on files, as the pipeline stage would, without DICOM and an adapter."""
    settings = settings_of(ctx)
    arguments = [pipeline, str(folder), *([] if output is None else [str(output)])]
    become(settings, [sys.executable, "-m", "workers.trial", *arguments])
