# SPDX-License-Identifier: Apache-2.0
"""The configuration that decides about associations, with and without the ledger.

It is read from a copy beside the spool, so that a receiver can start while the ledger is away, and
read from the ledger when that has another version.  A snapshot never changes: an association keeps
the one that it began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from adapter.errors import SpoolAway
from adapter.ledger import Ledger
from adapter.ledger.configuration import latest_version, snapshot
from adapter.log import get_logger
from adapter.models import AETitle, EntityKind, Source, Versioned
from adapter.spool import Spool

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """AE titles and sources that are in force, by AE title.

    Attributes
    ----------
    known : bool
        False until it has been read once, from the ledger or from the copy.
    """

    version: int = 0
    ae_titles: Mapping[str, Versioned[AETitle]] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    known: bool = True

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
        self._complained = self._tied = False
        self._snapshot = Snapshot(known=False)
        self._saved_version = -1
        self.recall()

    @property
    def snapshot(self) -> Snapshot:
        """The configuration in force now."""
        return self._snapshot

    def recall(self) -> None:
        """Take over the copy, unless a configuration is in force already.

        At a start the spool may be away, with the copy; then it is read when it comes.
        """
        if self._snapshot.known:
            return
        try:
            self._spool.check()
            saved = self._spool.read_configuration()
            if saved is not None:  # else it may be another one, in the place of ours
                self._spool.expect(self._spool.id)
                self._snapshot = Snapshot.parse(saved)
                self._saved_version = self._snapshot.version
        except SpoolAway:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the copy of the configuration cannot be read", error=type(error).__name__)

    def refresh(self, ledger: Ledger) -> bool:
        """Take over the ledger's configuration if it is another one, and tell whether it was.

        A copy that could not be written is written by the next call.

        Raises
        ------
        sqlalchemy.exc.SQLAlchemyError
            If the ledger does not answer.
        SpoolAway, OSError
            If the copy cannot be written; the change is in force nevertheless.
        """
        version = latest_version(ledger)
        if version == self._snapshot.version == self._saved_version and self._tied:
            return False
        if not self._belongs(ledger.spool_id):
            # An empty or foreign ledger must not wipe what a rebuild will need.
            if not self._complained:
                log.error("the ledger does not belong to this spool; its configuration is ignored")
            self._complained = True
            return False
        self._tied = True
        latest = snapshot(ledger)
        if latest["version"] != self._snapshot.version or not self._snapshot.known:
            self._snapshot = Snapshot.parse(latest)
            log.info("configuration in force", version=self._snapshot.version)
        self._spool.check()
        self._spool.write_configuration(latest)
        self._saved_version = self._snapshot.version
        return True

    def _belongs(self, named: str | None) -> bool:
        """Tell whether a ledger that names a spool is this spool's.

        From then on nothing is received but into the spool that the ledger names: a receiver that
        started while its spool was away must not take another one that lies in its place.
        """
        if named is None:
            return False
        held = self._spool.known_id
        with suppress(SpoolAway):
            self._spool.expect(named)
        return held in {None, named} or not self._snapshot.known
