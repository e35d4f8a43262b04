# SPDX-License-Identifier: Apache-2.0
"""The files of the spool: names and sizes, read once."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from adapter import job_output
from adapter.models import ArrivalId
from adapter.spool import Spool, shards
from adapter.verify.difference import Difference


@dataclass(frozen=True)
class Listing:
    """The files of a spool, with their sizes in bytes.

    Attributes
    ----------
    incoming, instances, quarantine : dict of str to int
        By arrival.
    results : dict of str to dict
        By job, then by name.
    work : set of str
        Jobs that have a working folder with more in it than what their pipelines printed.
    strangers : set of Difference
        What no role of the adapter has put there.
    """

    incoming: dict[str, int] = field(default_factory=dict)
    instances: dict[str, int] = field(default_factory=dict)
    quarantine: dict[str, int] = field(default_factory=dict)
    results: dict[str, dict[str, int]] = field(default_factory=dict)
    work: set[str] = field(default_factory=set)
    strangers: set[Difference] = field(default_factory=set)


def list_spool(spool: Spool) -> Listing:
    """List a spool's files, without those that are being written.

    Raises
    ------
    SpoolAway
        If the spool, or a directory of it, is not there.
    """
    listing = Listing()
    spool.check_whole()
    for found, folders, place in (
        (listing.incoming, shards(spool.incoming), spool.incoming_path),
        (listing.instances, shards(spool.instances), spool.instance_path),
        (listing.quarantine, [spool.quarantine], spool.quarantine_path),
    ):
        for folder in folders:
            _list_arrivals(spool, folder, place, found, listing.strangers)
    for path, _ in _entries(spool, spool.results, listing.strangers):
        if _is_job(path.name):
            files = _entries(spool, path, listing.strangers)
            listing.results[path.name] = {file.name: size for file, size in files}
        else:
            listing.strangers.add(_stranger(spool, path))
    for path, _ in _entries(spool, spool.work, listing.strangers):
        if job_output.is_all_that_is_left(path):
            continue
        if _is_job(path.name):
            listing.work.add(path.name)
        else:
            listing.strangers.add(_stranger(spool, path))
    spool.check_whole()  # still: else a directory without its files would count as empty
    return listing


def _list_arrivals(
    spool: Spool,
    folder: Path,
    place: Callable[[str], Path],
    found: dict[str, int],
    strangers: set[Difference],
) -> None:
    for path, size in _entries(spool, folder, strangers):
        try:
            arrival = str(ArrivalId.parse(path.stem))
        except ValueError:
            arrival = ""
        if arrival and place(arrival) == path:
            found[arrival] = size
        elif not path.name.endswith(".part"):
            strangers.add(_stranger(spool, path))


def _entries(spool: Spool, folder: Path, strangers: set[Difference]) -> Iterator[tuple[Path, int]]:
    try:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # it was deleted in the meantime
                    yield Path(entry.path), entry.stat(follow_symlinks=False).st_size
    except OSError as error:
        name, problem = str(folder.relative_to(spool.root)), error.strerror or type(error).__name__
        remedy = "see that the adapter's user may read it, and check the disk"
        strangers.add(Difference("file", name, f"it cannot be listed: {problem}", remedy))


def _is_job(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False


def _stranger(spool: Spool, path: Path) -> Difference:
    return Difference(
        "file",
        str(path.relative_to(spool.root)),
        "no role of the adapter created it",
        "move it out of the spool",
    )
