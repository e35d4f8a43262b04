# SPDX-License-Identifier: Apache-2.0
"""The embedded platform: pipelines of the settings, run by our own `pipeline` stage.

Nothing leaves the machine, so the verbs have little to do: the payload stays in the spool until a
run takes its copy, and a job is started by standing in the ledger as `started`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from adapter.errors import NotYetVisible
from adapter.files import write_durably
from adapter.ledger.jobs import Job
from adapter.spool import Spool
from workers.clients.platform import PayloadFile, Platform, find_pipeline


def metadata_path(spool: Spool, job: str) -> Path:
    """Return the file that a job's metadata is in; its values may be patient data."""
    return spool.work_folder(job) / "metadata.json"


class EmbeddedPlatform(Platform):
    """The platform within the adapter."""

    def create(self, job: Job) -> str:
        """Check that there is such a pipeline; the job's id here is its own."""
        find_pipeline(self.adapter.settings, job)
        return job.id

    def describe(self, job: Job, metadata: Mapping[str, str]) -> None:
        """Write the metadata where a run finds it, readable by nobody else."""
        path = metadata_path(self.adapter.spool, job.id)
        self.adapter.spool.make_work_folder(job.id)
        try:
            data = json.dumps(dict(metadata), indent=1).encode("utf-8")
            write_durably(path, data, self.adapter.spool.files)
        except FileNotFoundError:
            raise NotYetVisible(f"the folder of job {job.id} is not visible (yet)") from None

    def upload(self, job: Job, files: Sequence[PayloadFile]) -> Iterator[None]:
        """Check that every file is there with all its bytes; they stay where they are."""
        for file in files:
            try:
                size = file.path.stat().st_size
            except FileNotFoundError:
                size = -1
            if size != file.size:
                raise NotYetVisible(f"{file.name} of job {job.id} is not (wholly) visible")
            yield

    def start(self, job: Job) -> None:
        """Do nothing: the `pipeline` stage runs what stands in the ledger as started."""
