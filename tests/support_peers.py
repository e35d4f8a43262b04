# SPDX-License-Identifier: Apache-2.0
"""Destinations to send to: DCMTK's, pynetdicom's by a script, and hostile ones byte by byte."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from struct import pack, unpack

from pydicom.uid import AllTransferSyntaxes, CTImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from adapter.models import DicomDestination
from tests import peers
from tests.support_stack import free_port
from tests.support_waiting import eventually
from tests.support_wire import command, data, item, pdu, pdv, uid, us

MAXIMUM = 16384


def destination(port, name="PACS", ae_title="PACS"):
    return DicomDestination(name=name, ae_title=ae_title, host_ip="127.0.0.1", port=port)


class StoreScp:
    """DCMTK's storescp; its verbose output is in its log, the files are in its folder.

    Parameters
    ----------
    folder : Path
        Where it stores.
    options : str
        Further options, besides those that keep every file bit by bit.
    """

    def __init__(self, folder, *options):
        peers.need("dcmtk")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self._log = folder.with_suffix(".log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["storescp", "-v", "--bit-preserving", "+uf", "-od", str(folder), *options,
                 str(self.port)],
                stdout=log,
                stderr=log,
                env={**os.environ, "TCP_NODELAY": "1"},
            )  # fmt: skip
        # Looked up in the kernel's table: a connection would be in its log.
        listening = f"0100007F:{self.port:04X} ", f"00000000:{self.port:04X} "
        table = Path("/proc/net/tcp")
        eventually(lambda: any(end in table.read_text() for end in listening))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()

    def said(self, words):
        """Return how many lines of the log hold some words."""
        return sum(words in line for line in self._log.read_text(errors="replace").splitlines())

    def files(self):
        return sorted(path for path in self.folder.iterdir() if path.is_file())


class ScriptedPacs:
    """A Storage SCP of pynetdicom that answers as a script says, and records what it receives.

    Parameters
    ----------
    answer : callable
        Given the SOP Instance UID, returns the status; "abort" aborts instead.
    port : int
        Where to listen; any port by default.
    classes, syntaxes : lists of str
        What it accepts.
    """

    def __init__(
        self,
        answer=lambda _uid: 0x0000,
        *,
        port=0,
        classes=(CTImageStorage,),
        syntaxes=tuple(AllTransferSyntaxes),
        pdu_size=16382,
        **ae,
    ):
        self.answer = answer
        self.sent = Counter()  # by SOP Instance UID: sent, whatever was answered
        self.data = {}
        self.associations = 0
        self.pdu_lengths = []
        self._ae = AE(ae_title="PACS")
        self._ae.maximum_pdu_size = pdu_size
        for sop_class in (*classes, Verification):
            self._ae.add_supported_context(sop_class, list(syntaxes))
        for name, value in ae.items():
            setattr(self._ae, name, value)
        self._server = self._ae.start_server(
            ("127.0.0.1", port),
            block=False,
            evt_handlers=[
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_ACCEPTED, self._accepted),
                (evt.EVT_PDU_RECV, self._pdu),
            ],
        )
        self.port = self._server.socket.getsockname()[1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._ae.shutdown()

    def _accepted(self, _event):
        self.associations += 1

    def _pdu(self, event):
        if event.pdu.pdu_type == 4:
            self.pdu_lengths.append(event.pdu.pdu_length)

    def _store(self, event):
        instance = str(event.request.AffectedSOPInstanceUID)
        self.sent[instance] += 1
        self.data[instance] = event.encoded_dataset(include_meta=False)
        answer = self.answer(instance)
        if answer == "abort":
            event.assoc.abort()
            return 0x0000
        return answer


class RawPeer:
    """A peer that treats each connection as a function says.

    Parameters
    ----------
    behave : callable
        Given a `Conversation`, once for each connection, in a thread of its own.
    """

    def __init__(self, behave):
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = []
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._thread.join(5)

    def _listen(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with suppress(OSError, EOFError):
            self._behave(Conversation(connection))
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


class Conversation:
    """One connection, as its acceptor sees it."""

    def __init__(self, connection):
        self.socket = connection
        connection.settimeout(20)

    def pdu(self):
        head = self._exactly(6)
        return head[0], self._exactly(unpack(">I", head[2:])[0])

    def _exactly(self, amount):
        found = b""
        while len(found) < amount:
            chunk = self.socket.recv(amount - len(found))
            if not chunk:
                raise EOFError
            found += chunk
        return found

    def acceptance(
        self,
        maximum=MAXIMUM,
        result=0,
        *,
        application_context=b"1.2.840.10008.3.1.1.1",
        transfer=None,
        implementation=b"1.2.3.4",
        extra=b"",
        in_contexts=b"",
        in_user_information=b"",
        user_information=True,
    ):
        """Read an A-ASSOCIATE-RQ and return the A-ASSOCIATE-AC to it, or an odd one."""
        _, body = self.pdu()
        answers, at = b"", 68
        while at < len(body):
            kind, length = unpack(">BxH", body[at : at + 4])
            inner = body[at + 4 : at + 4 + length]
            if kind == 0x20:
                syntax = inner[inner.index(b"\x40\0") :] if transfer is None else transfer
                answers += item(0x21, bytes((inner[0], 0, result, 0)) + in_contexts + syntax)
            at += 4 + length
        user = item(0x51, pack(">I", maximum)) + item(0x52, implementation) + in_user_information
        items = item(0x10, application_context) + extra + answers
        items += item(0x50, user) if user_information else b""
        return pdu(2, body[:68] + items)

    def accept(self, **changes):
        self.socket.sendall(self.acceptance(**changes))

    def message(self):
        """Read a message; return its context and the bytes of its command and data set."""
        sets = {1: b"", 0: b""}
        wanted = {1}
        while wanted:
            kind, body = self.pdu()
            if kind != 4:
                raise EOFError
            at = 0
            while at < len(body):
                length, context, flags = unpack(">IBB", body[at : at + 6])
                sets[flags & 1] += body[at + 6 : at + 4 + length]
                if flags & 2:
                    wanted.discard(flags & 1)
                    if flags & 1 and b"\0\0\0\x08\x02\0\0\0\x01\x01" not in sets[1]:
                        wanted.add(0)
                at += 4 + length
        return context, sets[1], sets[0]

    def response(self, context, request, status=0, answered=None):
        """Return the response to a C-STORE or C-ECHO."""
        where = request.index(pack("<HHI", 0, 0x0110, 2)) + 8
        field = request[request.index(pack("<HHI", 0, 0x0100, 2)) + 8 :][:2]
        answered = request[where : where + 2] if answered is None else us(answered)
        return data(pdv(context, 3, command({
            0x0002: uid("1.2.3"), 0x0100: us(unpack("<H", field)[0] | 0x8000), 0x0120: answered,
            0x0800: us(0x0101), 0x0900: us(status),
        })))  # fmt: skip

    def trickle(self, stream, pause=0.05):
        for byte in stream:
            self.socket.sendall(bytes((byte,)))
            time.sleep(pause)  # the peer's pace is what is tested

    def hold(self):
        """Send nothing more, and keep the connection open until the other side closes it."""
        with suppress(OSError):
            while self.socket.recv(65536):
                pass

    def stop_reading(self):
        """Send and read nothing more until the test ends."""
        threading.Event().wait(20)
