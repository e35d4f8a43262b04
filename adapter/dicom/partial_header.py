# SPDX-License-Identifier: Apache-2.0
"""What can be told of a file whose header cannot be read: it belongs to its study all the same."""

from __future__ import annotations

from pathlib import Path

from adapter.dicom.file_start import data_set_uids
from adapter.dicom.instance import PartialHeader
from adapter.dicom.part10 import read_file_meta
from adapter.dicom.tags import (
    SERIES_INSTANCE_UID,
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
    STUDY_INSTANCE_UID,
)
from adapter.errors import UnreadableInstance

_UIDS = (SOP_CLASS_UID, SOP_INSTANCE_UID, STUDY_INSTANCE_UID, SERIES_INSTANCE_UID)


def partial_header(path: Path) -> PartialHeader:
    """Return what can be told of a file; nothing of it is decoded, and nothing is raised.

    The file meta information tells the parties and what the C-STORE command named; the data set
    counts where its first 64 KiB say something else.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            try:
                meta = read_file_meta(file)
            except UnreadableInstance:
                return PartialHeader.checked(size=size)
            syntax = meta.get(0x0010, "")
            found = data_set_uids(file, syntax, _UIDS)
    except OSError:
        return PartialHeader()
    return PartialHeader.checked(
        calling_ae_title=meta.get(0x0017),
        called_ae_title=meta.get(0x0018),
        sop_class_uid=found.get(SOP_CLASS_UID) or meta.get(0x0002),
        sop_instance_uid=found.get(SOP_INSTANCE_UID) or meta.get(0x0003),
        study_instance_uid=found.get(STUDY_INSTANCE_UID),
        series_instance_uid=found.get(SERIES_INSTANCE_UID),
        transfer_syntax_uid=syntax,
        size=size,
    )
