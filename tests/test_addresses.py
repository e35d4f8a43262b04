# SPDX-License-Identifier: Apache-2.0
"""A peer has one address, however its socket writes it."""

from __future__ import annotations

import pytest

from adapter.addresses import peer_address
from adapter.models import Source
from adapter.scp.association_limiter import AssociationLimiter

#: The same peer, as sockets of different families report it.
SAME = [
    ("::ffff:192.0.2.1", "192.0.2.1"),
    ("::ffff:c000:201", "192.0.2.1"),
    ("fe80::1%eth0", "fe80::1"),
    ("FE80:0::1%2", "fe80::1"),
]


@pytest.mark.parametrize(("written", "address"), SAME)
def test_one_address_in_one_form(written, address):
    """An IPv4-mapped address is IPv4, a zone is no part of an address, and case is none either."""
    assert str(peer_address(written)) == address
    assert peer_address(written) == peer_address(address)


@pytest.mark.parametrize(("written", "address"), SAME)
def test_a_source_and_its_limit_know_it(written, address):
    """A source is allowed, and its associations are counted, under every form of its address."""
    assert Source(ae_title="A", host_ip=[address]).allows(written)
    limiter = AssociationLimiter(total=3, per_peer=1)
    try:
        assert limiter.acquire(written) is not None
        assert limiter.acquire(address) is None
    finally:
        limiter.close()
