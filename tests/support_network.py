# SPDX-License-Identifier: Apache-2.0
"""Networks of a test's own, so that a cable can be pulled without touching the machine's."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tests import peers

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET, unshare(2)
_LIBC = ctypes.CDLL(None, use_errno=True)


class Network:
    """A network namespace: that of one thread, and of what is opened and started in it."""

    def __init__(self):
        self._pool = ThreadPoolExecutor(1)
        try:
            self.path = self.do(self._leave)
            self.ip("link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    def do(self, function, *arguments, **options):
        """Call a function in here, and return what it returns."""
        return self._pool.submit(function, *arguments, **options).result()

    def ip(self, *words):
        self.do(subprocess.run, ["ip", *words], check=True, capture_output=True)

    def close(self):
        self._pool.shutdown()

    @staticmethod
    def _leave():
        if _LIBC.unshare(_NEW_NETWORK):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"


@contextmanager
def joined(here, there):
    """Make two networks with a cable between them; each end has one of the two addresses.

    Raises
    ------
    PermissionError
        If no network may be made.
    """
    peers.need("iproute2")
    near = Network()
    try:
        far = Network()
        try:
            near.ip("link", "add", "near", "type", "veth", "peer", "far", "netns", far.path)
            for network, end, address in ((near, "near", here), (far, "far", there)):
                network.ip("address", "add", f"{address}/30", "dev", end)
                network.ip("link", "set", end, "up")
            yield near, far
        finally:
            far.close()
    finally:
        near.close()
