# SPDX-License-Identifier: Apache-2.0
"""The settings of the stages: spool, workers, pipelines and the services that they use."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator
from pydantic.alias_generators import to_camel

from adapter.models import EMBEDDED, Name
from adapter.settings.section import Seconds, Section, TagText


class Storage(Section):
    """The spool."""

    temporary: Path | None = Field(
        None, description="The spool's folder; by default `spool` in the data folder."
    )
    durability: Literal["instance", "none"] = Field(
        "instance",
        description="`instance`: each is synced to disk before its Success; `none`: nothing is, "
        "and a power loss loses acknowledged instances: for benchmarks only.",
    )
    watermark_percent: float = Field(
        85.0, gt=0, le=100, description="Nothing is received when the disk is fuller than this."
    )
    reserve_space_gb: float = Field(
        5.0,
        ge=0,
        alias="reserveSpaceGB",
        description="Nothing is received when less than this is free (1e9 bytes).",
    )
    retention_seconds: float = Field(
        0.0, ge=0, description="Seconds that files are kept after nothing needs them."
    )
    history_days: PositiveFloat = Field(
        90.0, description="Days that rows are kept after their files, to recognise duplicates."
    )
    job_output_days: float = Field(
        7.0,
        ge=0,
        description="Days that what a pipeline printed is kept after its files are deleted.",
    )
    job_output_mb: PositiveInt = Field(
        1000,
        alias="jobOutputMB",
        description="The most bytes (1e6) of that; the oldest goes first.",
    )
    lag_seconds: float | None = Field(
        None,
        ge=0,
        le=3600,
        description="Seconds until every host sees a new file of the spool; by default read from "
        "the mount options (NFS: `acdirmax`, 60 unless given), and 0 on a local disk.",
    )
    stale_seconds: Seconds = Field(
        86400.0, description="Age at which an unfinished file of a dead receiver is deleted."
    )


class PlatformSettings(Section):
    """How jobs are submitted to their platforms, and how those are asked for their end."""

    max_retries: int = Field(3, ge=0, le=1000, description="Retries of a submission's step.")
    retry_delay_seconds: Seconds = Field(180.0, description="Seconds between them.")
    upload_metadata: bool = Field(
        False, description="Whether the values of `metadataDicomSource` describe the job."
    )
    metadata_dicom_source: list[TagText] = Field(
        default_factory=list,
        max_length=100,
        description="DICOM tags or keywords whose values describe a job.",
    )
    poll_seconds: Seconds = Field(
        2.0,
        le=3600,
        description="Seconds after which a platform that reports an end is first asked for it; "
        "then a tenth of the time that the run has taken so far.",
    )
    longest_poll_seconds: Seconds = Field(
        60.0, le=86400, description="The most seconds between two such questions."
    )
    unreachable_seconds: Seconds = Field(
        86400.0,
        le=604800,
        description="Seconds that a platform may be away before the jobs it has are parked.",
    )


class ResultsServiceSettings(Section):
    """The Results Service, from which the tasks of finished pipelines are read."""

    endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/]+",
        description="URL of a remote Results Service; without one the ledger is it.",
    )
    root: Path | None = Field(
        None, description="Folder under which a remote Results Service's uris are files."
    )
    visibility_seconds: Seconds = Field(
        10.0, description="Seconds that a file of a task may be missing before it counts as failed."
    )
    request_seconds: Seconds = Field(300.0, description="Seconds that a request may take.")
    report_minimum_seconds: Seconds = Field(
        2.5, description="Seconds after which a failed report is first repeated."
    )
    report_maximum_seconds: Seconds = Field(
        300.0, description="Longest delay between repeated reports, in seconds."
    )

    @model_validator(mode="after")
    def _root_goes_with_endpoint(self) -> ResultsServiceSettings:
        if self.endpoint is not None and self.root is None:
            raise ValueError(
                "endpoint needs root, the folder under which the tasks' uris are files"
            )
        return self


class Services(Section):
    """The services that the adapter works with."""

    platform: PlatformSettings = Field(
        default_factory=PlatformSettings, description="Where jobs go."
    )
    results_service: ResultsServiceSettings = Field(
        default_factory=ResultsServiceSettings, description="Where results come from."
    )


#: What only the embedded platform asks of a pipeline.
_OF_EMBEDDED = {
    "command",
    "memory_mb",
    "disk_mb",
    "maximum_files",
    "maximum_processes",
    "isolation",
    "network",
    "readable",
    "environment",
}


class Pipeline(Section):
    """A pipeline, and the platform that runs it."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"platform": {"const": EMBEDDED}}},
            "then": {"required": ["command"]},
        }
    )

    name: Name = Field(description="Display name.")
    platform: Name = Field(
        EMBEDDED, description="Kind of platform that runs it; a package may bring more kinds."
    )
    platform_settings: dict[str, Any] = Field(
        default_factory=dict, description="What that kind of platform asks of a pipeline."
    )
    command: list[str] = Field(
        default_factory=list,
        min_length=1,
        description="Program and arguments, required by the embedded platform; run without a "
        "shell, in the attempt's folder.",
    )
    timeout_seconds: Seconds = Field(3600.0, description="Seconds a run may take.")
    memory_mb: PositiveInt = Field(
        4096, alias="memoryMB", description="Address space of a run's processes, in 1e6 bytes."
    )
    disk_mb: PositiveInt = Field(
        20000, alias="diskMB", description="What a run may write to the disk, in 1e6 bytes."
    )
    maximum_files: PositiveInt = Field(
        100_000, description="Files and folders that a run may leave or need."
    )
    maximum_processes: int = Field(
        1024, ge=8, description="Processes and threads that an isolated run may have at a time."
    )
    isolation: Literal["required", "preferred", "none"] = Field(
        "preferred",
        description="`required`: a run is isolated or parked; `preferred`: it is isolated if the "
        "machine allows it; `none`: it may do whatever the worker's user may.",
    )
    network: bool = Field(
        False,
        description="Whether an isolated run has the machine's network, and not only its own.",
    )
    readable: list[Path] = Field(
        default_factory=list,
        max_length=100,
        description="Folders and files that an isolated run may read in addition to the system's "
        "and those that its command names.",
    )
    maximum_retries: int = Field(
        2,
        ge=0,
        le=100,
        description="Runs beyond the first when a run fails, before the job is parked.",
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        description="Environment variables of a run, in addition to the adapter's.",
    )
    destinations: list[Name] = Field(
        default_factory=list, max_length=50, description="Names of the results' destinations."
    )
    export: bool = Field(True, description="False: the results are not exported.")

    @field_validator("readable")
    @classmethod
    def _are_places(cls, paths: list[Path]) -> list[Path]:
        for path in paths:
            if not path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
                raise ValueError(f"{path}: name a folder or a file by its absolute path")
        return paths

    @model_validator(mode="after")
    def _says_what_its_platform_asks(self) -> Pipeline:
        if self.platform == EMBEDDED:
            if not self.command:
                raise ValueError("command: Field required")
        elif given := _OF_EMBEDDED & self.model_fields_set:
            names = ", ".join(sorted(map(to_camel, given))).replace("Mb", "MB")
            raise ValueError(
                f"{names}: for the embedded platform only; write what {self.platform!r} asks for "
                "under platformSettings"
            )
        return self

    @model_validator(mode="after")
    def _says_where_results_go(self) -> Pipeline:
        if self.export and not self.destinations:
            raise ValueError('name at least one destination, or set "export": false')
        if not self.export and self.destinations:
            raise ValueError('"export": false and destinations contradict each other')
        return self


class Notification(Section):
    """Limits for reading the headers of acknowledged files."""

    batch_size: int = Field(100, ge=1, le=1000, description="Files registered in one transaction.")
    header_seconds: Seconds = Field(
        5.0, description="Seconds of processor time that one header may take."
    )
    header_elements: PositiveInt = Field(
        50_000, description="Elements and items that are walked through to find what is needed."
    )
    header_depth: int = Field(64, ge=1, le=200, description="Depth of nested sequences.")
    header_inflated_mb: PositiveInt = Field(
        64,
        alias="headerInflatedMB",
        description="Bytes (1e6) that a deflated data set may inflate to.",
    )
    header_memory_mb: PositiveInt = Field(
        1024, alias="headerMemoryMB", description="Address space (1e6 bytes) of the header reader."
    )


class Workers(Section):
    """How many tasks a worker of each stage runs at once, and how its work is leased."""

    short_concurrency: int = Field(
        4,
        ge=1,
        le=64,
        description="For notification, grouping, submission and reclamation: each of them.",
    )
    pipeline_concurrency: int = Field(1, ge=1, le=64, description="Pipelines at a time.")
    due_work_poll_seconds: Seconds = Field(1.0, description="Seconds between due-work polls.")
    lease_seconds: Seconds = Field(
        30.0, description="Seconds after which a dead worker's work is due again."
    )
    maximum_lease_expiries: PositiveInt = Field(
        10,
        description="Attempts on one row that may end with the worker's death, or with an "
        "unforeseen error, before it is parked.",
    )
    visibility_seconds: Seconds = Field(
        120.0, description="Seconds a shared volume may take to show a file that has a row."
    )
    stop_seconds: Seconds = Field(
        20.0, description="Seconds that running work gets to end when a worker is stopped."
    )
    housekeeping_seconds: Seconds = Field(
        3600.0, description="Seconds between sweeps for orphaned files and expired rows."
    )
