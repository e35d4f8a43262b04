# SPDX-License-Identifier: Apache-2.0
"""Shared by all commands: selecting an adapter and opening it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from adapter.core import Adapter, open_adapter
from adapter.errors import AdapterError
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
def opened(ctx: typer.Context, *, new: bool = False) -> Iterator[Adapter]:
    """Open the selected adapter for a block.

    Parameters
    ----------
    new : bool
        Whether the adapter may be created; otherwise a mistyped folder is an error.

    Raises
    ------
    AdapterError
        If there is no adapter, or it cannot be opened.
    """
    settings = settings_of(ctx)
    if not new and not (settings.spool_path / "id").exists():
        raise AdapterError(
            f"there is no adapter in {settings.data} yet: `dicom-adapter up` creates one; --data "
            "or --config select another"
        )
    adapter = open_adapter(settings)
    try:
        yield adapter
    finally:
        adapter.close()
