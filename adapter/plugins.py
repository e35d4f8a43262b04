# SPDX-License-Identifier: Apache-2.0
"""Plug-ins: classes that an installed package brings under an entry point."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

#: Groups of entry points: job processors, observers of instances, and kinds of platforms.
PROCESSORS = "dicom_adapter.job_processors"
OBSERVERS = "dicom_adapter.observers"
PLATFORMS = "dicom_adapter.platforms"


def names(group: str) -> list[str]:
    """Return the names of a group's plug-ins, sorted."""
    return sorted(entry_points(group=group).names)


def installed(group: str) -> Sequence[EntryPoint]:
    """Return a group's plug-ins, not loaded yet."""
    return list(entry_points(group=group))


def find(group: str, name: str) -> EntryPoint | None:
    """Return a group's plug-in of that name, not loaded yet; None if none is installed."""
    return next(iter(entry_points(group=group, name=name)), None)
