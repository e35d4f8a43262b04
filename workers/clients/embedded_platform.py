# SPDX-License-Identifier: Apache-2.0
"""The embedded platform: pipelines of the settings, run by our own `pipeline` stage.

Nothing leaves the machine, so the verbs have little to do: the payload stays in the spool until a
run takes its copy, and a job is started by standing in the ledger as `started`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from adapter.core import Adapter
from adapter.errors import NotYetVisible, PermanentError
from adapter.files import write_durably
from adapter.ledger.jobs import Job
from adapter.settings import Pipeline, Settings
from adapter.spool import Spool
from workers.clients.platform import PayloadFile


def find_pipeline(settings: Settings, job: Job) -> Pipeline:
    """Return the pipeline that a job is for.

    Raises
    ------
    PermanentError
        If the settings define none of that id.
    """
    pipeline = settings.pipelines.get(job.pipeline_id)
    if pipeline is None:
        raise PermanentError(
            f"there is no pipeline {job.pipeline_id!r}: define it in appsettings.json under "
            f"DicomAdapter > pipelines, restart, and retry the job",
            "unknown-pipeline",
        )
    return pipeline


def metadata_path(spool: Spool, job: str) -> Path:
    """Return the file that a job's metadata is in; its values may be patient data."""
    return spool.work_folder(job) / "metadata.json"


class EmbeddedPlatform:
    """The platform within the adapter; see `workers.clients.platform.Platform`.

    Parameters
    ----------
    adapter : Adapter
        Whose pipelines are run.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._settings = adapter.settings
        self._spool = adapter.spool

    def create(self, job: Job) -> str:
        """Check that there is such a pipeline; the job's id here is its own."""
        find_pipeline(self._settings, job)
        return job.id

    def describe(self, job: Job, metadata: Mapping[str, str]) -> None:
        """Write the metadata where a run finds it, readable by nobody else."""
        path = metadata_path(self._spool, job.id)
        self._spool.make_work_folder(job.id)
        try:
            data = json.dumps(dict(metadata), indent=1).encode("utf-8")
            write_durably(path, data, self._spool.files)
        except FileNotFoundError:
            raise NotYetVisible(f"the folder of job {job.id} is not visible (yet)") from None

    def upload(self, job: Job, files: Sequence[PayloadFile]) -> None:
        """Check that every file is there with all its bytes; they stay where they are."""
        for file in files:
            try:
                size = file.path.stat().st_size
            except FileNotFoundError:
                size = -1
            if size != file.size:
                raise NotYetVisible(f"{file.name} of job {job.id} is not (wholly) visible")

    def start(self, job: Job) -> None:
        """Do nothing: the `pipeline` stage runs what stands in the ledger as started."""
