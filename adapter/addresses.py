# SPDX-License-Identifier: Apache-2.0
"""IP addresses of peers, in the one form in which they are compared, counted and logged."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address


def peer_address(text: str) -> IPv4Address | IPv6Address:
    """Return a peer's address without its zone; an IPv4-mapped one is returned as IPv4.

    A socket that listens on IPv4 and IPv6 reports IPv4 peers as ``::ffff:192.0.2.1``, and
    link-local peers with the name of an interface: ``fe80::1%eth0``.

    Raises
    ------
    ValueError
        If it is no IP address.

    References
    ----------
    RFC 4291 section 2.5.5.2 (IPv4-mapped addresses); RFC 4007 section 11 (zones).
    """
    address = ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address
