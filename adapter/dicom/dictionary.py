# SPDX-License-Identifier: Apache-2.0
"""The data dictionary and the names of UIDs (PS3.6), as pydicom knows them.

pydicom takes a third of a second to import, and most processes never look anything up: each lookup
imports it when it is needed.
"""

from __future__ import annotations

# Each function imports what it looks up in, for the reason above.
# ruff: noqa: PLC0415


def tag_of(keyword: str) -> int | None:
    """Return the tag of a keyword, e.g. StudyInstanceUID; None if there is no such keyword."""
    from pydicom.datadict import tag_for_keyword

    return tag_for_keyword(keyword)


def vr_of(tag: int) -> str:
    """Return the VR of a tag; empty for private and unknown ones."""
    from pydicom.datadict import dictionary_VR

    try:
        return dictionary_VR(tag)
    except KeyError:
        return ""


def name_of(uid: str) -> str:
    """Return the name of a UID, or the UID itself if it has none."""
    from pydicom.uid import UID

    return UID(uid).name
