# SPDX-License-Identifier: Apache-2.0
"""Arrivals: registering acknowledged files, exactly once each.

``received -> registered | discarded | quarantined``.  An arrival is leased while its header is
read.  The attempt is counted first, so that a file which kills or defeats its worker is recognised
(`adapter.ledger.attempts`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    case,
    null,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from adapter.dicom.instance import Instance, PartialHeader
from adapter.errors import LeaseLost
from adapter.ledger import attempts, events, leases, locks, open_groups
from adapter.ledger.attempts import Defeat
from adapter.ledger.configuration import ae_title_version
from adapter.ledger.database import Ledger
from adapter.ledger.leases import Lease
from adapter.ledger.open_groups import GroupKey
from adapter.ledger.schema import arrivals, groups, now
from adapter.models import ArrivalId, ArrivalState

#: Why an arrival is discarded: an operator said so.
BY_OPERATOR = "by-operator"
#: The mark of a received arrival whose file has to be moved back from quarantine/.
RETRIED = "retried"


@dataclass(frozen=True, slots=True)
class Grouped:
    """A decision on an instance: it belongs to a group.

    Attributes
    ----------
    instance : Instance
        Its header.
    key : str
        The group's key: a UID, or a keyed hash of the value.
    first_version : int
        The version that the AE title was created with.
    timeout, maximum_wait : float
        Seconds, as the AE title's version says: for a group that the instance opens.
    overwrite, rerun : bool
        The AE title's `overwriteSameInstance`, which an open group has of its own, and whether
        `resend` is "rerun".
    patient : str or None
        What tells its patient from others of its study (`adapter.ledger.hashes`).
    """

    instance: Instance
    key: str
    first_version: int
    timeout: float
    maximum_wait: float
    overwrite: bool
    rerun: bool
    patient: str | None = None


@dataclass(frozen=True, slots=True)
class Discarded:
    """A decision on an instance: its processor does not want it."""

    instance: Instance


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A decision on an arrival: it cannot be processed, for a reason (code and sentence).

    Attributes
    ----------
    known : PartialHeader
        As much of its header as could be read: it belongs to its study in quarantine too.
    """

    arrival: str
    reason: str
    message: str
    known: PartialHeader = field(default_factory=PartialHeader)


Decision = Grouped | Discarded | Quarantined


def states(ledger: Ledger, ids: Collection[str]) -> dict[str, str]:
    """Return the states of those arrivals that have a row."""
    with ledger.read() as connection:
        rows = connection.execute(
            select(arrivals.c.id, arrivals.c.state).where(arrivals.c.id.in_(ids))
        )
        return {row.id: row.state for row in rows}


def lease_batch(
    ledger: Ledger, waiting: Sequence[ArrivalId], *, limit: int, seconds: float
) -> tuple[Lease | None, list[Any]]:
    """Lease arrivals for registration and count the attempt, in one transaction.

    An arrival whose last attempt died is leased alone, so that it harms no other.

    Returns
    -------
    tuple
        The lease and the leased rows; None and nothing if all of them are held, done or at rest.
    """
    ids = [str(arrival) for arrival in waiting]
    with ledger.write() as connection:
        _insert_received(connection, waiting)
        mine = and_(arrivals.c.id.in_(ids), arrivals.c.state == ArrivalState.RECEIVED)
        suspects = and_(mine, arrivals.c.attempts > 0)
        for where, most in ((suspects, 1), (and_(mine, arrivals.c.attempts == 0), limit)):
            lease, rows = leases.claim(
                connection,
                arrivals,
                where,
                order=[arrivals.c.id],
                limit=most,
                seconds=seconds,
                values={"attempts": arrivals.c.attempts + 1},
            )
            if rows:
                return lease, sorted(rows, key=lambda row: str(row.id))
    return None, []


def _insert_received(connection: Connection, waiting: Sequence[ArrivalId]) -> None:
    values = [
        {
            "id": str(arrival),
            "state": ArrivalState.RECEIVED,
            "version": arrival.version,
            "association": arrival.association,
            "received_at": arrival.received_at,
        }
        for arrival in waiting
    ]
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(arrivals).on_conflict_do_nothing(), values)


def give_back(ledger: Ledger, lease: Lease, ids: Collection[str]) -> None:
    """Give back arrivals that are leased still; the attempt does not count."""
    mine = arrivals.c.lease_token == lease.token
    with ledger.write() as connection:
        connection.execute(
            update(arrivals)
            .where(mine, arrivals.c.id.in_(ids))
            .values(lease_token=None, lease_until=None, attempts=arrivals.c.attempts - 1)
        )


def excuse(ledger: Ledger, lease: Lease, ids: Collection[str]) -> None:
    """Give back the arrivals of a lease that are not settled; the attempt does not count.

    Nor does it if another worker holds one by now: its own attempt does.
    """
    ours = arrivals.c.lease_token == lease.token
    with ledger.write() as connection:
        connection.execute(
            update(arrivals)
            .where(
                arrivals.c.id.in_(ids),
                arrivals.c.state == ArrivalState.RECEIVED,
                arrivals.c.lease_token.is_not(None),
                arrivals.c.attempts > 0,
            )
            .values(
                lease_token=case((ours, null()), else_=arrivals.c.lease_token),
                lease_until=case((ours, null()), else_=arrivals.c.lease_until),
                attempts=arrivals.c.attempts - 1,
            )
        )


def wait_for(ledger: Ledger, lease: Lease, arrival: str, seconds: float) -> None:
    """Give back an arrival whose file is not visible yet; the attempt does not count.

    Raises
    ------
    LeaseLost
        If another worker holds it.
    """
    with ledger.write() as connection:
        leases.rest(connection, lease, arrival, seconds, attempts=arrivals.c.attempts - 1)


def defeat(ledger: Ledger, lease: Lease, row: Any, why: Defeat, known: PartialHeader) -> str:
    """Record that an arrival defeated its worker; the last attempt quarantines it.

    Parameters
    ----------
    row : row of `arrivals`
        The arrival as it was leased, this attempt counted.
    known : PartialHeader
        As much of its header as can be read.

    Returns
    -------
    str
        The arrival's state.

    Raises
    ------
    LeaseLost
        If another worker holds it.
    """
    if row.attempts >= attempts.ARRIVAL_ATTEMPTS:
        decision = Quarantined(row.id, why.reason, why.message, known)
        return register(ledger, lease, [decision])[row.id]
    with ledger.write() as connection:
        attempts.rest(
            connection, lease, row.id, row.attempts, first=why.rest_of_arrival, **why.facts
        )
        events.record(
            connection,
            "registration-failed-try",
            association=row.association,
            arrival=row.id,
            tries=row.attempts,
            **why.facts,
        )
    return ArrivalState.RECEIVED


def register(ledger: Ledger, lease: Lease, decisions: Sequence[Decision]) -> dict[str, str]:
    """Record what became of leased arrivals, in one transaction, oldest first.

    Returns
    -------
    dict of str to str
        The state of each arrival.

    Raises
    ------
    LeaseLost
        If another worker holds one of them; nothing was recorded.
    """
    settled: dict[str, str] = {}
    with ledger.write() as connection:
        locks.hold(connection, locks.Kind.INSTANCES, _touched(decisions))
        for decision in decisions:
            if isinstance(decision, Quarantined):
                settled[decision.arrival] = _quarantine(connection, lease, decision)
            elif isinstance(decision, Discarded):
                instance = decision.instance
                settled[instance.arrival] = _finish(
                    connection, lease, instance, ArrivalState.DISCARDED, reason="not-wanted"
                )
            else:
                settled[decision.instance.arrival] = _group(connection, lease, decision)
    return settled


def _touched(decisions: Sequence[Decision]) -> set[str]:
    """Return names of all that decisions compare with: the study, and the group's key.

    The same instance again is of the same study, and a group has one key: two registrations that
    could take an instance twice, or open the same generation, have one of these in common.
    """
    grouped = [decision for decision in decisions if isinstance(decision, Grouped)]
    return {
        name
        for decision in grouped
        for name in (
            f"{decision.instance.called_ae_title}/{decision.instance.study_instance_uid}",
            f"{decision.first_version}/{decision.key}",
        )
    }


def _quarantine(connection: Connection, lease: Lease, decision: Quarantined) -> str:
    leases.finish(
        connection,
        lease,
        decision.arrival,
        state=ArrivalState.QUARANTINED,
        reason=decision.reason[:32],
        message=decision.message[:500],
        registered_at=now(),
        **asdict(decision.known),
    )
    events.record(
        connection,
        "quarantined",
        association=ArrivalId.parse(decision.arrival).association,
        arrival=decision.arrival,
        reason=decision.reason,
    )
    return ArrivalState.QUARANTINED


def _group(connection: Connection, lease: Lease, decision: Grouped) -> str:
    """Put an instance into its open group, or the next generation; the same again opens nothing."""
    instance = decision.instance
    arrival = ArrivalId.parse(instance.arrival)
    key = GroupKey(arrival.version, decision.first_version, instance.called_ae_title, decision.key)
    same = connection.execute(
        _SAME, {"called": instance.called_ae_title, "uid": instance.sop_instance_uid}
    ).all()
    if same:
        opened = open_groups.find(connection, key)
        in_group = [row for row in same if opened is not None and row.group_id == opened.id]
        if any(row.digest == instance.digest for row in (in_group if decision.rerun else same)):
            return _finish(connection, lease, instance, ArrivalState.DISCARDED, reason="duplicate")
        if in_group:
            overwrite = _overwrites(connection, decision, arrival, opened)
            loser = _conflict(connection, lease, decision, in_group[0], overwrite=overwrite)
            if loser:
                return loser
    group = open_groups.join(
        connection,
        key,
        arrival.received_at,
        timeout=decision.timeout,
        maximum_wait=decision.maximum_wait,
    )
    return _finish(
        connection,
        lease,
        instance,
        ArrivalState.REGISTERED,
        group=group,
        patient=decision.patient,
    )


def _overwrites(connection: Connection, decision: Grouped, arrival: ArrivalId, opened: Any) -> bool:
    """Tell whether an open group takes the newer instance, as its own version of the AE title says.

    The instance may have been accepted under another one.
    """
    if opened.version == arrival.version:
        return decision.overwrite
    ae_title = ae_title_version(connection, opened.version)
    return decision.overwrite if ae_title is None else ae_title.overwrite_same_instance


def _conflict(
    connection: Connection, lease: Lease, decision: Grouped, held: Any, *, overwrite: bool
) -> str | None:
    """Decide between two instances of one UID and other bytes; None if the new one is to stay."""
    instance = decision.instance
    if not overwrite:
        code = "same-uid-other-bytes"
        text = "the group holds other bytes under this SOP Instance UID"
        state = ArrivalState.QUARANTINED
        return _finish(connection, lease, instance, state, reason=code, message=text)
    if held.received_at > ArrivalId.parse(instance.arrival).received_at:
        return _finish(connection, lease, instance, ArrivalState.DISCARDED, reason="overwritten")
    connection.execute(
        update(arrivals)
        .where(arrivals.c.id == held.id)
        .values(state=ArrivalState.DISCARDED, reason="overwritten", group_id=None)
    )
    connection.execute(
        update(groups).where(groups.c.id == held.group_id).values(instances=groups.c.instances - 1)
    )
    return None


def _finish(
    connection: Connection,
    lease: Lease,
    instance: Instance,
    state: ArrivalState,
    *,
    group: str | None = None,
    patient: str | None = None,
    reason: str | None = None,
    message: str | None = None,
) -> str:
    values = {name: getattr(instance, name) for name in _HEADER}
    facts = {"state": state, "group": group, "patient": patient}
    facts |= {"reason": reason, "message": message}
    names = {"id": instance.arrival, "token": lease.token}
    if connection.execute(_FINISH, _prefixed(names | facts | values)).rowcount != 1:
        raise LeaseLost(f"another worker holds arrival {instance.arrival}")
    return state


def _prefixed(values: dict[str, Any]) -> dict[str, Any]:
    """Return parameters under the names that an UPDATE takes: not those of its columns."""
    return {f"b_{name}": value for name, value in values.items()}


# Statements of every instance are built once: building one takes longer than running it.

_HEADER = (
    "calling_ae_title",
    "called_ae_title",
    "sop_class_uid",
    "sop_instance_uid",
    "study_instance_uid",
    "series_instance_uid",
    "transfer_syntax_uid",
    "size",
    "digest",
)

#: Registered arrivals of the same AE title and SOP Instance UID.  Without statistics SQLite prefers
#: an index on the state, and reads every registered row for each instance.  No index serves an
#: expression, so both databases are left with ix_arrivals_same.
_SAME = select(arrivals.c.id, arrivals.c.group_id, arrivals.c.digest, arrivals.c.received_at).where(
    arrivals.c.called_ae_title == bindparam("called"),
    arrivals.c.sop_instance_uid == bindparam("uid"),
    arrivals.c.state.concat("") == ArrivalState.REGISTERED,
)

_FINISH = (
    update(arrivals)
    .where(arrivals.c.id == bindparam("b_id"), arrivals.c.lease_token == bindparam("b_token"))
    .values(
        registered_at=now(),
        lease_token=None,
        lease_until=None,
        lease_expiries=0,
        **{
            name: bindparam(f"b_{name}")
            for name in (*_HEADER, "state", "patient", "reason", "message")
        },
        group_id=bindparam("b_group"),
    )
)
