# SPDX-License-Identifier: Apache-2.0
"""Finds the plug-ins, job processors and observers, by entry point, and guards against them.

A plug-in may do anything.  What a job processor does wrong becomes one of two errors: it cannot be
used at all (`ConfigurationError`), or a call of it failed (`ProcessorError`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import ValidationError

from adapter import plugins
from adapter.dicom.instance import Instance
from adapter.errors import (
    ConfigurationError,
    ProcessorError,
    UnreadableInstance,
    validation_problems,
)
from adapter.ledger.delays import LONGEST_WAIT
from adapter.log import get_logger
from adapter.models import AETitle, Priority
from adapter.plugins import OBSERVERS, PROCESSORS
from adapter.processors.base import InstanceObserver, JobProcessor, JobRequest

log = get_logger(__name__)

T = TypeVar("T")


def create_processor(ae_title: AETitle) -> JobProcessor:
    """Return the job processor of an AE title, with its settings validated.

    Each call of it returns something that can be used, or raises `ProcessorError`.

    Raises
    ------
    ConfigurationError
        If no such processor is installed, if it cannot be made, or listing every problem of its
        settings.
    """
    name = ae_title.processor
    found = plugins.find(PROCESSORS, name)
    if found is None:
        known = ", ".join(plugins.names(PROCESSORS))
        raise ConfigurationError([f"processor: {name!r} is none of {known}"])
    try:
        plugin: type[JobProcessor] = found.load()
        settings = plugin.Settings.model_validate(ae_title.processor_settings)
        return _Guarded(ae_title, settings, plugin(ae_title, settings))
    except ValidationError as error:
        raise ConfigurationError(
            validation_problems(
                error.errors(),
                within=["processorSettings"],
                unknown=lambda _key: "unknown setting of this processor",
            )
        ) from None
    except (Exception, SystemExit) as error:  # a plug-in may raise anything
        problem = f"processor: {name!r} cannot be used ({type(error).__name__})"
        raise ConfigurationError([problem]) from error


def validate(ae_title: AETitle) -> list[str]:
    """Check an AE title's processor and its settings, and ask it all that a stage will ask it.

    Returns
    -------
    list of str
        The ids of the pipelines that its groups go to, sorted.

    Raises
    ------
    ConfigurationError
        As `create_processor`, or if what it answers cannot be used.
    """
    processor = create_processor(ae_title)
    try:
        _ = processor.title, processor.tags, processor.timeout, processor.maximum_wait
        return sorted({request.pipeline_id for request in processor.jobs()})
    except ProcessorError as error:
        raise ConfigurationError([f"processor: {error}"]) from error


def problems_of(ae_titles: Iterable[AETitle]) -> list[str]:
    """Return what is wrong with the job processors of AE titles that are configured already.

    An AE title is refused while its job processor cannot be used.  So this tells of plug-ins that
    have been removed or changed since, or are not installed on this host.
    """
    return [
        f"AE title {ae_title.name!r}: {problem}"
        for ae_title in ae_titles
        for problem in _problems(ae_title.model_dump_json())
    ]


@lru_cache(maxsize=1000)  # what is installed does not change while a process runs
def _problems(ae_title: str) -> tuple[str, ...]:
    try:
        validate(AETitle.model_validate_json(ae_title))
    except ConfigurationError as error:
        return tuple(error.problems)
    return ()


def create_observers() -> list[InstanceObserver]:
    """Return an instance of every observer that is installed; one that cannot be made is logged."""
    made = []
    for entry in plugins.installed(OBSERVERS):
        try:
            made.append(entry.load()())
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a plug-in may raise anything
            log.error("an observer cannot be used", observer=entry.name, error=type(error).__name__)
    return made


class _Guarded(JobProcessor):
    """A job processor whose every answer is checked.

    Parameters
    ----------
    ae_title : AETitle
        Whose job processor it is.
    settings : BaseModel
        The validated settings.
    plugin : JobProcessor
        The plug-in.
    """

    def __init__(self, ae_title: AETitle, settings: Any, plugin: JobProcessor) -> None:
        super().__init__(ae_title, settings)
        self._plugin = plugin

    # A plug-in declares it for its class; here it is the plug-in's, and may fail when asked.
    @property
    def title(self) -> str:  # type: ignore[override]
        return self._ask("title", lambda: self._plugin.title, lambda title: isinstance(title, str))

    @property
    def tags(self) -> Sequence[int]:
        return self._ask(
            "tags",
            lambda: tuple(self._plugin.tags),
            lambda tags: all(isinstance(tag, int) for tag in tags),
        )

    @property
    def timeout(self) -> float:
        return float(self._ask("timeout", lambda: self._plugin.timeout, _is_seconds))

    @property
    def maximum_wait(self) -> float:
        return float(self._ask("maximum_wait", lambda: self._plugin.maximum_wait, _is_seconds))

    def group_value(self, instance: Instance) -> str | None:
        return self._ask(
            "group_value",
            lambda: self._plugin.group_value(instance),
            lambda value: value is None or isinstance(value, str),
            may_raise=UnreadableInstance,
        )

    def jobs(self) -> Sequence[JobRequest]:
        return self._ask("jobs", lambda: list(self._plugin.jobs()), _are_jobs)

    def _ask(
        self,
        what: str,
        call: Callable[[], T],
        is_sound: Callable[[T], bool],
        may_raise: type[Exception] | tuple[()] = (),
    ) -> T:
        name = self.ae_title.processor
        try:
            answer = call()
            sound = is_sound(answer)
        except may_raise:
            raise
        except (Exception, SystemExit) as error:  # a plug-in may raise anything
            problem = f"{what} of the job processor {name!r} raised {type(error).__name__}"
            raise ProcessorError(problem) from error
        if not sound:
            raise ProcessorError(f"{what} of the job processor {name!r} returned what is of no use")
        return answer


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= LONGEST_WAIT


def _is_text(value: Any, longest: int) -> bool:
    """Tell whether the ledger can hold a text: PostgreSQL takes no NUL and no lone surrogate."""
    return isinstance(value, str) and 0 < len(value) <= longest and value.isprintable()


def _are_jobs(requests: Sequence[Any]) -> bool:
    """Tell whether there is at least one job, each can be recorded, and no two are of one name."""
    names = {request.pipeline for request in requests if isinstance(request, JobRequest)}
    return 0 < len(names) == len(requests) and all(
        _is_text(request.pipeline, 64)
        and _is_text(request.pipeline_id, 256)
        and request.priority in tuple(Priority)
        and _is_seconds(request.retry_delay)
        for request in requests
    )
