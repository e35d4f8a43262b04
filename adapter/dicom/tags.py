# SPDX-License-Identifier: Apache-2.0
"""Tags of data elements, as numbers: 0xGGGGEEEE."""

from __future__ import annotations

import re

from adapter.dicom.dictionary import tag_of

SPECIFIC_CHARACTER_SET = 0x00080005
SOP_CLASS_UID = 0x00080016
SOP_INSTANCE_UID = 0x00080018
PATIENT_ID = 0x00100020
ISSUER_OF_PATIENT_ID = 0x00100021
STUDY_INSTANCE_UID = 0x0020000D
SERIES_INSTANCE_UID = 0x0020000E

_TAG = re.compile(r"\(?([0-9A-Fa-f]{4}),?([0-9A-Fa-f]{4})\)?")


def parse_tag(value: str) -> int:
    """Return the number of a tag written as GGGG,EEEE, GGGGEEEE, (GGGG,EEEE) or by its keyword.

    Raises
    ------
    ValueError
        If it is not written like a tag, and no keyword of PS3.6.
    """
    text = value.strip()
    match = _TAG.fullmatch(text)
    if match is not None:
        return int(match[1] + match[2], 16)
    tag = tag_of(text)
    if tag is None:
        raise ValueError(
            f"{value[:64]!r} is neither a DICOM tag such as 0020,000D nor a keyword such as "
            "StudyInstanceUID"
        )
    return tag
