# SPDX-License-Identifier: Apache-2.0
"""Bad peers of the upper layer, byte by byte over a socket, and the answers they get.

The ids are those of docs/conformance.md.
"""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
import time
from contextlib import suppress

import pytest

from adapter.scp import association_limiter
from adapter.scp.acceptance import CAUSES
from tests import peers
from tests import support_wire as wire
from tests.support_conformance import ARTIM, IDLE, PDU, associations, descriptors, receiver
from tests.support_network import joined
from tests.support_scp import recorded
from tests.support_waiting import eventually

STORE = wire.message(wire.CT, wire.store_command())
STALLED_DATA = STORE[:-10]


@pytest.fixture
def scp(settings):
    with receiver(settings) as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_is_logged_raw(capsys):
    """The log holds no traceback and no control character of a peer."""
    yield
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert not {"\r", "\x1b[31mM", "\0"} & set(out + err)
    assert "\nforged" not in out + err


def contexts(ids):
    return [(number, wire.CT_IMAGE, (wire.EXPLICIT,)) for number in ids]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(
            wire.pdu(1, wire.request()[6:], length=0xFFFFFFFF), wire.abort(0, 0), id="U5"
        ),
        pytest.param(b"\x08", wire.abort(0, 0), id="U8-unknown"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", wire.abort(0, 0), id="U8-http"),
        pytest.param(wire.data(wire.pdv(1, 3, b"ab")), wire.abort(0, 0), id="U9-data-first"),
        pytest.param(wire.request(version=2), wire.reject(1, 2, 2), id="U10"),
        pytest.param(wire.request(application_context="1.2.3"), wire.reject(1, 1, 2), id="U11"),
        pytest.param(
            wire.request(contexts=contexts([1, 3, 5] * 100)), wire.reject(1, 2, 1), id="U12-many"
        ),
        pytest.param(
            wire.request(contexts=[*contexts([1]), (1, wire.MR_IMAGE, (wire.EXPLICIT,))]),
            wire.reject(1, 2, 1),
            id="U12-repeated",
        ),
        pytest.param(wire.request(contexts=()), wire.reject(1, 1, 1), id="U12-none"),
        pytest.param(wire.request(calling=b"STRANGER"), wire.reject(1, 1, 3), id="U14-calling"),
        pytest.param(wire.request(called=b"NOBODY"), wire.reject(1, 1, 7), id="U14-called"),
        pytest.param(wire.request(calling=b"MO\r\nforged"), wire.reject(1, 1, 3), id="U16-crlf"),
        pytest.param(
            wire.request(calling=b"\x1b[31mMODALITY"), wire.reject(1, 1, 3), id="U16-escape"
        ),
        pytest.param(wire.request(called=b"ADAPT\xc4R"), wire.reject(1, 1, 7), id="U16-eight-bit"),
        pytest.param(wire.request(calling=b" " * 16), wire.reject(1, 1, 3), id="U16-blank"),
        pytest.param(wire.request(maximum=1), wire.abort(0, 0), id="U17-1"),
        pytest.param(
            wire.request(calling=b"STRANGER")[:74], wire.reject(1, 1, 3), id="U14-fixed-part"
        ),
        pytest.param(
            wire.request(extra_items=b"\x20\0\xff\xff"), wire.abort(0, 0), id="U21-item-cut"
        ),
        pytest.param(
            wire.request(extra_user_items=wire.item(0x99, b"") * 10_000), wire.reject(1, 2, 1),
            id="U12-items",
        ),
    ],
)  # fmt: skip
def test_at_once(scp, sent, expected):
    """A first PDU that cannot be accepted is answered at once, and the connection closed.

    Of a request the event names both AE titles, the peer's address and the cause in words.
    """
    with scp.call() as caller:
        began = time.monotonic()
        caller.send(sent)
        assert caller.pdu() == expected
        assert time.monotonic() < began + ARTIM
        assert caller.rest() == b""
        assert time.monotonic() < began + ARTIM + 1
    if sent[:2] == b"\1\0":
        (event,) = eventually(lambda: recorded(scp.adapter, "association-rejected"))
        assert event.detail["peer"] == "127.0.0.1"
        assert event.detail["message"] == CAUSES[event.detail["cause"]]
        calling, called = event.detail["calling"], event.detail["called"]
        assert "ADAPT" in called or "NOBODY" in called
        assert (calling + called).isprintable()
    scp.check_at_rest()


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(wire.data(length=16_777_217), wire.abort(2, 6), id="U6"),
        pytest.param(wire.data(length=0xFFFFFFFF) + bytes(99_999), wire.abort(2, 6), id="U6-flood"),
        pytest.param(
            wire.data(wire.pdv(3, 3, b"", length=99), length=9), wire.abort(2, 6), id="U7-too-long"
        ),
        pytest.param(wire.data(wire.pdv(3, 3, b"", length=1)), wire.abort(2, 6), id="U7-one"),
        pytest.param(wire.data(), wire.abort(2, 6), id="U7-empty"),
        pytest.param(b"\x08", wire.abort(2, 1), id="U8-unknown"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", wire.abort(2, 1), id="U8-http"),
        pytest.param(wire.request(), wire.abort(2, 2), id="U9-second-request"),
    ],
)
def test_in_an_association(scp, sent, expected):
    """A PDU that may not come in an established association aborts it at once."""
    with scp.call() as caller:
        assert caller.associate()[:1] == b"\2"
        caller.send(sent)
        assert caller.rest() == expected
    eventually(lambda: recorded(scp.adapter, "association"))
    scp.check_at_rest()


@pytest.mark.parametrize(
    ("first", "trickled", "seconds", "expected"),
    [
        pytest.param(b"", b"", ARTIM, b"", id="U1"),
        pytest.param(b"\1\0\0", b"", ARTIM, b"", id="U2-three-bytes"),
        pytest.param(wire.request()[:100], b"", ARTIM, b"", id="U2-half"),
        pytest.param(b"", wire.request(), ARTIM, b"", id="U2-trickle"),
    ],
)
def test_too_slow_to_ask(scp, first, trickled, seconds, expected):
    """A peer without a whole request in time is closed upon, also if it trickles."""
    with scp.call() as caller:
        began = time.monotonic()
        caller.send(first)
        caller.trickle(trickled, pause=0.05)
        assert caller.rest() == expected
        assert seconds - 0.1 < time.monotonic() - began < seconds + 1
    scp.check_at_rest()


@pytest.mark.parametrize(
    ("first", "trickled", "seconds", "expected"),
    [
        pytest.param(STALLED_DATA, b"", PDU, wire.abort(2, 0), id="U3"),
        pytest.param(STALLED_DATA[:3], b"", PDU, wire.abort(2, 0), id="U3-header"),
        pytest.param(b"", STALLED_DATA, PDU, wire.abort(2, 0), id="U3-trickle"),
        pytest.param(b"", b"", IDLE, wire.abort(0, 0), id="U4"),
        pytest.param(STORE, b"", IDLE, wire.abort(0, 0), id="U4-message"),
    ],
)
def test_too_slow_in_an_association(scp, first, trickled, seconds, expected):
    """A PDU that is not whole in time, or too long a silence, ends the association."""
    with scp.call() as caller:
        assert caller.associate()[:1] == b"\2"
        began = time.monotonic()
        caller.send(first)
        caller.trickle(trickled, pause=0.02)
        assert caller.pdu() == expected
        assert seconds - 0.1 < time.monotonic() - began < seconds + 1
        assert caller.rest() == b""
    scp.check_at_rest()


def test_u12_as_many_contexts_as_there_can_be(scp):
    """U12: 128 presentation contexts are all accepted."""
    ids = range(1, 256, 2)
    with scp.call() as caller:
        assert wire.results(caller.associate(contexts=contexts(ids))) == dict.fromkeys(ids, 0)
        assert caller.release()
    scp.check_at_rest()


def test_u12_odd_context_ids(scp):
    """U12: an id may be even, and a context may come twice: nothing depends on it."""
    with scp.call() as caller:
        assert wire.results(caller.associate(contexts=contexts([2, 3, 3]))) == {2: 0, 3: 0}
        assert caller.release()


@pytest.mark.parametrize(
    ("calling", "called"),
    [
        (b"MODALITY".ljust(16, b"\0"), b"ADAPTER"),
        (b"MODALITY", b"ADAPTER".ljust(16, b"\0")),
        (b"MODALITY\0\xffgarbag", b"  ADAPTER\0\0\0\0"),
    ],
)
def test_u16_padded_ae_titles(scp, calling, called):
    """U16: AE titles are known by what stands before their padding; the answer has them as sent."""
    with scp.call() as caller:
        answer = caller.associate(calling=calling, called=called)
        assert answer[:1] == b"\2"
        assert answer[10:42] == called.ljust(16) + calling.ljust(16)
        assert caller.echo()
        assert caller.release()


def test_u13_contexts_that_are_not_accepted(scp):
    """U13: an unknown abstract syntax gets result 3, an unknown transfer syntax 4; others go on."""
    proposed = [
        (wire.ECHO, wire.VERIFICATION, (wire.IMPLICIT,)),
        (3, "1.2.3.4", (wire.IMPLICIT,)),
        (5, wire.VERIFICATION, ("1.2.840.10008.1.2.4.50",)),
    ]
    with scp.call() as caller:
        assert wire.results(caller.associate(contexts=proposed)) == {1: 0, 3: 3, 5: 4}
        assert caller.echo()
        assert caller.release()
    scp.check_at_rest()


@pytest.mark.parametrize(
    "limit", ["maximum_number_of_associations", "maximum_associations_per_peer"]
)
def test_u15_too_many_associations(settings, limit):
    """U15: one association more than the limit gets 2/3/2, until one ends."""
    with receiver(settings, **{limit: 2}, idle_seconds=30.0) as scp:
        with scp.call() as one, scp.call() as two, scp.call() as three:
            assert one.associate()[:1] == two.associate()[:1] == b"\2"
            three.send(wire.request())
            assert three.rest() == wire.reject(2, 3, 2)
            two.socket.close()
            eventually(lambda: associations() == 1)
            with scp.call() as four:
                assert four.associate()[:1] == b"\2"
        eventually(lambda: associations() == 0)
        scp.check_at_rest()


def accepted(caller, **changes):
    """Ask for an association; return the caller, or None if it is rejected."""
    if caller.associate(**changes)[:1] == b"\2":
        return caller
    caller.socket.close()
    return None


def test_u15_a_gateway_with_a_stuck_sender(settings, monkeypatch):
    """U15: idle associations of a sender with more than its share make room for another's."""
    monkeypatch.setattr(association_limiter, "IDLE_SECONDS", 0.0)
    limits = {"maximum_associations_per_peer": 2, "idle_seconds": 30.0}
    with receiver(settings, **limits, reject_unknown_sources=False) as scp:
        with scp.call() as busy, scp.call() as stuck:
            assert busy.associate()[:1] == b"\2"
            busy.send(STORE[:-10])
            eventually(busy.delivered)
            assert stuck.associate()[:1] == b"\2"
            other = eventually(lambda: accepted(scp.call(), calling=b"OTHER"))
            with other:
                assert other.echo()
                assert stuck.rest() == wire.abort(0, 0)
            busy.send(STORE[-10:] + wire.data(wire.pdv(wire.CT, 2, wire.data_set())))
            assert busy.status() == 0x0000
        (path,) = scp.stored()
        path.unlink()


def test_u15_low_storage(settings):
    """U15: while the disk is too full, Storage gets 2/3/1 and Verification is served."""
    full = settings.storage.model_copy(update={"watermark_percent": 0.001})
    settings = settings.model_copy(update={"storage": full})
    with receiver(settings) as scp, scp.call() as caller:
        assert caller.associate(contexts=wire.CONTEXTS[:1])[:1] == b"\2"
        with scp.call() as other:
            other.send(wire.request())
            assert other.rest() == wire.reject(2, 3, 1)
        assert caller.echo()
        assert caller.release()
        caller.socket.close()
        scp.check_at_rest(contexts=wire.CONTEXTS[:1])


@pytest.mark.parametrize("maximum", [0, 8, 0xFFFFFFFF])
def test_u17_what_the_peer_can_take(scp, maximum):
    """U17: a peer's maximum length of 0 is no limit; any other that leaves room is respected."""
    with scp.call() as caller:
        assert caller.associate(maximum=maximum)[:1] == b"\2"
        caller.send(wire.message(wire.ECHO, wire.echo_command()))
        answer = caller.pdu()
        assert len(answer) - 6 <= (maximum or len(answer))
    scp.check_at_rest()


def test_u19_many_who_say_nothing(settings):
    """U19: 150 silent connections keep no other peer out, and take a bounded number of threads."""
    with receiver(settings, maximum_half_open=20, artim_seconds=30.0) as scp:
        callers = [scp.call() for _ in range(150)]
        try:
            for caller in callers[::10]:
                caller.send(b"\1\0\0")
            began = time.monotonic()
            with scp.call() as modality:
                assert modality.associate()[:1] == b"\2"
                assert modality.echo()
            assert time.monotonic() < began + 1
            eventually(lambda: associations() <= 21)
        finally:
            for caller in callers:
                caller.socket.close()
        scp.check_at_rest()


def reset(caller):
    caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    caller.socket.close()


HALF = wire.message(wire.CT, wire.store_command())
HALF += wire.data(wire.pdv(wire.CT, 0, wire.data_set(pixels=1000))) * 3


@pytest.mark.parametrize(
    ("sent", "end", "how"),
    [
        pytest.param(HALF, lambda caller: caller.release(), "released", id="U20-release"),
        pytest.param(HALF, lambda caller: caller.send(wire.abort(0, 0)), "aborted", id="U20-abort"),
        pytest.param(HALF, lambda caller: caller.socket.close(), "lost", id="U20-close"),
        pytest.param(HALF[:-9], lambda caller: caller.socket.close(), "lost", id="U20-cut"),
        pytest.param(HALF, reset, "lost", id="U20-reset"),
        pytest.param(HALF, lambda _: None, "aborted", id="U20-silence"),
    ],
)
def test_u20_an_end_in_mid_message(scp, sent, end, how):
    """U20: an association that ends within a data set leaves nothing in the spool."""
    with scp.call() as caller:
        assert caller.associate()[:1] == b"\2"
        caller.send(sent)
        end(caller)
        (event,) = eventually(lambda: recorded(scp.adapter, "association")[1:])
        assert event.detail["ended"] == how
        assert scp.stored() == []
    scp.check_at_rest()


@pytest.fixture
def networks():
    """The receiver's network and a peer's, joined by a cable."""
    try:
        with joined("10.99.0.1", "10.99.0.2") as both:
            yield both
    except PermissionError:
        peers.cannot(peers.Lack.NETWORKS)


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        pytest.param(HALF, IDLE, id="U20-half-open"),
        pytest.param(HALF[:-9], PDU, id="U20-half-open-in-a-pdu"),
    ],
)
def test_u20_half_open(settings, networks, sent, seconds):
    """U20: a peer whose cable is pulled is given up in time, and leaves nothing behind."""
    near, far = networks

    def scenario():
        with receiver(settings, host="0.0.0.0", reject_unknown_sources=False) as scp:
            with far.do(scp.call, address="10.99.0.1") as caller:
                assert caller.associate()[:1] == b"\2"
                caller.send(sent)
                eventually(caller.delivered)
                began = time.monotonic()
                far.ip("link", "set", "far", "down")
                (event,) = eventually(lambda: recorded(scp.adapter, "association")[1:])
                assert event.detail["ended"] == "aborted"
                assert time.monotonic() < began + seconds + 1.5  # events are written each second
                assert scp.stored() == []
                eventually(lambda: associations() == 0)
            scp.check_at_rest()

    near.do(scenario)


# -- TLS -------------------------------------------------------------------------------------------


def certificate(folder, name):
    """Make a self-signed certificate; return its path and that of its key."""
    peers.need("openssl")
    paths = folder / f"{name}.pem", folder / f"{name}-key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    words += ["-subj", f"/CN={name}", "-out", paths[0], "-keyout", paths[1]]
    subprocess.run(words, check=True, capture_output=True)
    return paths


@pytest.fixture
def own_certificate(tmp_path):
    return certificate(tmp_path, "adapter")


@pytest.fixture
def tls(own_certificate):
    """A TLS server's side."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*own_certificate)
    return context


def trusting():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def check_tls(scp):
    """A C-ECHO succeeds, and no thread or descriptor is left."""
    with scp.call() as modality:
        modality.socket = trusting().wrap_socket(modality.socket)
        assert modality.associate()[:1] == b"\2"
        assert modality.echo()
        assert modality.release()
    eventually(lambda: associations() == 0)
    eventually(lambda: descriptors() <= scp.descriptors)


@pytest.mark.parametrize(
    "sent", [pytest.param(b"", id="U18-silent"), pytest.param(wire.request(), id="U18-plaintext"),
             pytest.param(b"\x16\x03\x01" + bytes(500), id="U18-garbage")],
)  # fmt: skip
def test_u18_no_handshake(settings, tls, sent):
    """U18: a peer that does not finish the handshake is closed upon in time; no other waits."""
    with receiver(settings, tls=tls) as scp:
        with scp.call() as stranger:
            stranger.send(sent)
            began = time.monotonic()
            with scp.call() as modality:
                modality.socket = trusting().wrap_socket(modality.socket)
                assert modality.associate()[:1] == b"\2"
                assert modality.echo()
                assert modality.release()
            assert time.monotonic() < began + ARTIM
            assert stranger.rest()[:1] in {b"", b"\x15"}  # nothing, or an alert (RFC 8446 6)
            assert time.monotonic() < began + ARTIM + 1
        check_tls(scp)


@pytest.mark.parametrize("shown", ["none", "a-stranger's"])
def test_u18_a_certificate_that_is_not_known(settings, tls, own_certificate, tmp_path, shown):
    """U18: where certificates are required, a peer without a known one gets no association."""
    tls.load_verify_locations(own_certificate[0])
    tls.verify_mode = ssl.CERT_REQUIRED
    known = trusting()
    known.load_cert_chain(*own_certificate)
    unknown = trusting()
    if shown != "none":
        unknown.load_cert_chain(*certificate(tmp_path, "stranger"))
    with receiver(settings, tls=tls) as scp:
        with scp.call() as stranger:
            stranger.socket = unknown.wrap_socket(stranger.socket)
            with suppress(OSError):  # an alert, unless a reset comes before it
                assert stranger.associate() == b""
        with scp.call() as modality:
            modality.socket = known.wrap_socket(modality.socket)
            assert modality.associate()[:1] == b"\2"
            assert modality.echo()
        eventually(lambda: associations() == 0)
        eventually(lambda: descriptors() <= scp.descriptors)
