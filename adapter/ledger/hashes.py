# SPDX-License-Identifier: Apache-2.0
"""Keyed hashes: what stands in the ledger instead of a value that may be patient data.

The key is in the spool (`Spool.hash_key`) and not in the ledger, so that the ledger alone tells
nobody the values.
"""

from __future__ import annotations

import hmac
import re
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    case,
    delete,
    distinct,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from adapter.dicom.instance import Instance
from adapter.ledger import locks
from adapter.ledger.database import Ledger
from adapter.ledger.engines import scrub
from adapter.ledger.revisions import fact
from adapter.ledger.schema import arrivals, groups, meta, now
from adapter.log import get_logger
from adapter.models import GroupState

log = get_logger(__name__)

#: The fact in `meta` that says when keys that an earlier release left in plain text were hashed.
HASHED_AT = "keys-hashed-at"
#: The fact in `meta` that copies of such keys may be left in the database's files.
LEFT_OVER = "keys-left-over"

#: Seconds after that, in which workers of the earlier release may still write such keys.
_UPGRADE_SECONDS = 86_400

#: Hexadecimal digits of each part of a patient's mark: enough to tell a study's patients apart.
PART = 16

#: A key in plain text: an earlier release took every number for a UID.  No hash looks like this.
_PLAIN = re.compile(r"[0-9.]+")
#: The same, of a group whose instances are unknown: a UID has dots.
_NUMBER = re.compile(r"[0-9]+")


def keyed(hash_key: bytes, value: str) -> str:
    """Return the keyed hash of a value: 64 hexadecimal digits."""
    return hmac.new(hash_key, value.encode("utf-8", "surrogatepass"), "sha256").hexdigest()


def group_key(instance: Instance, value: str, hash_key: bytes) -> str:
    """Return a grouping value if it is the instance's Study, Series or SOP Instance UID.

    Every other value may be patient data, whatever it looks like: its hash is returned.
    """
    uids = (instance.study_instance_uid, instance.series_instance_uid, instance.sop_instance_uid)
    return value if value in uids else keyed(hash_key, value)


def patient_mark(instance: Instance, hash_key: bytes) -> str | None:
    """Return what tells the patient of an instance from others of its study; None if unknown.

    A hash of the Patient ID, and behind it one of its issuer if that is given.  The hashed text
    names the study too, so that marks do not connect the studies of a patient.
    """
    if instance.patient is None or instance.study_instance_uid is None:
        return None
    texts = [
        f"{name}\0{instance.study_instance_uid}\0{value}"
        for name, value in zip(("patient", "issuer"), instance.patient, strict=True)
        if value
    ]
    return "".join(keyed(hash_key, text)[:PART] for text in texts)


def several_patients(where: ColumnElement[bool] | None = None) -> ColumnElement[bool]:
    """Return the condition, on those arrivals of one study, that they are of more than one patient.

    Two marks with the same Patient ID differ only if both name an issuer.
    """
    mark: ColumnElement[Any] = arrivals.c.patient
    if where is not None:
        mark = case((where, mark))
    patient = func.substr(mark, 1, PART)
    with_issuer = case((func.length(mark) > PART, mark))
    return or_(func.count(distinct(patient)) > 1, func.count(distinct(with_issuer)) > 1)


def are_keys_to_be_hashed(ledger: Ledger) -> bool:
    """Tell whether keys in plain text, or copies of them, may be left in the ledger."""
    with ledger.read() as connection:
        return fact(connection, HASHED_AT) is None or fact(connection, LEFT_OVER) is not None


def was_upgraded_lately(ledger: Ledger) -> bool:
    """Tell whether workers of the earlier release may still write keys in plain text."""
    with ledger.read() as connection:
        at = fact(connection, HASHED_AT)
        until = 0.0 if at is None else float(at) + _UPGRADE_SECONDS
        return bool(connection.execute(select(now() < until)).scalar_one())


def hash_plain_keys(ledger: Ledger, hash_key: bytes) -> None:
    """Hash the keys that an earlier release left in plain text, and remove every copy of them.

    The ids of these groups stay, so their jobs are not made again.  What cannot be removed now, on
    a full disk for example, is removed by a later call.
    """
    with ledger.read() as connection:
        plain = _plain(connection)
        done = fact(connection, HASHED_AT) is not None
    if plain or not done:
        with ledger.write() as connection:
            locks.hold(connection, locks.Kind.MIGRATIONS)
            if fact(connection, HASHED_AT) is None:
                _set(connection, HASHED_AT, str(connection.execute(select(now())).scalar_one()))
            if plain and fact(connection, LEFT_OVER) is None:
                _set(connection, LEFT_OVER, "yes")
            for group in plain:
                _hash(connection, group, hash_key)
    _scrub(ledger)


def _scrub(ledger: Ledger) -> None:
    with ledger.read() as connection:
        if fact(connection, LEFT_OVER) is None:
            return
    try:
        scrub(ledger.engine, groups.name)
    except SQLAlchemyError as error:
        log.warning(
            "copies of hashed grouping values may be left in the ledger's files; "
            "the next housekeeping tries again",
            error=type(error.__cause__ or error).__name__,
        )
        return
    with ledger.write() as connection:
        connection.execute(delete(meta).where(meta.c.name == LEFT_OVER))


def _plain(connection: Connection) -> list[str]:
    """Return the groups whose key is in plain text and no UID of their instances."""
    uids = (
        arrivals.c.study_instance_uid,
        arrivals.c.series_instance_uid,
        arrivals.c.sop_instance_uid,
    )
    member = exists().where(arrivals.c.group_id == groups.c.id)
    is_uid = member.where(or_(*(uid == groups.c.key for uid in uids)))
    found = connection.execute(
        select(groups.c.id, groups.c.key, member.label("known")).where(~is_uid)
    )
    return [row.id for row in found if (_PLAIN if row.known else _NUMBER).fullmatch(row.key)]


def _hash(connection: Connection, group: str, hash_key: bytes) -> None:
    """Hash the key of a group, unless it is hashed already."""
    row = connection.execute(select(groups).where(groups.c.id == group).with_for_update()).first()
    if row is None or not _PLAIN.fullmatch(row.key):
        return
    key = keyed(hash_key, row.key)
    # Releases beside each other may have opened a group each: they stay two of one key.
    same = connection.execute(
        select(groups.c.generation, groups.c.state).where(
            groups.c.version == row.version, groups.c.key == key
        )
    ).all()
    if row.state == GroupState.OPEN and any(other.state == GroupState.OPEN for other in same):
        return  # until one of them is closed
    generations = {other.generation for other in same}
    generation = max(generations) + 1 if row.generation in generations else row.generation
    connection.execute(
        update(groups).where(groups.c.id == group).values(key=key, generation=generation)
    )


def _set(connection: Connection, name: str, value: Any) -> None:
    connection.execute(insert(meta).values(name=name, value=value))
