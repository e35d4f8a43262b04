# SPDX-License-Identifier: Apache-2.0
"""The upper layer of the acceptor: bytes in; indications and bytes out.

There are no sockets, files, clocks or threads here, and the items of a request are not read.  The
states and actions are those of PS3.8 section 9.2, in the table below.  An acceptor never asks for
an association and never asks to release one, so the rest of the Standard's table cannot be reached.

::

    Sta2 --A-ASSOCIATE-RQ--> Sta3 --accept--> Sta6 --A-RELEASE-RQ--> Sta8 --release--> Sta13
      +--reject----------------+----reject----------------------------------------------^
      +-- anything else, and any violation in any state: A-ABORT ------------------------^
                                                                    Sta13 --closed--> Sta1

An A-ASSOCIATE-RQ is indicated twice: when its fixed part has come, so that a caller whom nobody
knows is rejected before more of it is read, and when it is whole (AE-6).

A P-DATA-TF is never assembled.  The part of a fragment that has come is handed on at once, as a
view of the received bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, TypeAlias

from adapter.dicom import pdus
from adapter.dicom.pdus import (
    COMMAND,
    INVALID_PARAMETER,
    LAST,
    NO_REASON,
    PDU_HEADER,
    PDV_HEADER,
    SERVICE_PROVIDER,
    SERVICE_USER,
    UNEXPECTED_PDU,
    UNRECOGNIZED_PDU,
)

#: The longest P-DATA-TF we send to a peer that sets no limit.
UNLIMITED = 131_072


class State(Enum):
    """States of an association (PS3.8 section 9.2.1)."""

    STA1 = "idle"
    STA2 = "awaiting A-ASSOCIATE-RQ"
    STA3 = "awaiting the local answer"
    STA6 = "established"
    STA8 = "awaiting the local A-RELEASE response"
    STA13 = "awaiting the close of the connection"


class Received(Enum):
    """What can come from the peer or the transport (the events of PS3.8 section 9.2.2)."""

    REQUEST = auto()
    DATA = auto()
    RELEASE = auto()
    ABORT = auto()
    UNEXPECTED = auto()  #: a PDU that only an acceptor sends
    UNRECOGNIZED = auto()  #: a PDU of no known type
    INVALID = auto()  #: a PDU with an impossible length or content
    CLOSED = auto()


class Action(Enum):
    """Actions (PS3.8 section 9.2.3), by the state they lead to."""

    AE_6 = ("A-ASSOCIATE indication", State.STA3)
    DT_2 = ("P-DATA indication", State.STA6)
    AR_2 = ("A-RELEASE indication", State.STA8)
    AA_1 = ("send A-ABORT as the user", State.STA13)
    AA_2 = ("close the connection", State.STA1)
    AA_3 = ("A-ABORT indication, close the connection", State.STA1)
    AA_4 = ("A-P-ABORT indication", State.STA1)
    AA_5 = ("stop ARTIM", State.STA1)
    AA_8 = ("send A-ABORT as the provider", State.STA13)
    AR_5 = ("stop ARTIM, closed", State.STA1)


def _row(others: Action, **actions: Action) -> dict[Received, Action]:
    return {event: actions.get(event.name.lower(), others) for event in Received}


#: The action for each event (PS3.8 Table 9-10).  In Sta13 bytes are thrown away unread.
TABLE: dict[State, dict[Received, Action]] = {
    State.STA2: _row(Action.AA_1, request=Action.AE_6, abort=Action.AA_2, closed=Action.AA_5),
    State.STA3: _row(Action.AA_8, abort=Action.AA_3, closed=Action.AA_4),
    State.STA6: _row(
        Action.AA_8, data=Action.DT_2, release=Action.AR_2, abort=Action.AA_3, closed=Action.AA_4
    ),
    State.STA8: _row(Action.AA_8, abort=Action.AA_3, closed=Action.AA_4),
    State.STA13: _row(Action.AA_2, closed=Action.AR_5),
}

_KINDS = {
    pdus.ASSOCIATE_RQ: Received.REQUEST,
    pdus.ASSOCIATE_AC: Received.UNEXPECTED,
    pdus.ASSOCIATE_RJ: Received.UNEXPECTED,
    pdus.P_DATA_TF: Received.DATA,
    pdus.RELEASE_RQ: Received.RELEASE,
    pdus.RELEASE_RP: Received.UNEXPECTED,
    pdus.ABORT: Received.ABORT,
}

#: Reasons of the A-ABORT that answers a violation; any other gets "unexpected PDU".
_REASONS = {Received.UNRECOGNIZED: UNRECOGNIZED_PDU, Received.INVALID: INVALID_PARAMETER}


class RequestBegun(NamedTuple):
    """The fixed part of an A-ASSOCIATE-RQ is here; it may be rejected already."""

    pdu: bytes


class Requested(NamedTuple):
    """The peer asks for an association: answer with `accept` or `reject`, or abort."""

    pdu: bytes


class Fragment(NamedTuple):
    """A piece of a message; `data` is valid until the next `receive`."""

    context_id: int
    command: bool  #: of the command set, else of the data set
    last: bool  #: the set ends with this piece
    data: memoryview


class Released(NamedTuple):
    """The peer asks for the association's release: answer with `release`."""


class Aborted(NamedTuple):
    """The association has ended without a release, or never began; `received` says by what."""

    by_peer: bool
    source: int
    reason: int
    received: Received


Indication: TypeAlias = RequestBegun | Requested | Fragment | Released | Aborted

_HEADER_LENGTH = 6  # of a PDU, and of a presentation data value


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may send.

    Attributes
    ----------
    request_bytes : int
        Length of an A-ASSOCIATE-RQ.
    pdu_bytes : int
        Length of a P-DATA-TF, as offered to the peer (PS3.8 Annex D.1).
    """

    request_bytes: int = 262_144
    pdu_bytes: int = 131_072


class UpperLayer:
    """One association, as its acceptor sees it.

    Parameters
    ----------
    limits : Limits
        What the peer may send.

    Attributes
    ----------
    state : State
        Where the association stands.
    pdus_begun : int
        Grows whenever the peer begins a PDU, so that the time of each can be limited.
    """

    def __init__(self, limits: Limits) -> None:
        self.state = State.STA2
        self.pdus_begun = 0
        self._limits = limits
        self._peer_limit = UNLIMITED
        self._out = bytearray()
        self._header = bytearray()  # the part of a header that has come
        self._body: bytearray | None = None  # a control PDU on its way
        self._kind = Received.REQUEST
        self._pdu_left = 0  # bytes to come of a P-DATA-TF, less those of the present fragment
        self._value_left = 0  # bytes to come of the present fragment
        self._context_id = 0
        self._command = False
        self._last = False

    @property
    def in_pdu(self) -> bool:
        """Whether a PDU has begun and is not here in full."""
        return bool(self._pdu_left or self._value_left or self._header)

    @property
    def ended(self) -> bool:
        """Whether the association has ended: what the peer sends is thrown away."""
        return self.state in {State.STA13, State.STA1}

    # -- from the peer -----------------------------------------------------------------------

    def receive(self, data: bytes | bytearray | memoryview) -> Iterator[Indication]:
        """Yield what the peer's bytes mean; the caller handles each before the next is read.

        Parameters
        ----------
        data : bytes-like
            What came, split anywhere.
        """
        view = memoryview(data)
        at, end = 0, len(view)
        while at < end and self.state is not State.STA13 and self.state is not State.STA1:
            indication: Indication | None
            if self._value_left:
                taken = min(self._value_left, end - at)
                self._value_left -= taken
                last = self._last and not self._value_left
                indication = Fragment(self._context_id, self._command, last, view[at : at + taken])
            elif self._body is not None:
                taken = min(self._until_judged(), end - at)
                at += taken
                yield from self._part_of_body(view[at - taken : at])
                continue
            elif not self._header and end - at >= _HEADER_LENGTH:
                taken = _HEADER_LENGTH
                indication = self._read_header(view, at)
            else:
                taken = min(_HEADER_LENGTH - len(self._header), end - at)
                indication = self._part_of_header(view[at : at + taken])
            at += taken
            if indication is not None:
                yield indication

    def _part_of_header(self, part: memoryview) -> Indication | None:
        if not self._header and not self._pdu_left:
            self.pdus_begun += 1
            kind = _KINDS.get(part[0], Received.UNRECOGNIZED)
            if TABLE[self.state][kind] in {Action.AA_1, Action.AA_8}:
                return self._violation(kind)  # its length need not be known
        self._header += part
        if len(self._header) < _HEADER_LENGTH:
            return None
        header = bytes(self._header)
        self._header.clear()
        return self._read_header(header, 0)

    def _read_header(self, source: bytes | memoryview, at: int) -> Indication | None:
        if not self._pdu_left:
            self.pdus_begun += 1
            code, length = PDU_HEADER.unpack_from(source, at)
            return self._begin_pdu(_KINDS.get(code, Received.UNRECOGNIZED), code, length)
        length, context_id, control = PDV_HEADER.unpack_from(source, at)
        value = length - 2
        left = self._pdu_left - 4 - length
        # A fragment of odd length violates Annex E.1, but can be told apart as well as any other.
        if value < 0 or left < 0 or 0 < left < _HEADER_LENGTH:
            return self._violation(Received.INVALID)
        self._pdu_left, self._value_left = left, value
        self._context_id = context_id
        self._command, self._last = bool(control & COMMAND), bool(control & LAST)
        if value:
            return None
        return Fragment(context_id, self._command, self._last, memoryview(b""))

    def _begin_pdu(self, kind: Received, code: int, length: int) -> Indication | None:
        action = TABLE[self.state][kind]
        if action is Action.AA_8 or action is Action.AA_1:
            return self._violation(kind)
        if kind is Received.DATA:
            if not _HEADER_LENGTH <= length <= self._limits.pdu_bytes:
                return self._violation(Received.INVALID)
        else:
            request = kind is Received.REQUEST
            least = pdus.FIXED_LENGTH - _HEADER_LENGTH if request else 4
            if length < least or (length > least and not request):
                return self._violation(Received.INVALID)
            self._body = bytearray(PDU_HEADER.pack(code, length))
            self._kind = kind
        self._pdu_left = length
        return None

    def _until_judged(self) -> int:
        """Return how many bytes of a control PDU to take before it is looked at."""
        assert self._body is not None
        fixed = pdus.FIXED_LENGTH - len(self._body)
        return fixed if 0 < fixed < self._pdu_left else self._pdu_left

    def _part_of_body(self, part: memoryview) -> Iterator[Indication]:
        assert self._body is not None
        self._body += part
        self._pdu_left -= len(part)
        if not self._pdu_left:
            yield self._control_pdu(bytes(self._body))
        elif self._kind is Received.REQUEST and len(self._body) == pdus.FIXED_LENGTH:
            yield RequestBegun(bytes(self._body))
            whole = pdus.FIXED_LENGTH - _HEADER_LENGTH + self._pdu_left
            if not self.ended and whole > self._limits.request_bytes:
                yield self._violation(Received.INVALID)

    def _control_pdu(self, pdu: bytes) -> Indication:
        self._body = None
        self.state = TABLE[self.state][self._kind].value[1]
        if self._kind is Received.REQUEST:
            return Requested(pdu)
        if self._kind is Received.ABORT:
            return Aborted(True, pdu[8], pdu[9], Received.ABORT)
        return Released()

    def _violation(self, kind: Received) -> Aborted:
        if TABLE[self.state][kind] is Action.AA_1:
            source, reason = SERVICE_USER, NO_REASON
        else:
            source, reason = SERVICE_PROVIDER, _REASONS.get(kind, UNEXPECTED_PDU)
        self.abort(source, reason)
        return Aborted(False, source, reason, kind)

    def connection_closed(self) -> bool:
        """Record that the peer closed the connection; True if that ended the association."""
        action = TABLE[self.state][Received.CLOSED] if self.state is not State.STA1 else Action.AR_5
        self.state = State.STA1
        return action is Action.AA_4

    def artim_expired(self) -> None:
        """Record that the peer took too long to ask for an association, or to close (AA-2)."""
        self.state = State.STA1

    # -- from this side ----------------------------------------------------------------------

    def accept(self, answer: bytes, maximum_length: int) -> None:
        """Accept the association (AE-7).

        Parameters
        ----------
        answer : bytes
            The A-ASSOCIATE-AC.
        maximum_length : int
            The longest P-DATA-TF that the peer takes, in bytes; 0 is no limit.
        """
        self._peer_limit = maximum_length or UNLIMITED
        self._move(State.STA3, State.STA6, answer)

    def reject(self, result: int, source: int, reason: int) -> None:
        """Reject the association (AE-6 when only its fixed part has come, else AE-8)."""
        before = State.STA2 if self.state is State.STA2 and self._body else State.STA3
        self._move(before, State.STA13, pdus.encode_reject(result, source, reason))

    def release(self) -> None:
        """Answer the peer's request to release the association (AR-4)."""
        self._move(State.STA8, State.STA13, pdus.encode_release_response())

    def abort(self, source: int, reason: int) -> None:
        """Abort the association, unless it has ended (AA-1, AA-8)."""
        if not self.ended:
            self._move(self.state, State.STA13, pdus.encode_abort(source, reason))

    def send(self, context_id: int, command: bytes) -> None:
        """Send a command set in as many P-DATA-TF as the peer's maximum length asks for (DT-1)."""
        size = self._peer_limit - _HEADER_LENGTH & ~1
        for at in range(0, len(command), size):
            value = command[at : at + size]
            control = COMMAND | (LAST if at + size >= len(command) else 0)
            pdu = PDU_HEADER.pack(pdus.P_DATA_TF, _HEADER_LENGTH + len(value))
            pdu += PDV_HEADER.pack(len(value) + 2, context_id, control)
            self._move(State.STA6, State.STA6, pdu + value)

    def take_output(self) -> bytes:
        """Return the bytes to send to the peer now, and forget them."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def _move(self, before: State, after: State, pdu: bytes) -> None:
        if self.state is not before:
            raise RuntimeError(f"not while {self.state.value}")
        self.state = after
        self._out += pdu
