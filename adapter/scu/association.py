# SPDX-License-Identifier: Apache-2.0
"""An association that we request: one synchronous conversation, every step bounded in time.

::

    TemporaryError
    +-- Unreachable            the peer does not answer, or says "not now": nothing was tried
    +-- AssociationRejected    the peer answered, and rejected the association
    +-- AssociationBroken      the association ended too early

The control PDUs are those of ``adapter.dicom.pdus``.  The bytes of a file go to the socket as they
are, a mebibyte at a time, never decoded and never held as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from struct import Struct
from types import TracebackType
from typing import Self

from adapter.dicom import command_sets as commands
from adapter.dicom import pdus, rejections
from adapter.dicom.pdus import COMMAND, LAST, MAXIMUM_CONTEXTS, PDU_HEADER, PDV_HEADER
from adapter.dicom.transfer_syntaxes import IMPLICIT_VR_LITTLE_ENDIAN
from adapter.dicom.uids import VERIFICATION
from adapter.errors import PermanentError, TemporaryError
from adapter.models import DicomDestination
from adapter.scu.connection import (
    BUFFERS,
    AssociationBroken,
    Deadline,
    RequestorConnection,
    Unreachable,
)
from adapter.settings import Scu

__all__ = [
    "MAXIMUM_CONTEXTS",
    "AssociationBroken",
    "AssociationRejected",
    "FileUnreadable",
    "RequestorAssociation",
    "Unreachable",
]

#: A presentation context as we propose it: an abstract syntax and one transfer syntax.
Context = tuple[str, str]

#: The longest P-DATA-TF that we take; that we send; and that we send to a peer without a limit.
_TAKEN, _SENT, _SENT_TO_UNLIMITED = 16_384, 1 << 20, 1 << 17
_LONGEST_CONTROL_PDU = 1 << 20
_LONGEST_COMMAND = 1 << 16
#: Bytes that the peer has `response_seconds` to take.
_PORTION = 1 << 20

#: Both headers of a P-DATA-TF with one presentation data value.
_PDATA = Struct(">BxIIBB")


class AssociationRejected(TemporaryError):
    """The peer rejected the association.

    Parameters
    ----------
    result, source, reason : int
        The three numbers of the A-ASSOCIATE-RJ (PS3.8 section 9.3.4).
    """

    def __init__(self, result: int, source: int, reason: int) -> None:
        self.code: rejections.Code = (result, source, reason)
        words = rejections.words(self.code)
        super().__init__(f"rejected the association ({result}/{source}/{reason}): {words}")


class FileUnreadable(PermanentError):
    """A file could not be read to its end, so that its association was aborted."""


class RequestorAssociation:
    """An association with a destination, used in a `with` block that releases or aborts it.

    Parameters
    ----------
    destination : DicomDestination
        The peer.
    scu : Scu
        Our AE title, and the deadlines.
    contexts : sequence of Context
        The contexts to propose: at most 128, all different.

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
            request = pdus.encode_request(
                destination.ae_title,
                scu.ae_title,
                ((2 * at + 1, *context) for at, context in enumerate(contexts)),
                _TAKEN,
            )
            try:
                self._connection.send([request], deadline)
                kind, body = self._receive_pdu(deadline)
            except AssociationBroken as broken:
                # A peer that gives no answer at all is as good as absent.
                raise Unreachable(f"asked for an association, the peer {broken}") from None
            self.accepted, longest = self._judge(kind, body, contexts)
        except BaseException:
            self._connection.close()
            raise
        limit = min(longest, _SENT) if longest else _SENT_TO_UNLIMITED
        # A fragment has an even length, and the limit counts the header of its value (PS3.8 D.1,
        # E.1).
        self._fragment = limit - PDV_HEADER.size & ~1

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
            list(self._fragments(context_id, memoryview(command), COMMAND, last=True)),
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
            Descriptor of the file, positioned at the first byte of the data set.
        size : int
            Bytes from there to the end.  Only a deflated data set may be of odd length.  A zero
            byte then makes it even (PS3.5 Annex A.5).

        Raises
        ------
        AssociationBroken
            If the association ends instead.
        FileUnreadable
            If the file cannot be read; the association is then aborted.
        """
        encoded = self._command(commands.C_STORE_RQ, sop_class, commands.DATA_SET, sop_instance)
        buffers = list(self._fragments(context_id, memoryview(encoded), COMMAND, last=True))
        # Whole fragments, header and value, as many as one call of the socket takes.
        amount = min(_PORTION // self._fragment, BUFFERS // 2) * self._fragment
        pad = size % 2
        while size:
            part = memoryview(self._portion)[: min(amount, size)]
            _read(file, part)
            size -= len(part)
            if pad and not size:  # amounts are even: there is room for one byte more
                part = memoryview(self._portion)[: len(part) + 1]
                part[-1] = 0
            buffers += self._fragments(context_id, part, 0, last=not size)
            self._connection.send(buffers, Deadline(self._seconds))
            buffers = []
        return self._receive_status(context_id)

    def release(self) -> None:
        """Release the association and close the connection, whatever the peer answers."""
        with suppress(AssociationBroken):
            deadline = Deadline(self._release_seconds)
            self._connection.send([pdus.encode_release_request()], deadline)
            while True:
                kind, _ = self._receive_pdu(deadline)
                if kind == pdus.RELEASE_RQ:  # both sides at once (PS3.8 section 7.2.2)
                    self._connection.send([pdus.encode_release_response()], deadline)
                elif kind in {pdus.RELEASE_RP, pdus.ABORT}:
                    break
        self._connection.close()

    def abort(self) -> None:
        """Abort the association and close the connection."""
        with suppress(AssociationBroken):
            abort = pdus.encode_abort(pdus.SERVICE_USER, pdus.NO_REASON)
            self._connection.send([abort], Deadline(0))
        self._connection.close()

    # -- the wire ----------------------------------------------------------------------------

    def _judge(
        self, kind: int, body: bytes, contexts: Sequence[Context]
    ) -> tuple[dict[Context, int], int]:
        """Return the contexts that an answer accepts, and the peer's maximum length."""
        if kind == pdus.ASSOCIATE_RJ and len(body) == 4:
            rejection = AssociationRejected(*body[1:])
            if rejection.code[:2] == (rejections.TRANSIENT, rejections.PRESENTATION):
                raise Unreachable(f"the peer {rejection}")
            raise rejection
        if kind == pdus.ABORT:
            raise AssociationBroken("aborted the association before it was established")
        if kind != pdus.ASSOCIATE_AC:
            raise AssociationBroken("sent a PDU that does not answer an A-ASSOCIATE-RQ")
        try:
            answer = pdus.decode_acceptance(PDU_HEADER.pack(kind, len(body)) + body)
        except pdus.MalformedPDU as problem:
            raise AssociationBroken(
                f"answered with an A-ASSOCIATE-AC that cannot be read ({problem})"
            ) from None
        if not answer.contexts:
            raise AssociationBroken("accepted the association without an answer for any context")
        proposed = {2 * at + 1: context for at, context in enumerate(contexts)}
        accepted = {}
        for answered in answer.contexts:
            context = proposed.get(answered.context_id)
            # A syntax other than the one proposed was never offered: nothing can be sent in it.
            if context and answered.result == 0 and answered.transfer_syntaxes == (context[1],):
                accepted[context] = answered.context_id
        return accepted, answer.maximum_length

    def _receive_pdu(self, deadline: Deadline) -> tuple[int, bytes]:
        kind, length = PDU_HEADER.unpack(self._connection.receive(PDU_HEADER.size, deadline))
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
                last = bool(flags & LAST)
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
            elements[commands.PRIORITY] = commands.us(commands.MEDIUM)
            elements[commands.AFFECTED_SOP_INSTANCE_UID] = commands.padded(sop_instance, b"\0")
        return commands.encode_command(elements)

    def _fragments(
        self, context_id: int, data: memoryview, flags: int, *, last: bool
    ) -> Iterator[bytes | memoryview]:
        """Yield data in P-DATA-TF of a length that the peer takes: header, fragment, and so on."""
        for at in range(0, len(data), self._fragment):
            part = data[at : at + self._fragment]
            end = LAST if last and at + len(part) == len(data) else 0
            yield _PDATA.pack(pdus.P_DATA_TF, len(part) + 6, len(part) + 2, context_id, flags | end)
            yield part


def _values(body: bytes, context_id: int) -> Iterator[tuple[bytes, int]]:
    """Yield the command fragments of a P-DATA-TF, with their message control headers."""
    at = 0
    while at < len(body):
        if at + PDV_HEADER.size > len(body):
            raise AssociationBroken("sent a PDU that cannot be read")
        length, context, flags = PDV_HEADER.unpack_from(body, at)
        end = at + 4 + length
        if length < 2 or end > len(body) or context != context_id or not flags & COMMAND:
            raise AssociationBroken("sent a PDU that has no place here")
        yield body[at + PDV_HEADER.size : end], flags
        at = end


def _read(file: int, part: memoryview) -> None:
    """Fill a buffer from a file."""
    try:
        while part:
            amount = os.readv(file, [part])
            if not amount:
                raise FileUnreadable("the file is shorter than it was", "file-unreadable")
            part = part[amount:]
    except OSError as error:
        raise FileUnreadable("the file cannot be read", "file-unreadable") from error
