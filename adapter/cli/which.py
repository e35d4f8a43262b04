# SPDX-License-Identifier: Apache-2.0
"""Shared by all commands: selecting an adapter, opening it, and running a program for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from adapter.core import Adapter, open_adapter
from adapter.ledger.queries import LARGEST_PAGE
from adapter.settings import Settings, load

#: The option of every command that shows something.
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
#: The options of every list in pages.
Limit = Annotated[int, typer.Option(min=1, max=LARGEST_PAGE, help="Rows on a page.")]
After = Annotated[str | None, typer.Option(help="Go on after the page that ended with this.")]


@dataclass(frozen=True)
class Which:
    """The options --data and --config."""

    data: Path | None
    config: Path | None


def settings_of(ctx: typer.Context) -> Settings:
    """Return the settings of the selected adapter.

    Raises
    ------
    ConfigurationError
        Lists every problem.
    """
    which = ctx.find_object(Which) or Which(None, None)
    return load(which.data, which.config)


@contextmanager
def opened(ctx: typer.Context) -> Iterator[Adapter]:
    """Open the selected adapter for a block; no command but `up` creates one.

    Raises
    ------
    AdapterError
        If there is no adapter, or it cannot be opened.
    """
    adapter = open_adapter(settings_of(ctx))
    try:
        yield adapter
    finally:
        adapter.close()


def become(settings: Settings, command: list[str]) -> NoReturn:
    """Replace this process with another program for the same adapter."""
    sys.stdout.flush()
    environment = {**os.environ, **settings.environment}
    os.execve(command[0], command, environment)  # noqa: S606 - no shell is wanted
