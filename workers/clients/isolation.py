# SPDX-License-Identifier: Apache-2.0
"""What an isolated run of a pipeline may see, and whether this machine can isolate one.

An isolated run sees the system's programs and libraries, Python and this package, what its own
command names, what its pipeline's `readable` names, and its folder; nothing of the adapter's.
`workers.clients.sandbox` does it.
"""

from __future__ import annotations

import pwd
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import adapter
from adapter.errors import PermanentError, TemporaryError
from adapter.models import EMBEDDED
from adapter.settings import Pipeline, Settings
from workers.clients.pipeline_process import Command, Ending, How, run_command

#: Folders of programs and libraries.
_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/nix/store",
    "/gnu/store",
)  # fmt: skip

#: What of /etc programs need; its other files may hold secrets that the worker's user may read.
_ETC = (
    "alternatives", "ca-certificates", "fonts", "group", "host.conf", "hosts", "ld.so.cache",
    "ld.so.conf", "ld.so.conf.d", "localtime", "magic", "mime.types", "nsswitch.conf", "OpenCL",
    "passwd", "pki/ca-trust", "pki/tls/certs", "protocols", "resolv.conf", "services",
    "ssl/certs", "ssl/openssl.cnf", "timezone", "vulkan", "glvnd",
)  # fmt: skip

#: Seconds that a trial may take.
_TRIAL_SECONDS = 30.0


def sandbox_of(settings: Settings, pipeline: Pipeline) -> dict[str, Any] | None:
    """Return how a pipeline's runs are isolated; None if they are not.

    Raises
    ------
    PermanentError
        If its isolation is `required` and this machine cannot do it.
    TemporaryError
        As `why_not`.
    """
    if pipeline.isolation == "none":
        return None
    if reason := why_not():
        if pipeline.isolation == "required":
            raise PermanentError(
                f"isolation is required, and this machine cannot isolate: {reason}", "not-isolated"
            )
        return None
    hidden = _hidden(settings)
    named = [
        path
        if any(name == str(folder) or name.startswith(f"{folder}/") for name in hidden)
        else folder
        for path, folder in _named_in(pipeline.command)
    ]
    return {
        "readable": sorted(set(_readable([*pipeline.readable, *named]))),
        "hidden": sorted(hidden),
        "network": pipeline.network,
        "processes": pipeline.maximum_processes,
    }


def complaints(settings: Settings) -> list[str]:
    """Return what to tell of pipelines that are not isolated although they should be."""
    wanting = [
        pipeline
        for pipeline in settings.pipelines.values()
        if pipeline.platform == EMBEDDED and pipeline.isolation != "none"
    ]
    try:
        reason = why_not() if wanting else ""
    except TemporaryError as error:
        return [str(error)]
    return [f"pipelines are not isolated: {reason}"] if reason else []


@cache
def why_not() -> str:
    """Return why this machine cannot isolate a run, nothing if it can; found out once.

    Raises
    ------
    TemporaryError
        If that could not be found out now.
    """
    try:
        ending = _try()
    except FileNotFoundError:
        return "there is no place for temporary files"
    except OSError as error:
        raise TemporaryError(f"a run could not be isolated on trial: {error.strerror}") from None
    if ending.how == How.COULD_NOT_START:
        return ending.problem.removeprefix("it could not be isolated: ")
    if ending.how != How.ENDED:
        raise TemporaryError(f"a run could not be isolated on trial: {ending.how}")
    if ending.code != 0:
        return f"Python does not start in a sandbox (exit code {ending.code})"
    return ""


def _try() -> Ending:
    """Run Python in a sandbox once."""
    with tempfile.TemporaryDirectory(prefix="dicom-adapter-") as name:
        folder = Path(name)
        for part in ("output", "tmp", "input"):
            (folder / part).mkdir()
        command = Command(
            arguments=[sys.executable, "-I", "-c", "import adapter"],
            folder=folder,
            environment={},
            seconds=_TRIAL_SECONDS,
            memory=1_000_000_000,
            disk=1_000_000,
            files=100,
            floor=0,
            stdout=folder / "stdout.txt",
            stderr=folder / "stderr.txt",
            sandbox={
                "readable": sorted(set(_readable(()))),
                "hidden": [],
                "network": False,
                "processes": 100,
            },
        )
        return run_command(command, lambda: False)


def _readable(named: Iterable[Path]) -> Iterator[str]:
    """Yield the paths that a run may read, links among them and where they lead."""
    yield from _readable_by_all()
    for path in named:  # one that is missing is told when it cannot be shown
        yield from (str(path), str(path.resolve()))


@cache
def _readable_by_all() -> frozenset[str]:
    etc = (Path("/etc") / name for name in _ETC)
    python = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    python |= {path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
    ours = Path(adapter.__file__).parent
    interpreter = (folder for _, folder in _named_in([sys.executable]))
    found = [*map(Path, _SYSTEM), *etc, *map(Path, python), ours, *interpreter]
    there = [path for path in found if path.exists()]
    return frozenset(name for path in there for name in (str(path), str(path.resolve())))


def _named_in(command: Iterable[str]) -> Iterator[tuple[Path, Path]]:
    """Yield the programs and files that a command names and what they link to, and their folders.

    A program in ``bin`` belongs to the folder above it, e.g. a virtual environment.
    """
    for number, argument in enumerate(command):
        found = argument
        if number == 0 and "/" not in argument:
            found = shutil.which(argument) or ""
        path = Path(found)
        while found.startswith("/") and path.exists():
            yield path, _folder_of(path)
            if not path.is_symlink():
                break
            path = path.parent / path.readlink()


def _folder_of(path: Path) -> Path:
    """Return what of a path's surroundings belongs to it; a home folder's files do not."""
    if path.is_dir():
        return path
    folder = path.parent.parent if path.parent.name == "bin" else path.parent
    homes = {Path(user.pw_dir) for user in pwd.getpwall()} | {Path.home()}
    return path if folder in homes or len(folder.parts) <= 2 else folder


def _hidden(settings: Settings) -> set[str]:
    """Return the paths that the settings name for the adapter itself: data, spool, secrets."""
    own = settings.model_dump(exclude={"pipelines"})
    paths = {settings.spool_path, *_paths_in(own)}
    if config := settings.environment.get("DICOMADAPTER_CONFIG"):
        paths.add(Path(config))
    return {name for path in paths for name in (str(path.absolute()), str(path.resolve()))}


def _paths_in(node: Any) -> Iterator[Path]:
    if isinstance(node, Path):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _paths_in(value)
