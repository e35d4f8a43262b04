# SPDX-License-Identifier: Apache-2.0
"""The upper layer, byte by byte (PS3.8 section 9); U.. and D.. are rows of docs/conformance.md."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.scp.upper_layer import (
    TABLE,
    Aborted,
    Fragment,
    Limits,
    Received,
    Released,
    RequestBegun,
    Requested,
    State,
    UpperLayer,
)
from tests import support_wire as wire

LIMITS = Limits(request_bytes=262_144, pdu_bytes=16_384)


#: An A-ASSOCIATE-AC, of which this layer only knows that it is to be sent.
ANSWER = wire.pdu(2, b"answer")


def run(*chunks, layer=None):
    """Feed chunks to an acceptor that accepts everything; return what it indicated and sent."""
    layer = layer or UpperLayer(LIMITS)
    seen = []
    for chunk in chunks:
        for indication in layer.receive(chunk):
            if isinstance(indication, Requested):
                layer.accept(ANSWER, 0)
            elif isinstance(indication, Released):
                layer.release()
            copied = isinstance(indication, Fragment)
            seen.append(indication._replace(data=bytes(indication.data)) if copied else indication)
    return seen, layer.take_output(), layer


def joined(seen):
    """Return the indications with the pieces of each fragment put together."""
    out = []
    for one in seen:
        if isinstance(one, Fragment) and out and isinstance(out[-1], Fragment):
            previous = out[-1]
            if not previous.last and previous[:2] == one[:2]:
                out[-1] = one._replace(data=previous.data + one.data)
                continue
        out.append(one)
    return out


def after_accept(*chunks):
    """Return what is indicated and sent after an association was accepted."""
    _, out, layer = run(wire.request())
    assert (out, layer.state) == (ANSWER, State.STA6)
    return run(*chunks, layer=layer)


def test_association_data_and_release():
    """An association is accepted, carries fragments as they come, and is released."""
    fragment = wire.data(wire.pdv(3, 3, b"ab"), wire.pdv(3, 0, b"cdef"), wire.pdv(3, 2, b""))

    seen, out, layer = after_accept(fragment + wire.RELEASE_RQ)

    assert [
        Fragment(3, True, True, b"ab"),
        Fragment(3, False, False, b"cdef"),
        Fragment(3, False, True, b""),
        Released(),
    ] == seen
    assert (out, layer.state) == (wire.RELEASE_RP, State.STA13)
    assert not layer.connection_closed()


def test_a_fragment_is_a_view_of_what_was_received():
    """A fragment is handed on without a copy, before the rest of its PDU has come."""
    _, _, layer = after_accept()
    received = bytearray(wire.data(wire.pdv(3, 0, b"abcdefgh"))[:-4])

    (fragment,) = layer.receive(received)

    assert (fragment.data, fragment.data.obj is received) == (b"abcd", True)
    assert layer.in_pdu


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(wire.pdu(1, bytes(68), 0xFFFFFFFF), wire.abort(0, 0), id="U5-endless"),
        pytest.param(wire.pdu(1, bytes(68), 262_145), wire.abort(0, 0), id="U5-over-the-cap"),
        pytest.param(b"\x08", wire.abort(0, 0), id="U8-unknown-type"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", wire.abort(0, 0), id="U8-http"),
        pytest.param(wire.data(wire.pdv(1, 3, b"ab")), wire.abort(0, 0), id="U9-data-first"),
        pytest.param(wire.RELEASE_RQ, wire.abort(0, 0), id="release-first"),
        pytest.param(wire.request()[:-3], b"", id="U2-not-all-there"),
        pytest.param(wire.pdu(1, b"abcd"), wire.abort(0, 0), id="request-too-short"),
        pytest.param(wire.abort(0, 0), b"", id="abort-first"),
    ],
)
def test_before_an_association(sent, expected):
    """Anything but a readable A-ASSOCIATE-RQ is answered as Table 9-10 says for Sta2."""
    seen, out, layer = run(sent)

    assert expected == out
    assert not any(isinstance(one, Requested) for one in seen)
    assert layer.ended == any(isinstance(one, Aborted) for one in seen)


def test_a_request_is_indicated_when_its_fixed_part_is_here():
    """After 74 bytes a caller can be rejected, and nothing more of the request is read."""
    whole = wire.request()
    layer = UpperLayer(LIMITS)
    assert list(layer.receive(whole[:73])) == []

    assert list(layer.receive(whole[73:74])) == [RequestBegun(whole[:74])]
    assert list(layer.receive(whole[74:])) == [Requested(whole)]


def test_a_caller_is_rejected_before_the_rest_of_the_request_has_come():
    """U14: a rejection by the fixed part is sent at once; the rest is thrown away."""
    layer = UpperLayer(LIMITS)

    for indication in layer.receive(wire.pdu(1, bytes(68), length=262_145)):
        assert isinstance(indication, RequestBegun)
        layer.reject(1, 1, 3)

    assert layer.take_output() == wire.reject(1, 1, 3)
    assert list(layer.receive(bytes(300_000))) == []
    assert len(layer._body) == 74


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(wire.data(length=16_385), wire.abort(2, 6), id="U6-one-byte-too-long"),
        pytest.param(wire.data(length=0xFFFFFFFF), wire.abort(2, 6), id="U6-endless"),
        pytest.param(wire.data(wire.pdv(3, 3, b"", length=100), length=50), wire.abort(2, 6),
                     id="U7-fragment-longer-than-its-pdu"),
        pytest.param(wire.data(wire.pdv(3, 3, b"", length=1)), wire.abort(2, 6), id="U7-length-1"),
        pytest.param(wire.data(), wire.abort(2, 6), id="U7-empty"),
        pytest.param(wire.data(wire.pdv(3, 3, b"ab") + b"abc"), wire.abort(2, 6), id="U7-rest"),
        pytest.param(b"\x08", wire.abort(2, 1), id="U8-unknown-type"),
        pytest.param(b"\x00", wire.abort(2, 1), id="U8-type-0"),
        pytest.param(wire.request(), wire.abort(2, 2), id="U9-second-request"),
        pytest.param(wire.pdu(2, b"abcd"), wire.abort(2, 2), id="answer-of-an-acceptor"),
        pytest.param(wire.RELEASE_RP, wire.abort(2, 2), id="release-response"),
        pytest.param(wire.pdu(5, b"abcdef"), wire.abort(2, 6), id="long-release"),
        pytest.param(wire.abort(2, 1), b"", id="aborted"),
    ],
)  # fmt: skip
def test_violations_of_an_association(sent, expected):
    """A PDU that may not come is answered as Table 9-10 says for Sta6, and nothing more is read."""
    seen, out, layer = after_accept(sent)

    assert expected == out
    assert isinstance(seen[-1], Aborted)
    assert layer.ended
    assert run(wire.request(), layer=layer)[:2] == ([], b"")


def test_a_pdu_of_the_maximum_length_is_taken():
    """The maximum length is the length of the P-DATA-TF's variable field (Annex D.1)."""
    seen, out, _ = after_accept(wire.data(wire.pdv(3, 0, bytes(16_378))))

    assert ([len(one.data) for one in seen], out) == ([16_378], b"")


def test_an_unanswered_request_takes_nothing_more():
    """Data is a violation while the local answer is awaited (Sta3)."""
    layer = UpperLayer(LIMITS)
    list(layer.receive(wire.request()))

    list(layer.receive(wire.data(wire.pdv(1, 3, b"ab"))))

    assert wire.abort(2, 2) == layer.take_output()


@pytest.mark.parametrize(
    ("maximum", "sizes"), [(8, [8] * 5), (12, [12, 10]), (0, [16]), (2**32 - 1, [16])]
)
def test_what_is_sent_keeps_to_the_peers_maximum_length(maximum, sizes):
    """U17: a command set is split to fit the peer's maximum length; 0 is no limit."""
    layer = UpperLayer(LIMITS)
    for indication in layer.receive(wire.request()):
        if isinstance(indication, Requested):
            layer.accept(ANSWER, maximum)
    layer.take_output()

    layer.send(1, b"0123456789")

    out, found, value = layer.take_output(), [], b""
    while out:
        length = int.from_bytes(out[2:6], "big")
        found.append(length)
        assert (out[10], out[11]) == (1, 3 if length + 6 == len(out) else 1)
        value, out = value + out[12 : length + 6], out[length + 6 :]
    assert (sizes, b"0123456789") == (found, value)


def test_fragments_of_odd_length_are_taken():
    """D14: a fragment of odd length (against PS3.8 Annex E.1) is as good as any other."""
    pieces = (
        wire.pdv(3, 1, b"abc"),
        wire.pdv(3, 3, b"d"),
        wire.pdv(3, 0, b"e"),
        wire.pdv(3, 2, b"f"),
    )

    seen, out, layer = after_accept(wire.data(*pieces[:2]) + wire.data(*pieces[2:]))

    assert [bytes(one.data) for one in seen] == [b"abc", b"d", b"e", b"f"]
    assert (out, layer.state) == (b"", State.STA6)


def test_nothing_is_sent_after_the_end():
    """An answer to an association that has ended is refused, and a second abort is not sent."""
    _, _, layer = after_accept(wire.abort(0, 0))

    layer.abort(0, 0)

    assert layer.take_output() == b""
    with pytest.raises(RuntimeError):
        layer.send(1, b"ab")


def test_a_lost_connection_ends_what_was_open():
    """A connection that closes ends an association only if it was still open."""
    _, _, layer = after_accept()
    assert layer.connection_closed()
    assert not layer.connection_closed()
    assert not UpperLayer(LIMITS).connection_closed()


def test_the_table_is_whole():
    """Every state but idle has an action for every event."""
    assert {state: set(Received) for state in set(State) - {State.STA1}} == {
        state: set(row) for state, row in TABLE.items()
    }


def split(whole, cuts):
    at = [0, *sorted(cut % (len(whole) + 1) for cut in cuts), len(whole)]
    return [whole[a:b] for a, b in pairwise(at)]


EXAMPLES = [
    b"",
    wire.message(3, wire.store_command(), bytes(40), size=18),
    wire.data(wire.pdv(1, 3, b"ab"), wire.pdv(3, 1, b""), wire.pdv(5, 0, bytes(50))),
    wire.RELEASE_RQ,
    wire.abort(2, 6),
    wire.data(length=0xFFFFFFFF),
    wire.data(wire.pdv(3, 3, b"", length=1)),
    b"\x09",
    wire.request(),
]


@settings(max_examples=300)
@given(
    st.lists(st.one_of(st.sampled_from(EXAMPLES), st.binary(max_size=40)), max_size=5),
    st.lists(st.integers(min_value=0, max_value=2000), max_size=20),
)
def test_any_split_of_the_stream_means_the_same(messages, cuts):
    """The same is indicated and sent however the peer's bytes are split."""
    whole = wire.request() + b"".join(messages)

    seen_whole, out_whole, layer_whole = run(whole)
    seen_split, out_split, layer_split = run(*split(whole, cuts))

    assert joined(seen_whole) == joined(seen_split)
    assert (out_whole, layer_whole.state) == (out_split, layer_split.state)
    assert layer_whole.in_pdu == layer_split.in_pdu


@settings(max_examples=300)
@given(st.binary(max_size=300), st.booleans())
def test_garbage_raises_nothing(garbage, in_request):
    """No bytes make it raise: the association goes on, or is aborted."""
    sent = wire.pdu(1, bytes(68) + garbage) if in_request else garbage

    _, out, layer = run(sent)

    if layer.state is State.STA13:
        assert out[0] in {3, 7}


@settings(max_examples=200)
@given(st.integers(min_value=0, max_value=10**6), st.integers(min_value=0, max_value=255))
def test_a_damaged_request_raises_nothing(where, value):
    """An A-ASSOCIATE-RQ with one damaged byte is read or aborted, and raises nothing."""
    damaged = bytearray(wire.request())
    damaged[6 + where % (len(damaged) - 6)] = value

    _, out, layer = run(bytes(damaged))

    assert layer.state in {State.STA6, State.STA13}
    assert out[0] in {2, 3, 7}
