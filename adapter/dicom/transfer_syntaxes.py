# SPDX-License-Identifier: Apache-2.0
"""The transfer syntaxes whose kind matters to the adapter; the SCU converts none unless told."""

from __future__ import annotations

#: The root of the transfer syntaxes of the Standard; further components follow it.
STANDARD_ROOT = "1.2.840.10008.1.2"

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
#: Papyrus 3 Implicit VR Little Endian, retired (PS3.6 Table A-1).
PAPYRUS_3 = "1.2.840.10008.1.20"

#: The uncompressed little-endian syntaxes, which differ in how elements are encoded only.
UNCOMPRESSED = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)

#: Syntaxes whose whole data set is deflated (PS3.5 section A.5, and two of JPIP).
DEFLATED = frozenset(
    {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}
)

#: Syntaxes whose pixel data is, or may be, lossy (PS3.5 section 10.1, Annex A.4).
LOSSY = frozenset(
    {
        f"1.2.840.10008.1.2.4.{number}"
        for number in (50, 51, 81, 91, 93, 100, 101, 102, 103, 104, 105, 106, 107, 108, 112, 203)
    }
    | {f"1.2.840.10008.1.2.4.{number}.1" for number in range(100, 107)}
)
