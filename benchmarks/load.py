# SPDX-License-Identifier: Apache-2.0
"""What is sent: a CT image of random pixels, as large as is asked for."""

from __future__ import annotations

import os
from pathlib import Path
from struct import pack

from adapter.dicom.part10 import part10_header
from benchmarks.receivers import AE_TITLE


def make_file(path: Path, size: int, number: int = 0) -> None:
    """Write a CT image of random pixels; its SOP Instance UID ends with a number of nine digits."""
    sop_class = "1.2.840.10008.5.1.4.1.1.2"
    uid = f"1.2.826.0.1.3680043.8.498.1234567890.{100_000_000 + number}"

    def element(group: int, tag: int, vr: bytes, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        return pack("<HH2sH", group, tag, vr, len(value)) + value

    data_set = b"".join(
        (
            element(0x0008, 0x0016, b"UI", sop_class.encode()),
            element(0x0008, 0x0018, b"UI", uid.encode()),
            element(0x0008, 0x0060, b"CS", b"CT"),
            element(0x0010, 0x0020, b"LO", b"BENCH "),
            element(0x0020, 0x000D, b"UI", b"1.2.826.0.1.3680043.8.498.1"),
            element(0x0020, 0x000E, b"UI", b"1.2.826.0.1.3680043.8.498.2"),
            pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, size),
        )
    )
    header = part10_header(
        sop_class_uid=sop_class,
        sop_instance_uid=uid,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        calling_ae_title="SENDER",
        called_ae_title=AE_TITLE,
    )
    path.write_bytes(header + data_set + os.urandom(size))
