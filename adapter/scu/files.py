# SPDX-License-Identifier: Apache-2.0
"""The files that can be sent, and what must be known of each before it is.

Of a file only the start is read.  Its data set is sent as the bytes that are there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from adapter.dicom.file_start import read_file_start
from adapter.dicom.transfer_syntaxes import DEFLATED
from adapter.dicom.uids import MEDIA_STORAGE_DIRECTORY, is_uid
from adapter.errors import PermanentError, UnreadableInstance
from adapter.files import open_beneath
from adapter.scu.association import Context

#: Why a file that is found is skipped: the code of the error, and words for people.
_SKIPPED = {"not-dicom": "not DICOM", "missing-uid": "no SOP Class or SOP Instance UID"}


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A file that can be sent.

    Attributes
    ----------
    number : int
        The file's number in its task.
    root, path : Path and str
        Where the file is.  The path below the root is followed through no link.
    data_set : int
        Where the data set begins, in bytes.
    tries : int
        How often the file was sent to this destination before.
    repeat : bool
        Whether the file may have been sent there before.  A worker that died may have sent it.
    """

    number: int
    root: Path
    path: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set: int
    tries: int = 0
    repeat: bool = False

    @property
    def context(self) -> Context:
        """The presentation context that it needs: its SOP class in its transfer syntax."""
        return self.sop_class_uid, self.transfer_syntax_uid


def examine(
    root: Path, path: str, number: int, *, tries: int = 0, repeat: bool = False
) -> Outgoing:
    """Read what must be known of a file before it can be sent.

    Raises
    ------
    NotYetVisible
        If it is not there (yet).
    PermanentError
        If it is not a regular file reached without links, not a DICOM file, or not a whole one.
    """
    with os.fdopen(open_beneath(root, path), "rb") as file:
        start = read_file_start(file)
        size = os.fstat(file.fileno()).st_size - start.data_set
    uids = start.sop_class_uid, start.sop_instance_uid, start.transfer_syntax_uid
    if not all(map(is_uid, uids)):
        raise UnreadableInstance("the file has an invalid UID", "invalid-uid")
    if size <= 0 or (size % 2 and start.transfer_syntax_uid not in DEFLATED):
        raise UnreadableInstance("the data set is missing, or cut short", "incomplete")
    return Outgoing(number, root, path, *uids, start.data_set, tries, repeat or tries > 0)


@dataclass
class Found:
    """The files that were found in some folders.

    Attributes
    ----------
    files : list of Outgoing
        Those to send.
    skipped : counter of str
        How many files are not meant to be sent, by reason.
    unfit : counter of str
        How many DICOM files cannot be sent, by reason.
    """

    files: list[Outgoing] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    unfit: Counter[str] = field(default_factory=Counter)


def find_files(paths: Iterable[Path]) -> Found:
    """Look for DICOM files, in folders and below; links are followed.

    Raises
    ------
    OSError
        If a path is not there or cannot be read.
    """
    found = Found()
    for path in _walk(paths):
        real = path.resolve(strict=True)
        try:
            file = examine(real.parent, real.name, len(found.files))
        except PermanentError as error:
            if error.code in _SKIPPED:
                found.skipped[_SKIPPED[error.code]] += 1
            else:
                found.unfit[str(error)] += 1
            continue
        if file.sop_class_uid == MEDIA_STORAGE_DIRECTORY:
            found.skipped["DICOMDIR"] += 1
        else:
            found.files.append(file)
    return found


def _walk(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(inner for inner in path.rglob("*") if inner.is_file())
        else:
            yield path
