# SPDX-License-Identifier: Apache-2.0
"""A task as a remote Results Service writes it, read with suspicion."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from adapter.ledger.export_policy import over_threshold
from adapter.ledger.remote_tasks import Delivery
from adapter.models import Name

_LONGEST_PATH = 1024

TaskId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
JobId = Annotated[str, Field(max_length=64, pattern=r"^[^\x00-\x1f]*$")]


class Task(BaseModel):
    """A task on the wire; what we do not need of it is not looked at."""

    model_config = ConfigDict(extra="ignore")

    task_id: TaskId = Field(alias="taskId")
    job_id: JobId | None = Field(None, alias="jobId")
    parameters: Any = None
    retries: int = Field(0, ge=0, le=1_000_000)
    uris: list[str] = Field(default_factory=list, max_length=1_000_000)


_NAMES: TypeAdapter[list[str]] = TypeAdapter(
    Annotated[list[Name], Field(min_length=1, max_length=50)]
)


def destination_names(parameters: Any) -> list[str]:
    """Return the destinations that a task's parameters name, each once.

    The original's code reads a string that holds one JSON string, its test data a string that holds
    a JSON array; both are read here, and the same without the string around it.

    Raises
    ------
    ValueError
        If they name none.
    """
    value = parameters
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except RecursionError:
            raise ValueError("nested too deep") from None
        except ValueError:
            value = parameters.strip()
    names = _NAMES.validate_python([value] if isinstance(value, str) else value, strict=True)
    return list({name.casefold(): name for name in reversed(names)}.values())[::-1]


def read_task(raw: Any, known: set[str], failure_threshold: float) -> Delivery | None:
    """Return a task as the ledger takes it, its problem included; None if it has not even an id.

    Parameters
    ----------
    raw : object
        One element of the answer.
    known : set of str
        Names of the configured destinations, case-folded.
    failure_threshold : float
        The share of its files that may fail.
    """
    try:
        task = Task.model_validate(raw)
    except ValidationError as error:
        fields = ", ".join(sorted({str(item["loc"][0]) for item in error.errors() if item["loc"]}))
        try:
            task = Task.model_validate({"taskId": raw["taskId"]})
        except (ValidationError, TypeError, KeyError):
            return None
        return Delivery(task.task_id, problem=f"the task cannot be read: {fields}")
    files = tuple((_printable(uri), path_problem(uri)) for uri in task.uris)
    try:
        names = destination_names(task.parameters)
    except ValueError:
        problem = "the task's parameters name no destination"
        return Delivery(task.task_id, task.job_id, task.retries, (), files, problem)
    wrong = [why for _, why in files if why is not None]
    unknown = [name for name in names if name.casefold() not in known]
    refusal: dict[str, str] = {}
    if over_threshold(len(wrong), len(files), failure_threshold):
        # However often it is offered again, these paths stay what they are.
        problem = f"{len(wrong)} of {len(files)} uris name no file below the root: {wrong[0]}"
        refusal = {"problem": problem, "reason": "unfit-files"}
    elif unknown:
        problem = f"unknown destinations: {', '.join(unknown)}"
        refusal = {"problem": problem, "reason": "unknown-destination"}
    return Delivery(task.task_id, task.job_id, task.retries, tuple(names), files, **refusal)


def path_problem(uri: str) -> str | None:
    """Return why a uri can be no file under the root; None if it may be one."""
    if len(uri) > _LONGEST_PATH:
        return "the path is too long"
    if not uri.isprintable():
        return "the path holds control characters"
    parts = PurePosixPath(uri).parts
    if not parts:
        return "the path names no file"
    if parts[0].startswith("/") or ".." in parts:
        return "the path leaves the root"
    return None


def _printable(uri: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in uri[:_LONGEST_PATH])
