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
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from adapter.dicom import VERIFICATION, read_file_meta
from adapter.errors import AdapterError, UnreadableInstance

#: Media Storage Directory Storage, the SOP class of a DICOMDIR (PS3.10 section 8.6).
_DIRECTORY = "1.2.840.10008.1.3.10"
#: Presentation contexts of one association: their ids are the odd numbers of a byte (PS3.8).
_MOST_CONTEXTS = 128
#: Seconds between tries, growing to the longest.
_PAUSE, _LONGEST_PAUSE = 0.5, 5.0


class Rejected(AdapterError):
    """The peer does not want an association with us, and will not later either."""


@dataclass(frozen=True, slots=True)
class DicomFile:
    """A file to send, and what its file meta information says (PS3.10 section 7.1)."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


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


@dataclass(frozen=True, slots=True)
class Peer:
    """Where to send, and under which names."""

    host: str
    port: int
    called: str
    calling: str

    def __str__(self) -> str:
        return f"{self.called} at {self.host}:{self.port}"


#: Told of each file that is settled: the file, its C-STORE status or None, and why it failed.
Settled = Callable[[DicomFile, int | None, str], None]


def is_stored(status: int | None) -> bool:
    """Tell whether a C-STORE status says that the instance is kept (PS3.4 Annex B.2.3)."""
    return status is not None and (status == 0 or 0xB000 <= status <= 0xBFFF)


def send(
    files: Iterable[DicomFile],
    peer: Peer,
    settled: Settled,
    *,
    patience: float = 30.0,
    timeout: float = 60.0,
) -> None:
    """Send files, and those that were not answered again, over as many associations as it takes.

    Parameters
    ----------
    settled : callable
        Told once of each file, when it is answered or given up.
    patience : float, seconds
        How long to try again without a single answer.
    timeout : float, seconds
        How long the peer may take for an answer.

    Raises
    ------
    Rejected
        If the peer rejects the association for good.
    """
    left = list(files)
    end = time.monotonic() + patience
    pause = _PAUSE
    while left:
        before = len(left)
        left, why = _send_once(left, peer, settled, timeout)
        if len(left) < before:
            end, pause = time.monotonic() + patience, _PAUSE
        if not left:
            return
        if time.monotonic() + pause > end:
            for file in left:
                settled(file, None, why)
            return
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def echo(peer: Peer, *, patience: float = 10.0, timeout: float = 10.0) -> None:
    """Wait until the peer takes our association and answers a C-ECHO.

    Raises
    ------
    AdapterError
        If it has not by the end of `patience` (seconds), saying why.
    """
    end = time.monotonic() + patience
    while True:
        why = ""
        ae = _application(peer, timeout)
        ae.add_requested_context(VERIFICATION)
        association = ae.associate(peer.host, peer.port, ae_title=peer.called)
        if association.is_established:
            answer = association.send_c_echo()
            association.release()
            if answer.get("Status") == 0:
                return
            why = "no Success to a C-ECHO"
        why = why or _why(association)[1]
        if time.monotonic() > end:
            raise AdapterError(f"{peer}: {why}")
        time.sleep(_PAUSE)


def _application(peer: Peer, timeout: float) -> AE:
    _config.STORE_SEND_CHUNKED_DATASET = True  # pynetdicom's way to send a file's bytes undecoded
    ae = AE(peer.calling)
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = timeout
    return ae


def _send_once(
    files: list[DicomFile], peer: Peer, settled: Settled, timeout: float
) -> tuple[list[DicomFile], str]:
    """Send files over one association; return what is left, and why it is."""
    kinds = list(dict.fromkeys((item.sop_class_uid, item.transfer_syntax_uid) for item in files))
    kinds = kinds[:_MOST_CONTEXTS]
    now = [item for item in files if (item.sop_class_uid, item.transfer_syntax_uid) in kinds]
    left = [item for item in files if (item.sop_class_uid, item.transfer_syntax_uid) not in kinds]
    ae = _application(peer, timeout)
    contexts = [build_context(sop_class, syntax) for sop_class, syntax in kinds]
    association = ae.associate(peer.host, peer.port, contexts=contexts, ae_title=peer.called)
    if not association.is_established:
        for_good, why = _why(association)
        if for_good:
            raise Rejected(f"{peer}: {why}")
        return files, why
    accepted = {
        (str(context.abstract_syntax), str(context.transfer_syntax[0]))
        for context in association.accepted_contexts
    }
    try:
        for number, item in enumerate(now):
            if (item.sop_class_uid, item.transfer_syntax_uid) not in accepted:
                name = UID(item.sop_class_uid).name, UID(item.transfer_syntax_uid).name
                settled(item, None, f"the peer does not take {name[0]} in {name[1]}")
                continue
            status = _store(association, item)
            if status is None:
                return [*now[number:], *left], "the association was lost before an answer came"
            settled(item, status, "" if is_stored(status) else f"status {status:04X}")
    finally:
        if association.is_established:
            association.release()
    return left, ""


def _store(association: Association, item: DicomFile) -> int | None:
    """Send one file; None if no answer came."""
    try:
        answer = association.send_c_store(item.path)
    except (RuntimeError, ValueError):  # the association has gone in between
        if association.is_established:
            raise
        return None
    status = answer.get("Status")
    return None if status is None else int(status)


def _why(association: Association) -> tuple[bool, str]:
    """Say why there is no association, and whether it is for good."""
    if not association.is_rejected:
        if association.is_aborted:
            return False, "the association was aborted, or nobody answers at this address and port"
        return False, "nobody answers at this address and port"
    answer = association.acceptor.primitive
    if answer is None:
        return False, "the association was rejected"
    result, source, reason = answer.result, answer.result_source, answer.diagnostic
    words = f"the association was rejected: {answer.reason_str} ({result}/{source}/{reason})"
    return result == 1, words
