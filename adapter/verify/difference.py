# SPDX-License-Identifier: Apache-2.0
"""One difference between spool and ledger."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """A row of the table that `verify` shows.

    Attributes
    ----------
    kind : str
        What it is about: file, arrival, group, job, task, export, results, work, or verify itself.
    id : str
        Which one; a path below the spool for a file.
    problem : str
        What is wrong.
    remedy : str
        What to do about it.
    """

    kind: str
    id: str
    problem: str
    remedy: str
