# SPDX-License-Identifier: Apache-2.0
"""What a destination takes: presentation contexts proposed, and nothing sent.

Proposed are the SOP classes that pipelines write as a rule, each in the transfer syntaxes of the
field: as many contexts as an association has (PS3.8 section 9.3.2.2).
"""

from __future__ import annotations

from pydicom import uid
from pydicom.uid import UID

from adapter.dicom.transfer_syntaxes import UNCOMPRESSED
from adapter.models import DicomDestination
from adapter.scu.association import RequestorAssociation
from adapter.settings import Scu

_CLASSES = (
    uid.CTImageStorage,
    uid.EnhancedCTImageStorage,
    uid.MRImageStorage,
    uid.EnhancedMRImageStorage,
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
    uid.SegmentationStorage,
    uid.ParametricMapStorage,
    uid.BasicTextSRStorage,
    uid.EnhancedSRStorage,
    uid.ComprehensiveSRStorage,
    uid.Comprehensive3DSRStorage,
    uid.GrayscaleSoftcopyPresentationStateStorage,
    uid.RTStructureSetStorage,
    uid.EncapsulatedPDFStorage,
)
_SYNTAXES = (
    *map(UID, UNCOMPRESSED),
    uid.JPEGBaseline8Bit,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.JPEG2000,
    uid.RLELossless,
)


def ask_contexts(destination: DicomDestination, scu: Scu) -> dict[UID, list[UID]]:
    """Return the transfer syntaxes that a destination accepts, by SOP class.

    Raises
    ------
    Unreachable, AssociationRejected, AssociationBroken
        If there is no association.
    """
    proposed = [(str(one), str(syntax)) for one in _CLASSES for syntax in _SYNTAXES]
    with RequestorAssociation(destination, scu, proposed) as association:
        accepted = association.accepted
    return {
        one: [syntax for syntax in _SYNTAXES if (str(one), str(syntax)) in accepted]
        for one in _CLASSES
    }


def advice(contexts: dict[UID, list[UID]]) -> str | None:
    """Return what would help a destination that takes one of the uncompressed syntaxes only."""
    for one in UNCOMPRESSED:
        other = next(syntax for syntax in UNCOMPRESSED if syntax != one)
        if any(one in syntaxes and other not in syntaxes for syntaxes in contexts.values()):
            return (
                f"files in {UID(other).name} are refused, unless `destination set NAME "
                f"--reencode-uncompressed` has them re-encoded in {UID(one).name}"
            )
    return None
