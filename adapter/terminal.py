# SPDX-License-Identifier: Apache-2.0
"""Output of commands: tables for people, JSON for programs, errors to standard error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adapter.ledger.queries import Page

#: Columns of a table that is not printed on a terminal: UIDs stay whole.
_WIDE = 240

console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=_WIDE)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """Print a JSON document."""
    console.file.write(json.dumps(document, indent=2, default=str) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str) -> None:
    """Print rows as a table, or say that there are none."""
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*(plain(value) for value in row))
    if table.row_count:
        console.print(table)
    else:
        say(empty)


def print_page(
    page: Page[Any],
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    empty: str,
    *,
    as_json: bool,
) -> None:
    """Print a page of a list, and how to get the next one."""
    if as_json:
        print_json(page.model_dump(mode="json", by_alias=True))
        return
    print_table(columns, rows, empty)
    if page.next is not None:
        say(f"There are more: --after {page.next}")


def plain(value: Any) -> str:
    """Return a value as text for a table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{key}={plain(item)}" for key, item in value.items()) or "-"
    return escape(printable(str(value), kept=""))


def printable(text: str, kept: str = "\n\t") -> str:
    """Return a text without what would control the terminal: a peer may have sent it."""
    return "".join(c if c.isprintable() or c in kept else " " for c in text)


def say(text: str) -> None:
    """Print a line."""
    console.print(printable(text), markup=False, soft_wrap=True)


def warn(*lines: str, as_json: bool = False) -> None:
    """Print warnings to standard error, or a JSON document with them."""
    _print_errors("warning", "yellow", lines, as_json=as_json)


def complain(*lines: str, as_json: bool = False) -> None:
    """Print what went wrong to standard error, or a JSON document with it."""
    _print_errors("error", "red", lines, as_json=as_json)


def _print_errors(what: str, colour: str, lines: Sequence[str], *, as_json: bool) -> None:
    if as_json and lines:
        errors.file.write(json.dumps({f"{what}s": lines}) + "\n")
        return
    for line in lines:
        errors.print(f"[{colour}]{what}:[/] {escape(printable(line))}")
