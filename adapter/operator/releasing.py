# SPDX-License-Identifier: Apache-2.0
"""Hands all managed entities over to people, for an adapter without custom resources."""

from __future__ import annotations

from typing import Any

from adapter import heartbeat
from adapter.core import Adapter
from adapter.errors import AdapterError
from adapter.ledger import configuration, owners
from adapter.ledger.configuration import Changes
from adapter.models import EntityKind, Versioned
from adapter.operator.main import ROLE


def release(adapter: Adapter) -> list[str]:
    """Make people the owner of everything that custom resources own, and return what that was.

    Raises
    ------
    AdapterError
        If an operator runs: it would mark every resource as in conflict.
    """
    for beat in heartbeat.read_all(adapter.spool):
        if beat["role"] == ROLE and beat["age"] < heartbeat.SILENCE_SECONDS:
            raise AdapterError(f"an operator runs on {beat['host']}; stop it first")
    released: list[str] = []

    def decide(rows: list[Versioned[Any]]) -> Changes:
        found = [row.entity for row in rows if owners.is_resource(row.owner)]
        released.extend(f"{kind} {entity.key!r}" for entity in found)
        return Changes([(entity, owners.PEOPLE) for entity in found])

    for kind in EntityKind:
        configuration.change(adapter.ledger, kind, decide)
    return released
