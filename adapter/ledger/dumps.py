# SPDX-License-Identifier: Apache-2.0
"""Dumps of the ledger: all its rows as at one moment, in one file, for back-up and restore.

A dump is a ledger of SQLite, whichever database it was taken from, and is restored into either.  So
back-up needs no program of a database's server, and SQLite's ledger can become PostgreSQL's.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import uuid
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection, delete, func, insert, select, text

from adapter.errors import LedgerError
from adapter.files import FILE_SYSTEM
from adapter.ledger import locks, revisions
from adapter.ledger.database import Ledger
from adapter.ledger.schema import arrivals, configuration, metadata

#: How a file of SQLite begins (https://sqlite.org/fileformat.html section 1.2).
_MAGIC = b"SQLite format 3\0"
#: Rows that are read and written at a time.
_ROWS = 1000


def dump(ledger: Ledger, file: Path) -> int:
    """Write a ledger to a file, durably, and return the number of rows; roles may go on meanwhile.

    The file appears whole, and replaces one of its name.

    Raises
    ------
    LedgerError
        If there is no ledger, or it has the schema of another release.
    OSError
        If the file cannot be written.
    """
    _check_revision(ledger.revision if ledger.exists() else None, "the ledger")
    part = file.absolute().with_name(f".{file.name}.{uuid.uuid4().hex}.part")
    try:
        part.touch(mode=0o600, exist_ok=False)
        with closing(Ledger(f"sqlite:///{part}")) as target:
            target.upgrade()
            with ledger.read() as source, target.write() as sink:
                rows = _copy(source, sink)
        with closing(sqlite3.connect(part)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")  # so that it is one file
        FILE_SYSTEM.sync_file(part)
        FILE_SYSTEM.rename(part, file)
        FILE_SYSTEM.sync_directory(file.absolute().parent)
    finally:
        for left in part.parent.glob(f"{part.name}*"):
            left.unlink()
    return rows


def restore(ledger: Ledger, file: Path, *, replace: bool = False) -> int:
    """Put a dump in the place of a ledger's rows, in one transaction; return the number of rows.

    Parameters
    ----------
    ledger : Ledger
        It has this release's schema; nothing else uses it meanwhile.
    file : Path
        The dump, of this release or an older one.
    replace : bool, optional
        Whether the ledger may have rows that are lost then.

    Raises
    ------
    LedgerError
        If the file is no dump or is of a newer release, or if rows would be lost.
    OSError
        If the file cannot be read.
    """
    with file.open("rb") as dumped:
        if dumped.read(len(_MAGIC)) != _MAGIC:
            raise LedgerError(f"{file} is no dump of a ledger")
    with tempfile.TemporaryDirectory(prefix="dicom-adapter-restore-") as folder:
        copy = Path(folder) / "dump"  # to be upgraded; the dump itself stays as it is
        shutil.copyfile(file, copy)
        with closing(Ledger(f"sqlite:///{copy}")) as source:
            if source.revision is None:
                raise LedgerError(f"{file} is no dump of a ledger")
            source.upgrade()
            _check_revision(source.revision, "the dump")
            with source.read() as rows, ledger.write() as sink:
                return _replace(rows, sink, replace=replace)


def _check_revision(revision: str | None, what: str) -> None:
    if revision is None:
        raise LedgerError(f"{what} is not there: there is nothing to copy")
    if revision != revisions.newest():
        raise LedgerError(
            f"{what} is at revision {revision}, and this release's is {revisions.newest()}: use "
            "the release that it belongs to, or `dicom-adapter ledger upgrade` first"
        )


def _replace(source: Connection, sink: Connection, *, replace: bool) -> int:
    locks.hold(sink, locks.Kind.MIGRATIONS)
    used = any(sink.execute(select(t).limit(1)).first() for t in (configuration, arrivals))
    if used and not replace:
        raise LedgerError(
            "the ledger is not empty: with --replace the dump takes the place of all that it has"
        )
    if sink.dialect.name == "postgresql":
        sink.execute(text("SET LOCAL statement_timeout = 0"))
    rows = _copy(source, sink)
    if sink.dialect.name == "postgresql":
        _continue_numbers(sink)
    return rows


def _copy(source: Connection, sink: Connection) -> int:
    """Put all rows in the place of those that are there; referenced ones first."""
    for table in reversed(metadata.sorted_tables):
        sink.execute(delete(table))
    count = 0
    for table in metadata.sorted_tables:
        result = source.execute(select(table), execution_options={"yield_per": _ROWS})
        for rows in result.mappings().partitions():
            sink.execute(insert(table), [dict(row) for row in rows])
            count += len(rows)
    return count


def _continue_numbers(sink: Connection) -> None:
    """Let PostgreSQL number further rows after those that were restored."""
    for table in metadata.sorted_tables:
        column = table.autoincrement_column
        if column is None:
            continue
        last = sink.execute(select(func.max(column))).scalar()
        if last is not None:
            sequence = func.pg_get_serial_sequence(table.name, column.name)
            sink.execute(select(func.setval(sequence, last)))
