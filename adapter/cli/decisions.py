# SPDX-License-Identifier: Apache-2.0
"""An operator's decisions about parked work: which rows are meant, and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated

import typer

from adapter.errors import AdapterError
from adapter.terminal import print_json, say
from adapter.timeline import short

All = Annotated[bool, typer.Option("--all", help="All that wait for an operator.")]


def check_selection(ids: list[str] | None, noun: str, **options: object) -> None:
    """Check that either ids are named, or rows are selected by options.

    Raises
    ------
    BadParameter
        If neither is, or both are.
    """
    if bool(ids) == any(options.values()):
        names = " or ".join(f"--{name}" for name in options)
        raise typer.BadParameter(f"name {noun}s, or select them by {names}")


def decide(ids: Iterable[str], verb: Callable[[str], str]) -> tuple[dict[str, str], dict[str, str]]:
    """Apply a verb to each id; return the state that each is in now, and why others failed."""
    done: dict[str, str] = {}
    failed: dict[str, str] = {}
    for row in ids:
        try:
            done[row] = verb(row)
        except AdapterError as error:
            failed[row] = str(error)
    return done, failed


def report(
    noun: str,
    done: Mapping[str, str],
    failed: Mapping[str, str] | None = None,
    *,
    words: str = "",
    as_json: bool,
) -> None:
    """Show what became of each row.

    Parameters
    ----------
    words : str
        What follows each state in the text for people.

    Raises
    ------
    AdapterError
        If any failed, with a line for each.
    """
    if as_json:
        print_json({f"{noun}s": done, "failed": failed or {}})
    else:
        for row, state in done.items():
            say(f"{noun} {short(row)} is {state}{words}")
        if not done and not failed:
            say(f"no {noun} is meant")
    if failed:
        raise AdapterError("\n".join(failed.values()))
