# SPDX-License-Identifier: Apache-2.0
"""IP addresses of peers, in the one form in which they are compared, and hosts that HTTP names."""

from __future__ import annotations

import socket
from collections.abc import Collection
from contextlib import suppress
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


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches what listens on a host."""
    try:
        return peer_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def names_us(host: str | None, names: Collection[str]) -> bool:
    """Return whether the Host field of an HTTP request may be meant for this machine.

    A page of somebody else's may have its own name resolved to our address (DNS rebinding), so that
    a browser lets it read our answers.  The field still has that name: it is no address, it is not
    localhost or this host's name, and the settings do not know it.

    Parameters
    ----------
    host : str or None
        The field (RFC 9110 section 7.2); a program that sends none is no browser.
    names : collection of str
        The names that the settings know.
    """
    if host is None:
        return True
    name = host.strip().lower()
    bracketed = name.startswith("[")
    name = name[1:].partition("]")[0] if bracketed else name.partition(":")[0]
    name = name.rstrip(".")
    with suppress(ValueError):
        return bool(ip_address(name))
    known = {"localhost", socket.gethostname().lower(), *(known.lower() for known in names)}
    return name in known
