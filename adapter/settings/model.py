# SPDX-License-Identifier: Apache-2.0
"""All settings of one adapter, and the values that are derived from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr
from pydantic.alias_generators import to_camel
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from adapter.models import PipelineId
from adapter.mounts import mount_of
from adapter.settings.dicom import Dicom
from adapter.settings.servers import Api, Broker, Database, Flower, Kubernetes, Metrics
from adapter.settings.stages import Notification, Pipeline, Services, Storage, Workers

DATA_VARIABLE = "DICOMADAPTER_DATA"
CONFIG_VARIABLE = "DICOMADAPTER_CONFIG"


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
    pipelines: dict[PipelineId, Pipeline] = Field(
        default_factory=dict, description="Pipelines, by id."
    )
    platforms: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Settings of kinds of platforms that packages bring, by kind.",
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
        """The environment variables by which a child process finds this adapter."""
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
        """Seconds until every host sees a new file of the spool."""
        lag = self.storage.lag_seconds
        return mount_of(self.spool_path).lag_seconds if lag is None else lag

    @property
    def retention_seconds(self) -> float:
        """Seconds that files are kept after nothing needs them: at least until all hosts see them.

        A host that does not see a file yet cannot delete it.
        """
        return max(self.storage.retention_seconds, self.lag_seconds)

    @property
    def database_url(self) -> str:
        """The ledger's SQLAlchemy URL with its password; it must never be shown."""
        return self.database.whole_url or f"sqlite:///{(self.data / 'ledger.sqlite').absolute()}"

    @property
    def kubernetes_url(self) -> str | None:
        """The API server's URL: configured, or given to a pod by Kubernetes; else None."""
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
        """Make the environment override the file, whose values are keyword arguments."""
        return env_settings, init_settings
