# SPDX-License-Identifier: Apache-2.0
"""Which SOP classes are stored: the Standard's, its retired ones, and those that settings add.

The current ones come from pynetdicom, which has those of PS3.4 Table B.5-1.  The retired ones are
named here, from PS3.6 Table A-1: old archives still send them.  Not in that table are the classes
of objects that belong to no patient (PS3.4 Table GG.3-1: protocols, hanging protocols,
inventories), of security (DICOS) and of industry (DICONDE); `additionalSopClasses` adds them.
"""

from __future__ import annotations

from collections.abc import Iterable

from pynetdicom import AllStoragePresentationContexts

#: PS3.6 Table A-1, SOP classes of the Storage Service Class that are marked "(Retired)".
RETIRED = frozenset(
    {
        "1.2.840.10008.5.1.1.27",  # Stored Print
        "1.2.840.10008.5.1.1.29",  # Hardcopy Grayscale Image
        "1.2.840.10008.5.1.1.30",  # Hardcopy Color Image
        "1.2.840.10008.5.1.4.1.1.3",  # Ultrasound Multi-frame Image
        "1.2.840.10008.5.1.4.1.1.5",  # Nuclear Medicine Image
        "1.2.840.10008.5.1.4.1.1.6",  # Ultrasound Image
        "1.2.840.10008.5.1.4.1.1.8",  # Standalone Overlay
        "1.2.840.10008.5.1.4.1.1.9",  # Standalone Curve
        "1.2.840.10008.5.1.4.1.1.9.1",  # Waveform, Trial
        "1.2.840.10008.5.1.4.1.1.10",  # Standalone Modality LUT
        "1.2.840.10008.5.1.4.1.1.11",  # Standalone VOI LUT
        "1.2.840.10008.5.1.4.1.1.12.3",  # X-Ray Angiographic Bi-Plane Image
        "1.2.840.10008.5.1.4.1.1.77.1",  # VL Image, Trial
        "1.2.840.10008.5.1.4.1.1.77.2",  # VL Multi-frame Image, Trial
        "1.2.840.10008.5.1.4.1.1.88.1",  # Text SR, Trial
        "1.2.840.10008.5.1.4.1.1.88.2",  # Audio SR, Trial
        "1.2.840.10008.5.1.4.1.1.88.3",  # Detail SR, Trial
        "1.2.840.10008.5.1.4.1.1.88.4",  # Comprehensive SR, Trial
        "1.2.840.10008.5.1.4.1.1.129",  # Standalone PET Curve
        "1.2.840.10008.5.1.4.34.1",  # RT Beams Delivery Instruction, Trial
    }
)

STANDARD = frozenset(str(cx.abstract_syntax) for cx in AllStoragePresentationContexts) | RETIRED


def storage_classes(additional: Iterable[str]) -> frozenset[str]:
    """Return the SOP classes that are stored."""
    return STANDARD.union(additional)
