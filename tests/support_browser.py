# SPDX-License-Identifier: Apache-2.0
"""A real browser, Debian's Chromium without a window, for the pages that people see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Page, sync_playwright

from tests import peers

#: It talks to loopback only, and to nobody on its own account.
_OPTIONS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-first-run",
    "--no-sandbox",  # tests run as root, which Chromium's sandbox refuses
)


@contextmanager
def open_page(**context: Any) -> Iterator[Page]:
    """Open a page in a browser of its own, which ends with the block.

    Parameters
    ----------
    context : dict
        Options of Playwright's `new_context`: `http_credentials`, `viewport`, ...
    """
    peers.need("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=peers.find("chromium"), args=list(_OPTIONS)
        )
        try:
            yield browser.new_context(**context).new_page()
        finally:
            browser.close()
