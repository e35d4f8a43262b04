# SPDX-License-Identifier: Apache-2.0
"""The client of each kind of destination."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adapter.errors import PermanentError
from adapter.models import DICOM, Destination
from adapter.settings import Settings
from workers.clients.destination import DestinationClient
from workers.clients.dicom_destination import DicomClient

#: Makes the client of a destination, by its kind (`adapter.models.DESTINATIONS`).
CLIENTS: dict[str, Callable[[Any, Settings], DestinationClient]] = {
    DICOM: lambda destination, settings: DicomClient(destination, settings.dicom.scu),
}


def client_of(destination: Destination, settings: Settings) -> DestinationClient:
    """Return what sends to a destination.

    Raises
    ------
    PermanentError
        If this release knows no destinations of its kind.
    """
    if destination.kind not in CLIENTS:
        raise PermanentError(
            f"destination {destination.name} is of kind {destination.kind}, "
            "which this release cannot send to",
            "unknown-destination",
        )
    return CLIENTS[destination.kind](destination, settings)
