# SPDX-License-Identifier: Apache-2.0
"""PDUs and messages built by hand: correct ones and, by parameters, wrong ones."""

from __future__ import annotations

import fcntl
import select
import socket
import termios
from contextlib import suppress
from struct import pack, unpack

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
VERIFICATION = "1.2.840.10008.1.1"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"

#: Context ids of `request`'s default contexts.
ECHO, CT, MR = 1, 3, 5
CONTEXTS = ((ECHO, VERIFICATION, (IMPLICIT,)), (CT, CT_IMAGE, (EXPLICIT, IMPLICIT)),
            (MR, MR_IMAGE, (IMPLICIT,)))  # fmt: skip

RELEASE_RQ = bytes.fromhex("05000000000400000000")
RELEASE_RP = bytes.fromhex("06000000000400000000")


def pdu(kind, body, length=None):
    return pack(">BxI", kind, len(body) if length is None else length) + body


def item(kind, body):
    return pack(">BxH", kind, len(body)) + body


def context(number, abstract, transfers):
    body = pack(">Bxxx", number) + item(0x30, abstract.encode())
    return item(0x20, body + b"".join(item(0x40, uid.encode()) for uid in transfers))


def request(
    *,
    contexts=CONTEXTS,
    called=b"ADAPTER",
    calling=b"MODALITY",
    version=1,
    application_context=APPLICATION_CONTEXT,
    maximum=16384,
    extra_user_items=b"",
    extra_items=b"",
):
    user = item(0x51, pack(">I", maximum)) + item(0x52, b"1.2.3.4") + extra_user_items
    body = pack(">HH", version, 0) + called.ljust(16) + calling.ljust(16) + bytes(32)
    body += item(0x10, application_context.encode())
    body += b"".join(context(*one) for one in contexts) + extra_items + item(0x50, user)
    return pdu(1, body)


def reject(result, source, reason):
    return bytes((3, 0, 0, 0, 0, 4, 0, result, source, reason))


def abort(source, reason):
    return bytes((7, 0, 0, 0, 0, 4, 0, 0, source, reason))


def pdv(number, control, value, length=None):
    return pack(">IBB", len(value) + 2 if length is None else length, number, control) + value


def data(*pdvs, length=None):
    return pdu(4, b"".join(pdvs), length)


def element(number, value):
    return pack("<HHI", 0, number, len(value)) + value


def uid(text):
    value = text if isinstance(text, bytes) else text.encode()
    return value + b"\0" * (len(value) % 2)


def us(value):
    return pack("<H", value)


def command(elements):
    body = b"".join(element(*one) for one in sorted(elements.items()))
    return element(0, pack("<I", len(body))) + body


def echo_command(message_id=1):
    return command({0x0002: uid(VERIFICATION), 0x0100: us(0x30), 0x0110: us(message_id),
                    0x0800: us(0x0101)})  # fmt: skip


def store_command(sop_instance="1.2.3.4.5", sop_class=CT_IMAGE, message_id=1, **changes):
    """Return a C-STORE-RQ; `e0100=None` leaves an element out, `e0100=b".."` replaces it."""
    elements = {
        0x0002: uid(sop_class), 0x0100: us(1), 0x0110: us(message_id), 0x0700: us(0),
        0x0800: us(1), 0x1000: uid(sop_instance),
    }  # fmt: skip
    for name, value in changes.items():
        elements[int(name[1:], 16)] = value
    return command({number: value for number, value in elements.items() if value is not None})


def message(number, command_set, data_set=None, size=16378):
    """Return a message as P-DATA-TF, one fragment in each."""
    out = data(pdv(number, 3, command_set))
    if data_set is not None:
        for at in range(0, max(len(data_set), 1), size):
            last = at + size >= len(data_set)
            out += data(pdv(number, 2 * last, data_set[at : at + size]))
    return out


def echo_response(message_id=1):
    return data(pdv(ECHO, 3, command({
        0x0002: uid(VERIFICATION), 0x0100: us(0x8030), 0x0120: us(message_id),
        0x0800: us(0x0101), 0x0900: us(0),
    })))  # fmt: skip


class Caller:
    """A peer that sends any bytes it is given, correct or wrong, to a port of this host."""

    def __init__(self, port, receive_buffer=None, address="127.0.0.1"):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(10)
        try:
            self.socket.connect((address, port))
        except ConnectionError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, *parts):
        """Send, until the other side closes the connection."""
        with suppress(ConnectionError):
            for part in parts:
                self.socket.sendall(part)

    def delivered(self):
        """Return whether the other side's kernel has all that was sent (SIOCOUTQ, tcp(7))."""
        return fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4)) == bytes(4)

    def trickle(self, stream, pause):
        """Send byte by byte, until all is sent or the other side closes."""
        with suppress(ConnectionError):
            for byte in stream:
                if select.select([self.socket], [], [], pause)[0]:
                    return
                self.socket.sendall(bytes((byte,)))

    def pdu(self):
        """Return the next PDU, or no bytes at the end."""
        head = self._exactly(6)
        return head + self._exactly(int.from_bytes(head[2:], "big")) if head else b""

    def rest(self):
        """Return everything until the other side closes."""
        found = bytearray()
        with suppress(ConnectionError):
            while chunk := self.socket.recv(65536):
                found += chunk
        return bytes(found)

    def associate(self, **changes):
        """Ask for an association, and return the answer."""
        self.send(request(**changes))
        return self.pdu()

    def echo(self):
        """Send a C-ECHO and tell whether it is answered with Success."""
        self.send(message(ECHO, echo_command()))
        return self.pdu() == echo_response()

    def release(self):
        self.send(RELEASE_RQ)
        return self.pdu() == RELEASE_RP

    def status(self):
        """Return the status of the next response."""
        answer = self.pdu()
        assert answer[:1] == b"\4", answer
        where = answer.index(pack("<HHI", 0, 0x0900, 2)) + 8
        return unpack("<H", answer[where : where + 2])[0]

    def _exactly(self, count):
        found = b""
        while len(found) < count:
            chunk = self.socket.recv(count - len(found))
            if not chunk:
                return b""
            found += chunk
        return found


def results(answer):
    """Return the result of each context in an A-ASSOCIATE-AC, by context id."""
    assert answer[:1] == b"\2", answer
    found, at = {}, 74
    while at < len(answer):
        kind, length = unpack(">BxH", answer[at : at + 4])
        if kind == 0x21:
            found[answer[at + 4]] = answer[at + 6]
        at += 4 + length
    return found


def data_set(sop_instance="1.2.3.4.5", sop_class=CT_IMAGE, pixels=0):
    """Return a data set in Explicit VR Little Endian: two UIDs, and so many bytes of pixel data."""
    found = b""
    for number, text in ((0x0016, sop_class), (0x0018, sop_instance)):
        found += pack("<HH2sH", 8, number, b"UI", len(uid(text))) + uid(text)
    return found + pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, pixels) + bytes(pixels)
