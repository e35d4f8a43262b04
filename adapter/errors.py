# SPDX-License-Identifier: Apache-2.0
"""Every error the adapter raises on purpose.

::

    AdapterError                    its text is meant for users and contains no PHI
    +-- TemporaryError              may pass: try again after `delay` seconds
    |   +-- NotYetVisible           a file that has a row is not seen on the shared volume yet
    +-- PermanentError              will not pass: park it, where an operator sees it
    |   +-- UnreadableInstance      the bytes are not a DICOM data set that can be registered
    +-- ConfigurationError          invalid settings or configuration: every problem with its path
    +-- ChildKilled                 a child process of ours, which did the work, was killed
    +-- ProcessorError              a job processor failed, or returned something unusable
    +-- LeaseLost                   another worker owns the row now: stop, write nothing
    +-- Stopped                     the worker is told to stop: give back what is held
    +-- SpoolError                  the spool cannot be used in its present state
    |   +-- SpoolAway               it is not there: all that needs it waits, and nothing is counted
    |       +-- OtherSpool          another one is in its place
    +-- LedgerError                 the ledger cannot be used in its present state

A stage knows two kinds of failure: one that may pass and one that will not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any


class AdapterError(Exception):
    """The base of all errors raised on purpose."""


class TemporaryError(AdapterError):
    """A failure that may pass.

    Parameters
    ----------
    message : str
        What went wrong, without PHI.
    delay : float, optional
        Seconds to wait before the next try; None leaves it to the stage's setting.
    """

    def __init__(self, message: str, delay: float | None = None) -> None:
        super().__init__(message)
        self.delay = delay


class NotYetVisible(TemporaryError):
    """A file that has a row in the ledger is not visible (yet) on this host."""


class PermanentError(AdapterError):
    """A failure that will not pass by itself.

    Parameters
    ----------
    message : str
        What went wrong, without PHI.
    code : str, optional
        The outcome as recorded in the ledger, e.g. ``"no-output"``.
    """

    def __init__(self, message: str, code: str = "failed") -> None:
        super().__init__(message)
        self.code = code


class UnreadableInstance(PermanentError):
    """An acknowledged file that cannot be registered; it goes to quarantine under `code`."""


class ConfigurationError(AdapterError):
    """Settings or configuration that cannot be used.

    Parameters
    ----------
    problems : sequence of str
        Every problem found, each with the path of the key and what to do.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def validation_problems(
    items: Iterable[Any],
    *,
    within: Sequence[str] = (),
    whole: str = "",
    separator: str = ".",
    unknown: Callable[[str], str] | None = None,
) -> list[str]:
    """Return what pydantic found wrong, one line for each key, with the key's path.

    Parameters
    ----------
    items : iterable of mapping
        What ``errors()`` of pydantic's exception returns.
    within : sequence of str, optional
        The path of what was validated.
    whole : str, optional
        What stands for a path that would be empty.
    separator : str, optional
        What stands between two keys of a path.
    unknown : callable, optional
        Says what is wrong with an unknown key, given its name; by default pydantic's words.
    """
    problems = []
    for item in items:
        path = separator.join([*within, *map(str, item["loc"])]) or whole
        if unknown is not None and item["type"] == "extra_forbidden":
            what = unknown(str(item["loc"][-1]))
        else:
            what = str(item["msg"]).removeprefix("Value error, ")
        problems.append(f"{path}: {what}" if path else what)
    return problems


class LeaseLost(AdapterError):
    """The lease on a row ran out, and another worker may have claimed the row."""


class ChildKilled(AdapterError):
    """A child process of ours, which did the work on a row, was killed."""


class ProcessorError(AdapterError):
    """A call of a job processor failed, or returned what cannot be used."""


class Stopped(AdapterError):
    """The worker is told to stop, and what it holds is given back."""


class SpoolError(AdapterError):
    """The spool is missing, belongs to another ledger, or cannot be written."""


class SpoolAway(SpoolError):
    """The spool, or a directory of it, is not there: its volume left, or has not come yet.

    It is nobody's failed try.  Whoever works on the spool gives back what it holds, the stages
    pause, and the receiver refuses for the time being.
    """


class OtherSpool(SpoolAway):
    """Where the spool has to be there is one that belongs to another ledger."""


class LedgerError(AdapterError):
    """The ledger has a schema that this release cannot use."""
