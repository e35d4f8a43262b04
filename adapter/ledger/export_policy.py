# SPDX-License-Identifier: Apache-2.0
"""What becomes of an export after a try: counts in, a state out; nothing is read or written."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from adapter.models import ExportState
from adapter.settings import ScuExport


@dataclass(frozen=True, slots=True)
class FileCounts:
    """The files of a task as one destination has them: all, confirmed, and that may yet pass."""

    files: int
    stored: int
    hopeful: int
    unfit: int = 0  #: of the files, those that cannot be sent anywhere


@dataclass(frozen=True, slots=True)
class FailureReason:
    """Why an export cannot succeed, whatever is tried: a code for the ledger, and a sentence."""

    reason: str
    message: str


def over_threshold(failed: int, files: int, threshold: float) -> bool:
    """Tell whether more than a share of all files failed; exactly that share is not more."""
    return failed > Decimal(str(threshold)) * files


def state_after_try(
    count: FileCounts, tries: int, policy: ScuExport, *, remote: bool
) -> tuple[ExportState, bool]:
    """Judge an export after a try.

    Parameters
    ----------
    count : FileCounts
        The task's files as the destination has them now.
    tries : int
        Tries made, this one included.
    remote : bool
        Whether a remote Results Service decides on further tries of what failed.

    Returns
    -------
    (ExportState, bool)
        What becomes of it, and whether it failed.
    """
    if count.stored == count.files:
        return ExportState.SUCCEEDED, False
    last = not count.hopeful or tries > policy.maximum_retries
    if not over_threshold(count.files - count.stored, count.files, policy.failure_threshold):
        return (ExportState.PARTIAL if last else ExportState.PENDING), False
    return (ExportState.PARKED if last and not remote else ExportState.PENDING), True
