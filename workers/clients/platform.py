# SPDX-License-Identifier: Apache-2.0
"""The seam to a platform that runs pipelines: four verbs, in this order, each of them repeatable.

A verb that a crash interrupted is called again with the same job, whose id is the idempotency key:
a platform that has done it already answers as it did the first time.  A verb raises
`TemporaryError` for what may pass, `NotYetVisible` for a file that the shared volume does not show
yet, and `PermanentError` for what will not pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from adapter.ledger.jobs import Job


@dataclass(frozen=True, slots=True)
class PayloadFile:
    """One file of a job's payload: where it is, what the platform may call it, and its bytes."""

    path: Path
    name: str
    size: int


class Platform(Protocol):
    """Runs pipelines on payloads."""

    def create(self, job: Job) -> str:
        """Create a job, and return the platform's id for it."""

    def describe(self, job: Job, metadata: Mapping[str, str]) -> None:
        """Add metadata to a created job; its values may be patient data."""

    def upload(self, job: Job, files: Sequence[PayloadFile]) -> None:
        """Give a described job its files."""

    def start(self, job: Job) -> None:
        """Start a job that has all its files."""
