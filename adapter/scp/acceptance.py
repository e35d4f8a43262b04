# SPDX-License-Identifier: Apache-2.0
"""Whether an association is accepted, and each of its presentation contexts: pure decisions.

The checks, in this order; the first that fails rejects:

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

from adapter.dicom import VERIFICATION
from adapter.models import AETitle, Versioned, check_ae_title, check_uid
from adapter.scp.configuration import Snapshot
from adapter.scp.storage_classes import storage_classes
from adapter.settings import Scp

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
    """What becomes of a presentation context; `transfer_syntax` counts only if it is accepted."""

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
    """An A-ASSOCIATE-RQ as far as it is judged; AE titles may be anything that a peer can send."""

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
        The configured AE title that the unknown called one may have been meant for.
    """

    result: int
    source: int
    reason: int
    cause: str
    nearest: str | None = None


def decide(
    request: AssociationRequest,
    configuration: Snapshot,
    settings: Scp,
    *,
    no_place: bool,
    storage_low: Callable[[], bool],
) -> Accepted | Rejection:
    """Judge an association request.

    Parameters
    ----------
    request : AssociationRequest
        What the peer asks for.
    configuration : Snapshot
        The AE titles and sources in force.
    settings : Scp
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
        return Rejection(1, 1, 3, stranger or "unknown-calling-ae")
    ae_title = configuration.ae_titles.get(called or "")
    if called is None or ae_title is None:
        return Rejection(1, 1, 7, "unknown-called-ae", _nearest(called, configuration))
    if no_place:
        return Rejection(2, 3, 2, "association-limit")
    stored = storage_classes(settings.additional_sop_classes)
    if any(cx.abstract_syntax in stored for cx in request.contexts) and storage_low():
        return Rejection(2, 3, 1, "low-storage")
    contexts = {cx.context_id: _judge(cx, stored, settings) for cx in request.contexts}
    return Accepted(calling, called, ae_title, contexts)


def _stranger(
    calling: str | None, address: str, configuration: Snapshot, settings: Scp
) -> str | None:
    """Return why nobody may call as `calling` from `address`, or None if it is a known source."""
    if not settings.reject_unknown_sources:
        return None
    source = configuration.sources.get(calling or "")
    if source is None:
        return "unknown-calling-ae"
    return None if source.allows(address) else "wrong-address"


def _judge(proposed: ProposedContext, stored: frozenset[str], settings: Scp) -> ContextResult:
    """Choose the first transfer syntax that is allowed; for Storage any is, private ones too."""
    if proposed.abstract_syntax == VERIFICATION and settings.verification.enabled:
        allowed: Sequence[str] | None = settings.verification.transfer_syntaxes
    elif proposed.abstract_syntax in stored:
        allowed = settings.transfer_syntaxes or None
    else:
        return _result(proposed, ABSTRACT_SYNTAX_NOT_SUPPORTED)
    for syntax in proposed.transfer_syntaxes:
        if _is_uid(syntax) and (allowed is None or syntax in allowed):
            return _result(proposed, ACCEPTANCE, syntax)
    return _result(proposed, TRANSFER_SYNTAXES_NOT_SUPPORTED)


def _result(proposed: ProposedContext, result: int, syntax: str = "") -> ContextResult:
    return ContextResult(proposed.context_id, proposed.abstract_syntax, result, syntax)


def _title(text: str) -> str | None:
    try:
        return check_ae_title(text)
    except ValueError:
        return None


def _is_uid(text: str) -> bool:
    try:
        check_uid(text)
    except ValueError:
        return False
    return True


def _nearest(called: str | None, configuration: Snapshot) -> str | None:
    """Return the configured AE title that a person would have meant, whatever its case."""
    folded = {title.casefold(): title for title in sorted(configuration.ae_titles)}
    found = get_close_matches((called or "").casefold(), folded, n=1)
    return folded[found[0]] if found else None
