# SPDX-License-Identifier: Apache-2.0
"""AE titles: the one rule for valid ones, on the wire and in the configuration."""

from __future__ import annotations

#: The longest AE title, in characters (PS3.5 section 6.2).
MAXIMUM_LENGTH = 16


#: What titles are padded with: spaces by the Standard, the others by devices of the field.
_PADDING = " \0\t\r\n"


def trimmed(field: bytes) -> str:
    """Return the AE title in a field of an A-ASSOCIATE-RQ, without padding; it may be no valid one.

    A NUL ends a title, and what follows is not read: devices copy a string of C into a field that
    they do not clear.  DCMTK reads it so, too.

    References
    ----------
    PS3.8 Table 9-11 (16 characters, leading and trailing spaces are not significant).
    """
    title, _, _ = field.decode("latin-1").lstrip(_PADDING).partition("\0")
    return title.rstrip(_PADDING)


def check_ae_title(value: str) -> str:
    """Return an AE title without its outer spaces, which are not significant.

    Raises
    ------
    ValueError
        If it is empty, longer than 16 characters, or holds a backslash, a control character or
        anything outside the default repertoire.

    References
    ----------
    PS3.5 section 6.2, Value Representation AE.
    """
    title = value.strip(" ")
    if not title:
        raise ValueError("an AE title must not be blank")
    if len(title) > MAXIMUM_LENGTH:
        raise ValueError(f"an AE title has at most 16 characters, this one has {len(title)}")
    if "\\" in title or not all(0x20 <= ord(c) <= 0x7E for c in title):
        raise ValueError("an AE title is printable ASCII without a backslash")
    return title
