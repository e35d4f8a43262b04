# SPDX-License-Identifier: Apache-2.0
"""The `dicom-adapter` command: one module for each family of commands.

Exit codes: 0 done, 1 failed or differences found, 2 wrong usage or settings.  A command prints
tables, or with ``--json`` one JSON document; errors go to standard error, in words and without a
stack, or with ``--json`` as one JSON document too: ``{"errors": ["...", ...]}``.

Modules that take long to import (the SCP, FastAPI, pynetdicom) are imported by the commands that
need them, so the other commands start at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from adapter import __version__
from adapter.cli import (
    check_spool,
    configuration,
    demo,
    exports,
    groups,
    jobs,
    ledger,
    pipelines,
    quarantine,
    roles,
    send,
    studies,
    upkeep,
)
from adapter.cli.which import Which
from adapter.errors import AdapterError, ConfigurationError
from adapter.ledger.engines import CONNECTIONS_OF, name_process
from adapter.rights import keep_files_private
from adapter.terminal import complain

app = typer.Typer(
    name="dicom-adapter",
    help="A durable gateway between DICOM imaging and AI pipelines.",
    epilog="--data and --config may also stand behind a command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its stacks show the values of variables
    add_completion=False,
)
app.command("check-config")(roles.check_config)
app.command()(roles.up)
app.command()(demo.demo)
app.command("demo-sender")(demo.demo_sender)
app.command("demo-pacs")(demo.demo_pacs)
app.command()(roles.scp)
app.command()(roles.worker)
app.command()(roles.api)
app.command()(roles.operator)
app.command()(roles.flower)
app.command("create-passwords")(roles.create_passwords)
app.command()(send.send)
app.command()(send.echo)
app.command()(upkeep.status)
app.command()(upkeep.verify)
app.command()(upkeep.rebuild)
app.command()(check_spool.check_spool)
app.add_typer(ledger.ledger, name="ledger")
app.add_typer(configuration.ae_titles, name="aet")
app.add_typer(configuration.sources, name="source")
app.add_typer(configuration.destinations, name="destination")
app.add_typer(studies.studies, name="studies")
app.add_typer(groups.groups, name="groups")
app.add_typer(jobs.jobs, name="jobs")
app.add_typer(exports.exports, name="exports")
app.add_typer(pipelines.pipelines, name="pipeline")
app.add_typer(quarantine.quarantine, name="quarantine")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"dicom-adapter {__version__}")
        raise typer.Exit


@app.callback()
def choose(
    ctx: typer.Context,
    data: Annotated[
        Path | None,
        typer.Option(help="The adapter's data folder; its appsettings.json is read if present."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="The adapter's appsettings.json.")] = None,
    version: Annotated[  # noqa: ARG001 - acted upon by its callback
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Select the adapter (./data without either option)."""
    command = ctx.invoked_subcommand or ""
    name_process(command, CONNECTIONS_OF.get(command))
    ctx.obj = Which(data, config)


def choice_first(arguments: list[str]) -> list[str]:
    """Move --data and --config, with their values, before the command."""
    first: list[str] = []
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--":
            rest += [argument, *left]
        elif argument in {"--data", "--config"}:
            first += [argument, *([value] if (value := next(left, None)) is not None else [])]
        elif argument.startswith(("--data=", "--config=")):
            first.append(argument)
        else:
            rest.append(argument)
    return [*first, *rest]


def main() -> None:
    """Run the command line."""
    keep_files_private()
    arguments = choice_first(sys.argv[1:])
    as_json = "--json" in arguments
    try:
        # Only Typer itself shows wrong usage in words, with the command's usage.
        sys.exit(app(args=arguments, prog_name="dicom-adapter", standalone_mode=not as_json))
    except typer.TyperException as error:
        complain(error.format_message(), as_json=as_json)
        sys.exit(error.exit_code)
    except ConfigurationError as error:
        complain(*error.problems, as_json=as_json)
        sys.exit(2)
    except KeyboardInterrupt:
        complain("interrupted", as_json=as_json)
        sys.exit(130)
    except (AdapterError, SQLAlchemyError, RedisError, OSError) as error:
        complain(*_in_words(error), as_json=as_json)
    sys.exit(1)


def _in_words(error: Exception) -> list[str]:
    match error:
        case AdapterError():
            return str(error).splitlines()
        case SQLAlchemyError():
            # Its text may quote a statement's values.
            return [f"the ledger cannot be used ({type(error).__name__}); see database > url"]
        case RedisError():
            return [f"Redis cannot be used ({type(error).__name__}); see broker > url"]
        case OSError():
            return [f"{error.filename or 'error'}: {error.strerror or error}"]
    raise error
