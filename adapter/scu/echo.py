# SPDX-License-Identifier: Apache-2.0
"""C-ECHO to a destination: whether it answers, and if not, what is wrong, in plain words."""

from __future__ import annotations

import time
from dataclasses import dataclass

from adapter.dicom.rejections import (
    CALLED_AE_TITLE_NOT_RECOGNIZED,
    CALLING_AE_TITLE_NOT_RECOGNIZED,
)
from adapter.dicom.transfer_syntaxes import IMPLICIT_VR_LITTLE_ENDIAN
from adapter.dicom.uids import VERIFICATION
from adapter.models import DicomDestination
from adapter.scu.association import (
    AssociationBroken,
    AssociationRejected,
    RequestorAssociation,
    Unreachable,
)
from adapter.settings import Scu


@dataclass(frozen=True, slots=True)
class EchoResult:
    """The result of a C-ECHO.

    Attributes
    ----------
    ok : bool
        Whether the destination answered with Success.
    text : str
        The same in plain words, with what to do about it.
    seconds : float
        How long it took.
    rejected : bool
        Whether the destination rejected the association for good: it is there, but does not know
        our AE title or the one that we call it by.
    """

    ok: bool
    text: str
    seconds: float
    rejected: bool = False


def echo(destination: DicomDestination, scu: Scu) -> EchoResult:
    """Ask a destination for Verification and return what came of it; no peer makes it raise.

    References
    ----------
    PS3.4 Annex A.
    """
    start = time.monotonic()
    rejected = False
    try:
        ok, text = _ask(destination, scu)
    except AssociationRejected as rejection:
        ok, rejected = False, True
        text = f"{destination.name} {rejection}{_advice(rejection, destination, scu)}"
    except AssociationBroken as broken:
        ok, text = False, f"{destination.name} {broken}"
    except Unreachable as unreachable:
        ok, text = False, f"{unreachable}; check host and port, and whether the peer runs"
    return EchoResult(ok, text, time.monotonic() - start, rejected)


def _ask(destination: DicomDestination, scu: Scu) -> tuple[bool, str]:
    context = VERIFICATION, IMPLICIT_VR_LITTLE_ENDIAN
    with RequestorAssociation(destination, scu, [context]) as association:
        if context not in association.accepted:
            return False, (
                f"{destination.name} accepts associations but refused Verification; "
                "it may still take C-STORE"
            )
        status = association.echo()
    if status:
        return False, f"{destination.name} answered with status {status:04X}"
    return True, (
        f"{destination.name} answered as {destination.ae_title} "
        f"at {destination.host_ip}:{destination.port}"
    )


def _advice(rejection: AssociationRejected, destination: DicomDestination, scu: Scu) -> str:
    """Return what to do about a rejection, if that is known."""
    if rejection.code == CALLING_AE_TITLE_NOT_RECOGNIZED:
        return f"; add our AE title {scu.ae_title} at the peer"
    if rejection.code == CALLED_AE_TITLE_NOT_RECOGNIZED:
        return f"; the peer does not call itself {destination.ae_title}, check its AE title"
    return ""
