# SPDX-License-Identifier: Apache-2.0
"""What commands have in common: which adapter they are about, opened for them."""

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
#: Those of every list that comes in pages.
Limit = Annotated[int, typer.Option(min=1, max=LARGEST_PAGE, help="Rows on a page.")]
After = Annotated[str | None, typer.Option(help="Go on after the page that ended with this.")]


@dataclass(frozen=True)
class Which:
    """What the options --data and --config say."""

    data: Path | None
    config: Path | None


def settings_of(ctx: typer.Context) -> Settings:
    """Return the settings of the adapter that is meant.

    Raises
    ------
    ConfigurationError
        Listing every problem.
    """
    which = ctx.find_object(Which) or Which(None, None)
    return load(which.data, which.config)


@contextmanager
def opened(ctx: typer.Context, *, new: bool = False) -> Iterator[Adapter]:
    """Give the adapter that is meant.

    Parameters
    ----------
    new : bool
        Whether the adapter may be made now; otherwise a mistyped folder is an error.

    Raises
    ------
    AdapterError
        If there is none, or it cannot be opened.
    """
    settings = settings_of(ctx)
    if not new and not (settings.spool_path / "id").exists():
        raise AdapterError(
            f"there is no adapter in {settings.data} yet: `dicom-adapter up` makes one, and --data "
            "or --config choose another"
        )
    adapter = open_adapter(settings)
    try:
        yield adapter
    finally:
        adapter.close()
