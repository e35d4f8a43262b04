# SPDX-License-Identifier: Apache-2.0
"""The Storage SCU: files to a destination, as they are.

The bytes of a file's data set go out in the file's own transfer syntax; nothing is decoded,
converted or left out.  A file that the peer does not take in that syntax fails by name.  The export
stage decides what to do about a failure.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import UID

from adapter.dicom import DEFLATED, IMPLICIT_VR_LITTLE_ENDIAN, read_file_meta
from adapter.errors import NotYetVisible, PermanentError, UnreadableInstance
from adapter.files import open_beneath
from adapter.ledger.receipts import Receipt
from adapter.models import DicomDestination, Outcome, check_uid
from adapter.scu.association import (
    MAXIMUM_CONTEXTS,
    AssociationBroken,
    Context,
    FileUnreadable,
    RequestorAssociation,
)
from adapter.settings import Scu

#: Transfer syntaxes whose pixel data is, or may be, lossy (PS3.5 section 10.1, Annex A.4).
LOSSY = frozenset(
    {
        f"1.2.840.10008.1.2.4.{number}"
        for number in (50, 51, 81, 91, 93, 100, 101, 102, 103, 104, 105, 106, 107, 108, 112, 203)
    }
    | {f"1.2.840.10008.1.2.4.{number}.1" for number in range(100, 107)}
)

#: Statuses, beside Success and the warnings, that mean that the destination has the instance:
#: 0001 required optional fields unsupported, 0107 attribute list error, 0116 attribute value out of
#: range (PS3.7 Annex C: all of class warning).
_STORED = frozenset({0x0000, 0x0001, 0x0107, 0x0116})
_DUPLICATE = 0x0111
#: 0122 SOP class not supported, 0124 not authorised (PS3.7 Annex C).
_REFUSED = frozenset({0x0122, 0x0124})


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A file that can be sent.

    Attributes
    ----------
    number : int
        Its number in the task.
    root, path : Path and str
        Where it is: the path below the root is followed through no link.
    data_set : int
        Where its data set begins.
    tries : int
        How often it was sent to this destination before.
    repeat : bool
        Whether it may have been sent there before: a worker that died may have sent it.
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
        """The presentation context that it needs."""
        return self.sop_class_uid, self.transfer_syntax_uid


def judge(status: int, *, repeat: bool) -> Outcome:
    """Return what the status of a C-STORE means for the file.

    Parameters
    ----------
    status : int
        The status (0000,0900) of the answer.
    repeat : bool
        Whether the file was sent there before, so that a duplicate is our own.

    References
    ----------
    PS3.4 Table B.2-1; PS3.7 Annex C.
    """
    if status in _STORED or status >> 12 == 0xB or (repeat and status == _DUPLICATE):
        return Outcome.STORED
    if status >> 8 == 0xA9 or status >> 12 == 0xC or status in _REFUSED:
        return Outcome.REFUSED
    return Outcome.RETRY


def examine(root: Path, path: str, number: int, *, tries: int, repeat: bool) -> Outgoing:
    """Read what must be known of a file before it can be sent.

    Raises
    ------
    NotYetVisible
        If it is not there (yet).
    PermanentError
        If it is no regular file reached without links, or no DICOM file.
    """
    with os.fdopen(open_beneath(root, path), "rb") as file:
        meta = read_file_meta(file)
        start = file.tell()
        size = os.fstat(file.fileno()).st_size - start
    uids = meta.get(0x0002, ""), meta.get(0x0003, ""), meta.get(0x0010, "")
    try:
        sop_class, sop_instance, syntax = map(check_uid, uids)
    except ValueError:
        raise UnreadableInstance(
            "the file meta information lacks a valid UID", "not-dicom"
        ) from None
    if size <= 0 or (size % 2 and syntax not in DEFLATED):
        raise UnreadableInstance("the data set is missing, or cut short", "not-dicom")
    return Outgoing(
        number, root, path, sop_class, sop_instance, syntax, start, tries, repeat or tries > 0
    )


def plan(files: Sequence[Outgoing]) -> list[tuple[list[Context], list[Outgoing]]]:
    """Spread files over associations, each with the contexts to propose in it.

    One context for each SOP class and transfer syntax, with that one syntax, so that the answer is
    about each of them; and one in Implicit VR Little Endian for each SOP class, which has to be
    proposed unless all that there is of it is lossy (PS3.5 section 10.1).  At most 128 go into one
    association.
    """
    syntaxes: dict[str, set[str]] = defaultdict(set)
    for file in files:
        syntaxes[file.sop_class_uid].add(file.transfer_syntax_uid)
    associations: list[tuple[list[Context], list[Outgoing]]] = [([], [])]
    places: dict[Context, int] = {}
    for sop_class, used in syntaxes.items():
        default = [] if used <= LOSSY else [(sop_class, IMPLICIT_VR_LITTLE_ENDIAN)]
        for syntax in sorted(used):
            needed = dict.fromkeys([(sop_class, syntax), *default])
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
    answered: Callable[[], None],
) -> Generator[Receipt]:
    """Send files and yield what became of each; close the iterator to stop between two files.

    Parameters
    ----------
    files : sequence of Outgoing
        What to send, in order.
    answered : callable
        Called when the destination accepts an association.

    Raises
    ------
    Unreachable, AssociationRejected, AssociationBroken
        If there is no association, or it ends; the file on its way has then been yielded.
    """
    for contexts, sent in plan(files):
        # A file that cannot be read to its end costs its association, not the files after it.
        left = list(reversed(sent))
        while left:
            with (
                suppress(FileUnreadable),
                RequestorAssociation(destination, scu, contexts) as association,
            ):
                answered()
                yield from _store_each(association, left)


def _store_each(association: RequestorAssociation, left: list[Outgoing]) -> Iterator[Receipt]:
    """Send files, each taken off the list's end, until none is left or the association is lost."""
    while left:
        file = left.pop()
        context_id = association.accepted.get(file.context)
        if context_id is None:
            yield Receipt(file.number, file.tries, Outcome.REFUSED, None, _refusal(file))
            continue
        tries = file.tries + 1
        try:
            status = _store_one(association, context_id, file)
        except AssociationBroken as broken:
            reason = f"the destination {broken}"
            yield Receipt(file.number, tries, Outcome.RETRY, None, reason)
            raise
        except FileUnreadable as failure:
            yield Receipt(file.number, tries, Outcome.REFUSED, None, str(failure))
            raise
        except NotYetVisible as missing:
            yield Receipt(file.number, file.tries, Outcome.RETRY, None, str(missing))
        except OSError as error:
            words = f"the file cannot be opened (errno {error.errno})"
            yield Receipt(file.number, file.tries, Outcome.RETRY, None, words)
        except PermanentError as failure:
            yield Receipt(file.number, tries, Outcome.REFUSED, None, str(failure))
        else:
            outcome = judge(status, repeat=file.repeat)
            said = None if outcome is Outcome.STORED else f"status {status:04X}"
            yield Receipt(file.number, tries, outcome, status, said)


def _store_one(association: RequestorAssociation, context_id: int, file: Outgoing) -> int:
    descriptor = open_beneath(file.root, file.path)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END) - file.data_set
        os.lseek(descriptor, file.data_set, os.SEEK_SET)
        return association.store(
            context_id, file.sop_class_uid, file.sop_instance_uid, descriptor, size
        )
    finally:
        os.close(descriptor)


def _refusal(file: Outgoing) -> str:
    sop_class, syntax = UID(file.sop_class_uid), UID(file.transfer_syntax_uid)
    return f"the destination does not accept {sop_class.name} in {syntax.name}"[:200]
