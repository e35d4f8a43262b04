# SPDX-License-Identifier: Apache-2.0
"""Dynamic configuration: AE titles, sources and destinations as versioned rows.

A change writes a new version; a deletion leaves a tombstone.  An arrival names the version of the
AE title that it was accepted under, and that version stays readable.  An entity lives from its
creation to its deletion: all versions of one life name the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import ConfigDict, ValidationError
from sqlalchemy import ColumnElement, Connection, exists, func, insert, select, text, update

from adapter.errors import ConfigurationError, validation_problems
from adapter.ledger import events, locks, owners
from adapter.ledger.database import Ledger
from adapter.ledger.schema import configuration, now
from adapter.models import (
    DICOM,
    AETitle,
    Destination,
    DicomDestination,
    EntityKind,
    Source,
    Versioned,
    entity_model,
)

Entity: TypeAlias = AETitle | Source | Destination


class _OfUnknownKind(Destination):
    """A destination that only a later release can use."""

    model_config = ConfigDict(extra="ignore")


_COUNT_ON = text(
    "SELECT setval(pg_get_serial_sequence('configuration', 'version'), max(version)) "
    "FROM configuration"
)

_COLUMNS = tuple(configuration.c.keys())
_FIRST = func.coalesce(configuration.c.first_version, configuration.c.version)

#: Versions of AE titles in the SCP's copy that are not in force any more: those that the instances
#: of a rebuild may have been accepted under.
_HISTORY = 2000


def parse(kind: EntityKind, body: dict[str, Any]) -> Entity:
    """Return the entity that a JSON object describes.

    Raises
    ------
    ConfigurationError
        Listing every problem by key.
    """
    try:
        return entity_model(kind, body).model_validate(body)
    except ValidationError as error:
        raise ConfigurationError(validation_problems(error.errors(), whole=kind)) from None
    except ValueError as error:
        raise ConfigurationError([str(error)]) from None


@dataclass(frozen=True, slots=True)
class Changes:
    """Several changes of one kind of entity, made in one transaction.

    Attributes
    ----------
    puts : sequence of (Entity, str)
        Entities to add or replace, each with its owner.
    removals : sequence of str
        Names of the entities to delete.
    """

    puts: Sequence[tuple[Entity, str]] = ()
    removals: Sequence[str] = ()


def put(
    ledger: Ledger,
    kind: EntityKind,
    entity: Entity,
    *,
    replace: bool,
    owner: str = owners.PEOPLE,
) -> int:
    """Add an entity, or a new version of one, and return the version.

    Raises
    ------
    ConfigurationError
        If it exists and `replace` is false, if it does not exist and `replace` is true, if it has
        another owner, or if another AE title entry has the same AE title.
    """
    with ledger.write() as connection:
        locks.hold(connection, locks.Kind.CONFIGURATION)
        rows = {row.key: row for row in _current(connection, kind)}
        known = rows.get(entity.key)
        if known is not None:
            owners.check(kind, entity.key, known.owner, owner)
            if not replace:
                raise ConfigurationError(
                    [f"{kind} {entity.key!r} exists already; change it with `set`"]
                )
        elif replace:
            raise ConfigurationError([f"there is no {kind} {entity.key!r}; create it with `add`"])
        _check_title(rows.values(), entity)
        return _put(connection, kind, entity, owner, known)


def remove(
    ledger: Ledger, kind: EntityKind, key: str, *, owner: str = owners.PEOPLE
) -> Versioned[Entity]:
    """Delete an entity, leaving a tombstone, and return it.

    Raises
    ------
    ConfigurationError
        If there is no entity of that name, or it has another owner.
    """
    with ledger.write() as connection:
        locks.hold(connection, locks.Kind.CONFIGURATION)
        found = next((row for row in _current(connection, kind) if row.key == key), None)
        if found is None:
            raise ConfigurationError([f"there is no {kind} {key!r}"])
        owners.check(kind, key, found.owner, owner)
        _remove(connection, kind, found)
    return _versioned(found)


def change(
    ledger: Ledger, kind: EntityKind, decide: Callable[[list[Versioned[Any]]], Changes]
) -> list[Versioned[Any]]:
    """Make several changes at once, or none, and return the entities in force afterwards.

    Parameters
    ----------
    ledger : Ledger
        The ledger.
    kind : EntityKind
        The kind of the entities.
    decide : callable
        Returns the changes, given the entities in force; it must respect their owners itself.

    Raises
    ------
    ConfigurationError
        If two AE title entries would have the same AE title.
    """
    with ledger.write() as connection:
        locks.hold(connection, locks.Kind.CONFIGURATION)
        before = _current(connection, kind)
        rows = {row.key: row for row in before}
        changes = decide([_versioned(row) for row in before])
        for key in changes.removals:
            _remove(connection, kind, rows.pop(key))
        for entity, owner in changes.puts:
            _put(connection, kind, entity, owner, rows.get(entity.key))
        after = _current(connection, kind)
        for entity, _ in changes.puts:
            _check_title(after, entity)
    return [_versioned(row) for row in after]


def current(ledger: Ledger, kind: EntityKind) -> list[Versioned[Any]]:
    """Return the entities of a kind that are in force, by name."""
    with ledger.read() as connection:
        return [_versioned(row) for row in _current(connection, kind)]


def find(ledger: Ledger, kind: EntityKind, key: str) -> Versioned[Any] | None:
    """Return the entity of that name that is in force, or None."""
    return next((found for found in current(ledger, kind) if found.entity.key == key), None)


def ae_title_version(connection: Connection, version: int) -> AETitle | None:
    """Return one version of an AE title, in force or not; None if that version does not exist."""
    table = configuration
    row = connection.execute(
        select(table.c.body).where(
            table.c.version == version, table.c.kind == EntityKind.AE_TITLE, ~table.c.deleted
        )
    ).first()
    return None if row is None else AETitle.model_validate(row.body)


def first_version(connection: Connection, version: int) -> int:
    """Return the version that an entity was created with, given any version of the same life."""
    found = connection.execute(select(_FIRST).where(configuration.c.version == version)).scalar()
    return version if found is None else int(found)


def is_of_life(version: ColumnElement[int], first: ColumnElement[int]) -> ColumnElement[bool]:
    """Return the condition that a version is of the life that began with the version `first`."""
    table = configuration.alias()
    begun = func.coalesce(table.c.first_version, table.c.version)
    return exists().where(table.c.version == version, begun == first)


def versions_of_same_title(connection: Connection, version: int) -> set[int]:
    """Return every version of the AE title entry that `version` is one of."""
    table = configuration
    key = select(table.c.key).where(table.c.version == version).scalar_subquery()
    return set(
        connection.execute(
            select(table.c.version).where(table.c.kind == EntityKind.AE_TITLE, table.c.key == key)
        ).scalars()
    )


def latest_version(ledger: Ledger) -> int:
    """Return a number that grows with every change."""
    with ledger.read() as connection:
        return int(
            connection.execute(
                select(func.coalesce(func.max(configuration.c.version), 0))
            ).scalar_one()
        )


def snapshot(ledger: Ledger) -> dict[str, Any]:
    """Return the configuration in the form of the SCP's copy in the spool.

    Returns
    -------
    dict
        ``{"version": int, "rows": [...]}``: all that is in force, and beside it the newest earlier
        versions of AE titles, so that a rebuild restores them too.
    """
    table = configuration
    in_force = select(table).where(table.c.current)
    earlier = (
        select(table)
        .where(table.c.kind == EntityKind.AE_TITLE, ~table.c.current)
        .order_by(table.c.version.desc())
        .limit(_HISTORY)
    )
    with ledger.read() as connection:
        kept = [
            dict(row)
            for query in (in_force, earlier)
            for row in connection.execute(query).mappings()
        ]
    kept.sort(key=lambda row: int(row["version"]))
    return {"version": kept[-1]["version"] if kept else 0, "rows": kept}


def restore(ledger: Ledger, saved: dict[str, Any]) -> int:
    """Write a snapshot's rows into a ledger without configuration, and return their number.

    The snapshot may be of another release: columns that are unknown here are left out.
    """
    with ledger.write() as connection:
        locks.hold(connection, locks.Kind.CONFIGURATION)
        if connection.execute(select(func.count()).select_from(configuration)).scalar_one():
            return 0
        rows = _restored(saved["rows"])
        if rows:
            connection.execute(insert(configuration), rows)
            if connection.dialect.name == "postgresql":  # SQLite continues the sequence itself
                connection.execute(_COUNT_ON)
    return len(rows)


def _restored(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a snapshot's rows with the columns of this release, oldest first."""
    first: dict[tuple[str, str], int] = {}
    found = []
    for row in sorted(rows, key=lambda row: int(row["version"])):
        entity = row["kind"], row["key"]
        begun = row.get("first_version") or first.setdefault(entity, row["version"])
        known = {name: row[name] for name in _COLUMNS if name in row}
        found.append(known | {"first_version": begun})
        if row["deleted"]:
            first.pop(entity, None)
    return found


def _check_title(rows: Iterable[Any], entity: Entity) -> None:
    if not isinstance(entity, AETitle):
        return
    for row in rows:
        if row.key != entity.key and row.body["aeTitle"] == entity.ae_title:
            raise ConfigurationError(
                [f"aeTitle: {entity.ae_title!r} is taken by the entry {row.key!r}"]
            )


def _put(
    connection: Connection, kind: EntityKind, entity: Entity, owner: str, known: Any | None
) -> int:
    body = entity.model_dump(mode="json", by_alias=True)
    if isinstance(entity, Destination) and entity.kind == DICOM:
        del body["kind"]  # the release before, which may work beside this one, knows no kinds
    if isinstance(entity, DicomDestination) and not entity.reencode_uncompressed:
        del body["reencodeUncompressed"]  # nor that
    if isinstance(entity, AETitle) and entity.on_patient_conflict == "warn":
        del body["onPatientConflict"]  # nor that
    if known is not None and (known.body, known.owner) == (body, owner):
        return int(known.version)
    version = _write(connection, kind, entity.key, known, body=body, owner=owner, deleted=False)
    events.record(connection, "configuration-changed", entity=kind, key=entity.key, version=version)
    return version


def _remove(connection: Connection, kind: EntityKind, row: Any) -> None:
    _write(connection, kind, row.key, row, body=row.body, owner=row.owner, deleted=True)
    events.record(connection, "configuration-removed", entity=kind, key=row.key)


def _write(
    connection: Connection,
    kind: EntityKind,
    key: str,
    known: Any | None,
    *,
    body: dict[str, Any],
    owner: str,
    deleted: bool,
) -> int:
    """Write a new version of an entity; `known` is the one in force, None if it is created."""
    table = configuration
    connection.execute(
        update(table)
        .where(table.c.kind == kind, table.c.key == key, table.c.current)
        .values(current=False)
    )
    version = connection.execute(
        insert(table)
        .values(
            kind=kind,
            key=key,
            body=body,
            owner=owner,
            created_at=now(),
            current=True,
            deleted=deleted,
            first_version=None if known is None else known.first_version or known.version,
        )
        .returning(table.c.version)
    ).scalar_one()
    return int(version)


def _current(connection: Connection, kind: EntityKind) -> list[Any]:
    table = configuration
    return list(
        connection.execute(
            select(table)
            .where(table.c.kind == kind, table.c.current, ~table.c.deleted)
            .order_by(table.c.key)
        ).all()
    )


def _versioned(row: Any) -> Versioned[Any]:
    kind = EntityKind(row.kind)
    try:
        model = entity_model(kind, row.body)
    except ValueError:  # a later release, which works beside this one, knows more kinds
        model = _OfUnknownKind
    return Versioned(row.version, model.model_validate(row.body), row.owner)
