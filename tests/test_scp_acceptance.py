# SPDX-License-Identifier: Apache-2.0
"""The decision on an association request, as a table."""

from __future__ import annotations

import pytest
from pydicom.uid import UID_dictionary

from adapter.dicom.pdus import AssociateItems, PresentationContext
from adapter.dicom.storage_classes import STANDARD
from adapter.dicom.uids import APPLICATION_CONTEXT, VERIFICATION
from adapter.models import AETitle, Source, Versioned
from adapter.scp.acceptance import (
    CAUSES,
    Accepted,
    Caller,
    Rejection,
    judge_caller,
    judge_contexts,
)
from adapter.scp.configuration import Snapshot
from adapter.settings import ScpSettings

CT = "1.2.840.10008.5.1.4.1.1.2"
RETIRED_US = "1.2.840.10008.5.1.4.1.1.6"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
EVLE, IVLE, EVBE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
PRIVATE = "1.3.46.670589.33.1.4.1"

CLARA = Versioned(7, AETitle(ae_title="Clara1"))
CONFIGURATION = Snapshot(
    9,
    {"Clara1": CLARA},
    {"PACS1": Source(ae_title="PACS1", host_ip=["10.0.0.1", "192.168.0.0/24", "fd00::7"])},
)


def judge(
    *,
    calling="PACS1",
    called="Clara1",
    peer="10.0.0.1",
    contexts=((1, CT, (EVLE,)),),
    low=False,
    configuration=CONFIGURATION,
    **scp,
):
    settings = ScpSettings(**scp)
    decision = judge_caller(Caller(calling, called, peer), 1, configuration, settings)
    if isinstance(decision, Rejection):
        return decision
    proposed = [PresentationContext(*context) for context in contexts]
    items = AssociateItems(APPLICATION_CONTEXT, proposed)
    return judge_contexts(decision, items, settings, why_full=lambda: low and "low-storage")


@pytest.mark.parametrize(
    ("changes", "numbers", "cause"),
    [
        ({"calling": "PACS2"}, (1, 1, 3), "unknown-calling-ae"),
        ({"calling": "pacs1"}, (1, 1, 3), "unknown-calling-ae"),
        ({"calling": ""}, (1, 1, 3), "unknown-calling-ae"),
        ({"calling": " " * 16}, (1, 1, 3), "unknown-calling-ae"),
        ({"calling": "PACS1\r\nx"}, (1, 1, 3), "unknown-calling-ae"),
        ({"calling": "PACS1\\"}, (1, 1, 3), "unknown-calling-ae"),
        ({"peer": "10.0.0.2"}, (1, 1, 3), "wrong-address"),
        ({"peer": "fd00::8"}, (1, 1, 3), "wrong-address"),
        ({"calling": "PACS2", "called": "nobody"}, (1, 1, 3), "unknown-calling-ae"),
        ({"called": "nobody"}, (1, 1, 7), "unknown-called-ae"),
        ({"called": "clara1"}, (1, 1, 7), "unknown-called-ae"),
        ({"called": ""}, (1, 1, 7), "unknown-called-ae"),
        ({"called": "Clara1\x1b"}, (1, 1, 7), "unknown-called-ae"),
        ({"contexts": ()}, (1, 1, 1), "no-contexts"),
        ({"contexts": ((1, FIND, (IVLE,)), (1, CT, (IVLE,)))}, (1, 2, 1), "context-ids"),
        ({"low": True}, (2, 3, 1), "low-storage"),
        (
            {"low": True, "contexts": ((1, VERIFICATION, (IVLE,)), (3, CT, (EVLE,)))},
            (2, 3, 1),
            "low-storage",
        ),
        ({"calling": "\x01", "reject_unknown_sources": False}, (1, 1, 3), "unknown-calling-ae"),
    ],
)
def test_rejections(changes, numbers, cause):
    """The first check that fails decides, with the numbers of PS3.8 Table 9-21."""
    decision = judge(**changes)
    assert isinstance(decision, Rejection)
    assert (decision.result, decision.source, decision.reason) == numbers
    assert decision.cause == cause
    assert CAUSES[cause]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"calling": "  PACS1   ", "called": " Clara1 "},
        {"peer": "192.168.0.77"},
        {"peer": "::ffff:10.0.0.1"},
        {"peer": "fd00::7"},
        {"calling": "ANYBODY", "peer": "203.0.113.9", "reject_unknown_sources": False},
        {"low": True, "contexts": ((1, VERIFICATION, (IVLE,)),)},
        {"low": True, "contexts": ((1, FIND, (IVLE,)),)},
        {"contexts": ((2, CT, (IVLE,)),)},
        {"contexts": ((1, FIND, (IVLE,)),)},
    ],
)
def test_acceptances(changes):
    """A known source is accepted under the version in force, even if every context is refused."""
    decision = judge(**changes)
    assert isinstance(decision, Accepted)
    assert decision.ae_title is CLARA
    assert decision.calling_ae == changes.get("calling", "PACS1").strip()
    assert decision.called_ae == "Clara1"


@pytest.mark.parametrize(
    ("abstract", "proposed", "scp", "result", "syntax"),
    [
        (CT, (EVLE, IVLE), {}, 0, EVLE),
        (CT, (PRIVATE, EVLE), {}, 0, PRIVATE),
        (CT, ("1.2.840.10008.1.2.4.50",), {}, 0, "1.2.840.10008.1.2.4.50"),
        (CT, ("no uid", "1" * 65, IVLE), {}, 0, IVLE),
        (CT, ("no uid",), {}, 4, ""),
        (CT, (), {}, 4, ""),
        (CT, (PRIVATE, IVLE), {"transfer_syntaxes": [EVLE, IVLE]}, 0, IVLE),
        (CT, (PRIVATE,), {"transfer_syntaxes": [EVLE]}, 4, ""),
        (RETIRED_US, (IVLE,), {}, 0, IVLE),
        (FIND, (IVLE,), {}, 3, ""),
        ("1.2.3.4", (IVLE,), {}, 3, ""),
        ("1.2.3.4", (IVLE,), {"additional_sop_classes": ["1.2.3.4"]}, 0, IVLE),
        (VERIFICATION, (EVBE, IVLE), {}, 0, EVBE),
        (VERIFICATION, (PRIVATE, IVLE), {}, 0, IVLE),
        (VERIFICATION, (PRIVATE,), {}, 4, ""),
        (VERIFICATION, (IVLE,), {"verification": {"enabled": False}}, 3, ""),
        (VERIFICATION, (IVLE,), {"verification": {"transfer_syntaxes": [EVLE]}}, 4, ""),
        # A list for Storage does not narrow Verification.
        (VERIFICATION, (IVLE,), {"transfer_syntaxes": [EVLE]}, 0, IVLE),
    ],
)
def test_contexts(abstract, proposed, scp, result, syntax):
    """Each context is judged alone: the first syntax that is allowed, else result 3 or 4."""
    decision = judge(contexts=((1, CT, (EVLE,)), (5, abstract, proposed)), **scp)
    assert (decision.contexts[5].result, decision.contexts[5].transfer_syntax) == (result, syntax)
    if not scp.get("transfer_syntaxes"):
        assert decision.contexts[1].accepted


@pytest.mark.parametrize(
    ("called", "nearest"),
    [("CLARA1", "Clara1"), ("Clare1", "Clara1"), ("Clara11", "Clara1"), ("STORESCP", None)],
)
def test_nearest_ae_title(called, nearest):
    """The event names the AE title that was probably meant."""
    assert judge(called=called).nearest == nearest


def test_every_storage_class_of_the_dictionary_is_served_or_named():
    """Every Storage SOP class in pydicom's dictionary is stored, except those named here."""
    # PS3.4 Table GG.3-1 (no patient), DICONDE and DICOS, media and commitment: not in Table B.5-1.
    others = ("1.2.840.10008.5.1.4.1.1.501.", "1.2.840.10008.5.1.4.1.1.601.")
    missing = {
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and "Storage" in name and uid not in STANDARD
        if not uid.startswith(others)
    }
    assert missing == {
        "1.2.840.10008.1.3.10",
        "1.2.840.10008.1.20.1",
        "1.2.840.10008.1.20.2",
        "1.2.840.10008.5.1.4.1.1.200.1",
        "1.2.840.10008.5.1.4.1.1.200.3",
        "1.2.840.10008.5.1.4.1.1.200.7",
        "1.2.840.10008.5.1.4.1.1.201.1",
        "1.2.840.10008.5.1.4.38.1",
        "1.2.840.10008.5.1.4.39.1",
        "1.2.840.10008.5.1.4.43.1",
        "1.2.840.10008.5.1.4.44.1",
        "1.2.840.10008.5.1.4.45.1",
    }
