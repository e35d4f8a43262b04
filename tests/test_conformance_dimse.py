# SPDX-License-Identifier: Apache-2.0
"""Bad peers of DIMSE and Storage, byte by byte over a socket, and the answers they get.

The ids are those of docs/conformance.md.
"""

from __future__ import annotations

import threading
from pathlib import Path
from struct import pack

import pytest

from adapter.dicom.part10 import read_file_meta
from tests import support_wire as wire
from tests.support_conformance import receiver
from tests.support_scp import recorded
from tests.support_waiting import eventually

DATA = wire.data_set()
BIG_COMMAND = wire.command({0x0100: wire.us(1), 0x1030: bytes(100_000)})


@pytest.fixture
def scp(settings):
    with receiver(settings, maximum_instance_bytes=300_000) as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_is_logged_raw(capsys):
    """The log holds no traceback and no control character of a peer."""
    yield
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert not {"\r", "\0"} & set(out + err)
    assert "\nforged" not in out + err


def store(sop_instance="1.2.3.4.5", sop_class=wire.CT_IMAGE, data_set=DATA, **changes):
    command = wire.store_command(sop_instance, sop_class, **changes)
    return wire.message(wire.CT, command, data_set)


def test_a_good_one(scp):
    """A C-STORE is answered with Success, and its data set is in the spool unchanged."""
    data_set = wire.data_set(pixels=100_000)
    with scp.call() as caller:
        assert caller.associate()[:1] == b"\2"
        caller.send(store(data_set=data_set))
        assert caller.status() == 0x0000
        (path,) = scp.stored()
        assert path.read_bytes().endswith(data_set)
        with Path(path).open("rb") as file:
            assert read_file_meta(file)[0x0017] == "MODALITY"
            assert file.read() == data_set
        assert caller.release()
    scp.check_at_rest()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(store(sop_class=wire.MR_IMAGE), 0xA900, id="D2"),
        pytest.param(store(sop_class="1.2.3"), 0x0122, id="D3"),
        pytest.param(store("1.2.3.4.6"), 0xA900, id="D4-instance"),
        pytest.param(store(data_set=wire.data_set(sop_class=wire.MR_IMAGE)), 0xA900, id="D4-class"),
        pytest.param(store("../../../tmp/x"), 0xA900, id="D5-path"),
        pytest.param(store("/etc/x"), 0xA900, id="D5-slash"),
        pytest.param(store(b"1.2\0.3"), 0xA900, id="D5-nul"),
        pytest.param(store("1.2\r\nforged"), 0xA900, id="D5-crlf"),
        pytest.param(store("1." * 32 + "1"), 0x0212, id="D6-long"),
        pytest.param(store(""), 0x0212, id="D6-empty"),
        pytest.param(store(data_set=b""), 0xC000, id="D7-empty"),
        pytest.param(store(data_set=b"\xff" * 100), 0xC000, id="D7-garbage"),
        pytest.param(store(data_set=None, e0800=wire.us(0x0101)), 0x0212, id="D7-no-data-set"),
        pytest.param(store(e0100=wire.us(0x0777)), 0x0211, id="D8-unknown"),
        pytest.param(store(data_set=None, e0800=None), 0x0212, id="D8-no-data-set-type"),
        pytest.param(store(e0002=None), 0x0212, id="D8-no-sop-class"),
        pytest.param(store(e1000=None), 0x0212, id="D8-no-sop-instance"),
        pytest.param(store(data_set=wire.data_set(pixels=300_000)), 0xA700, id="D11"),
        pytest.param(store(e0100=wire.us(0x0020)), 0x0211, id="D12-find"),
        pytest.param(
            store(data_set=None, e0100=wire.us(0x0100), e0800=wire.us(0x0101)), 0x0211,
            id="D12-event-report",
        ),
    ],
)  # fmt: skip
def test_refused(scp, sent, status):
    """A bad C-STORE is refused, leaves nothing and has its event; the next one is stored."""
    with scp.call() as caller:
        assert caller.associate()[:1] == b"\2"
        caller.send(sent)
        assert caller.status() == status
        assert scp.stored() == []
        caller.send(store("1.2.3.4.5"))
        assert caller.status() == 0x0000
        assert caller.release()
    (event,) = eventually(lambda: recorded(scp.adapter, "store-failed"))
    assert event.detail["status"] == f"{status:04X}"
    scp.check_at_rest()


COMMAND = wire.store_command()
BEGIN = wire.message(wire.CT, COMMAND)
PIECE = wire.data(wire.pdv(wire.CT, 0, DATA))


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(wire.message(9, COMMAND, DATA), wire.abort(0, 0), id="D1"),
        pytest.param(BEGIN + wire.data(wire.pdv(9, 2, DATA)), wire.abort(0, 0), id="D1-data-set"),
        pytest.param(store(e0100=None), wire.abort(0, 0), id="D8-no-command-field"),
        pytest.param(wire.message(wire.CT, b"\xff" * 50), wire.abort(0, 0), id="D8-garbage"),
        pytest.param(PIECE, wire.abort(2, 2), id="D9-data-set-first"),
        pytest.param(
            BEGIN + PIECE + wire.data(wire.pdv(wire.MR, 0, DATA)), wire.abort(2, 2),
            id="D9-interleaved",
        ),
        pytest.param(
            b"".join(wire.data(wire.pdv(wire.CT, 1, BIG_COMMAND[:16_000])) for _ in range(9)),
            wire.abort(2, 6),
            id="D10",
        ),
    ],
)  # fmt: skip
def test_aborted(scp, sent, expected):
    """A message without an answer aborts the association, and nothing of it is in the spool."""
    with scp.call() as caller:
        assert caller.associate()[:1] == b"\2"
        caller.send(sent)
        assert caller.rest() == expected
    assert scp.stored() == []
    scp.check_at_rest()


ODD_END = DATA + pack("<HH2sH", 0x7FE1, 0x0010, b"LO", 3) + b"odd"


@pytest.mark.parametrize(
    ("sent", "data_set"),
    [
        pytest.param(store(e1000=b"1.2.3.4.5"), DATA, id="odd-command"),
        pytest.param(store(e1000=b" 1.2.3.4.5"), DATA, id="padded-command"),
        pytest.param(wire.message(wire.CT, COMMAND, DATA, size=33), DATA, id="odd-fragments"),
        pytest.param(wire.message(wire.CT, COMMAND, ODD_END), ODD_END, id="odd-data-set"),
        pytest.param(
            wire.data(wire.pdv(wire.CT, 1, COMMAND[:33]), wire.pdv(wire.CT, 3, COMMAND[33:]))
            + wire.data(wire.pdv(wire.CT, 2, DATA)), DATA, id="odd-command-fragments",
        ),
    ],
)  # fmt: skip
def test_d14_odd_lengths(scp, sent, data_set):
    """D14: what is odd but can be told apart is stored as it came, and the next message too."""
    with scp.call() as caller:
        assert caller.associate()[:1] == b"\2"
        for data in (sent, store()):
            caller.send(data)
            assert caller.status() == 0x0000
        assert caller.release()
    first, second = sorted(scp.stored(), key=lambda path: path.stem.split("-")[2])
    assert first.read_bytes().endswith(data_set)
    assert second.read_bytes().endswith(DATA)
    for path in (first, second):
        path.unlink()


def test_d12_cancel(scp):
    """D12: an unsolicited C-CANCEL has no response, and the association goes on."""
    cancel = wire.command({0x0100: wire.us(0x0FFF), 0x0120: wire.us(1), 0x0800: wire.us(0x0101)})
    with scp.call() as caller:
        assert caller.associate()[:1] == b"\2"
        caller.send(wire.message(wire.CT, cancel))
        assert caller.echo()
        assert caller.release()
    scp.check_at_rest()


def test_d13_a_peer_that_does_not_read(settings):
    """D13: a peer that sends 20,000 C-ECHOs and reads no response is held up, and no other peer."""
    count = 20_000
    with receiver(settings, idle_seconds=30.0) as scp, scp.call(receive_buffer=4096) as caller:
        assert caller.associate()[:1] == b"\2"
        requests = wire.message(wire.ECHO, wire.echo_command()) * count
        sender = threading.Thread(target=caller.send, args=(requests,))
        sender.start()
        scp.check_someone_else()
        responses = 0
        while responses < count:
            assert caller.pdu() == wire.echo_response()
            responses += 1
        sender.join()
        assert caller.release()
        caller.socket.close()
        scp.check_at_rest()
