# SPDX-License-Identifier: Apache-2.0
"""The static settings: one JSON file, overridden by the environment, checked all at once.

The file is ``appsettings.json`` with one key, ``DicomAdapter``; the names and defaults are the
original's, extended in the same camelCase style.  ``DICOMADAPTER__DICOM__SCP__PORT`` overrides
``DicomAdapter > dicom > scp > port``.  Nothing else in the project reads the environment.

Which adapter is meant is said by ``--data DIR`` or ``--config FILE`` or, for programs that cannot
be given options (``celery``, ``flower``), by ``DICOMADAPTER_DATA`` and ``DICOMADAPTER_CONFIG``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from adapter import passwords
from adapter.errors import ConfigurationError
from adapter.models import AETitleText, Name, UIDText, parse_tag
from adapter.mounts import mount_of

DATA_VARIABLE = "DICOMADAPTER_DATA"
CONFIG_VARIABLE = "DICOMADAPTER_CONFIG"

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = PositiveFloat


def _read_password(path: Path) -> str:
    try:
        return passwords.read(path)
    except ValueError as error:
        raise ValueError(f"passwordFile: {error}") from None


def _tag_text(value: object) -> str:
    return f"{parse_tag(str(value)):08X}"


TagText = Annotated[str, BeforeValidator(_tag_text)]


class Section(BaseModel):
    """A level of the settings file: frozen, camelCase outside, unknown keys refused."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True
    )


class Verification(Section):
    """The Verification service (C-ECHO)."""

    enabled: bool = Field(True, description="Whether Verification is accepted.")
    transfer_syntaxes: list[UIDText] = Field(
        ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"],
        min_length=1,
        description="Transfer syntaxes accepted for Verification.",
    )


class Scp(Section):
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
        description="SOP classes stored beside those of PS3.4 Table B.5-1.",
    )
    transfer_syntaxes: list[UIDText] = Field(
        default_factory=list,
        max_length=500,
        description="Transfer syntaxes accepted for Storage; empty accepts any.",
    )
    artim_seconds: Seconds = Field(
        10.0, description="Seconds a peer has to ask for an association (PS3.8 section 9.1.5)."
    )
    pdu_seconds: Seconds = Field(
        30.0, description="Seconds in which a PDU that has begun has to be there in full."
    )
    idle_seconds: Seconds = Field(60.0, description="Seconds an association may be silent.")
    processes: int = Field(
        0, ge=0, le=64, description="Processes that receive; 0 is one for each core, at most 4."
    )
    maximum_associations_per_peer: int = Field(
        20, ge=1, le=1000, description="Associations at a time from one address (2/3/2)."
    )
    maximum_half_open: int = Field(
        64,
        ge=1,
        le=4096,
        description="Connections without an association at a time, in each process; one more ends "
        "the oldest.",
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
    bell_instances: PositiveInt = Field(
        100, description="Instances after which notification is rung at once."
    )
    bell_milliseconds: PositiveInt = Field(
        100, description="Milliseconds after an instance by which notification is rung."
    )


class ScuExport(Section):
    """How tasks are exported."""

    maximum_retries: int = Field(
        3, ge=0, le=100, description="Tries of a task beyond the first, before it is parked."
    )
    failure_threshold: float = Field(
        0.5, ge=0, le=1, description="A task fails when more than this share of its files fails."
    )
    retry_delay_seconds: Seconds = Field(30.0, description="Seconds between a task's tries.")
    poll_frequency_ms: int = Field(
        500, ge=50, description="Milliseconds between polls of a remote Results Service."
    )
    hold_minimum_seconds: Seconds = Field(
        10.0, description="Seconds an unreachable destination is first put on hold."
    )
    hold_maximum_seconds: Seconds = Field(
        300.0, description="Seconds the hold of a destination grows to."
    )
    destination_patience_seconds: Seconds = Field(
        86400.0,
        description="Seconds a task waits for an unreachable destination before it is parked.",
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

    scp: Scp = Field(default_factory=Scp, description="Receiving.")
    scu: Scu = Field(default_factory=Scu, description="Sending.")


class Storage(Section):
    """The spool."""

    temporary: Path | None = Field(
        None, description="The spool's folder; by default `spool` in the data folder."
    )
    durability: Literal["instance", "none"] = Field(
        "instance",
        description="`instance`: each is synced to disk before its Success; `none`: nothing is, "
        "and a power loss loses what was acknowledged: for benchmarks only.",
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
        0.0, ge=0, description="Seconds that files are kept after nothing needs them any more."
    )
    history_days: PositiveFloat = Field(
        90.0, description="Days that rows outlive their files, to know the same instance again."
    )
    lag_seconds: float | None = Field(
        None,
        ge=0,
        le=3600,
        description="Seconds after which every host sees a new file of the spool; by default what "
        "its mount options say (NFS: `acdirmax`, 60 unless given), and 0 on a local disk.",
    )
    stale_seconds: Seconds = Field(
        86400.0, description="Age at which an unfinished file of a dead receiver is deleted."
    )


class Platform(Section):
    """The platform that jobs are submitted to."""

    max_retries: int = Field(3, ge=0, le=1000, description="Retries of a submission's step.")
    retry_delay_seconds: Seconds = Field(180.0, description="Seconds between them.")
    upload_metadata: bool = Field(
        False, description="Whether the values of `metadataDicomSource` describe the job."
    )
    metadata_dicom_source: list[TagText] = Field(
        default_factory=list, max_length=100, description="DICOM tags whose values describe a job."
    )


class ResultsService(Section):
    """The Results Service that finished pipelines' tasks are read from."""

    endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/]+",
        description="URL of a remote Results Service; without one the ledger is it.",
    )
    root: Path | None = Field(
        None, description="Folder under which a remote Results Service's uris are files."
    )
    request_seconds: Seconds = Field(300.0, description="Seconds that a request may take.")
    report_minimum_seconds: Seconds = Field(
        2.5, description="Seconds after which a report that was not taken is first repeated."
    )
    report_maximum_seconds: Seconds = Field(
        300.0, description="Seconds that the delay between repeated reports grows to."
    )

    @model_validator(mode="after")
    def _root_goes_with_endpoint(self) -> ResultsService:
        if self.endpoint is not None and self.root is None:
            raise ValueError(
                "endpoint needs root, the folder under which the tasks' uris are files"
            )
        return self


class Services(Section):
    """The services around the adapter."""

    platform: Platform = Field(default_factory=Platform, description="Where jobs go.")
    results_service: ResultsService = Field(
        default_factory=ResultsService, description="Where results come from."
    )


class Pipeline(Section):
    """A pipeline that the embedded platform runs."""

    name: Name = Field(description="Name for people.")
    command: list[str] = Field(
        min_length=1,
        description="Program and arguments; run without a shell, in the attempt's folder.",
    )
    timeout_seconds: Seconds = Field(3600.0, description="Seconds a run may take.")
    memory_mb: PositiveInt = Field(
        4096, alias="memoryMB", description="Address space of a run's processes, in 1e6 bytes."
    )
    maximum_retries: int = Field(
        2,
        ge=0,
        le=100,
        description="Runs beyond the first when a run fails, before the job is parked.",
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="Environment variables of a run, beside the adapter's."
    )
    destinations: list[str] = Field(
        default_factory=list, max_length=50, description="Names of the results' destinations."
    )
    export: bool = Field(True, description="False: the results are not exported.")

    @model_validator(mode="after")
    def _says_where_results_go(self) -> Pipeline:
        if self.export and not self.destinations:
            raise ValueError('name at least one destination, or say "export": false')
        if not self.export and self.destinations:
            raise ValueError('"export": false and destinations contradict each other')
        return self


class Api(Section):
    """The REST API."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Port = Field(5000, description="TCP port to listen on.")


class Flower(Section):
    """Flower, which shows the workers."""

    enabled: bool = Field(True, description="Whether `up` starts Flower.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Port = Field(5555, description="TCP port to listen on.")
    user: str = Field("admin", description="User name.")
    password_file: Path | None = Field(
        None,
        description="File that holds the password; by default `flower.password` in the data "
        "folder, made on first use.",
    )

    _password: str | None = PrivateAttr(None)

    @property
    def password(self) -> str | None:
        """What the password file held when the settings were read."""
        return self._password

    @model_validator(mode="after")
    def _read_password(self) -> Flower:
        if self.password_file is not None:
            self._password = _read_password(self.password_file)
            if "," in self._password:
                raise ValueError(
                    f"passwordFile: {self.password_file}: Flower takes no password with a comma"
                )
        return self


class Metrics(Section):
    """Where the receiver, the workers and the operator tell how they are, over HTTP.

    `/metrics` is for Prometheus; `/live` and `/ready` are for probes.
    """

    host: str = Field("", description="Address to listen on; empty means all, IPv4 and IPv6.")
    port: Port | None = Field(
        None,
        description="TCP port; without one nothing listens. With `up` it is the SCP's, and the "
        "workers have the next three.",
    )


class Server(Section):
    """A server whose password may be in a file: it is read once, with the settings."""

    url: str | None
    password_file: Path | None = Field(
        None,
        description="File that holds the password of `url`, which then has none; it is read at "
        "start and never shown.",
    )

    _password: str | None = PrivateAttr(None)

    @property
    def whole_url(self) -> str | None:
        """The URL with its password: never to be shown."""
        if self.url is None or self._password is None:
            return self.url
        return passwords.put_into(self.url, self._password)

    @model_validator(mode="after")
    def _read_password(self) -> Self:
        if self.password_file is None:
            return self
        if self.url is None or self.url.startswith("sqlite"):
            raise ValueError("passwordFile needs the url of a server that asks for a password")
        if passwords.stands_in(self.url):
            raise ValueError("both url and passwordFile name a password; take it out of url")
        self._password = _read_password(self.password_file)
        return self


class Broker(Server):
    """Redis, which carries the bells."""

    url: str | None = Field(
        None,
        pattern=r"^(rediss?|sentinel)://",
        description="URL of a Redis server; without one `up` starts its own.",
    )
    port: Port = Field(16379, description="TCP port of our own Redis, on loopback.")


class Database(Server):
    """The ledger."""

    url: str | None = Field(
        None,
        pattern=r"^(sqlite:///|postgresql(\+psycopg)?://)",
        description="SQLAlchemy URL of a PostgreSQL database, `postgresql+psycopg://...`; without "
        "one it is SQLite, `ledger.sqlite` in the data folder, which serves one host.",
    )
    connections: int = Field(
        10, ge=2, le=100, description="Connections of a process to PostgreSQL, at most."
    )


class Kubernetes(Section):
    """The API server whose custom resources the operator applies."""

    endpoint: str | None = Field(
        None,
        pattern=r"^(https://[^/]+|http://(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?)/?$",
        description="URL of the API server (plain HTTP on loopback only, for `kubectl proxy`); by "
        "default the one that Kubernetes tells each pod.",
    )
    credentials: Path = Field(
        Path("/var/run/secrets/kubernetes.io/serviceaccount"),
        description="Folder with `token`, `ca.crt` and `namespace`, or `tls.crt` and `tls.key`; by "
        "default the service account's.",
    )
    namespace: str | None = Field(
        None,
        pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        description="Namespace whose custom resources are applied; by default the pod's own.",
    )
    request_seconds: Seconds = Field(10.0, description="Seconds that a request may take.")
    watch_seconds: int = Field(
        60, ge=1, le=600, description="Seconds after which a watch is begun anew."
    )
    resync_seconds: Seconds = Field(
        300.0, description="Seconds between full lists, in case that a watch missed something."
    )
    retry_minimum_seconds: Seconds = Field(
        0.5, description="Seconds after which a request that failed is first repeated."
    )
    retry_maximum_seconds: Seconds = Field(
        30.0, description="Seconds that the delay between repeated requests grows to."
    )


class Notification(Section):
    """Limits for reading the headers of acknowledged files."""

    batch_size: int = Field(100, ge=1, le=1000, description="Files registered in one transaction.")
    header_seconds: Seconds = Field(5.0, description="Seconds that one header may take.")
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
    """How many bells a worker of each stage answers at once, and how its work is leased."""

    short_concurrency: int = Field(
        4, ge=1, le=64, description="For notification, grouping, submission and reclamation."
    )
    pipeline_concurrency: int = Field(1, ge=1, le=64, description="Pipelines at a time.")
    tick_seconds: Seconds = Field(1.0, description="Seconds between looks for due work.")
    lease_seconds: Seconds = Field(
        30.0, description="Seconds after which a dead worker's work is due again."
    )
    maximum_lease_expiries: PositiveInt = Field(
        10, description="Expired leases of one row before it is parked: it kills its worker."
    )
    visibility_seconds: Seconds = Field(
        120.0, description="Seconds a shared volume may take to show a file that has a row."
    )
    stop_seconds: Seconds = Field(
        20.0, description="Seconds that running work gets to end when a worker is told to stop."
    )
    housekeeping_seconds: Seconds = Field(
        3600.0, description="Seconds between sweeps for what nobody owns, and of old rows."
    )


REMOVED = {
    "timeout-group": "the AE title's processor setting `timeout` (seconds)",
    "timeoutGroup": "the AE title's processor setting `timeout` (seconds)",
    "pipeline-mappings": "`dicom-adapter aet add AET --set pipeline-NAME=ID`",
    "pipelineMappings": "`dicom-adapter aet add AET --set pipeline-NAME=ID`",
    "readAeTitlesFromCrd": "`dicom-adapter operator`, or `dicom-adapter aet add`",
    "crdReadIntervals": "nothing: a change is in force within two seconds",
    "read-aetitles-from-crd": "`dicom-adapter operator`, or `dicom-adapter aet add`",
    "read-sources-from-crd": "`dicom-adapter operator`, or `dicom-adapter source add`",
    "read-destinations-from-crd": "`dicom-adapter operator`, or `dicom-adapter destination add`",
    "aeTitles": "`dicom-adapter aet add` (configuration lives in the ledger)",
    "sources": "`dicom-adapter source add` (configuration lives in the ledger)",
    "destinations": "`dicom-adapter destination add` (configuration lives in the ledger)",
    "resultsServiceEndpoint": "`services > resultsService > endpoint`",
    "logDimseDatasets": "nothing: data sets are never logged",
}


class Settings(BaseSettings):
    """All static settings of one adapter."""

    model_config = SettingsConfigDict(
        env_prefix="DICOMADAPTER__",
        env_nested_delimiter="__",
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
    )

    data: Path = Field(Path("data"), description="The data folder.")
    dicom: Dicom = Field(default_factory=Dicom, description="Receiving and sending.")
    storage: Storage = Field(default_factory=Storage, description="The spool.")
    services: Services = Field(default_factory=Services, description="Platform and results.")
    pipelines: dict[str, Pipeline] = Field(
        default_factory=dict, description="Pipelines of the embedded platform, by id."
    )
    api: Api = Field(default_factory=Api, description="The REST API.")
    flower: Flower = Field(default_factory=Flower, description="Flower.")
    metrics: Metrics = Field(default_factory=Metrics, description="Metrics and probes.")
    broker: Broker = Field(default_factory=Broker, description="Redis.")
    database: Database = Field(default_factory=Database, description="The ledger.")
    kubernetes: Kubernetes = Field(
        default_factory=Kubernetes, description="Custom resources, for the operator."
    )
    notification: Notification = Field(
        default_factory=Notification, description="Limits for reading headers."
    )
    workers: Workers = Field(default_factory=Workers, description="Workers and leases.")

    _file: Path | None = PrivateAttr(None)

    @property
    def environment(self) -> dict[str, str]:
        """What a child process needs in its environment to find this adapter."""
        found = {DATA_VARIABLE: str(self.data), CONFIG_VARIABLE: ""}
        if self._file is not None:
            found[CONFIG_VARIABLE] = str(self._file)
        return found

    @property
    def spool_path(self) -> Path:
        """The spool's folder."""
        return self.storage.temporary or self.data / "spool"

    @property
    def lag_seconds(self) -> float:
        """How many seconds after a file of the spool got its name every host sees it."""
        lag = self.storage.lag_seconds
        return mount_of(self.spool_path).lag_seconds if lag is None else lag

    @property
    def retention_seconds(self) -> float:
        """How many seconds files are kept when nothing needs them: at least until they are seen.

        A host that does not see a file yet cannot delete it.
        """
        return max(self.storage.retention_seconds, self.lag_seconds)

    @property
    def database_url(self) -> str:
        """The ledger's SQLAlchemy URL, with its password: never to be shown."""
        return self.database.whole_url or f"sqlite:///{(self.data / 'ledger.sqlite').absolute()}"

    @property
    def kubernetes_url(self) -> str | None:
        """The API server's URL, as set or as Kubernetes tells a pod; None outside of a cluster."""
        host, port = map(os.environ.get, ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"))
        if self.kubernetes.endpoint is not None or not host:
            return self.kubernetes.endpoint
        return f"https://{f'[{host}]' if ':' in host else host}:{port or 443}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings' signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment override the file, which comes in as keyword arguments."""
        return env_settings, init_settings


def _take_removed(node: object, path: str = "DicomAdapter") -> list[str]:
    """Take the removed keys of old releases out, and name each and what replaces it."""
    found: list[str] = []
    if isinstance(node, dict):
        for key in list(node):
            here = f"{path} > {key}"
            if key in REMOVED and not (path.startswith("DicomAdapter > pipelines > ")):
                found.append(f"{here}: removed; use {REMOVED[key]}")
                del node[key]
            else:
                found += _take_removed(node[key], here)
    return found


def _read_file(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of a file, and the keys in it that cannot be settings."""
    if path.suffix.lower() in {".yaml", ".yml"}:
        raise ConfigurationError(
            [f"{path}: YAML is no longer read; write the same keys as JSON, appsettings.json"]
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError([f"{path}: no such file"]) from None
    except (OSError, ValueError) as error:
        raise ConfigurationError([f"{path}: cannot be read as JSON: {error}"]) from None
    if not isinstance(document, dict) or not isinstance(document.get("DicomAdapter"), dict):
        raise ConfigurationError([f'{path}: has to be a JSON object with one key, "DicomAdapter"'])
    others = [key for key in document if key not in {"DicomAdapter", "Logging", "AllowedHosts"}]
    problems = [f"{key}: unknown key beside DicomAdapter" for key in others]
    section: dict[str, Any] = document["DicomAdapter"]
    return section, problems + _take_removed(section)


def _left_behind(beside: Path) -> list[str]:
    """Return complaints about settings files of old releases where there is no new one."""
    old = [beside.with_name(name) for name in ("app.yaml", "app.yml")]
    return [
        f"{path}: YAML is no longer read; write the same keys as JSON, {beside}"
        for path in old
        if path.exists()
    ]


def _unknown_variables() -> list[str]:
    """Return complaints about variables that override nothing; deeper ones pydantic finds."""
    prefix = Settings.model_config["env_prefix"]
    return [
        f"{name}: there is no such setting to override"
        for name in sorted(os.environ)
        if name.upper().startswith(prefix)
        and name[len(prefix) :].partition("__")[0].lower() not in Settings.model_fields
    ]


def load(data: Path | None = None, config: Path | None = None) -> Settings:
    """Return the settings of the adapter that is meant.

    Parameters
    ----------
    data : Path, optional
        The data folder; its ``appsettings.json`` is read if it is there.
    config : Path, optional
        The settings file.

    Raises
    ------
    ConfigurationError
        Listing every problem, each with the path of its key.
    """
    if data is None and config is None:
        data_text, config_text = os.environ.get(DATA_VARIABLE), os.environ.get(CONFIG_VARIABLE)
        data = Path(data_text) if data_text else None
        config = Path(config_text) if config_text else None
    values: dict[str, Any] = {}
    problems: list[str] = []
    beside = (data or Path("data")) / "appsettings.json"
    if config is None and beside.exists():
        config = beside
    elif config is None and data is None and Path("appsettings.json").exists():
        config = Path("appsettings.json")
    if config is not None:
        values, problems = _read_file(config)
    else:
        problems = _left_behind(beside)
    if data is not None:
        values["data"] = data
    problems += _unknown_variables()
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += [_problem(item) for item in error.errors()]
    if problems:
        raise ConfigurationError(problems)
    settings = settings.model_copy(update={"data": settings.data.absolute()})
    settings._file = None if config is None else config.absolute()  # noqa: SLF001 - its own module
    return settings


def _problem(error: Any) -> str:
    path = " > ".join(["DicomAdapter", *map(str, error["loc"])])
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key"
    return f"{path}: {error['msg'].removeprefix('Value error, ')}"
