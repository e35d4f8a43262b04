# SPDX-License-Identifier: Apache-2.0
"""Runs a pipeline once on a folder of files, as the pipeline stage would: a program of its own.

``python -m workers.trial PIPELINE FOLDER [OUTPUT]`` is what ``dicom-adapter pipeline test`` starts.
Neither spool nor ledger nor Redis is touched: the run has a folder for temporary files.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import uuid
from pathlib import Path

from adapter import log
from adapter.errors import AdapterError, ConfigurationError, PermanentError, UnreadableInstance
from adapter.job_output import STDERR, STDOUT
from adapter.models import EMBEDDED
from adapter.settings import Pipeline, Settings, load
from workers.clients import isolation
from workers.clients.attempt import Attempt
from workers.clients.headers import HeaderReader
from workers.clients.pipeline_process import run_command
from workers.clients.platform import PayloadFile
from workers.pipeline import command_of, judge


def main(arguments: list[str]) -> int:
    """Run the pipeline that the arguments name, say what came of it, and return an exit code."""
    log.configure()
    name, folder, *rest = arguments
    try:
        settings = load()
        pipeline = _find(settings, name)
        with tempfile.TemporaryDirectory(prefix="dicom-adapter-pipeline-") as place:
            run = _Trial(settings, pipeline, name, Path(place))
            return run.take(Path(folder), Path(rest[0]) if rest else None)
    except ConfigurationError as error:
        sys.stderr.writelines(f"error: {problem}\n" for problem in error.problems)
        return 2
    except (AdapterError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def _find(settings: Settings, name: str) -> Pipeline:
    pipeline = settings.pipelines.get(name)
    if pipeline is None:
        known = ", ".join(sorted(settings.pipelines)) or "none"
        raise ConfigurationError([f"the settings have no pipeline {name!r}; there are: {known}"])
    if pipeline.platform != EMBEDDED:
        raise ConfigurationError(
            [f"pipeline {name!r} is for platform {pipeline.platform!r}, not for the embedded one"]
        )
    return pipeline


class _Trial:
    def __init__(self, settings: Settings, pipeline: Pipeline, name: str, place: Path) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._name = name
        self._place = place
        strict = settings.dicom.scp.strict_uids
        self._reader = HeaderReader(settings.notification, strict_uids=strict)

    def take(self, folder: Path, output: Path | None) -> int:
        """Run the pipeline on the files below a folder, and copy its results to another."""
        try:
            return self._take(folder, output)
        finally:
            self._reader.close()

    def _take(self, folder: Path, output: Path | None) -> int:
        files = self._payload(folder)
        if not files:
            raise PermanentError(f"{folder}: there is no DICOM file in it", "no-input")
        metadata = self._place / "metadata.json"
        metadata.write_text(json.dumps({"Instances": str(len(files))}))
        sandbox = isolation.sandbox_of(self._settings, self._pipeline)
        for complaint in isolation.complaints(self._settings):
            sys.stderr.write(f"warning: {complaint}\n")
        attempt = Attempt(self._place, "run")
        attempt.prepare(files, metadata)
        command = command_of(self._pipeline, str(uuid.uuid4()), self._name, attempt, sandbox)
        ending = run_command(command, lambda: False)
        for stream, name in ((sys.stdout, STDOUT), (sys.stderr, STDERR)):
            stream.write((self._place / name).read_text(encoding="utf-8", errors="replace"))
        if failure := judge(ending, self._pipeline, isolated=sandbox is not None):
            raise PermanentError(f"{failure.outcome}: {failure.text}", failure.outcome)
        published, results = attempt.collect(self._reader)
        if output is not None:
            shutil.copytree(published, output)
        where = "" if output is None else f", in {output}"
        sys.stdout.write(f"succeeded: {len(files)} files in, {len(results)} out{where}\n")
        return 0

    def _payload(self, folder: Path) -> list[PayloadFile]:
        """Return the DICOM files below a folder under the names that a run finds them by."""
        found: dict[str, PayloadFile] = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            try:
                header = self._reader.read(path, ())
            except UnreadableInstance as error:
                sys.stderr.write(f"left out: {path}: {error}\n")
                continue
            name = f"{header.sop_instance_uid}.dcm"
            found[name] = PayloadFile(path, name, path.stat().st_size)
        return list(found.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
