# SPDX-License-Identifier: Apache-2.0
"""DIMSE for C-ECHO and C-STORE: fragments in, requests out; responses encoded.

::

    idle --command fragments--> command set whole --no data set--> idle
                                     |
                                     +--data set follows--> data fragments --last--> idle

An association carries one message at a time (asynchronous window 1/1), so one reader serves all its
presentation contexts.  There are no sockets, files, clocks or threads here, and the data set is not
read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from adapter.dicom.command_sets import (
    AFFECTED_SOP_CLASS_UID,
    AFFECTED_SOP_INSTANCE_UID,
    C_CANCEL_RQ,
    C_ECHO_RQ,
    C_STORE_RQ,
    COMMAND_DATA_SET_TYPE,
    COMMAND_FIELD,
    ERROR_COMMENT,
    MESSAGE_ID,
    MESSAGE_ID_BEING_RESPONDED_TO,
    NO_DATA_SET,
    RESPONSE,
    STATUS,
    UnreadableCommand,
    decode_command,
    encode_command,
    number,
    padded,
    us,
)
from adapter.dicom.pdus import (
    INVALID_PARAMETER,
    NO_REASON,
    SERVICE_PROVIDER,
    SERVICE_USER,
    UNEXPECTED_PDU,
)
from adapter.dicom.statuses import (
    MISTYPED_ARGUMENT,
    SOP_CLASS_NOT_SUPPORTED,
    SUCCESS,
    UNRECOGNIZED_OPERATION,
)
from adapter.dicom.uids import MAXIMUM_LENGTH, VERIFICATION, is_uid, trimmed
from adapter.scp.upper_layer import Fragment


class ProtocolViolation(Exception):
    """The peer sent something that only A-ABORT answers.

    Parameters
    ----------
    source, reason : int
        Of the A-ABORT (PS3.8 section 9.3.8).
    cause : str
        A word for log and events.
    """

    def __init__(self, source: int, reason: int, cause: str) -> None:
        super().__init__(cause)
        self.source, self.reason, self.cause = source, reason, cause


@dataclass(frozen=True, slots=True)
class EchoRequest:
    """A C-ECHO request."""

    context_id: int
    message_id: int


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """A C-STORE request, whose data set follows; the sink checks that its UIDs are valid."""

    context_id: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class RefusedRequest:
    """A request refused for its command set alone; a data set that follows is to be dropped."""

    context_id: int
    message_id: int
    command_field: int
    status: int
    cause: str
    data_set_follows: bool
    sop_class_uid: str = ""
    sop_instance_uid: str = ""


@dataclass(frozen=True, slots=True)
class DataSet:
    """A piece of the data set that the last request announced."""

    data: memoryview
    last: bool


Message: TypeAlias = EchoRequest | StoreRequest | RefusedRequest | DataSet


class MessageReader:
    """Reads the messages of one association.

    Parameters
    ----------
    contexts : mapping of int to str
        The abstract syntax of each accepted presentation context.
    storage_classes : collection of str
        Every SOP class that is stored.
    command_bytes : int, optional
        The longest command set that is read.
    """

    def __init__(
        self,
        contexts: Mapping[int, str],
        storage_classes: Collection[str],
        command_bytes: int = 65_536,
    ) -> None:
        self._contexts = contexts
        self._storage_classes = storage_classes
        self._command_bytes = command_bytes
        self._command = bytearray()
        self._context_id: int | None = None  # of the message on its way
        self._in_data_set = False

    @property
    def in_message(self) -> bool:
        """Whether a message has begun and is not here in full."""
        return self._context_id is not None

    def read(self, fragment: Fragment) -> Message | None:
        """Return what a fragment means, if it completes something.

        Raises
        ------
        ProtocolViolation
            If the fragment may not come now, or ends a command set that cannot be read.
        """
        context_id, command, last, data = fragment
        if self._in_data_set and not command and context_id == self._context_id:
            if last:
                self._in_data_set, self._context_id = False, None
            return DataSet(data, last)
        if context_id not in self._contexts:
            raise ProtocolViolation(SERVICE_USER, NO_REASON, "context-not-accepted")
        if not command or self._in_data_set or self._context_id not in {None, context_id}:
            raise ProtocolViolation(SERVICE_PROVIDER, UNEXPECTED_PDU, "unexpected-fragment")
        if len(self._command) + len(data) > self._command_bytes:
            raise ProtocolViolation(SERVICE_PROVIDER, INVALID_PARAMETER, "command-set-too-long")
        self._context_id = context_id
        self._command += data
        if not last:
            return None
        try:
            elements = decode_command(bytes(self._command))
        except UnreadableCommand:
            raise ProtocolViolation(SERVICE_USER, NO_REASON, "unreadable-command") from None
        self._command.clear()
        message = self._judge(context_id, elements)
        self._in_data_set = isinstance(message, StoreRequest) or (
            isinstance(message, RefusedRequest) and message.data_set_follows
        )
        if not self._in_data_set:
            self._context_id = None
        return message

    def _judge(self, context_id: int, elements: Mapping[int, bytes]) -> Message | None:
        field = number(elements, COMMAND_FIELD)
        if field == C_CANCEL_RQ:
            return None  # nothing can be cancelled, and C-CANCEL has no response (PS3.7 9.3.2.3)
        message_id = number(elements, MESSAGE_ID)
        if field is None or message_id is None or field & RESPONSE:
            raise ProtocolViolation(SERVICE_USER, NO_REASON, "command-without-answer")
        follows = number(elements, COMMAND_DATA_SET_TYPE) not in {None, NO_DATA_SET}
        if field == C_ECHO_RQ and self._contexts[context_id] == VERIFICATION and not follows:
            return EchoRequest(context_id, message_id)
        sop_class = _uid(elements, AFFECTED_SOP_CLASS_UID)
        sop_instance = _uid(elements, AFFECTED_SOP_INSTANCE_UID)
        if field != C_STORE_RQ:
            found = UNRECOGNIZED_OPERATION, "unrecognized-operation"
        elif not follows or sop_class is None or sop_instance is None:
            found = MISTYPED_ARGUMENT, "incomplete-command"
        elif sop_class not in self._storage_classes:
            found = SOP_CLASS_NOT_SUPPORTED, "sop-class-not-supported"
        else:
            return StoreRequest(context_id, message_id, sop_class, sop_instance)
        return RefusedRequest(
            context_id, message_id, field, *found, follows, sop_class or "", sop_instance or ""
        )


def _uid(elements: Mapping[int, bytes], element: int) -> str | None:
    """Return the text of a UID without its padding, of any grammar; None if there is no such."""
    text = trimmed(elements.get(element, b""))
    return text if 0 < len(text) <= MAXIMUM_LENGTH else None


def encode_response(
    request: EchoRequest | StoreRequest | RefusedRequest, status: int = SUCCESS, comment: str = ""
) -> bytes:
    """Return the command set of the response to a request (PS3.7 sections 9.3.1.2, 9.3.5.2).

    Parameters
    ----------
    request : EchoRequest, StoreRequest or RefusedRequest
        What is answered.
    status : int, optional
        The status (0000,0900).
    comment : str, optional
        ASCII for the error comment (0000,0902), which holds at most 64 characters.
    """
    sop_class, sop_instance, field = VERIFICATION, "", C_ECHO_RQ
    if isinstance(request, StoreRequest):
        field = C_STORE_RQ
    elif isinstance(request, RefusedRequest):
        field = request.command_field
    if not isinstance(request, EchoRequest):
        sop_class, sop_instance = request.sop_class_uid, request.sop_instance_uid
    elements = {
        COMMAND_FIELD: us(field | RESPONSE),
        MESSAGE_ID_BEING_RESPONDED_TO: us(request.message_id),
        COMMAND_DATA_SET_TYPE: us(NO_DATA_SET),
        STATUS: us(status),
    }
    for element, uid in (
        (AFFECTED_SOP_CLASS_UID, sop_class),
        (AFFECTED_SOP_INSTANCE_UID, sop_instance),
    ):
        if is_uid(uid):  # an invalid UID is not sent back
            elements[element] = padded(uid, b"\0")
    if comment:
        elements[ERROR_COMMENT] = padded(comment[:64], b" ")
    return encode_command(elements)
