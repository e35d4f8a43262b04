# SPDX-License-Identifier: Apache-2.0
"""Revisions: the schema's versions, applied once by all processes that start at the same time.

Revisions only add.  So the previous release keeps working on an upgraded schema.  A ledger at a
revision that this code does not know was upgraded by a newer release; it is used as it is, unless
the row `needs` of `meta` names a revision that this code does not know either.  A release that
removes something that older ones use writes that row, which stops them.

Each process looks at the revision when it starts, and hardly any upgrades: Alembic is imported by
an upgrade only, since it takes a tenth of a start.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, select, text

from adapter.errors import LedgerError
from adapter.ledger import locks
from adapter.ledger.schema import meta

if TYPE_CHECKING:
    from alembic.config import Config

#: The name in `meta` of the oldest revision whose code may still use the ledger.
NEEDS = "needs"

#: Alembic's folder; below it each file of versions/ is a revision, and its name begins with it.
_MIGRATIONS = Path(__file__).parent / "migrations"

#: Milliseconds that a start waits for another process's upgrade.
_LOCK_TIMEOUT = "300000"


def config() -> Config:
    """Return Alembic's configuration: where the revisions are."""
    from alembic.config import Config  # noqa: PLC0415 - see above

    found = Config()
    found.set_main_option("script_location", str(_MIGRATIONS))
    return found


def known() -> list[str]:
    """Return the revisions that this code knows, in order."""
    return sorted(
        path.name.partition("_")[0] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py")
    )


def newest() -> str:
    """Return the newest revision that this code has."""
    return known()[-1]


def current(connection: Connection) -> str | None:
    """Return the ledger's revision; None if it has no schema yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def is_usable(connection: Connection) -> bool:
    """Return whether the schema is this release's, or a newer one that it can use."""
    at = current(connection)
    return at == newest() or (at is not None and at not in known() and _is_allowed(connection))


def upgrade(connection: Connection) -> None:
    """Upgrade the schema in a writing transaction; a newer schema is left as it is.

    Raises
    ------
    LedgerError
        If a newer release has made the schema unusable for this one.
    """
    if connection.dialect.name == "postgresql":
        for setting, value in (("lock_timeout", _LOCK_TIMEOUT), ("statement_timeout", "0")):
            connection.execute(text(f"SET LOCAL {setting} = {value}"))
    locks.hold(connection, locks.Kind.MIGRATIONS)
    at = current(connection)
    if at is None or at in known():
        from alembic import command  # noqa: PLC0415 - see above

        configured = config()
        configured.attributes["connection"] = connection
        command.upgrade(configured, "head")
    elif not _is_allowed(connection):
        raise LedgerError(
            f"the ledger is at revision {at}, of a newer release that is incompatible with this "
            "one; start that release"
        )


def fact(connection: Connection, name: str) -> str | None:
    """Return a value of `meta`; None if it is not set."""
    return connection.execute(select(meta.c.value).where(meta.c.name == name)).scalar()


def _is_allowed(connection: Connection) -> bool:
    needs = fact(connection, NEEDS)
    return needs is None or needs in known()
