# SPDX-License-Identifier: Apache-2.0
"""LedgerHealth: what can be told of the ledger as it stands, and what is wrong.  Reads only."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sqlalchemy import Connection, make_url, select, text
from sqlalchemy.exc import SQLAlchemyError

from adapter.ledger import revisions
from adapter.ledger.database import SPOOL, Ledger
from adapter.ledger.schema import now

#: Seconds that the clocks of the ledger and of a host may differ.
CLOCK_SECONDS = 2.0

#: PostgreSQL's settings that keep what was committed, and the values that do.
_DURABLE = {"fsync": {"on"}, "synchronous_commit": {"on", "remote_apply"}}


@dataclass
class LedgerHealth:
    """A ledger as it stands.

    Attributes
    ----------
    database : str
        ``sqlite`` or ``postgresql``.
    server : str, optional
        The database's version.
    revision : str, optional
        The schema's; None if there is none yet.
    expected : str
        The revision that this release was written for.
    spool : str, optional
        The id of the spool that it belongs to; None if it belongs to none yet.
    durability : dict
        PostgreSQL's settings that say how durable a commit is.
    clock_ahead_seconds : float, optional
        The ledger's clock minus this host's.
    problems : list of str
        What is wrong, and what to do; none if all is well.
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
    """Find out how a ledger is, whatever state it is in."""
    found = LedgerHealth(make_url(ledger.url).get_backend_name(), revisions.newest())
    try:
        if ledger.exists():
            found.reachable = True
            with ledger.read() as connection:
                _look(connection, found)
        else:
            found.problems.append("there is no ledger yet: the first start makes it")
    except SQLAlchemyError as error:
        # Its text may quote the address: the type says enough.
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
            "let NTP set both; quiet times of groups count from one to the other"
        )
    if found.database == "postgresql":
        found.server = str(connection.execute(text("SHOW server_version")).scalar_one())
        for name, good in _DURABLE.items():
            value = str(connection.execute(text(f"SHOW {name}")).scalar_one())
            found.durability[name] = value
            if value not in good:
                found.problems.append(
                    f"the server's {name} is {value}: what the ledger has committed may be lost; "
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
                else "of a newer release that this one cannot work beside: use that release"
            )
        )
    found.spool = revisions.fact(connection, SPOOL)
