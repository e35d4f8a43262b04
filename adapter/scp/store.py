# SPDX-License-Identifier: Apache-2.0
"""One instance from the wire into the spool: checked, made durable or withdrawn, answered.

======  =========================================================================================
status  what makes us answer it (``adapter.dicom.statuses`` has all of them)
======  =========================================================================================
0000    the instance is durable in incoming/, or of a SOP class that its AE title ignores
A700    no space, or any failure of the spool; the file was withdrawn
A900    the UIDs of command, presentation context and data set differ, or are not valid
C000    the data set is empty or does not begin as its transfer syntax says
0110    a fault of our own
======  =========================================================================================
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field

from adapter.dicom.leading_uids import LOOK_AHEAD_BYTES, UnreadableStart, leading_uids
from adapter.dicom.part10 import part10_header
from adapter.dicom.statuses import (
    CANNOT_UNDERSTAND,
    DOES_NOT_MATCH_SOP_CLASS,
    OUT_OF_RESOURCES,
    PROCESSING_FAILURE,
    SUCCESS,
)
from adapter.dicom.tags import SOP_CLASS_UID, SOP_INSTANCE_UID
from adapter.dicom.uids import is_uid
from adapter.errors import SpoolAway
from adapter.log import get_logger
from adapter.models import ArrivalId
from adapter.scp.acceptance import Accepted, ContextResult
from adapter.scp.events import ScpEvents, note
from adapter.scp.publishing import Publishing
from adapter.spool import IncomingFile, Spool

log = get_logger(__name__)

#: Bytes of a data set that are looked at first; they nearly always hold the UIDs.
_FIRST_FRAGMENT_BYTES = 2048


@dataclass(frozen=True, slots=True)
class StoreCommand:
    """The command set of a C-STORE-RQ, unchecked, and the accepted context it came under."""

    sop_class_uid: str
    sop_instance_uid: str
    context: ContextResult


@dataclass(frozen=True, slots=True)
class Answer:
    """The status of a C-STORE-RSP, and its Error Comment (0000,0902), if any.

    Attributes
    ----------
    status : int
        The status.
    comment : str
        For the peer's log; at most 64 characters are sent.
    """

    status: int
    comment: str = ""


class _RefusedStore(Exception):
    def __init__(self, status: int, comment: str) -> None:
        super().__init__(comment)
        self.answer = Answer(status, comment)


@dataclass(frozen=True, slots=True)
class StoreContext:
    """What all sinks of one SCP share.

    Attributes
    ----------
    spool : Spool
        Where instances are stored.
    events : ScpEvents
        Where events and counts go.
    why_full : callable
        Returns why nothing can be stored now, in a few words; empty if it can.
    on_stored : callable
        Called after each instance that is stored; never waits.
    instance_bytes : int, optional
        The longest data set that is taken.
    durable : bool, optional
        False syncs nothing: for benchmarks only.
    publishing : Publishing, optional
        The instances of this process whose names are not visible yet.
    strict_uids : bool, optional
        Whether UIDs must have the grammar of PS3.5 section 9.1.
    """

    spool: Spool
    events: ScpEvents
    why_full: Callable[[], str]
    on_stored: Callable[[], None]
    instance_bytes: int = 4_294_967_296
    durable: bool = True
    publishing: Publishing = field(default_factory=Publishing)
    strict_uids: bool = False


class Receive:
    """One instance on its way into the spool.

    Parameters
    ----------
    context : StoreContext
        What all instances of the SCP share.
    accepted : Accepted
        The decision that the association was accepted by.
    command : StoreCommand
        What the peer says that it sends.
    association : str
        The association's id.
    next_arrival : callable
        Given the time at which the bytes became durable, returns the instance's id.
    settled : callable
        Called by `finish` with the answer and the bytes stored, or None if nothing is in the spool.
    """

    def __init__(
        self,
        context: StoreContext,
        accepted: Accepted,
        command: StoreCommand,
        *,
        association: str,
        next_arrival: Callable[[float], ArrivalId],
        settled: Callable[[StoreCommand, Answer, int | None], None],
    ) -> None:
        self._context = context
        self._accepted = accepted
        self._command = command
        self._association = association
        self._next_arrival = next_arrival
        self._settled = settled
        self._file: IncomingFile | None = None
        self._answer: Answer | None = None
        self._ignored = False
        self._header = b""
        self._head = bytearray()
        self._checked = False
        self._size = 0
        self._attempt(self._begin)

    def data(self, *fragments: bytes | memoryview) -> None:
        """Take the next bytes of the data set; after a refusal they are dropped."""
        if self._answer is None:
            self._attempt(self._write, *fragments)

    def finish(self) -> Answer:
        """Make the instance durable, or withdraw it, and return what to answer."""
        if self._answer is None:
            self._attempt(self._publish)
        answer = self._answer or Answer(SUCCESS)
        note(self._settled, self._command, answer, None if self._ignored else self._size)
        return answer

    def discard(self) -> None:
        """Withdraw the instance: the rest of its message will not come, and nothing is answered."""
        self._answer = Answer(PROCESSING_FAILURE, "not received whole")
        self._withdraw()

    # -- steps ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        command, context, accepted = self._command, self._context, self._accepted
        strict = context.strict_uids
        if not (
            is_uid(command.sop_class_uid, strict=strict)
            and is_uid(command.sop_instance_uid, strict=strict)
        ):
            raise _RefusedStore(DOES_NOT_MATCH_SOP_CLASS, "a UID of the command is not valid")
        if command.sop_class_uid != command.context.abstract_syntax:
            raise _RefusedStore(
                DOES_NOT_MATCH_SOP_CLASS, "SOP class differs from the presentation context"
            )
        if command.sop_class_uid in accepted.ae_title.entity.ignored_sop_classes:
            self._ignored = True
            self._answer = Answer(SUCCESS)
            return
        if why := context.why_full():
            raise _RefusedStore(OUT_OF_RESOURCES, why.replace("-", " "))
        self._file = context.spool.receive(self._association, durable=context.durable)
        self._header = part10_header(
            sop_class_uid=command.sop_class_uid,
            sop_instance_uid=command.sop_instance_uid,
            transfer_syntax_uid=command.context.transfer_syntax,
            calling_ae_title=accepted.calling_ae,
            called_ae_title=accepted.called_ae,
        )

    def _write(self, *fragments: bytes | memoryview) -> None:
        if not self._checked and not (self._size == 0 and self._check_first_fragment(fragments[0])):
            for fragment in fragments:
                self._head += fragment[: LOOK_AHEAD_BYTES - len(self._head)]
            if len(self._head) == LOOK_AHEAD_BYTES:
                self._check_leading_uids(complete=False)
        self._size += sum(map(len, fragments))
        if self._size > self._context.instance_bytes:
            raise _RefusedStore(OUT_OF_RESOURCES, "the data set is too long")
        if self._header:  # written with the first bytes of the data set: one call for both
            self._open_file.write(self._header, *fragments)
            self._header = b""
        else:
            self._open_file.write(*fragments)

    def _check_first_fragment(self, fragment: bytes | memoryview) -> bool:
        """Look for the UIDs in the first bytes of a fragment; False if they are not there."""
        if len(fragment) < _FIRST_FRAGMENT_BYTES:
            return False
        head = bytes(fragment[:_FIRST_FRAGMENT_BYTES])
        found = leading_uids(head, self._command.context.transfer_syntax, complete=False)
        self._checked = found == {
            SOP_CLASS_UID: self._command.sop_class_uid,
            SOP_INSTANCE_UID: self._command.sop_instance_uid,
        }
        return self._checked

    def _publish(self) -> None:
        if not self._checked:
            self._check_leading_uids(complete=True)
        file = self._open_file
        file.sync()
        # The time is taken after the bytes are durable: a group closes only over files that were
        # there to be seen.
        naming = self._context.publishing.begin()
        try:
            file.publish(self._next_arrival(naming.received_at), naming.visible)
        finally:
            naming.end()

    def _check_leading_uids(self, *, complete: bool) -> None:
        """Compare the UIDs of data set and command; notification checks for missing ones."""
        self._checked = True
        found = leading_uids(
            bytes(self._head), self._command.context.transfer_syntax, complete=complete
        )
        self._head.clear()
        if found.get(SOP_CLASS_UID, self._command.sop_class_uid) != self._command.sop_class_uid:
            raise _RefusedStore(
                DOES_NOT_MATCH_SOP_CLASS, "SOP class of data set and command differ"
            )
        uid = self._command.sop_instance_uid
        if found.get(SOP_INSTANCE_UID, uid) != uid:
            raise _RefusedStore(
                DOES_NOT_MATCH_SOP_CLASS, "SOP instance of data set and command differ"
            )

    @property
    def _open_file(self) -> IncomingFile:
        if self._file is None:
            raise AssertionError("no file is open")
        return self._file

    # -- failures ------------------------------------------------------------------------------

    def _attempt(self, step: Callable[..., None], *arguments: bytes | memoryview) -> None:
        """Take a step; if it fails, withdraw the file and answer accordingly."""
        try:
            step(*arguments)
        except _RefusedStore as refusal:
            self._answer = refusal.answer
        except UnreadableStart as error:
            self._answer = Answer(CANNOT_UNDERSTAND, str(error))
        except SpoolAway:
            self._answer = Answer(OUT_OF_RESOURCES, "spool away")
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "error")
            self._answer = Answer(OUT_OF_RESOURCES, f"the spool failed ({name})")
            note(self._context.events.spool_failed, name)
        except Exception as error:  # the protocol boundary: the peer gets an answer
            log.exception("store failed", association=self._association)
            self._answer = Answer(PROCESSING_FAILURE, f"internal error ({type(error).__name__})")
        if self._answer is not None:
            self._withdraw()

    def _withdraw(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.discard()
        except OSError as error:
            log.warning("a refused file stays behind", error=type(error).__name__)
