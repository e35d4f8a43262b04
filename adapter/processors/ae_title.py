# SPDX-License-Identifier: Apache-2.0
"""The AE Title Job Processor: groups by a DICOM tag and submits each group to its pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from adapter.dicom.dictionary import vr_of
from adapter.dicom.instance import Instance
from adapter.dicom.tags import SERIES_INSTANCE_UID, SOP_INSTANCE_UID, STUDY_INSTANCE_UID, parse_tag
from adapter.errors import UnreadableInstance
from adapter.models import Name, PipelineId, Priority
from adapter.processors.base import JobProcessor, JobRequest

_PREFIX = "pipeline-"
#: The first group of a data set; lower ones are those of commands and file meta information.
_FIRST_GROUP = 0x0008


def _priority(value: object) -> object:
    if isinstance(value, str):
        names = {priority.name.lower(): priority for priority in Priority}
        if value.lower() not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return names[value.lower()]
    return value


def _grouping_tag(value: object) -> int:
    tag = parse_tag(str(value))
    vr = vr_of(tag)
    if vr == "SQ":
        raise ValueError("a sequence has no value to group by")
    if vr.startswith("O") or vr in {"UN", "UR", "UT"}:
        raise ValueError("pixel data and other bulk data cannot be grouped by")
    if tag >> 16 < _FIRST_GROUP or tag & 0xFFFF == 0:
        raise ValueError("it is no element of a data set")
    return tag


class AETitleSettings(BaseModel):
    """The settings of one AE title, as strings."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True
    )

    timeout: float = Field(5, ge=5, le=86400, description="Seconds of quiet that close a group.")
    maximum_wait: float = Field(
        3600, ge=5, le=604800, description="Seconds after which a group closes in any case."
    )
    group_by: Annotated[int, BeforeValidator(_grouping_tag)] = Field(
        STUDY_INSTANCE_UID, description="DICOM tag or keyword whose value makes a group."
    )
    priority: Annotated[Priority, BeforeValidator(_priority)] = Field(
        Priority.NORMAL, description="lower, normal, higher or immediate."
    )
    job_retry_delay: float = Field(
        5000, ge=0, le=86_400_000, description="Milliseconds before a failed run is tried again."
    )
    pipelines: dict[Name, PipelineId] = Field(
        min_length=1, description="Ids of the pipelines, by name: the settings pipeline-<name>."
    )

    @model_validator(mode="before")
    @classmethod
    def _gather_pipelines(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if "pipelines" in data:
            raise ValueError("write each pipeline as pipeline-<name>")
        known: dict[str, Any] = {"pipelines": {}}
        for key, value in data.items():
            if key.lower().startswith(_PREFIX):
                known["pipelines"][key[len(_PREFIX) :].lower()] = value
            else:
                known[key] = value
        if not known["pipelines"]:
            raise ValueError("at least one pipeline-<name> is needed")
        return known


class AETitleJobProcessor(JobProcessor):
    """The default processor."""

    title: ClassVar[str] = "AE Title Job Processor"
    Settings: ClassVar[type[BaseModel]] = AETitleSettings
    settings: AETitleSettings

    @property
    def tags(self) -> Sequence[int]:
        """The tag that is grouped by."""
        return (self.settings.group_by,)

    @property
    def timeout(self) -> float:
        """Seconds of quiet that close a group."""
        return self.settings.timeout

    @property
    def maximum_wait(self) -> float:
        """Seconds after which a group closes in any case."""
        return self.settings.maximum_wait

    def group_value(self, instance: Instance) -> str | None:
        """Return the value of the tag that is grouped by."""
        tag = self.settings.group_by
        uids = {
            STUDY_INSTANCE_UID: instance.study_instance_uid,
            SERIES_INSTANCE_UID: instance.series_instance_uid,
            SOP_INSTANCE_UID: instance.sop_instance_uid,
        }
        value = uids.get(tag) or instance.values.get(tag)
        if not value:
            raise UnreadableInstance(
                f"({tag >> 16:04X},{tag & 0xFFFF:04X}), which groups them, is missing or empty",
                "no-grouping-value",
            )
        return value

    def jobs(self) -> Sequence[JobRequest]:
        """Return one job for each pipeline."""
        settings = self.settings
        return [
            JobRequest(name, pipeline_id, settings.priority, settings.job_retry_delay / 1000)
            for name, pipeline_id in sorted(settings.pipelines.items())
        ]
