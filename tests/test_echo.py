# SPDX-License-Identifier: Apache-2.0
"""C-ECHO to a destination says in plain words what went wrong."""

from __future__ import annotations

import time

import pytest

from adapter.scu.echo import echo
from adapter.settings import Scu
from tests.support_peers import RawPeer, ScriptedPacs, destination
from tests.support_stack import free_port
from tests.support_wire import abort, reject


@pytest.fixture
def quick():
    """An SCU that waits a second."""
    return Scu(ae_title="OURSCU", connect_seconds=1, association_seconds=1, response_seconds=1)


def test_echo_that_is_answered(quick):
    """The text names the peer that answered, with its address."""
    with ScriptedPacs() as pacs:
        answer = echo(destination(pacs.port), quick)
    assert answer.ok
    assert f"127.0.0.1:{pacs.port}" in answer.text
    assert answer.seconds < 5


def answering(bytes_):
    return lambda peer: (peer.pdu(), peer.socket.sendall(bytes_), peer.hold())


def refuse_verification(peer):
    peer.accept(result=3)
    peer.hold()


def abort_the_echo(peer):
    peer.accept()
    peer.message()
    peer.socket.sendall(abort(0, 0))


def fail_the_echo(peer):
    peer.accept()
    context, request, _ = peer.message()
    peer.socket.sendall(peer.response(context, request, status=0x0122))
    peer.hold()


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        (answering(reject(1, 1, 3)), ["calling AE title", "add our AE title OURSCU at the peer"]),
        (answering(reject(1, 1, 7)), ["called AE title", "PACS"]),
        (answering(reject(2, 3, 2)), ["local limit"]),
        (answering(reject(1, 1, 1)), ["rejected", "no reason given"]),
        (lambda peer: peer.hold(), ["sent no answer in 1 s"]),
        (lambda peer: peer.pdu(), ["closed the connection"]),
        (refuse_verification, ["refused Verification"]),
        (abort_the_echo, ["aborted"]),
        (fail_the_echo, ["status 0122"]),
    ],
)
def test_what_went_wrong(quick, behave, words):
    """Each fault of a peer is said in plain words, and within the deadline."""
    start = time.monotonic()
    with RawPeer(behave) as peer:
        answer = echo(destination(peer.port), quick)
    assert not answer.ok
    for word in words:
        assert word in answer.text
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("behave", "rejected"),
    [(answering(reject(1, 1, 3)), True), (answering(reject(2, 3, 2)), False),
     (abort_the_echo, False), (refuse_verification, False)],
    ids=("calling", "limit", "abort", "no-verification"),
)  # fmt: skip
def test_a_rejection_is_told_apart(quick, behave, rejected):
    """A rejection for good counts as rejected; a transient one only as unreachable."""
    with RawPeer(behave) as peer:
        assert echo(destination(peer.port), quick).rejected == rejected


def test_nobody_there(quick):
    """A port without a listener and an unknown name are told apart."""
    port = free_port()
    assert f"nobody listens on 127.0.0.1:{port}" in echo(destination(port), quick).text
    unknown = destination(104).model_copy(update={"host_ip": "no-such-host.invalid"})
    assert "name no-such-host.invalid" in echo(unknown, quick).text
