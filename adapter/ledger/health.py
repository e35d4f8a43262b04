# SPDX-License-Identifier: Apache-2.0
"""The health of the ledger: schema, durability, clock, and problems.  Reads only."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sqlalchemy import Connection, select, text
from sqlalchemy.exc import SQLAlchemyError

from adapter.ledger import revisions
from adapter.ledger.database import SPOOL, Ledger
from adapter.ledger.engines import NoConnection
from adapter.ledger.schema import now

#: Largest difference, in seconds, between the clocks of the ledger and of a host.
CLOCK_SECONDS = 2.0

#: PostgreSQL's settings that make commits durable, and their durable values.
_DURABLE = {"fsync": {"on"}, "synchronous_commit": {"on", "remote_apply"}}


@dataclass
class LedgerHealth:
    """The state of a ledger.

    Attributes
    ----------
    database : str
        ``sqlite`` or ``postgresql``.
    server : str, optional
        The database's version.
    revision : str, optional
        The schema's revision; None without a schema.
    expected : str
        The revision of this release.
    spool : str, optional
        The id of the spool that the ledger belongs to; None before it belongs to one.
    durability : dict
        PostgreSQL's settings that make a commit durable, with their values.
    clock_ahead_seconds : float, optional
        The ledger's clock minus this host's.
    problems : list of str
        Each problem, and what to do about it.
    """

    database: str
    expected: str
    reachable: bool = False
    server: str | None = None
    revision: str | None = None
    spool: str | None = None
    durability: dict[str, str] = field(default_factory=dict)
    clock_ahead_seconds: float | None = None
    problems: list[str] = field(default_factory=list)


def examine(ledger: Ledger) -> LedgerHealth:
    """Return the state of a ledger, usable or not."""
    found = LedgerHealth(ledger.engine.dialect.name, revisions.newest())
    try:
        if ledger.exists():
            found.reachable = True
            with ledger.read() as connection:
                _look(connection, found)
        else:
            found.problems.append("there is no ledger yet: the first start creates it")
    except SQLAlchemyError as error:
        if isinstance(error, NoConnection):
            found.problems.append(f"the ledger does not answer: {error}")
        else:  # its text may quote the address: the type says enough
            found.problems.append(
                f"the ledger does not answer ({type(error.__cause__ or error).__name__}): "
                "check database > url, the password, and that the server runs"
            )
    return found


def _look(connection: Connection, found: LedgerHealth) -> None:
    before = time.time()
    at = float(connection.execute(select(now())).scalar_one())
    found.clock_ahead_seconds = round(at - (before + time.time()) / 2, 3)
    if abs(found.clock_ahead_seconds) > CLOCK_SECONDS:
        found.problems.append(
            f"the ledger's clock and this host's differ by {abs(found.clock_ahead_seconds):.1f} s: "
            "let NTP set both; the quiet times of groups depend on both clocks"
        )
    if found.database == "postgresql":
        found.server = str(connection.execute(text("SHOW server_version")).scalar_one())
        for name, good in _DURABLE.items():
            value = str(connection.execute(text(f"SHOW {name}")).scalar_one())
            found.durability[name] = value
            if value not in good:
                found.problems.append(
                    f"the server's {name} is {value}: committed transactions may be lost; "
                    "set it to on"
                )
    else:
        found.server = str(connection.execute(text("SELECT sqlite_version()")).scalar_one())
    found.revision = revisions.current(connection)
    if found.revision is None:
        found.problems.append("there is no schema yet: run `dicom-adapter ledger upgrade`")
        return
    if not revisions.is_usable(connection):
        known = found.revision in revisions.known()
        found.problems.append(
            f"the schema is at revision {found.revision}, "
            + (
                f"older than {found.expected}: run `dicom-adapter ledger upgrade`"
                if known
                else "of a newer release that is incompatible with this one: use that release"
            )
        )
    found.spool = revisions.fact(connection, SPOOL)
