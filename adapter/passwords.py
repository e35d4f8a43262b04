# SPDX-License-Identifier: Apache-2.0
"""Passwords: read from files, put into URLs, and hidden before a URL is shown.

Containers get their secrets as files.  So no password stands in the settings file, or in the
environment, which child processes inherit and tools display.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

#: Longest password file that is read, in bytes.
_LONGEST = 4096

#: The separator between several URLs, as used for Sentinel: `a://x;a://y`.
_NEXT = re.compile(r";(?=[a-z]+://)")
#: A password before the host.  It may contain unquoted characters, so the last @ ends it.
_BEFORE_HOST = re.compile(r"(://[^:@/?#]*:)(.+)(@)")
_IN_QUERY = re.compile(r"([?&][^=&]*password[^=&]*=)([^&]+)()", re.IGNORECASE)
_PARTS = re.compile(r"([^:]+://)(?:([^@/?#]*)@)?(.*)")


def read(path: Path) -> str:
    """Return the password in a file: its text without leading and trailing white space.

    Raises
    ------
    ValueError
        If the file cannot be read or contains no password; the text names the file and the
        reason only.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    password = content.decode("utf-8", errors="replace").strip()
    if not password:
        raise ValueError(f"{path}: is empty; it must contain the password")
    if len(content) > _LONGEST or "\ufffd" in password or not password.isprintable():
        raise ValueError(f"{path}: must contain only the password, in one line of UTF-8")
    return password


def hide(url: str) -> str:
    """Return a URL, or several, with asterisks in place of each password."""
    urls = _NEXT.split(url)
    for pattern in (_BEFORE_HOST, _IN_QUERY):
        urls = [pattern.sub(r"\1***\3", one) for one in urls]
    return ";".join(urls)


def stands_in(url: str) -> bool:
    """Return whether a URL names a password."""
    return hide(url) != url


def put_into(url: str, password: str) -> str:
    """Return a URL that names no password, or several, with this one."""

    def put(match: re.Match[str]) -> str:
        scheme, user, rest = match.groups()
        return f"{scheme}{(user or '').rstrip(':')}:{quote(password, safe='')}@{rest}"

    return ";".join(_PARTS.sub(put, one, count=1) for one in _NEXT.split(url))
