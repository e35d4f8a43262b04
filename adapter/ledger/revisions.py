# SPDX-License-Identifier: Apache-2.0
"""Revisions: the schema's versions, applied once however many processes start at once.

Revisions only add.  So the release before keeps working on a schema that was upgraded under it, and
a ledger at a revision that this code has never heard of is one that a newer release has upgraded:
it is used as it is, unless its fact `needs` names a revision which this code does not know either.
A release that takes away what older ones use writes that fact, and so stops them.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, select, text

from adapter.errors import LedgerError
from adapter.ledger import locks
from adapter.ledger.schema import meta

#: The fact in `meta` that names the oldest revision whose code may still use the ledger.
NEEDS = "needs"

#: How long a start waits for others that upgrade (milliseconds).
_LOCK_TIMEOUT = "300000"


def config() -> Config:
    """Return Alembic's configuration: where the revisions are."""
    found = Config()
    found.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return found


def newest() -> str:
    """Return the revision that this code was written for."""
    head = ScriptDirectory.from_config(config()).get_current_head()
    assert head is not None
    return head


def known() -> set[str]:
    """Return the revisions that this code knows."""
    return {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}


def current(connection: Connection) -> str | None:
    """Return the revision that the ledger is at; None if it has no schema yet."""
    return MigrationContext.configure(connection).get_current_revision()


def is_usable(connection: Connection) -> bool:
    """Return whether the schema is the one that this code was written for, or one beyond."""
    at = current(connection)
    return at == newest() or (at is not None and at not in known() and _is_allowed(connection))


def upgrade(connection: Connection) -> None:
    """Bring the schema up to date, in a transaction that writes; one beyond stays as it is.

    Raises
    ------
    LedgerError
        If a newer release has left this one behind.
    """
    if connection.dialect.name == "postgresql":
        for setting, value in (("lock_timeout", _LOCK_TIMEOUT), ("statement_timeout", "0")):
            connection.execute(text(f"SET LOCAL {setting} = {value}"))
    locks.hold(connection, locks.Kind.MIGRATIONS)
    at = current(connection)
    if at is None or at in known():
        configured = config()
        configured.attributes["connection"] = connection
        command.upgrade(configured, "head")
    elif not _is_allowed(connection):
        raise LedgerError(
            f"the ledger is at revision {at}, of a newer release that this one cannot work beside; "
            "start that release"
        )


def fact(connection: Connection, name: str) -> str | None:
    """Return one of the facts in `meta`; None if it is not there."""
    return connection.execute(select(meta.c.value).where(meta.c.name == name)).scalar()


def _is_allowed(connection: Connection) -> bool:
    needs = fact(connection, NEEDS)
    return needs is None or needs in known()
