# SPDX-License-Identifier: Apache-2.0
"""UIDs: the rules for valid ones, and the well-known ones that the adapter names itself.

A UID that comes from a peer or from a file is carried on as it is: many devices and archives make
UIDs whose components begin with a zero.  So it is text of digits and dots, of limited length,
after its padding is trimmed.  No file or folder is named by one unless this rule holds.  The
Standard's grammar holds in the configuration, and everywhere if `strictUids` is set.

References
----------
PS3.5 section 9.1 (grammar); PS3.6 Annex A (well-known UIDs).
"""

from __future__ import annotations

import re

#: The longest UID, in characters (PS3.5 section 9.1).
MAXIMUM_LENGTH = 64

#: The DICOM application context name (PS3.7 Annex A.2.1).
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
#: The Verification SOP Class (PS3.4 Annex A.4).
VERIFICATION = "1.2.840.10008.1.1"
#: Media Storage Directory Storage, the SOP class of a DICOMDIR (PS3.10 section 8.6).
MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"

_GRAMMAR = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")
_CARRIED_ON = re.compile(r"\.*[0-9][0-9.]*")  # with a digit: "." and ".." name folders


def is_uid(value: str, *, strict: bool = False) -> bool:
    """Tell whether `value` is a UID that can be carried on: digits and dots, at most 64.

    Parameters
    ----------
    value : str
        The text, without padding.
    strict : bool, optional
        Demand the grammar of PS3.5 section 9.1: dotted numbers without leading zeros.
    """
    grammar = _GRAMMAR if strict else _CARRIED_ON
    return len(value) <= MAXIMUM_LENGTH and grammar.fullmatch(value) is not None


def trimmed(value: bytes) -> str:
    """Return an encoded UID as text without its padding: NULs, and spaces on either side.

    References
    ----------
    PS3.5 section 9.4 (a NUL makes the length even).
    """
    return value.decode("latin-1").strip("\0 ")


def check_uid(value: str) -> str:
    """Return `value` if it is a valid UID.

    Raises
    ------
    ValueError
        If it is longer than 64 characters or no dotted sequence of numbers.

    References
    ----------
    PS3.5 section 9.1.
    """
    if not is_uid(value, strict=True):
        raise ValueError("not a DICOM UID (digits and dots, at most 64 characters)")
    return value
