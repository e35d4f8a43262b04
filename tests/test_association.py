# SPDX-License-Identifier: Apache-2.0
"""A whole association without a socket: it answers any bytes of a peer in whole PDUs."""

from __future__ import annotations

import tracemalloc
from struct import unpack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapter.core import open_adapter
from adapter.dicom import pdus as pdus_module
from adapter.scp.acceptor import AssociationAcceptor
from adapter.scp.association import AcceptorAssociation
from adapter.scp.configuration import LiveConfiguration
from adapter.scp.events import ScpEvents
from adapter.settings import load
from tests import support_wire as wire
from tests.support_scp import add_ae_title, add_source, incoming, leftovers

DATA = wire.data_set(pixels=200)
STORE = wire.message(wire.CT, wire.store_command(), DATA, size=100)
ECHO = wire.message(wire.ECHO, wire.echo_command())
#: Parts of a conversation, allowed and forbidden.
SENTENCES = [
    STORE,
    ECHO,
    wire.message(wire.CT, wire.store_command("1.2.3.4.6"), DATA),
    wire.message(wire.CT, wire.store_command(), b""),
    wire.message(wire.CT, wire.store_command()),
    wire.message(wire.CT, wire.store_command(e0100=wire.us(0x20)), DATA),
    wire.data(wire.pdv(wire.CT, 0, DATA[:50])),
    wire.data(wire.pdv(wire.CT, 2, DATA[50:])),
    wire.data(*[wire.pdv(wire.CT, 0, b"")] * 90),
    wire.RELEASE_RQ,
    wire.abort(0, 0),
    wire.request(),
]
#: Kinds of PDU that an acceptor sends, and the lengths of those that have a fixed one.
ANSWERS = {2: None, 3: 4, 4: None, 6: 4, 7: 4}


class Receiver:
    """The acceptor of an adapter, without a server."""

    def __init__(self, adapter, scp):
        configuration = LiveConfiguration(adapter.spool)
        configuration.refresh(adapter.ledger)
        self.adapter = adapter
        self.scp = scp.dicom.scp
        self.acceptor = AssociationAcceptor(
            scp, adapter.spool, configuration, ScpEvents(), lambda: None
        )

    def call(self):
        return AcceptorAssociation(self.scp, self.acceptor, "127.0.0.1")


@pytest.fixture(scope="module")
def receiver(tmp_path_factory):
    loaded = load(data=tmp_path_factory.mktemp("association") / "data")
    storage = loaded.storage.model_copy(
        update={"watermark_percent": 100.0, "reserve_space_gb": 0.0, "durability": "none"}
    )
    loaded = loaded.model_copy(update={"storage": storage})
    adapter = open_adapter(loaded, create=True)
    add_ae_title(adapter, "ADAPTER")
    add_source(adapter, "MODALITY")
    found = Receiver(adapter, loaded)
    yield found
    found.acceptor.close()
    adapter.close()


def pdus(stream):
    """Return the kinds of the PDUs in a stream, and check that each is whole."""
    found = []
    while stream:
        kind, length = unpack(">BxI", stream[:6])
        assert ANSWERS[kind] in {None, length}
        assert len(stream) >= 6 + length
        found.append(kind)
        stream = stream[6 + length :]
    return found


def converse(association, stream, size):
    """Give an association a stream in pieces of a size; return its answers."""
    said = b""
    for at in range(0, len(stream), size):
        association.receive(memoryview(stream[at : at + size]))
        said += association.layer.take_output()
    association.connection_closed()
    return said


@pytest.mark.parametrize(
    ("user_information", "window"),
    [
        (b"", False),
        (wire.item(0x50, b""), False),
        (wire.item(0x50, wire.item(0x53, bytes(4))), True),
    ],
    ids=["none", "empty", "window"],
)
def test_user_information_may_be_missing(receiver, user_information, window):
    """A request without user information is accepted; the window is answered if it was asked."""
    whole = wire.request()
    request = wire.pdu(1, whole[6 : whole.index(b"\x50\0\0")] + user_information)

    said = converse(receiver.call(), request, 10**6)

    assert pdus(said) == [2]
    assert (wire.item(0x53, b"\0\1\0\1") in said) is window


def test_a_stranger_costs_nothing(receiver, monkeypatch):
    """Nothing but the fixed part of a stranger's request is read; 20 of 50 are recorded."""
    monkeypatch.setattr(
        pdus_module, "decode_request", lambda _: pytest.fail("a stranger's request was decoded")
    )
    events = receiver.acceptor._events
    before = len(events._queue)
    request = wire.request(calling=b"STRANGER", extra_items=wire.item(0x99, b"") * 50_000)

    for _ in range(50):
        association = receiver.call()
        assert converse(association, request, 10**6) == wire.reject(1, 1, 3)
        assert len(association.layer._body) == 74

    assert len(events._queue) - before == 20
    detail = events._queue[-1][3]
    assert (detail["calling"], detail["called"]) == ("STRANGER", "ADAPTER")
    assert detail["message"] == "the calling AE title is no known source"


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from(SENTENCES), max_size=6),
    st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 3), st.binary(min_size=1, max_size=4)),
        max_size=3,
    ),
    st.sampled_from([1, 7, 100, 10**6]),
)
def test_any_damage_to_a_conversation_is_survived(receiver, sentences, damages, size):
    """If bytes are changed, added or left out, whole PDUs answer and only whole files are kept."""
    stream = bytearray(wire.request() + b"".join(sentences))
    for where, left_out, put_in in damages:
        at = where % len(stream)
        stream[at : at + left_out] = put_in
    before = set(incoming(receiver.adapter))

    said = pdus(converse(receiver.call(), bytes(stream), size))

    assert [kind for kind in said if kind != 4] in ([], [2], [2, 6], [2, 7], [3], [7])
    assert receiver.acceptor.active == 0
    assert leftovers(receiver.adapter) == []
    for path in set(incoming(receiver.adapter)) - before:
        if not damages:
            assert path.read_bytes().endswith(DATA)
        path.unlink()


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param([wire.pdu(1, b"", length=0xFFFFFFFF)], id="request"),
        pytest.param([wire.request(), wire.pdu(4, b"", length=0xFFFFFFFF)], id="data"),
        pytest.param([wire.request(), wire.pdu(5, b"", length=0xFFFFFFFF)], id="release"),
        pytest.param(
            [wire.request(), *[wire.data(wire.pdv(wire.CT, 1, bytes(16_000)))] * 100], id="command"
        ),
        pytest.param([wire.request(), *[ECHO * 100] * 100], id="echoes"),
        pytest.param(
            [wire.request(), wire.message(wire.CT, wire.store_command()),
             *[wire.data(wire.pdv(wire.CT, 0, bytes(16_000))) * 16] * 20], id="data-set",
        ),
        pytest.param(
            [wire.request(), wire.message(wire.CT, wire.store_command()),
             *[wire.data(*[wire.pdv(wire.CT, 0, b"")] * 20_000)] * 3], id="empty-fragments",
        ),
    ],
)  # fmt: skip
def test_no_flood_takes_memory(receiver, flood):
    """A peer takes little memory, however much it sends."""
    association = receiver.call()
    association.receive(memoryview(wire.request()[:10]))  # so that one-time costs are not counted
    association = receiver.call()
    chunk = bytes(250_000)
    tracemalloc.start()
    try:
        for piece in [*flood, *[chunk] * 20]:
            association.receive(memoryview(piece))
            association.layer.take_output()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        association.connection_closed()
    assert peak < 2_000_000
    for path in incoming(receiver.adapter):
        path.unlink()
