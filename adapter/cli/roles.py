# SPDX-License-Identifier: Apache-2.0
"""`check-config`, `up`, and each role alone: `scp`, `worker`, `api`, `operator`, `flower`."""

from __future__ import annotations

import os
import shutil
import time
from typing import Annotated, Any

import typer
from sqlalchemy.exc import SQLAlchemyError

from adapter import log, passwords, rights
from adapter.cli import references
from adapter.cli.which import AsJson, become, opened, settings_of
from adapter.core import open_ledger
from adapter.embedded import ports
from adapter.embedded import roles as commands
from adapter.embedded.supervisor import Supervisor, end_by_interrupt
from adapter.errors import AdapterError, ConfigurationError
from adapter.ledger import configuration
from adapter.models import EntityKind
from adapter.processors.registry import problems_of
from adapter.settings import Settings
from adapter.stages import STAGES
from adapter.terminal import print_json, print_table, say, warn

#: Seconds after which `up` says what is not ready yet.
_READY_SECONDS = 60.0


def check_config(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Check the settings, and show those in force; every problem is listed with its path."""
    settings = settings_of(ctx)
    document: dict[str, Any] = settings.model_dump(mode="json", by_alias=True)
    for section in ("broker", "database"):
        url = document[section]["url"]
        document[section]["url"] = passwords.hide(url) if url else url
    if as_json:
        print_json({"DicomAdapter": document})
    else:
        print_table(("setting", "value"), _flat(document), "")
    warn(*_doubts(settings), *_loose_ends(settings), as_json=as_json)
    if not as_json:
        say("The settings are fine.")


def _flat(node: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in node.items():
        here = f"{path} > {key}" if path else key
        found += _flat(value, here) if isinstance(value, dict) and value else [(here, value)]
    return found


def _doubts(settings: Settings) -> list[str]:
    """Return warnings about settings that are valid but will hardly work."""
    programs = {key: pipeline.command[:1] for key, pipeline in settings.pipelines.items()}
    doubts = [
        f"DicomAdapter > pipelines > {key} > command: there is no program {program!r}"
        for key, command in programs.items()
        for program in command
        if "{" not in program and shutil.which(program) is None
    ]
    lag, visible = settings.lag_seconds, settings.workers.visibility_seconds
    if lag > visible / 2:
        doubts.append(
            f"DicomAdapter > workers > visibilitySeconds: {visible:g} s is less than twice as long "
            f"as the spool may take to show a new file ({lag:g} s): work would fail for files that "
            "are only late"
        )
    if rights.is_root():
        doubts.append(rights.AS_ROOT)
    return doubts


def _loose_ends(settings: Settings) -> list[str]:
    """Return what is wrong with AE titles and names nothing, if there is a ledger yet."""
    ledger = open_ledger(settings)
    try:
        if not ledger.exists():
            return []
        titles = [found.entity for found in configuration.current(ledger, EntityKind.AE_TITLE)]
        known = {
            found.entity.key for found in configuration.current(ledger, EntityKind.DESTINATION)
        }
    except SQLAlchemyError:
        return ["the ledger does not answer: its AE titles and destinations are not checked"]
    finally:
        ledger.close()
    return [
        *problems_of(titles),
        *(text for title in titles for text in references.missing_pipelines(settings, title)),
        *references.missing_destinations(settings, settings.pipelines, known),
    ]


def up(ctx: typer.Context) -> None:
    """Run everything on this machine until Ctrl-C or SIGTERM."""
    settings = settings_of(ctx)
    if rights.is_root():
        warn(rights.AS_ROOT)
    end_by_interrupt()
    supervisor = Supervisor(settings, print_line=say)
    try:
        supervisor.start()
        _introduce(settings, supervisor)
        if supervisor.wait_ready(_READY_SECONDS):
            say("Ready.  Stop with Ctrl-C.")
        else:
            for name in supervisor.missing():
                warn(f"{name} is not ready yet; see {supervisor.log_of(name).path}")
        while supervisor.running:
            time.sleep(1.0)
        raise AdapterError("the supervisor has ended by itself; its last lines say why")
    except KeyboardInterrupt:
        say("Stopping ...")
    finally:
        supervisor.stop()
    say("Stopped.")


def _introduce(settings: Settings, supervisor: Supervisor) -> None:
    at = {name: f"{host or '*'}:{port}" for name, (host, port) in ports.listening(settings).items()}
    say(f"DICOM    {at['dicom > scp > port']}  (AE titles: `dicom-adapter aet list`)")
    say(f"REST     http://{at['api > port']}")
    if settings.flower.enabled:
        password = commands.flower_password_file(settings)
        say(f"Flower   http://{at['flower > port']}  user {settings.flower.user}")
        say(f"         password in {password}")
    say(f"data     {settings.data}")
    say(f"logs     {supervisor.logs}")


def scp(ctx: typer.Context) -> None:
    """Run the DICOM receiver alone."""
    from adapter.scp import serve  # noqa: PLC0415 - see the package's docstring

    settings = _role_settings(ctx)
    raise typer.Exit(serve(settings))


def worker(
    ctx: typer.Context,
    stages: Annotated[list[str], typer.Argument(metavar="STAGE...", help=", ".join(STAGES))],
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at a time; by default the settings' for each stage."),
    ] = None,
) -> None:
    """Run a worker for one or more stages."""
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        known = ", ".join(STAGES)
        raise ConfigurationError([f"no stage {stage!r}; there are: {known}" for stage in unknown])
    settings = _role_settings(ctx)
    # Celery treats two workers of the same name as one.
    name = "-".join([*stages, str(os.getpid())])
    become(settings, commands.worker_command(stages, concurrency, name))


def api(ctx: typer.Context) -> None:
    """Run the REST API alone."""
    from adapter.api import serve  # noqa: PLC0415 - see the package's docstring

    settings = _role_settings(ctx)
    raise typer.Exit(serve(settings))


def operator(
    ctx: typer.Context,
    release: Annotated[
        bool,
        typer.Option(
            "--release",
            help="Hand everything that custom resources manage over to people, for good, and end.",
        ),
    ] = False,
) -> None:
    """Apply custom resources of Kubernetes to the configuration, and write their status."""
    from adapter import operator as package  # noqa: PLC0415 - see the package's docstring

    if release:
        with opened(ctx) as adapter:
            released = package.release(adapter)
        say(f"{', '.join(released) or 'nothing'} is released: change it with `dicom-adapter` now")
        return
    settings = _role_settings(ctx)
    raise typer.Exit(package.serve(settings))


def create_passwords(
    ctx: typer.Context,
    secret: Annotated[str, typer.Argument(metavar="SECRET", help="Its name.")],
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="The keys it should have.")],
    as_json: AsJson = False,
) -> None:
    """Give a Secret of Kubernetes a random password under each key that it lacks."""
    from adapter import operator as package  # noqa: PLC0415 - see the package's docstring

    added = package.create_passwords(settings_of(ctx), secret, keys)
    if as_json:
        print_json({"secret": secret, "added": added})
    else:
        say(f"Secret {secret}: {', '.join(added) or 'nothing'} added")


def flower(ctx: typer.Context) -> None:
    """Run Flower alone, read-only unless the settings say otherwise; it requires the password."""
    settings = _role_settings(ctx)
    rights.make_private_folder(settings.data)
    become(settings, commands.flower_command())


def _role_settings(ctx: typer.Context) -> Settings:
    """Return the settings for a role that runs alone, whose log begins here."""
    settings = settings_of(ctx)
    log.configure()
    if rights.is_root():
        # Not a warning: `up` has told it, and would show it again for each of its roles.
        log.get_logger(__name__).info(rights.AS_ROOT)
    return settings
