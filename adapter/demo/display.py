# SPDX-License-Identifier: Apache-2.0
"""The demo's progress display: in place on a terminal, elsewhere line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.live import Live
from rich.table import Table

from adapter.demo.progress import Line
from adapter.terminal import console, plain, say

Show = Callable[[Sequence[Line]], None]


@contextmanager
def live_display() -> Iterator[Show]:
    """Provide a function that redraws the lines in place."""
    with Live(console=console, refresh_per_second=8) as live:

        def show(lines: Sequence[Line]) -> None:
            table = Table.grid(padding=(0, 2))
            for line in lines:
                table.add_row(
                    f"  [bold]{line.name}[/]", plain(line.text), f"[dim]{line.transient}[/]"
                )
            live.update(table)

        yield show


@contextmanager
def plain_display() -> Iterator[Show]:
    """Provide a function that prints the lines that changed."""
    shown: dict[str, str] = {}

    def show(lines: Sequence[Line]) -> None:
        for line in lines:
            if shown.get(line.name) != line.text:
                shown[line.name] = line.text
                say(f"  {line.name:<11} {line.text}")

    yield show
