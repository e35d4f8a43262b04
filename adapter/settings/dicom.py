# SPDX-License-Identifier: Apache-2.0
"""The settings of the DICOM side: receiving and sending."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from adapter.models import AETitleText, UIDText
from adapter.settings.section import Port, Seconds, Section

#: A status of DIMSE, or all that begin alike.
_STATUS = r"^([0-9A-Fa-f]{4}|[0-9A-Fa-f]{3}x|[0-9A-Fa-f]{2}xx|[0-9A-Fa-f]xxx)$"


class Verification(Section):
    """The Verification service (C-ECHO)."""

    enabled: bool = Field(True, description="Whether Verification is accepted.")
    transfer_syntaxes: list[UIDText] = Field(
        ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"],
        min_length=1,
        description="Transfer syntaxes accepted for Verification.",
    )


class ScpSettings(Section):
    """The Storage SCP."""

    host: str = Field("", description="Address to listen on; empty means all, IPv4 and IPv6.")
    port: Port = Field(11112, description="TCP port to listen on.")
    maximum_number_of_associations: int = Field(
        25, ge=1, le=1000, description="Associations at a time; one more is rejected (2/3/2)."
    )
    reject_unknown_sources: bool = Field(
        True, description="Whether the calling AE title and its address must be a known source."
    )
    verification: Verification = Field(default_factory=Verification, description="C-ECHO.")
    additional_sop_classes: list[UIDText] = Field(
        default_factory=list,
        max_length=500,
        description="SOP classes stored in addition to those of PS3.4 Table B.5-1.",
    )
    transfer_syntaxes: list[UIDText] = Field(
        default_factory=list,
        max_length=500,
        description="Transfer syntaxes accepted for Storage; empty accepts any.",
    )
    strict_uids: bool = Field(
        False,
        description="Whether UIDs of commands and data sets must have the grammar of PS3.5 section "
        "9.1; otherwise they are any digits and dots.",
    )
    artim_seconds: Seconds = Field(
        10.0, description="Seconds a peer has to ask for an association (PS3.8 section 9.1.5)."
    )
    pdu_seconds: Seconds = Field(
        30.0, description="Seconds from the first byte of a PDU to its last."
    )
    idle_seconds: Seconds = Field(60.0, description="Seconds an association may be silent.")
    processes: int = Field(
        0, ge=0, le=64, description="Processes that receive; 0 is one for each core, at most 4."
    )
    maximum_associations_per_peer: int = Field(
        20,
        ge=1,
        le=1000,
        description="Associations at a time from one address, e.g. of all devices behind a gateway "
        "(2/3/2). Idle ones of a sender with more than its fair share are ended first.",
    )
    maximum_half_open: int = Field(
        64,
        ge=1,
        le=4096,
        description="Connections without an association at a time, in each process; one more "
        "closes the oldest.",
    )
    maximum_pdu_bytes: int = Field(
        131072, ge=4096, le=16_777_216, description="Maximum PDU length offered, in bytes."
    )
    maximum_request_bytes: int = Field(
        262_144, ge=4096, le=1_048_576, description="Longest A-ASSOCIATE-RQ taken, in bytes."
    )
    maximum_command_bytes: int = Field(
        65536, ge=1024, le=1_048_576, description="Longest DIMSE command set taken, in bytes."
    )
    maximum_instance_bytes: PositiveInt = Field(
        4_294_967_296, description="Longest data set taken, in bytes; a longer one gets A700."
    )
    wake_up_instances: PositiveInt = Field(
        100, description="Instances after which notification is woken at once."
    )
    wake_up_milliseconds: PositiveInt = Field(
        100, description="Milliseconds after an instance by which notification is woken."
    )


class ScuExport(Section):
    """How tasks are exported."""

    maximum_retries: int = Field(
        3, ge=0, le=100, description="Tries of a task beyond the first, before it is parked."
    )
    failure_threshold: float = Field(
        0.5, ge=0, le=1, description="A task fails when more than this share of its files fails."
    )
    permanent_statuses: list[Annotated[str, Field(pattern=_STATUS)]] = Field(
        default_factory=list,
        max_length=100,
        description="Statuses of a C-STORE that are not worth another try, beside 0122 and 0124: "
        "four hexadecimal digits, of which the last may be `x` for any (`A900`, `Cxxx`).",
    )
    retry_delay_seconds: Seconds = Field(30.0, description="Seconds between a task's tries.")
    poll_frequency_ms: int = Field(
        500, ge=50, description="Milliseconds between polls of a remote Results Service."
    )
    hold_minimum_seconds: Seconds = Field(
        10.0,
        description="Seconds of an unreachable destination's first hold (circuit breaker), before "
        "it is tried again.",
    )
    hold_maximum_seconds: Seconds = Field(
        300.0, description="Longest hold of a destination, in seconds; each one doubles."
    )
    destination_patience_seconds: Seconds = Field(
        86400.0,
        description="Seconds that an export waits for an unreachable destination before it is "
        "parked.",
    )


class Scu(Section):
    """The Storage SCU."""

    ae_title: AETitleText = Field(
        "ClaraSCU", description="Calling AE title, and agent name at the Results Service."
    )
    maximum_number_of_associations: int = Field(
        8, ge=1, le=100, description="Associations at a time; one destination gets at most half."
    )
    connect_seconds: Seconds = Field(10.0, description="Seconds to connect to a destination.")
    association_seconds: Seconds = Field(
        30.0, description="Seconds a destination has to answer an association request or release."
    )
    response_seconds: Seconds = Field(
        60.0,
        description="Seconds a destination has to answer a C-STORE, or to take the next 1 MiB.",
    )
    export: ScuExport = Field(default_factory=ScuExport, description="Tasks and their retries.")


class Dicom(Section):
    """The DICOM side."""

    scp: ScpSettings = Field(default_factory=ScpSettings, description="Receiving.")
    scu: Scu = Field(default_factory=Scu, description="Sending.")
