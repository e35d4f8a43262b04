# SPDX-License-Identifier: Apache-2.0
"""Open groups: which one an instance joins, or the next generation that it opens.

A group's key is (AE title, from its creation to its deletion; grouping value; generation).  It goes
on under the version of the AE title that it was opened with, its quiet time included: instances
that are accepted under a later version join it while it is open.  Two registrations that could open
the same group hold the same lock (`adapter.ledger.arrivals`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Double, bindparam, case, func, insert, select, update
from sqlalchemy.sql import FromClause

from adapter.ledger import events
from adapter.ledger.configuration import is_of_life
from adapter.ledger.schema import groups, now
from adapter.models import GroupState, group_id

#: Seconds between a group's quiet time and the first look at it: a receiver that has taken an
#: instance's receive time needs a moment to make its name visible.  Nothing depends on it: the
#: receivers declare what is visible (`adapter.heartbeat.published`).
RENAME_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class GroupKey:
    """What instances of one group have in common.

    Attributes
    ----------
    version, first_version : int
        The version of the AE title that an instance was accepted under, and the one that the AE
        title was created with.
    called_ae_title : str
        The AE title.
    value : str
        The grouping value, or its hash (`adapter.ledger.hashes`).
    """

    version: int
    first_version: int
    called_ae_title: str
    value: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the statements below."""
        return {
            "b_version": self.version,
            "b_first": self.first_version,
            "b_called": self.called_ae_title,
            "b_key": self.value,
        }


def find(connection: Connection, key: GroupKey) -> Any | None:
    """Return a key's open group, id and version; it is not closed before this transaction ends."""
    return connection.execute(_FIND, key.parameters).first()


def join(
    connection: Connection,
    key: GroupKey,
    received_at: float,
    *,
    timeout: float,
    maximum_wait: float,
) -> str:
    """Add an instance to the open group of a key, or open the next generation; return its id.

    Parameters
    ----------
    received_at : float
        The instance's receive time.
    timeout, maximum_wait : float
        Seconds, for a group that is opened.
    """
    pushed = connection.execute(_PUSH, {**key.parameters, "b_received_at": received_at}).scalar()
    if pushed is not None:
        return str(pushed)
    generation = (connection.execute(_LAST, key.parameters).scalar() or 0) + 1
    opened = group_id(key.first_version, key.value, generation)
    due = received_at + timeout
    connection.execute(
        insert(groups).values(
            id=opened,
            version=key.version,
            called_ae_title=key.called_ae_title,
            key=key.value,
            generation=generation,
            state=GroupState.OPEN,
            opened_at=now(),
            newest_at=received_at,
            due_at=due,
            maximum_at=now() + maximum_wait,
            look_at=due + RENAME_SECONDS,
            instances=1,
        )
    )
    events.record(connection, "group-opened", group=opened, generation=generation)
    return opened


# Statements of every instance are built once: building one takes longer than running it.


def _of_key(table: FromClause) -> tuple[Any, ...]:
    return table.c.key == bindparam("b_key"), is_of_life(table.c.version, bindparam("b_first"))


def _open(table: FromClause, *columns: str) -> Any:
    """Return the query for a key's open group.

    A release that split groups by version may have left two: the one of the instance's own version
    comes first.
    """
    return (
        select(*(table.c[column] for column in columns))
        .where(
            *_of_key(table),
            table.c.called_ae_title == bindparam("b_called"),
            table.c.state == GroupState.OPEN,
        )
        .order_by((table.c.version == bindparam("b_version")).desc(), table.c.opened_at.desc())
        .limit(1)
    )


def _push_statement() -> Any:
    received_at = bindparam("b_received_at", type_=Double)
    newest = case((groups.c.newest_at < received_at, received_at), else_=groups.c.newest_at)
    due = newest + (groups.c.due_at - groups.c.newest_at)  # the quiet time that it was opened with
    return (
        update(groups)
        .where(
            groups.c.id == _open(groups.alias(), "id").scalar_subquery(),
            groups.c.state == GroupState.OPEN,
        )
        .values(
            newest_at=newest,
            due_at=due,
            look_at=due + RENAME_SECONDS,
            instances=groups.c.instances + 1,
        )
        .returning(groups.c.id)
    )


_FIND = _open(groups, "id", "version").with_for_update()
_LAST = select(func.max(groups.c.generation)).where(*_of_key(groups))
_PUSH = _push_statement()
