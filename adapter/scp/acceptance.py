# SPDX-License-Identifier: Apache-2.0
"""Whether an association and each of its presentation contexts is accepted: pure decisions.

The checks, in this order; the first that fails rejects the association:

======================================  ==========================  ========================
the check                               A-ASSOCIATE-RJ              cause
======================================  ==========================  ========================
calling AE title and its address        1/1/3, permanent            ``unknown-calling-ae``,
                                                                    ``wrong-address``
called AE title                         1/1/7, permanent            ``unknown-called-ae``
number of associations                  2/3/2, transient            ``association-limit``
space, if a Storage context is there    2/3/1, transient            ``low-storage``
======================================  ==========================  ========================

References
----------
PS3.8 sections 9.3.2 to 9.3.4; PS3.7 Annex D.3.3.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from adapter.dicom.ae_titles import check_ae_title
from adapter.dicom.rejections import (
    CALLED_AE_TITLE_NOT_RECOGNIZED,
    CALLING_AE_TITLE_NOT_RECOGNIZED,
    LOCAL_LIMIT_EXCEEDED,
    TEMPORARY_CONGESTION,
)
from adapter.dicom.storage_classes import storage_classes
from adapter.dicom.uids import VERIFICATION, is_uid
from adapter.models import AETitle, Versioned
from adapter.scp.configuration import Snapshot
from adapter.settings import ScpSettings

# Results of a presentation context (PS3.8 Table 9-18).
ACCEPTANCE = 0
ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """A presentation context as the peer proposes it."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ContextResult:
    """The result of a presentation context; `transfer_syntax` counts only if it is accepted."""

    context_id: int
    abstract_syntax: str
    result: int
    transfer_syntax: str = ""

    @property
    def accepted(self) -> bool:
        """Whether messages may come under this context."""
        return self.result == ACCEPTANCE


@dataclass(frozen=True, slots=True)
class AssociationRequest:
    """The part of an A-ASSOCIATE-RQ that is judged; its AE titles are not checked yet."""

    calling_ae: str
    called_ae: str
    peer_address: str
    contexts: tuple[ProposedContext, ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The association is accepted, under this version of the AE title's configuration."""

    calling_ae: str
    called_ae: str
    ae_title: Versioned[AETitle]
    contexts: dict[int, ContextResult] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejection:
    """The association is rejected: the three numbers of the A-ASSOCIATE-RJ, and why.

    Attributes
    ----------
    nearest : str, optional
        The configured AE title that is most like the unknown one that was called.
    """

    result: int
    source: int
    reason: int
    cause: str
    nearest: str | None = None


def decide(
    request: AssociationRequest,
    configuration: Snapshot,
    settings: ScpSettings,
    *,
    no_place: bool,
    storage_low: Callable[[], bool],
) -> Accepted | Rejection:
    """Judge an association request.

    Parameters
    ----------
    request : AssociationRequest
        The peer's request.
    configuration : Snapshot
        The AE titles and sources in force.
    settings : ScpSettings
        The static settings.
    no_place : bool
        Whether as many associations are open as may be, of all peers or of this one.
    storage_low : callable
        Tells whether the disk is too full to receive; asked last, and only for Storage.
    """
    calling = _title(request.calling_ae)
    called = _title(request.called_ae)
    stranger = _stranger(calling, request.peer_address, configuration, settings)
    if calling is None or stranger is not None:
        return Rejection(*CALLING_AE_TITLE_NOT_RECOGNIZED, stranger or "unknown-calling-ae")
    ae_title = configuration.ae_titles.get(called or "")
    if called is None or ae_title is None:
        nearest = _nearest(called, configuration)
        return Rejection(*CALLED_AE_TITLE_NOT_RECOGNIZED, "unknown-called-ae", nearest)
    if no_place:
        return Rejection(*LOCAL_LIMIT_EXCEEDED, "association-limit")
    stored = storage_classes(settings.additional_sop_classes)
    if any(cx.abstract_syntax in stored for cx in request.contexts) and storage_low():
        return Rejection(*TEMPORARY_CONGESTION, "low-storage")
    contexts = {cx.context_id: _judge(cx, stored, settings) for cx in request.contexts}
    return Accepted(calling, called, ae_title, contexts)


def _stranger(
    calling: str | None, address: str, configuration: Snapshot, settings: ScpSettings
) -> str | None:
    """Return why `calling` may not call from `address`; None if it is a known source."""
    if not settings.reject_unknown_sources:
        return None
    source = configuration.sources.get(calling or "")
    if source is None:
        return "unknown-calling-ae"
    return None if source.allows(address) else "wrong-address"


def _judge(
    proposed: ProposedContext, stored: frozenset[str], settings: ScpSettings
) -> ContextResult:
    """Choose the first transfer syntax that is allowed; Storage allows any, private ones too."""
    if proposed.abstract_syntax == VERIFICATION and settings.verification.enabled:
        allowed: Sequence[str] | None = settings.verification.transfer_syntaxes
    elif proposed.abstract_syntax in stored:
        allowed = settings.transfer_syntaxes or None
    else:
        return _result(proposed, ABSTRACT_SYNTAX_NOT_SUPPORTED)
    for syntax in proposed.transfer_syntaxes:
        if is_uid(syntax, strict=settings.strict_uids) and (allowed is None or syntax in allowed):
            return _result(proposed, ACCEPTANCE, syntax)
    return _result(proposed, TRANSFER_SYNTAXES_NOT_SUPPORTED)


def _result(proposed: ProposedContext, result: int, syntax: str = "") -> ContextResult:
    return ContextResult(proposed.context_id, proposed.abstract_syntax, result, syntax)


def _title(text: str) -> str | None:
    try:
        return check_ae_title(text)
    except ValueError:
        return None


def _nearest(called: str | None, configuration: Snapshot) -> str | None:
    """Return the configured AE title that is most like the called one, whatever its case."""
    folded = {title.casefold(): title for title in sorted(configuration.ae_titles)}
    found = get_close_matches((called or "").casefold(), folded, n=1)
    return folded[found[0]] if found else None
