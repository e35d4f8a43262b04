# SPDX-License-Identifier: Apache-2.0
"""The configuration that decides about associations, with and without the ledger.

It is read from a copy beside the spool, so that a receiver can start while the ledger is away, and
read from the ledger when that has another version.  A snapshot never changes: an association keeps
the one that it began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from adapter.ledger import Ledger
from adapter.ledger.configuration import latest_version, snapshot
from adapter.log import get_logger
from adapter.models import AETitle, EntityKind, Source, Versioned
from adapter.spool import Spool

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """AE titles and sources that are in force, by AE title."""

    version: int = 0
    ae_titles: Mapping[str, Versioned[AETitle]] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)

    @classmethod
    def parse(cls, saved: Mapping[str, Any]) -> Snapshot:
        """Return the snapshot that a copy of the ledger's configuration describes."""
        ae_titles: dict[str, Versioned[AETitle]] = {}
        sources: dict[str, Source] = {}
        for row in saved["rows"]:
            if not row["current"] or row["deleted"]:
                continue
            try:
                if row["kind"] == EntityKind.AE_TITLE:
                    entity = AETitle.model_validate(row["body"])
                    ae_titles[entity.ae_title] = Versioned(row["version"], entity, row["owner"])
                elif row["kind"] == EntityKind.SOURCE:
                    source = Source.model_validate(row["body"])
                    sources[source.ae_title] = source
            except ValidationError:
                # Written by another release: one entity less is better than no receiver.
                log.warning("configuration row cannot be read", version=row["version"])
        return cls(saved["version"], ae_titles, sources)


class LiveConfiguration:
    """The configuration in force, and its copy beside the spool.

    Parameters
    ----------
    spool : Spool
        The spool whose copy is read and kept up to date.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._complained = False
        self._snapshot = self._saved()
        self._saved_version = self._snapshot.version

    @property
    def snapshot(self) -> Snapshot:
        """The configuration in force now."""
        return self._snapshot

    def refresh(self, ledger: Ledger) -> bool:
        """Take over the ledger's configuration if it is another one, and tell whether it was.

        A copy that could not be written is written by the next call.

        Raises
        ------
        sqlalchemy.exc.SQLAlchemyError
            If the ledger does not answer.
        SpoolError
            If the spool is away, so that nobody can tell whether the ledger belongs to it.
        OSError
            If the copy cannot be written; the change is in force nevertheless.
        """
        version = latest_version(ledger)
        if version == self._snapshot.version == self._saved_version:
            return False
        if ledger.spool_id != self._spool.id:
            # An empty or foreign ledger must not wipe what a rebuild will need.
            if not self._complained:
                log.error("the ledger does not belong to this spool; its configuration is ignored")
            self._complained = True
            return False
        latest = snapshot(ledger)
        if latest["version"] != self._snapshot.version:
            self._snapshot = Snapshot.parse(latest)
            log.info("configuration in force", version=self._snapshot.version)
        self._spool.write_configuration(latest)
        self._saved_version = self._snapshot.version
        return True

    def _saved(self) -> Snapshot:
        try:
            saved = self._spool.read_configuration()
            return Snapshot() if saved is None else Snapshot.parse(saved)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the copy of the configuration cannot be read", error=type(error).__name__)
            return Snapshot()
