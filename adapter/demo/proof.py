# SPDX-License-Identifier: Apache-2.0
"""The demo's proof: what the PACS received is, bit for bit, what the pipeline wrote."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from adapter.dicom import digest_data_set, read_file_meta
from adapter.spool import Spool


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of transfer syntax and data set of each file, by SOP Instance UID."""
    found = {}
    for path in sorted(folder.rglob("*.dcm")):
        with path.open("rb") as file:
            meta = read_file_meta(file)
            found[meta[3]] = digest_data_set(file, meta[0x10])
    return found


def compare(spool: Spool, jobs: Iterable[str], received: Path) -> tuple[int, list[str]]:
    """Compare the published results of some jobs with what the PACS received.

    Returns
    -------
    tuple of int and list of str
        How many files are identical, and every difference.
    """
    written: dict[str, str] = {}
    for job in jobs:
        written |= digests(spool.result_folder(job))
    arrived = digests(received)
    problems = [f"{uid}: the PACS has not received it" for uid in written.keys() - arrived.keys()]
    problems += [f"{uid}: no pipeline wrote it" for uid in arrived.keys() - written.keys()]
    both = written.keys() & arrived.keys()
    problems += [
        f"{uid}: its data set differs from what the pipeline wrote"
        for uid in both
        if written[uid] != arrived[uid]
    ]
    same = sum(written[uid] == arrived[uid] for uid in both)
    return same, sorted(problems)
