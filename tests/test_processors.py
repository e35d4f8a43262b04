# SPDX-License-Identifier: Apache-2.0
"""Job processors when an AE title is configured: what cannot work is refused there."""

from __future__ import annotations

import pytest

from adapter.errors import ConfigurationError
from adapter.models import AETitle, Priority
from adapter.processors import registry
from adapter.processors.ae_title import AETitleJobProcessor
from adapter.processors.base import JobRequest


def ae_title(**settings: str) -> AETitle:
    """Return an AE title with a pipeline, and these settings of its processor."""
    return AETitle(ae_title="BRAIN", processor_settings={"pipeline-a": "a", **settings})


@pytest.mark.parametrize(
    "written", ["PatientID", "0010,0020", "(0010,0020)", "00100020", " (0010,0020) "]
)
def test_a_tag_may_be_written_as_people_write_it(written: str) -> None:
    """A keyword of PS3.6 and each form of its tag mean the same."""
    assert registry.create_processor(ae_title(groupBy=written)).tags == (0x00100020,)


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("PixelData", "bulk data"),
        ("7FE0,0010", "bulk data"),
        ("6000,3000", "bulk data"),
        ("ReferencedStudySequence", "a sequence"),
        ("0040,A730", "a sequence"),
        ("0002,0010", "no element of a data set"),
        ("patient id", "nor a keyword"),
    ],
)
def test_what_has_no_value_to_group_by_is_refused(written: str, complaint: str) -> None:
    """Pixel data, sequences and what stands in no data set would quarantine every instance."""
    with pytest.raises(ConfigurationError, match=f"processorSettings.groupBy: .*{complaint}"):
        registry.validate(ae_title(groupBy=written))


@pytest.mark.parametrize("name", ["", "a\0", "\ud800", "a" * 65])
def test_names_that_no_ledger_can_hold_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A plug-in that names its pipelines so is refused before an instance depends on it."""
    request = JobRequest(name, "a", Priority.NORMAL, 1)
    monkeypatch.setattr(AETitleJobProcessor, "jobs", lambda _: [request])

    with pytest.raises(ConfigurationError, match="returned what is of no use"):
        registry.validate(ae_title())
