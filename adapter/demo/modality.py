# SPDX-License-Identifier: Apache-2.0
"""A modality: sends files by C-STORE as they are, and again what was not answered.

Nothing is decoded or converted: the data set goes out as the bytes that stand in the file, in the
transfer syntax that the file names.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.uid import UID

from adapter.dicom import read_file_meta
from adapter.errors import UnreadableInstance
from adapter.models import DicomDestination
from adapter.scu.association import (
    MAXIMUM_CONTEXTS,
    AssociationBroken,
    AssociationRejected,
    FileUnreadable,
    RequestorAssociation,
    Unreachable,
)
from adapter.settings import Scu

#: Media Storage Directory Storage, the SOP class of a DICOMDIR (PS3.10 section 8.6).
_DIRECTORY = "1.2.840.10008.1.3.10"
#: The result of a rejection that will not pass (PS3.8 section 9.3.4).
_FOR_GOOD = 1
#: Seconds between tries, growing to the longest.
_PAUSE, _LONGEST_PAUSE = 0.5, 5.0


@dataclass(frozen=True, slots=True)
class DicomFile:
    """A file to send, and what its file meta information says (PS3.10 section 7.1)."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str

    @property
    def context(self) -> tuple[str, str]:
        """The presentation context that it needs: its SOP class in its transfer syntax."""
        return self.sop_class_uid, self.transfer_syntax_uid


@dataclass
class Found:
    """The files of some folders: those to send, and how many others there are, by reason."""

    files: list[DicomFile] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def find_files(paths: Iterable[Path]) -> Found:
    """Look for DICOM files, in folders and below; what is none, or a DICOMDIR, is counted.

    Raises
    ------
    OSError
        If a path is not there or cannot be read.
    """
    found = Found()
    for path in _walk(paths):
        try:
            with path.open("rb") as file:
                meta = read_file_meta(file)
        except UnreadableInstance:
            found.skipped["not DICOM"] += 1
            continue
        item = DicomFile(path, meta.get(2, ""), meta.get(3, ""), meta.get(0x10, ""))
        if item.sop_class_uid == _DIRECTORY:
            found.skipped["DICOMDIR"] += 1
        elif not (item.sop_class_uid and item.sop_instance_uid and item.transfer_syntax_uid):
            found.skipped["incomplete file meta information"] += 1
        else:
            found.files.append(item)
    return found


def _walk(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(inner for inner in path.rglob("*") if inner.is_file())
        else:
            yield path


#: Told of each file that is settled: the file, its C-STORE status or None, and why it failed.
Settled = Callable[[DicomFile, int | None, str], None]


def is_stored(status: int | None) -> bool:
    """Tell whether a C-STORE status says that the instance is kept (PS3.4 Annex B.2.3)."""
    return status is not None and (status == 0 or 0xB000 <= status <= 0xBFFF)


def send(
    files: Iterable[DicomFile],
    destination: DicomDestination,
    scu: Scu,
    settled: Settled,
    *,
    patience: float = 30.0,
    insist: bool = False,
) -> None:
    """Send files, and those that were not answered again, over as many associations as it takes.

    Parameters
    ----------
    destination : DicomDestination
        Where to.
    scu : Scu
        Who sends, and how long the peer may take.
    settled : callable
        Told once of each file, when it is answered or given up.
    patience : float, seconds
        How long to try again without a single answer.
    insist : bool
        Whether to try again too when the peer rejects the association for good: it may not have
        taken a new configuration over yet.

    Raises
    ------
    AssociationRejected
        If the peer rejects the association for good, and we do not insist.
    """
    left = list(files)
    end = time.monotonic() + patience
    pause = _PAUSE
    while left:
        before = len(left)
        try:
            left, why = _send_once(left, destination, scu, settled)
        except AssociationRejected as rejected:
            if not insist:
                raise
            why = f"the peer {rejected}"
        if len(left) < before:
            end, pause = time.monotonic() + patience, _PAUSE
        elif time.monotonic() + pause > end:
            for file in left:
                settled(file, None, why)
            return
        else:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _send_once(
    files: list[DicomFile], destination: DicomDestination, scu: Scu, settled: Settled
) -> tuple[list[DicomFile], str]:
    """Send files over one association; return those left to send, and why they are."""
    contexts = list(dict.fromkeys(item.context for item in files))[:MAXIMUM_CONTEXTS]
    now = [item for item in files if item.context in contexts]
    later = [item for item in files if item.context not in contexts]
    done = 0
    try:
        with RequestorAssociation(destination, scu, contexts) as association:
            for item in now:
                status, why = _store(association, item)
                done += 1
                settled(item, status, why)
    except AssociationRejected as rejected:
        if rejected.code[0] == _FOR_GOOD:
            raise
        return [*now[done:], *later], f"the peer {rejected}"
    except FileUnreadable as error:
        settled(now[done], None, str(error))
        return [*now[done + 1 :], *later], str(error)
    except (Unreachable, AssociationBroken) as error:
        return [*now[done:], *later], str(error)
    return later, ""


def _store(association: RequestorAssociation, item: DicomFile) -> tuple[int | None, str]:
    """Send one file; return the status of the answer, and why it is not stored."""
    context = association.accepted.get(item.context)
    if context is None:
        sop_class, syntax = (UID(uid).name for uid in item.context)
        return None, f"the peer does not take {sop_class} in {syntax}"
    with item.path.open("rb", buffering=0) as file:
        read_file_meta(file)
        start, size = file.tell(), item.path.stat().st_size
        status = association.store(
            context, item.sop_class_uid, item.sop_instance_uid, file.fileno(), size - start
        )
    return status, "" if is_stored(status) else f"the peer refused it with status {status:04X}"
