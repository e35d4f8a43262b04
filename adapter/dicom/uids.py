# SPDX-License-Identifier: Apache-2.0
"""UIDs: the one rule for valid ones, and the well-known ones that the adapter names itself.

A UID is checked where something depends on it: in a C-STORE command and a stored data set, in the
configuration, and in a file that is to be sent.  A UID that decides nothing is carried on as it
is, whatever its grammar: many archives hold UIDs with leading zeros.  Examples are the abstract
syntax of a context that is refused anyway, and the implementation class UID of a peer.  Only its
length is limited always, at `MAXIMUM_LENGTH`.

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

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")


def is_uid(value: str) -> bool:
    """Tell whether `value` is a valid UID (PS3.5 section 9.1)."""
    return len(value) <= MAXIMUM_LENGTH and _UID.fullmatch(value) is not None


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
    if not is_uid(value):
        raise ValueError("not a DICOM UID (digits and dots, at most 64 characters)")
    return value
