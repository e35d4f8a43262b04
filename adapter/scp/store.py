# SPDX-License-Identifier: Apache-2.0
"""One instance on its way from the wire into the spool: checked, durable or withdrawn, answered.

======  =========================================================================================
status  meaning (PS3.4 Table B.2-1; PS3.7 Annex C)
======  =========================================================================================
0000    the instance is durable in incoming/, or of a SOP class that its AE title ignores
A700    no space, or any failure of the spool; the file was withdrawn
A900    the UIDs of command, presentation context and data set do not fit together, or are no UIDs
C000    the data set is empty or does not begin as its transfer syntax says
0110    a fault of our own
======  =========================================================================================
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass

from adapter.dicom import SOP_CLASS_UID, SOP_INSTANCE_UID, part10_header
from adapter.log import get_logger
from adapter.models import ArrivalId, check_uid
from adapter.scp.acceptance import Accepted, ContextResult
from adapter.scp.events import ScpEvents
from adapter.scp.leading_uids import LOOK_AHEAD_BYTES, UnreadableStart, leading_uids
from adapter.spool import IncomingFile, Spool

log = get_logger(__name__)

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH_SOP_CLASS = 0xA900
CANNOT_UNDERSTAND = 0xC000

#: Bytes of a data set that are looked at first, in the hope that it will do.
_FIRST_FRAGMENT_BYTES = 2048


@dataclass(frozen=True, slots=True)
class StoreCommand:
    """A C-STORE-RQ's command set, as it came, and the accepted context that it came under."""

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
        At most 64 characters, for the peer's log.
    """

    status: int
    comment: str = ""


class _RefusedStore(Exception):
    def __init__(self, status: int, comment: str) -> None:
        super().__init__(comment)
        self.answer = Answer(status, comment)


@dataclass(frozen=True, slots=True)
class StoreContext:
    """What the sinks of one SCP share.

    Attributes
    ----------
    spool : Spool
        Where instances are stored.
    events : ScpEvents
        Where events and counts go.
    storage_low : callable
        Tells whether the disk is too full to receive.
    on_stored : callable
        Told of each instance that is stored; never waits.
    instance_bytes : int, optional
        The longest data set that is taken.
    durable : bool, optional
        False syncs nothing: for benchmarks only.
    """

    spool: Spool
    events: ScpEvents
    storage_low: Callable[[], bool]
    on_stored: Callable[[], None]
    instance_bytes: int = 4_294_967_296
    durable: bool = True


class Receive:
    """One instance on its way into the spool.

    Parameters
    ----------
    context : StoreContext
        What it shares with all others.
    accepted : Accepted
        The decision that its association was accepted by.
    command : StoreCommand
        What the peer says it sends.
    association : str
        The association's id.
    next_arrival : callable
        Gives the instance its id, when its bytes are durable at a time.
    settled : callable
        Called by `finish` with the answer and the bytes stored; None if it is not in the spool.
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
        self._settled(self._command, answer, None if self._ignored else self._size)
        return answer

    def discard(self) -> None:
        """Withdraw the instance: its message will not end, and nothing is answered."""
        self._answer = Answer(PROCESSING_FAILURE, "not received whole")
        self._withdraw()

    # -- steps ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        command, context, accepted = self._command, self._context, self._accepted
        for uid in (command.sop_class_uid, command.sop_instance_uid):
            _check_command_uid(uid)
        if command.sop_class_uid != command.context.abstract_syntax:
            raise _RefusedStore(
                DOES_NOT_MATCH_SOP_CLASS, "SOP class differs from the presentation context"
            )
        if command.sop_class_uid in accepted.ae_title.entity.ignored_sop_classes:
            self._ignored = True
            self._answer = Answer(SUCCESS)
            return
        if context.storage_low():
            raise _RefusedStore(OUT_OF_RESOURCES, "low on storage")
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
        if self._header:  # with the first bytes behind it: one call for both
            self._open_file.write(self._header, *fragments)
            self._header = b""
        else:
            self._open_file.write(*fragments)

    def _check_first_fragment(self, fragment: bytes | memoryview) -> bool:
        """Look for the UIDs where they nearly always are; False if they are not there."""
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
        # Taken after the bytes are durable: a group closes only over files it could have seen.
        file.publish(self._next_arrival(time.time()))

    def _check_leading_uids(self, *, complete: bool) -> None:
        """Compare the data set's UIDs with the command's; missing ones are left to notification."""
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
        """Take a step; whatever goes wrong withdraws the file and becomes the answer."""
        try:
            step(*arguments)
        except _RefusedStore as refusal:
            self._answer = refusal.answer
        except UnreadableStart as error:
            self._answer = Answer(CANNOT_UNDERSTAND, str(error))
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "error")
            self._answer = Answer(OUT_OF_RESOURCES, f"the spool failed ({name})")
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


def _check_command_uid(uid: str) -> None:
    try:
        check_uid(uid)
    except ValueError:
        raise _RefusedStore(DOES_NOT_MATCH_SOP_CLASS, "a UID of the command is no UID") from None
