# SPDX-License-Identifier: Apache-2.0
"""Command sets and messages, byte by byte (PS3.7); D.. are rows of docs/conformance.md."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.dicom.command_sets import UnreadableCommand, decode_command
from adapter.scp.dimse import (
    DataSet,
    EchoRequest,
    MessageReader,
    ProtocolViolation,
    RefusedRequest,
    StoreRequest,
    encode_response,
)
from adapter.scp.upper_layer import Fragment
from tests import support_wire as wire

CONTEXTS = {wire.ECHO: wire.VERIFICATION, wire.CT: wire.CT_IMAGE, wire.MR: wire.MR_IMAGE}
STORED = {wire.CT_IMAGE, wire.MR_IMAGE}


def fragment(context_id, command, last, data):
    return Fragment(context_id, command, last, memoryview(data))


def read(*fragments):
    """Return what fragments mean, and the violation that ended them, if any."""
    reader, seen = MessageReader(CONTEXTS, STORED), []
    try:
        for one in fragments:
            message = reader.read(one)
            if isinstance(message, DataSet):
                message = bytes(message.data)
            if message is not None:
                seen.append(message)
    except ProtocolViolation as violation:
        seen.append((violation.source, violation.reason))
    return seen


def command(context_id, encoded):
    return fragment(context_id, command=True, last=True, data=encoded)


def test_an_echo_is_read_and_answered():
    """C-ECHO-RQ becomes an EchoRequest; each byte of its response is as the Standard says."""
    (echo,) = read(command(wire.ECHO, wire.echo_command(message_id=7)))

    assert EchoRequest(wire.ECHO, 7) == echo
    assert encode_response(echo) == bytes.fromhex(
        "00000000 04000000 42000000"
        "00000200 12000000 312e322e3834302e31303030382e312e3100"
        "00000001 02000000 3080"
        "00002001 02000000 0700"
        "00000008 02000000 0101"
        "00000009 02000000 0000"
    )


def test_a_store_is_read_and_answered():
    """C-STORE-RQ becomes a StoreRequest; its data set comes in pieces; the response names it."""
    seen = read(
        command(wire.CT, wire.store_command("1.2.3", message_id=9)),
        fragment(wire.CT, command=False, last=False, data=b"ab"),
        fragment(wire.CT, command=False, last=True, data=b"cd"),
        command(wire.ECHO, wire.echo_command()),
    )

    store = StoreRequest(wire.CT, 9, wire.CT_IMAGE, "1.2.3")
    assert seen == [store, b"ab", b"cd", EchoRequest(wire.ECHO, 1)]
    assert decode_command(encode_response(store, 0xA700, "no space" + "x" * 100))[0x0902] == (
        b"no space" + b"x" * 56
    )
    assert encode_response(store, 0xA700, "odd").endswith(
        bytes.fromhex("00000009 02000000 00a7 00000209 04000000 6f646420")
        + bytes.fromhex("00000010 06000000 312e322e3300")
    )


def test_a_command_set_may_come_in_pieces():
    """Fragments of a command set are put together, whatever their size."""
    whole = wire.store_command()
    pieces = [fragment(wire.CT, True, False, whole[at : at + 2]) for at in range(0, len(whole), 2)]

    assert read(*pieces, fragment(wire.CT, True, True, b"")) == read(command(wire.CT, whole))


@pytest.mark.parametrize(
    ("context_id", "encoded", "status", "follows"),
    [
        pytest.param(wire.CT, wire.store_command(sop_class="1.2.3"), 0x0122, True, id="D3"),
        pytest.param(wire.CT, wire.store_command(e0800=wire.us(0x0101)), 0x0212, False,
                     id="D7-no-data-set"),
        pytest.param(wire.CT, wire.store_command(e0800=None), 0x0212, False, id="D8-no-type"),
        pytest.param(wire.CT, wire.store_command(e0002=None), 0x0212, True, id="D8-no-class"),
        pytest.param(wire.CT, wire.store_command(e1000=None), 0x0212, True, id="D8-no-instance"),
        pytest.param(wire.CT, wire.store_command("1." * 32 + "1"), 0x0212, True, id="D6-long"),
        pytest.param(wire.CT, wire.store_command(""), 0x0212, True, id="D6-empty"),
        pytest.param(wire.CT, wire.store_command(e0100=wire.us(0x0777)), 0x0211, True,
                     id="D8-unknown-command"),
        pytest.param(wire.CT, wire.store_command(e0100=wire.us(0x0020)), 0x0211, True,
                     id="D12-find"),
        pytest.param(wire.CT, wire.store_command(e0100=wire.us(0x0100), e0800=wire.us(0x0101)),
                     0x0211, False, id="D12-event-report"),
        pytest.param(wire.CT, wire.echo_command(), 0x0211, False, id="echo-of-a-storage-class"),
    ],
)  # fmt: skip
def test_refused_by_the_command_set(context_id, encoded, status, follows):
    """A command that cannot be served is refused, and the data set that follows it is awaited."""
    (refused,) = read(command(context_id, encoded))

    assert (type(refused), refused.status, refused.data_set_follows) == (
        RefusedRequest,
        status,
        follows,
    )
    response = decode_command(encode_response(refused, refused.status))
    assert response[0x0100] == wire.us(refused.command_field | 0x8000)
    assert response[0x0900] == wire.us(status)
    assert not any(byte < 0x20 for byte in response.get(0x1000, b"").rstrip(b"\0"))


STORE = command(wire.CT, wire.store_command())
DATA = fragment(wire.CT, command=False, last=False, data=b"ab")


@pytest.mark.parametrize(
    ("fragments", "abort"),
    [
        pytest.param([command(9, wire.store_command())], (0, 0), id="D1"),
        pytest.param([STORE, DATA._replace(context_id=9)], (0, 0), id="D1-data-set"),
        pytest.param([command(wire.CT, wire.store_command(e0100=None))], (0, 0), id="D8-no-field"),
        pytest.param([command(wire.CT, wire.store_command(e0110=None))], (0, 0), id="no-id"),
        pytest.param([command(wire.CT, b"\xff" * 20)], (0, 0), id="D8-garbage"),
        pytest.param([command(wire.CT, wire.store_command()[:-1])], (0, 0), id="D8-cut-short"),
        pytest.param([DATA], (2, 2), id="D9-data-set-first"),
        pytest.param([STORE, DATA, DATA._replace(context_id=wire.MR)], (2, 2), id="D9-interleaved"),
        pytest.param([STORE, DATA, STORE], (2, 2), id="D9-command-in-a-data-set"),
        pytest.param(
            [STORE._replace(last=False), STORE._replace(context_id=wire.MR)], (2, 2),
            id="D9-interleaved-commands",
        ),
        pytest.param(
            [fragment(wire.CT, True, False, bytes(16_000))] * 5, (2, 6), id="D10-endless-command"
        ),
        pytest.param(
            [command(wire.CT, wire.store_command(e0100=wire.us(0x8001)))], (0, 0), id="a-response"
        ),
    ],
)  # fmt: skip
def test_violations(fragments, abort):
    """A message without an answer is a violation, with the source and reason of the A-ABORT."""
    *_, last = read(*fragments)

    assert abort == last


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(wire.store_command(e1000=b"1.2.3"), id="odd-uid"),
        pytest.param(wire.store_command(e1000=b"1.2.3") + b"\0", id="odd-uid-then-made-even"),
        pytest.param(wire.store_command("1.2.3", e0110=b"\1\0\0\0"), id="a-longer-number"),
        pytest.param(wire.store_command("1.2.3", e1030=b"AE1"), id="odd-ae-title"),
    ],
)
def test_odd_elements_of_a_command(encoded):
    """D14: elements of odd length are taken, with or without a byte that makes them even."""
    assert read(command(wire.CT, encoded)) == [StoreRequest(wire.CT, 1, wire.CT_IMAGE, "1.2.3")]


@pytest.mark.parametrize("uid", [b"1.02.3", b" 1.02.3", b" 1.02.3 \0"])
def test_uids_are_carried_on_without_their_padding(uid):
    """D5: a UID is any digits and dots, whatever its grammar, and comes back in the response."""
    (store,) = read(command(wire.CT, wire.store_command(uid)))

    assert store.sop_instance_uid == "1.02.3"
    assert decode_command(encode_response(store))[0x1000] == b"1.02.3"


@pytest.mark.parametrize("uid", ["../../x", b"1.2\0.3", "1.2\r\n3", b"\xff1.2"])
def test_what_is_no_uid_is_not_sent_back(uid):
    """D5: the sink checks the UIDs of a request; an invalid one is not in the response."""
    (store,) = read(command(wire.CT, wire.store_command(uid)))

    assert 0x1000 not in decode_command(encode_response(store, 0xA900))


def test_a_cancel_is_ignored():
    """D12: an unsolicited C-CANCEL has no response (PS3.7 section 9.3.2.3)."""
    cancel = wire.command({0x0100: wire.us(0x0FFF), 0x0120: wire.us(1), 0x0800: wire.us(0x0101)})

    assert read(command(wire.CT, cancel), STORE) == [
        StoreRequest(wire.CT, 1, wire.CT_IMAGE, "1.2.3.4.5")
    ]


def test_the_data_set_of_a_refused_request_is_read_to_its_end():
    """After a refused request its data set comes, and then the next message."""
    refused, piece, echo = read(
        command(wire.CT, wire.store_command(sop_class="1.2.3")),
        DATA._replace(last=True),
        command(wire.ECHO, wire.echo_command()),
    )

    assert (refused.status, piece, echo) == (0x0122, b"ab", EchoRequest(wire.ECHO, 1))


def test_nothing_of_a_command_set_is_left_for_the_next():
    """An element that is missing from a command set is not taken from the one before."""
    *_, refused = read(
        command(wire.CT, wire.store_command()),
        DATA._replace(last=True),
        command(wire.CT, wire.store_command(e1000=None)),
    )

    assert (refused.status, refused.sop_instance_uid) == (0x0212, "")


fragments = st.builds(
    Fragment,
    st.sampled_from([1, 3, 5, 9]),
    st.booleans(),
    st.booleans(),
    st.one_of(
        st.binary(max_size=100), st.just(wire.store_command()), st.just(wire.echo_command())
    ).map(memoryview),
)


@settings(max_examples=500)
@given(st.lists(fragments, max_size=8))
def test_any_fragments_mean_something_or_violate(several):
    """Any fragments are read, or raise a violation and nothing else."""
    read(*several)


@settings(max_examples=300)
@given(st.integers(min_value=0, max_value=10**6), st.integers(min_value=0, max_value=255))
def test_a_damaged_command_set_raises_nothing_else(where, value):
    """A command set with one damaged byte is read, is refused, or is a violation."""
    damaged = bytearray(wire.store_command())
    damaged[where % len(damaged)] = value

    assert len(read(command(wire.CT, bytes(damaged)))) <= 1


@settings(max_examples=100)
@given(st.lists(st.integers(min_value=0, max_value=10**6), max_size=10))
def test_any_split_of_a_command_set_means_the_same(cuts):
    """A command set means the same however it is split into fragments."""
    whole = wire.store_command()
    at = [0, *sorted(cut % len(whole) for cut in cuts), len(whole)]
    pieces = [fragment(wire.CT, True, b == len(whole), whole[a:b]) for a, b in pairwise(at)]

    assert read(command(wire.CT, whole)) == read(*pieces)


def test_only_group_0000_is_a_command_set():
    """Bytes with an element of another group, or one cut short, are no command set."""
    for broken in (b"\x08\0\x18\0\0\0\0\0", b"\0\0\0\1\2\0\0\0\1", b"\1\0\0"):
        with pytest.raises(UnreadableCommand):
            decode_command(broken)
