# SPDX-License-Identifier: Apache-2.0
"""The Storage SCU: files to a destination, as they are.

The bytes of a file's data set are sent in the file's own transfer syntax; nothing is decoded,
converted or left out.  A file that the destination does not accept in that syntax fails by name,
unless the caller brings a function that re-encodes the uncompressed ones.  When to try again is up
to the caller.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from adapter.dicom import statuses
from adapter.dicom.dictionary import name_of
from adapter.dicom.transfer_syntaxes import IMPLICIT_VR_LITTLE_ENDIAN, LOSSY, UNCOMPRESSED
from adapter.errors import NotYetVisible, PermanentError
from adapter.files import open_beneath
from adapter.models import DicomDestination, Outcome
from adapter.scu.association import (
    MAXIMUM_CONTEXTS,
    AssociationBroken,
    Context,
    FileUnreadable,
    RequestorAssociation,
)
from adapter.scu.files import Outgoing
from adapter.settings import Scu


@dataclass(frozen=True, slots=True)
class StoreResult:
    """What became of one file.

    Attributes
    ----------
    file : Outgoing
        The file.
    outcome : Outcome
        Whether it is stored, may be tried again, or is refused for good.
    status : int, optional
        The status of the C-STORE, if it was answered.
    reason : str, optional
        Why the file is not stored.
    sent : bool
        Whether any of it was sent, so that this was a try.
    """

    file: Outgoing
    outcome: Outcome
    status: int | None = None
    reason: str | None = None
    sent: bool = True

    @property
    def unanswered(self) -> bool:
        """Whether the association was lost before the answer: the destination may have the file."""
        return self.sent and self.status is None and self.outcome is Outcome.RETRY


def judge(status: int, *, repeat: bool, permanent: Collection[str] = ()) -> Outcome:
    """Return what the status of a C-STORE means for the file (``adapter.dicom.statuses``).

    Parameters
    ----------
    status : int
        The status (0000,0900) of the answer.
    repeat : bool
        Whether the file may have been sent there before, so that a duplicate is our own.
    permanent : collection of str, optional
        Statuses that are not worth another try (``permanentStatuses``).
    """
    if statuses.is_stored(status, repeat=repeat):
        return Outcome.STORED
    return Outcome.REFUSED if statuses.is_refused(status, permanent) else Outcome.RETRY


#: Returns a data set, read from a descriptor, in another syntax: descriptor, its syntax, the other.
Reencode = Callable[[int, str, str], BinaryIO]


def plan(
    files: Sequence[Outgoing], *, reencoding: bool = False
) -> list[tuple[list[Context], list[Outgoing]]]:
    """Distribute files over associations, each with the contexts to propose in it.

    Each SOP class and transfer syntax has a context of its own, with that one syntax, so that the
    peer answers for each of them.  Each SOP class also has a context in Implicit VR Little Endian,
    unless all its files are lossy: the Standard demands that proposal (PS3.5 section 10.1).  With
    `reencoding`, a class with uncompressed files has one in each of the uncompressed syntaxes.  At
    most 128 contexts go into one association.
    """
    syntaxes: dict[str, set[str]] = defaultdict(set)
    for file in files:
        syntaxes[file.sop_class_uid].add(file.transfer_syntax_uid)
    associations: list[tuple[list[Context], list[Outgoing]]] = [([], [])]
    places: dict[Context, int] = {}
    for sop_class, used in syntaxes.items():
        default = [] if used <= LOSSY else [(sop_class, IMPLICIT_VR_LITTLE_ENDIAN)]
        for syntax in sorted(used):
            others = UNCOMPRESSED if reencoding and syntax in UNCOMPRESSED else ()
            more = [(sop_class, other) for other in others]
            needed = dict.fromkeys([(sop_class, syntax), *default, *more])
            proposed = associations[-1][0]
            new = [context for context in needed if context not in proposed]
            if len(proposed) + len(new) > MAXIMUM_CONTEXTS:
                associations.append((list(needed), []))
            else:
                proposed += new
            places[sop_class, syntax] = len(associations) - 1
    for file in files:
        associations[places[file.context]][1].append(file)
    return associations


def store(
    files: Sequence[Outgoing],
    destination: DicomDestination,
    scu: Scu,
    *,
    answered: Callable[[], None] = lambda: None,
    reencode: Reencode | None = None,
) -> Generator[StoreResult]:
    """Send files and yield what became of each; close the iterator to stop between two files.

    Parameters
    ----------
    files : sequence of Outgoing
        What to send, in order.
    answered : callable, optional
        Called when the destination accepts an association.
    reencode : Reencode, optional
        Re-encodes files in an uncompressed syntax that the destination takes in the other only.

    Raises
    ------
    Unreachable, AssociationRejected, AssociationBroken
        If there is no association, or it ends; the file on its way has then been yielded.
    OSError
        If our disk fails a file; it has been yielded too, and another try begins with the others.
    """
    for contexts, sent in plan(files, reencoding=reencode is not None):
        # A file that cannot be read to its end costs its association, but not the files after it.
        left = list(reversed(sent))
        while left:
            with (
                suppress(FileUnreadable),
                RequestorAssociation(destination, scu, contexts) as association,
            ):
                answered()
                yield from _store_each(association, left, scu.export.permanent_statuses, reencode)


def _store_each(
    association: RequestorAssociation,
    left: list[Outgoing],
    permanent: Collection[str],
    reencode: Reencode | None,
) -> Iterator[StoreResult]:
    """Send files, each taken off the list's end, until none is left or the association is lost."""
    while left:
        file = left.pop()
        syntax = _accepted_syntax(association, file)
        if syntax is None or (syntax != file.transfer_syntax_uid and reencode is None):
            refusal = _refusal(file, syntax)
            yield StoreResult(file, Outcome.REFUSED, reason=refusal, sent=False)
            continue
        try:
            status = _store_one(association, syntax, file, reencode)
        except AssociationBroken as broken:
            yield StoreResult(file, Outcome.RETRY, reason=f"the destination {broken}")
            raise
        except FileUnreadable as failure:
            if isinstance(disk := failure.__cause__, OSError):
                yield StoreResult(file, Outcome.RETRY, reason=str(failure))
                raise disk from None
            yield StoreResult(file, Outcome.REFUSED, reason=str(failure))
            raise
        except NotYetVisible as missing:
            yield StoreResult(file, Outcome.RETRY, reason=str(missing), sent=False)
        except OSError as error:
            words = f"the file cannot be opened (errno {error.errno})"
            yield StoreResult(file, Outcome.RETRY, reason=words, sent=False)
            raise
        except PermanentError as failure:
            yield StoreResult(file, Outcome.REFUSED, reason=str(failure), sent=False)
        else:
            outcome = judge(status, repeat=file.repeat, permanent=permanent)
            failed = outcome is not Outcome.STORED
            words = f"the destination answered with status {status:04X}"
            yield StoreResult(file, outcome, status, words if failed else None)


def _accepted_syntax(association: RequestorAssociation, file: Outgoing) -> str | None:
    """Return the syntax that a file can be sent in: its own, or the other uncompressed one."""
    syntaxes = [file.transfer_syntax_uid]
    if file.transfer_syntax_uid in UNCOMPRESSED:
        syntaxes += UNCOMPRESSED
    found = (one for one in syntaxes if (file.sop_class_uid, one) in association.accepted)
    return next(found, None)


def _store_one(
    association: RequestorAssociation, syntax: str, file: Outgoing, reencode: Reencode | None
) -> int:
    context_id = association.accepted[file.sop_class_uid, syntax]
    descriptor = open_beneath(file.root, file.path)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END) - file.data_set
        os.lseek(descriptor, file.data_set, os.SEEK_SET)
        uids = file.sop_class_uid, file.sop_instance_uid
        if syntax == file.transfer_syntax_uid or reencode is None:
            return association.store(context_id, *uids, descriptor, size)
        with reencode(descriptor, file.transfer_syntax_uid, syntax) as other:
            size = os.lseek(other.fileno(), 0, os.SEEK_END)
            os.lseek(other.fileno(), 0, os.SEEK_SET)
            return association.store(context_id, *uids, other.fileno(), size)
    finally:
        os.close(descriptor)


def _refusal(file: Outgoing, accepted: str | None) -> str:
    sop_class, syntax = name_of(file.sop_class_uid), name_of(file.transfer_syntax_uid)
    text = f"the destination does not accept {sop_class} in {syntax}"
    if accepted is not None:
        text += f", but in {name_of(accepted)}: reencodeUncompressed would help"
    return text[:200]
