# SPDX-License-Identifier: Apache-2.0
"""Rebuilding: fills an empty ledger from a spool whose ledger is lost.

The spool alone can rebuild everything up to the groups: the configuration from the SCP's copy, and
the instances by registering them again.  The stages then create groups, jobs and exports as
before, with the same ids.  Published results are kept as they are, and are sent to their
destinations again.  These are lost: the history, what was parked or discarded, receipts, and the
limits between the generations of a group.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice

from sqlalchemy import func, insert, select

from adapter.core import Adapter, open_adapter
from adapter.dicom.instance import PartialHeader
from adapter.dicom.partial_header import partial_header
from adapter.embedded.supervisor import only_one
from adapter.errors import SpoolError
from adapter.ledger import Ledger, configuration, events, schema
from adapter.ledger.schema import now
from adapter.models import ArrivalId, ArrivalState
from adapter.rights import make_private_folder
from adapter.settings import Settings

#: Files that are given their second name before the directories are synced.
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The contents of a rebuilt ledger, counted.

    Attributes
    ----------
    configuration : int
        Versions of AE titles, sources and destinations.
    instances : int
        Registered instances, to be registered again.
    incoming : int
        Instances that were not registered yet.
    quarantined : int
        Files in quarantine.
    """

    configuration: int
    instances: int
    incoming: int
    quarantined: int


def rebuild(settings: Settings) -> Rebuilt:
    """Fill the empty ledger of an adapter from its spool.

    A rebuild that is interrupted is finished by calling it again.

    Raises
    ------
    AdapterError
        If the adapter runs.
    SpoolError
        If the ledger is not empty or belongs to another spool, or if the spool has no copy of the
        configuration.
    """
    make_private_folder(settings.data)
    with only_one(settings.data / "up.lock"):
        adapter = open_adapter(settings, rebuilding=True)
        try:
            return _rebuild(adapter)
        finally:
            adapter.close()


def _rebuild(adapter: Adapter) -> Rebuilt:
    ledger, spool = adapter.ledger, adapter.spool
    if _knows_arrivals(ledger):
        raise SpoolError(
            "this ledger is not empty: rebuilding is for a ledger that was lost; "
            "`dicom-adapter verify` checks one that was not"
        )
    # Until this host sees everything written before; no event tells when a mount's cache has ended.
    time.sleep(adapter.settings.lag_seconds)
    saved = spool.read_configuration()
    if saved is None:
        raise SpoolError(
            "the spool has no configuration.json, so the configuration that its instances were "
            "accepted under is unknown; restore the file from a backup"
        )
    incoming = {str(arrival) for arrival in spool.list_incoming()}
    instances = [a for a in map(str, spool.list_instances()) if a not in incoming]
    for batch in _batches(instances):
        spool.link_incoming(batch)
    versions = configuration.restore(ledger, saved)
    quarantined = {
        arrival: partial_header(spool.quarantine_path(str(arrival)))
        for arrival in spool.list_quarantine()
    }
    _enter_quarantined(ledger, quarantined)
    return Rebuilt(versions, len(instances), len(incoming), len(quarantined))


def _knows_arrivals(ledger: Ledger) -> bool:
    with ledger.read() as connection:
        return bool(
            connection.execute(select(func.count()).select_from(schema.arrivals)).scalar_one()
        )


def _enter_quarantined(ledger: Ledger, quarantined: Mapping[ArrivalId, PartialHeader]) -> None:
    with ledger.write() as connection:
        for arrival, known in quarantined.items():
            connection.execute(
                insert(schema.arrivals).values(
                    id=str(arrival),
                    state=ArrivalState.QUARANTINED,
                    version=arrival.version,
                    association=arrival.association,
                    received_at=arrival.received_at,
                    registered_at=now(),
                    reason="rebuilt",
                    message="it was in quarantine when the ledger was lost; so is the reason",
                    **asdict(known),
                )
            )
        events.record(connection, "ledger-rebuilt")


def _batches(items: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(items)
    while batch := list(islice(remaining, _BATCH)):
        yield batch
