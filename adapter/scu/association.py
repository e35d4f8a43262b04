# SPDX-License-Identifier: Apache-2.0
"""An association that we ask for: one synchronous conversation, every step of it bounded in time.

::

    TemporaryError
    +-- Unreachable    nobody answers, or the peer says "not now": nothing was tried
    +-- AssociationRejected       the peer answered, and does not want the association
    +-- AssociationBroken         it ended before its time

pynetdicom encodes and decodes the association's PDUs.  P-DATA is ours: the bytes of a file go to
the socket as they are, a mebibyte at a time, never decoded and never held as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from struct import Struct
from types import TracebackType
from typing import Self

from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import build_context

from adapter.dicom import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    IMPLICIT_VR_LITTLE_ENDIAN,
    VERIFICATION,
)
from adapter.errors import PermanentError, TemporaryError
from adapter.models import DicomDestination
from adapter.scp import command_sets as commands
from adapter.scp import pdus
from adapter.scu.connection import (
    BUFFERS,
    AssociationBroken,
    Deadline,
    RequestorConnection,
    Unreachable,
)
from adapter.settings import Scu

__all__ = [
    "AssociationBroken",
    "AssociationRejected",
    "FileUnreadable",
    "RequestorAssociation",
    "Unreachable",
]

#: A presentation context as we propose it: an abstract syntax and the one transfer syntax.
Context = tuple[str, str]

#: The most contexts that one association has: the odd numbers of a byte (PS3.8 section 9.3.2.2).
MAXIMUM_CONTEXTS = 128

#: The longest P-DATA-TF that we take, and the longest that we send (to a peer without a limit).
_TAKEN, _SENT, _SENT_TO_UNLIMITED = 16_384, 1 << 20, 1 << 17
_LONGEST_CONTROL_PDU = 1 << 20
_LONGEST_COMMAND = 1 << 16
#: Bytes that the peer gets `response_seconds` to take.
_PORTION = 1 << 20

_PDU, _PDV = Struct(">BxI"), Struct(">IBB")
_PDATA = Struct(">BxIIBB")
_COMMAND, _LAST = 1, 2  # bits of the message control header (PS3.8 Annex E.2)
_RELEASE = _PDU.pack(pdus.RELEASE_RQ, 4) + bytes(4)
_RELEASED = _PDU.pack(pdus.RELEASE_RP, 4) + bytes(4)

#: What a rejection says, by source and reason (PS3.8 Table 9-21).
REASONS = {
    (1, 1): "no reason given",
    (1, 2): "the application context is not supported",
    (1, 3): "the calling AE title is not recognised",
    (1, 7): "the called AE title is not recognised",
    (2, 1): "no reason given by its upper layer",
    (2, 2): "the protocol version is not supported",
    (3, 1): "temporary congestion",
    (3, 2): "its local limit is exceeded",
}
CALLING_NOT_RECOGNISED, CALLED_NOT_RECOGNISED = (1, 1, 3), (1, 1, 7)
_TRANSIENT, _PRESENTATION_PROVIDER = 2, 3


class AssociationRejected(TemporaryError):
    """The peer rejected the association.

    Parameters
    ----------
    result, source, reason : int
        As it said (PS3.8 section 9.3.4).
    """

    def __init__(self, result: int, source: int, reason: int) -> None:
        self.code = (result, source, reason)
        words = REASONS.get((source, reason), "a reason unknown to the Standard")
        super().__init__(f"rejected the association ({result}/{source}/{reason}): {words}")


class FileUnreadable(PermanentError):
    """A file could not be read to its end; the association is over, the other files are not."""


class RequestorAssociation:
    """An association with a destination, to be used in a `with` block that releases or aborts it.

    Parameters
    ----------
    destination : DicomDestination
        Whom to ask.
    scu : Scu
        Who asks, and the deadlines.
    contexts : sequence of Context
        What to propose; each must be there once, and there are at most 128.

    Attributes
    ----------
    accepted : dict of Context to int
        Ids of the contexts that the peer accepted.

    Raises
    ------
    Unreachable, AssociationRejected, AssociationBroken
        If there is no association.

    References
    ----------
    PS3.8 section 7.1, Annex D.1; PS3.7 Annex D.
    """

    def __init__(
        self, destination: DicomDestination, scu: Scu, contexts: Sequence[Context]
    ) -> None:
        self._seconds = scu.response_seconds
        self._release_seconds = scu.association_seconds
        self._message_id = 0
        self._portion = bytearray(_PORTION)
        self._connection = RequestorConnection(
            destination.host_ip, destination.port, scu.connect_seconds
        )
        try:
            deadline = Deadline(scu.association_seconds)
            request = _request(destination.ae_title, scu.ae_title, contexts)
            try:
                self._connection.send([request], deadline)
                kind, body = self._receive_pdu(deadline)
            except AssociationBroken as broken:
                # No answer at all: as good as nobody being there.
                raise Unreachable(f"asked for an association, the peer {broken}") from None
            self.accepted, longest = self._judge(kind, body, contexts)
        except BaseException:
            self._connection.close()
            raise
        limit = min(longest, _SENT) if longest else _SENT_TO_UNLIMITED
        # Fragments are of even length, and a length counts the header of the PDV (PS3.8 D.1, E.1).
        self._fragment = limit - _PDV.size & ~1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, GeneratorExit):
            self.release()
        else:
            self.abort()

    # -- requests ----------------------------------------------------------------------------

    def echo(self) -> int:
        """Send a C-ECHO and return the status of the answer (PS3.7 section 9.1.5).

        Raises
        ------
        AssociationBroken
            If the association ends instead.
        """
        context_id = self.accepted[VERIFICATION, IMPLICIT_VR_LITTLE_ENDIAN]
        command = self._command(commands.C_ECHO_RQ, VERIFICATION, commands.NO_DATA_SET)
        self._connection.send(
            list(self._fragments(context_id, memoryview(command), _COMMAND, last=True)),
            Deadline(self._seconds),
        )
        return self._receive_status(context_id)

    def store(
        self, context_id: int, sop_class: str, sop_instance: str, file: int, size: int
    ) -> int:
        """Send a data set by C-STORE and return the status of the answer (PS3.7 section 9.1.1).

        Parameters
        ----------
        context_id : int
            The accepted context.
        file : int
            Descriptor of the file, which stands at the first byte of the data set.
        size : int
            Bytes from there to the end.  Only a deflated data set may be of odd length: it gets the
            zero byte that makes it even (PS3.5 Annex A.5).

        Raises
        ------
        AssociationBroken
            If the association ends instead.
        FileUnreadable
            If the file cannot be read; the association is then aborted.
        """
        command = memoryview(self._command(commands.C_STORE_RQ, sop_class, 1, sop_instance))
        buffers = list(self._fragments(context_id, command, _COMMAND, last=True))
        # Whole fragments, header and value, as many as one call of the socket takes.
        amount = min(_PORTION // self._fragment, BUFFERS // 2) * self._fragment
        pad = size % 2
        while size:
            part = memoryview(self._portion)[: min(amount, size)]
            _read(file, part)
            size -= len(part)
            if pad and not size:  # amounts are even: a portion of odd length has room for one more
                part = memoryview(self._portion)[: len(part) + 1]
                part[-1] = 0
            buffers += self._fragments(context_id, part, 0, last=not size)
            self._connection.send(buffers, Deadline(self._seconds))
            buffers = []
        return self._receive_status(context_id)

    def release(self) -> None:
        """Release the association and close the connection, whatever the peer says to it."""
        with suppress(AssociationBroken):
            deadline = Deadline(self._release_seconds)
            self._connection.send([_RELEASE], deadline)
            while True:
                kind, _ = self._receive_pdu(deadline)
                if kind == pdus.RELEASE_RQ:  # both at once (PS3.8 section 7.2.2)
                    self._connection.send([_RELEASED], deadline)
                elif kind in {pdus.RELEASE_RP, pdus.ABORT}:
                    break
        self._connection.close()

    def abort(self) -> None:
        """Abort the association and close the connection."""
        with suppress(AssociationBroken):
            self._connection.send([pdus.encode_abort(0, 0)], Deadline(0))
        self._connection.close()

    # -- the wire ----------------------------------------------------------------------------

    def _judge(
        self, kind: int, body: bytes, contexts: Sequence[Context]
    ) -> tuple[dict[Context, int], int]:
        """Return the contexts that an answer accepts, and the peer's maximum length."""
        if kind == pdus.ASSOCIATE_RJ and len(body) == 4:
            rejection = AssociationRejected(*body[1:])
            if rejection.code[:2] == (_TRANSIENT, _PRESENTATION_PROVIDER):
                raise Unreachable(f"the peer {rejection}")
            raise rejection
        if kind == pdus.ABORT:
            raise AssociationBroken("aborted the association before it stood")
        if kind != pdus.ASSOCIATE_AC:
            raise AssociationBroken("did not answer as the Standard has it")
        answer = A_ASSOCIATE_AC()
        accepted = {}
        try:
            answer.decode(_PDU.pack(kind, len(body)) + body)
            longest = pdus.maximum_length(answer)
            for item in answer.presentation_context:
                at = (item.context_id or 0) // 2
                if item.result == 0 and item.transfer_syntax == contexts[at][1]:
                    accepted[contexts[at]] = 2 * at + 1
        except Exception:  # noqa: BLE001 - the protocol boundary: pynetdicom stumbles in any way
            raise AssociationBroken("answered with an A-ASSOCIATE-AC that cannot be read") from None
        if 0 < longest < pdus.LEAST_MAXIMUM_LENGTH:
            raise AssociationBroken("has a maximum length in which nothing can be sent")
        return accepted, longest

    def _receive_pdu(self, deadline: Deadline) -> tuple[int, bytes]:
        kind, length = _PDU.unpack(self._connection.receive(_PDU.size, deadline))
        if length > (_TAKEN if kind == pdus.P_DATA_TF else _LONGEST_CONTROL_PDU):
            raise AssociationBroken("sent a PDU that is too long")
        return kind, self._connection.receive(length, deadline)

    def _receive_status(self, context_id: int) -> int:
        """Return the status of the answer to the last request."""
        deadline = Deadline(self._seconds)
        command = bytearray()
        last = False
        while not last:
            kind, body = self._receive_pdu(deadline)
            if kind == pdus.RELEASE_RQ:
                raise AssociationBroken("released the association before it answered")
            if kind == pdus.ABORT:
                raise AssociationBroken("aborted the association")
            if kind != pdus.P_DATA_TF:
                raise AssociationBroken("sent a PDU that has no place here")
            for fragment, flags in _values(body, context_id):
                command += fragment
                last = bool(flags & _LAST)
            if len(command) > _LONGEST_COMMAND:
                raise AssociationBroken("sent a command set that is too long")
        try:
            elements = commands.decode_command(bytes(command))
        except commands.UnreadableCommand:
            raise AssociationBroken("sent an answer that cannot be read") from None
        status = commands.number(elements, commands.STATUS)
        answered = commands.number(elements, commands.MESSAGE_ID_BEING_RESPONDED_TO)
        if status is None or answered != self._message_id:
            raise AssociationBroken("sent an answer to something else")
        return status

    def _command(self, field: int, sop_class: str, data_set: int, sop_instance: str = "") -> bytes:
        self._message_id = self._message_id % 0xFFFF + 1
        elements = {
            commands.AFFECTED_SOP_CLASS_UID: commands.padded(sop_class, b"\0"),
            commands.COMMAND_FIELD: commands.us(field),
            commands.MESSAGE_ID: commands.us(self._message_id),
            commands.COMMAND_DATA_SET_TYPE: commands.us(data_set),
        }
        if sop_instance:
            elements[_PRIORITY] = commands.us(0)  # medium
            elements[commands.AFFECTED_SOP_INSTANCE_UID] = commands.padded(sop_instance, b"\0")
        return commands.encode_command(elements)

    def _fragments(
        self, context_id: int, data: memoryview, flags: int, *, last: bool
    ) -> Iterator[bytes | memoryview]:
        """Yield data in P-DATA-TF that the peer takes: header, fragment, header, fragment."""
        for at in range(0, len(data), self._fragment):
            part = data[at : at + self._fragment]
            end = _LAST if last and at + len(part) == len(data) else 0
            yield _PDATA.pack(pdus.P_DATA_TF, len(part) + 6, len(part) + 2, context_id, flags | end)
            yield part


_PRIORITY = 0x0700


def _request(called: str, calling: str, contexts: Sequence[Context]) -> bytes:
    """Return an A-ASSOCIATE-RQ."""
    proposed = []
    for at, (abstract_syntax, transfer_syntax) in enumerate(contexts):
        context = build_context(abstract_syntax, transfer_syntax)
        context.context_id = 2 * at + 1
        proposed.append(context)
    longest = MaximumLengthNotification()
    longest.maximum_length_received = _TAKEN
    uid = ImplementationClassUIDNotification()
    uid.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"  # PS3.7 Annex A.2.1
    primitive.calling_ae_title, primitive.called_ae_title = calling, called
    primitive.presentation_context_definition_list = proposed
    primitive.user_information = [longest, uid, version]
    return A_ASSOCIATE_RQ(primitive).encode()


def _values(body: bytes, context_id: int) -> Iterator[tuple[bytes, int]]:
    """Yield the command fragments of a P-DATA-TF, with their message control headers."""
    at = 0
    while at < len(body):
        if at + _PDV.size > len(body):
            raise AssociationBroken("sent a PDU that cannot be read")
        length, context, flags = _PDV.unpack_from(body, at)
        end = at + 4 + length
        if length < 2 or end > len(body) or context != context_id or not flags & _COMMAND:
            raise AssociationBroken("sent a PDU that has no place here")
        yield body[at + _PDV.size : end], flags
        at = end


def _read(file: int, part: memoryview) -> None:
    """Fill a buffer from a file."""
    try:
        while part:
            amount = os.readv(file, [part])
            if not amount:
                raise FileUnreadable("the file is shorter than it was", "file-unreadable")
            part = part[amount:]
    except OSError:
        raise FileUnreadable("the file cannot be read", "file-unreadable") from None
