# SPDX-License-Identifier: Apache-2.0
"""Whether an association and each of its presentation contexts is accepted: pure decisions.

The checks, in this order; the first that fails refuses the association.  Those above the line need
only the fixed part of the A-ASSOCIATE-RQ, and nothing else of it is read before they hold:

======================================  ==========================  ========================
the check                               answer                      cause
======================================  ==========================  ========================
protocol version                        RJ 1/2/2, permanent         ``protocol-version``
configuration is known                  RJ 2/3/1, transient         ``no-configuration``
calling AE title and its address        RJ 1/1/3, permanent         ``unknown-calling-ae``,
                                                                    ``wrong-address``
called AE title                         RJ 1/1/7, permanent         ``unknown-called-ae``
length                                  AB 0/0                      ``request-too-long``
--------------------------------------  --------------------------  ------------------------
number of associations                  RJ 2/3/2, transient         ``association-limit``
number of contexts and syntaxes         RJ 1/2/1, permanent         ``too-many-items``
lengths of the items, maximum length    AB 0/0                      ``malformed-request``,
                                                                    ``maximum-length``
application context                     RJ 1/1/2, permanent         ``application-context``
one id for two contexts; no context     RJ 1/2/1; RJ 1/1/1          ``context-ids``,
                                                                    ``no-contexts``
space, if a Storage context is there    RJ 2/3/1, transient         ``low-storage``,
                                                                    ``spool-away``
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
from adapter.dicom.pdus import AssociateItems, PresentationContext
from adapter.dicom.rejections import (
    APPLICATION_CONTEXT_NOT_SUPPORTED,
    CALLED_AE_TITLE_NOT_RECOGNIZED,
    CALLING_AE_TITLE_NOT_RECOGNIZED,
    INVALID_REQUEST,
    NO_REASON_GIVEN,
    PROTOCOL_VERSION_NOT_SUPPORTED,
    TEMPORARY_CONGESTION,
)
from adapter.dicom.storage_classes import storage_classes
from adapter.dicom.uids import APPLICATION_CONTEXT, VERIFICATION, is_uid
from adapter.models import AETitle, Versioned
from adapter.scp.configuration import Snapshot
from adapter.settings import ScpSettings

# Causes of a rejection that passes.
NO_CONFIGURATION = "no-configuration"
LOW_STORAGE = "low-storage"
SPOOL_AWAY = "spool-away"

# Results of a presentation context (PS3.8 Table 9-18).
ACCEPTANCE = 0
ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
TRANSFER_SYNTAXES_NOT_SUPPORTED = 4

#: Why an association is refused, in words; metrics have the keys as a label.
CAUSES = {
    "unknown-calling-ae": "the calling AE title is no known source",
    "wrong-address": "the source may not call from this address",
    "unknown-called-ae": "the called AE title does not exist here",
    "association-limit": "as many associations are open as may be, of all peers or of this one",
    LOW_STORAGE: "the disk is too full to receive",
    SPOOL_AWAY: "the spool is away",
    NO_CONFIGURATION: "neither the ledger nor the spool could be read yet",
    "application-context": "the application context is not DICOM's",
    "no-contexts": "no presentation context is proposed",
    "context-ids": "two different presentation contexts have the same id",
    "protocol-version": "the peer does not speak version 1 of the protocol",
    "too-many-items": "too many presentation contexts or transfer syntaxes are proposed",
    "maximum-length": "the peer takes no PDU that is long enough for an answer",
    "malformed-request": "the lengths in the A-ASSOCIATE-RQ contradict each other",
    "request-too-long": "the A-ASSOCIATE-RQ is longer than maximumRequestBytes",
}


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
class Caller:
    """Who calls whom, and from where; the AE titles are not checked yet."""

    calling_ae: str
    called_ae: str
    peer_address: str


@dataclass(frozen=True, slots=True)
class Parties:
    """A known source, and the version of the AE title's configuration that it calls."""

    calling_ae: str
    called_ae: str
    ae_title: Versioned[AETitle]


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
    cause : str
        A key of `CAUSES`.
    nearest : str, optional
        The configured AE title that is most like the unknown one that was called.
    """

    result: int
    source: int
    reason: int
    cause: str
    nearest: str | None = None


def judge_caller(
    caller: Caller, version: int, configuration: Snapshot, settings: ScpSettings
) -> Parties | Rejection:
    """Judge who calls, by the fixed part of the request alone.

    Parameters
    ----------
    caller : Caller
        Who calls whom, and from where.
    version : int
        The protocol versions of the caller, as bits.
    configuration : Snapshot
        The AE titles and sources in force.
    settings : ScpSettings
        The static settings.
    """
    if not version & 1:
        return Rejection(*PROTOCOL_VERSION_NOT_SUPPORTED, "protocol-version")
    if not configuration.known:  # nobody can tell who is unknown, and that answer would be final
        return Rejection(*TEMPORARY_CONGESTION, NO_CONFIGURATION)
    calling = _title(caller.calling_ae)
    called = _title(caller.called_ae)
    stranger = _stranger(calling, caller.peer_address, configuration, settings)
    if calling is None or stranger is not None:
        return Rejection(*CALLING_AE_TITLE_NOT_RECOGNIZED, stranger or "unknown-calling-ae")
    ae_title = configuration.ae_titles.get(called or "")
    if called is None or ae_title is None:
        nearest = _nearest(called, configuration)
        return Rejection(*CALLED_AE_TITLE_NOT_RECOGNIZED, "unknown-called-ae", nearest)
    return Parties(calling, called, ae_title)


def judge_contexts(
    parties: Parties,
    items: AssociateItems,
    settings: ScpSettings,
    *,
    why_full: Callable[[], str],
) -> Accepted | Rejection:
    """Judge what a known source asks for.

    Parameters
    ----------
    parties : Parties
        Who calls whom.
    items : AssociateItems
        The items of the request.
    settings : ScpSettings
        The static settings.
    why_full : callable
        Returns why nothing can be stored now, empty if it can; asked last, and only for Storage.
    """
    ids = {context.context_id for context in items.contexts}
    if items.application_context != APPLICATION_CONTEXT:
        return Rejection(*APPLICATION_CONTEXT_NOT_SUPPORTED, "application-context")
    if not ids:
        return Rejection(*NO_REASON_GIVEN, "no-contexts")
    if len(ids) < len(set(items.contexts)):
        return Rejection(*INVALID_REQUEST, "context-ids")
    stored = storage_classes(settings.additional_sop_classes)
    if any(cx.abstract_syntax in stored for cx in items.contexts) and (why := why_full()):
        return Rejection(*TEMPORARY_CONGESTION, why)
    contexts = {cx.context_id: _judge(cx, stored, settings) for cx in items.contexts}
    return Accepted(parties.calling_ae, parties.called_ae, parties.ae_title, contexts)


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
    proposed: PresentationContext, stored: frozenset[str], settings: ScpSettings
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


def _result(proposed: PresentationContext, result: int, syntax: str = "") -> ContextResult:
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
