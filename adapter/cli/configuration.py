# SPDX-License-Identifier: Apache-2.0
"""`aet`, `source` and `destination`: the dynamic configuration, in force within two seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter.cli import references
from adapter.cli.send import print_echo
from adapter.cli.which import AsJson, opened
from adapter.core import Adapter
from adapter.errors import AdapterError, ConfigurationError
from adapter.ledger import configuration
from adapter.models import AETitle, DicomDestination, EntityKind, Versioned
from adapter.processors import registry
from adapter.terminal import print_json, print_table, say, warn

if TYPE_CHECKING:
    from pydicom.uid import UID

ae_titles = typer.Typer(help="AE titles that modalities send to.", no_args_is_help=True)
sources = typer.Typer(help="Who may send: calling AE titles and addresses.", no_args_is_help=True)
destinations = typer.Typer(help="Where results are sent to.", no_args_is_help=True)

_TITLES = {
    EntityKind.AE_TITLE: ("name", "aeTitle", "processor", "processorSettings", "resend", "owner"),
    EntityKind.SOURCE: ("aeTitle", "hostIp", "owner"),
    EntityKind.DESTINATION: ("name", "kind", "aeTitle", "hostIp", "port", "owner"),
}

KeyArgument = Annotated[str, typer.Argument(metavar="NAME", help="Its name.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of its processor; repeatable."),
]
Unset = Annotated[
    list[str] | None,
    typer.Option("--unset", metavar="KEY", help="A processor setting to drop; repeatable."),
]
Processor = Annotated[str | None, typer.Option(help="The job processor.")]
Overwrite = Annotated[
    bool | None,
    typer.Option(
        "--overwrite-same-instance/--keep-same-instance",
        help="Which bytes win when a SOP Instance UID comes again in an open group.",
    ),
]
Ignored = Annotated[
    list[str] | None,
    typer.Option("--ignored-sop-class", metavar="UID", help="Acknowledged, dropped; repeatable."),
]
Resend = Annotated[
    str | None, typer.Option(help="What the same instance sent again does: ignore or rerun.")
]
OnPatientConflict = Annotated[
    str | None,
    typer.Option(help="What becomes of a study with several patients: warn or hold."),
]
Reencode = Annotated[
    bool | None,
    typer.Option(
        "--reencode-uncompressed/--as-is",
        help="Whether files may go out in the other uncompressed little-endian transfer syntax.",
    ),
]
Addresses = Annotated[list[str], typer.Argument(metavar="HOST_IP...", help="Addresses, networks.")]


def _document(found: Versioned[Any]) -> dict[str, Any]:
    body: dict[str, Any] = found.entity.model_dump(mode="json", by_alias=True)
    return {**body, "version": found.version, "owner": found.owner}


def _find(adapter: Adapter, kind: EntityKind, key: str) -> Versioned[Any]:
    known = configuration.current(adapter.ledger, kind)
    for found in known:
        if found.entity.key == key:
            return found
    names = ", ".join(found.entity.key for found in known) or "none"
    raise AdapterError(f"there is no {kind} {key!r}; known: {names}")


def _put(
    adapter: Adapter, kind: EntityKind, body: dict[str, Any], *, replace: bool, as_json: bool
) -> None:
    entity = configuration.parse(kind, body)
    if isinstance(entity, AETitle):
        registry.validate(entity)
    version = configuration.put(adapter.ledger, kind, entity, replace=replace)
    if as_json:
        print_json(_document(_find(adapter, kind, entity.key)))
    else:
        say(f"{kind} {entity.key!r} is in force as version {version}")
    if isinstance(entity, AETitle):
        warn(*_loose_ends(adapter, entity), as_json=as_json)


def _loose_ends(adapter: Adapter, ae_title: AETitle) -> list[str]:
    """Return warnings about pipelines and destinations that do not exist (yet)."""
    present = configuration.current(adapter.ledger, EntityKind.DESTINATION)
    known = {item.entity.key for item in present}
    settings = adapter.settings
    return [
        *references.missing_pipelines(settings, ae_title),
        *references.missing_destinations(settings, registry.validate(ae_title), known),
    ]


def _list(ctx: typer.Context, kind: EntityKind, *, as_json: bool) -> None:
    with opened(ctx) as adapter:
        known = configuration.current(adapter.ledger, kind)
    found = [_document(item) for item in known]
    if kind is EntityKind.AE_TITLE:
        warn(*registry.problems_of(item.entity for item in known))
    if as_json:
        print_json(found)
        return
    columns = _TITLES[kind]
    rows = [[document.get(column, "") for column in columns] for document in found]
    print_table(columns, rows, f"no {kind} yet; add one with `dicom-adapter {kind} add`")


def _show(ctx: typer.Context, kind: EntityKind, key: str, *, as_json: bool) -> None:
    with opened(ctx) as adapter:
        document = _document(_find(adapter, kind, key))
    if as_json:
        print_json(document)
    else:
        print_table(("", kind), document.items(), "")


def _remove(ctx: typer.Context, kind: EntityKind, key: str, *, as_json: bool) -> None:
    with opened(ctx) as adapter:
        removed = _document(_find(adapter, kind, key))
        configuration.remove(adapter.ledger, kind, key)
    if as_json:
        print_json(removed)
    else:
        say(f"{kind} {key!r} is removed")


def _pairs(items: list[str] | None) -> dict[str, str]:
    pairs = [item.partition("=") for item in items or []]
    wrong = [key for key, equals, _ in pairs if not equals]
    if wrong:
        raise ConfigurationError([f"--set {key}: write it as KEY=VALUE" for key in wrong])
    return {key.strip(): value.strip() for key, _, value in pairs}


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


@ae_titles.command("add")
def add_ae_title(
    ctx: typer.Context,
    *,
    ae_title: Annotated[str, typer.Argument(metavar="AET", help="The AE title.")],
    name: Annotated[str | None, typer.Option(help="Its name; by default the AE title.")] = None,
    processor: Processor = None,
    settings: Set = None,
    overwrite: Overwrite = None,
    ignored: Ignored = None,
    resend: Resend = None,
    as_json: AsJson = False,
    on_patient_conflict: OnPatientConflict = None,
) -> None:
    """Add an AE title, e.g. `aet add CT-AI --set pipeline-ct=lung --set timeout=30`."""
    body = _given(
        name=name,
        processor=processor,
        overwriteSameInstance=overwrite,
        ignoredSopClasses=ignored,
        resend=resend,
        onPatientConflict=on_patient_conflict,
    )
    with opened(ctx) as adapter:
        body = {"aeTitle": ae_title, "processorSettings": _pairs(settings), **body}
        _put(adapter, EntityKind.AE_TITLE, body, replace=False, as_json=as_json)


@ae_titles.command("set")
def set_ae_title(
    ctx: typer.Context,
    *,
    name: KeyArgument,
    ae_title: Annotated[str | None, typer.Option("--aet", help="Another AE title.")] = None,
    processor: Processor = None,
    settings: Set = None,
    unset: Unset = None,
    overwrite: Overwrite = None,
    ignored: Ignored = None,
    resend: Resend = None,
    as_json: AsJson = False,
    on_patient_conflict: OnPatientConflict = None,
) -> None:
    """Change an AE title; options that are not given leave their values."""
    change = _given(
        aeTitle=ae_title,
        processor=processor,
        overwriteSameInstance=overwrite,
        ignoredSopClasses=ignored,
        resend=resend,
        onPatientConflict=on_patient_conflict,
    )
    with opened(ctx) as adapter:
        body = _find(adapter, EntityKind.AE_TITLE, name).entity.model_dump(
            mode="json", by_alias=True
        )
        kept = body["processorSettings"] | _pairs(settings)
        kept = {key: value for key, value in kept.items() if key not in (unset or [])}
        body = {**body, **change, "processorSettings": kept}
        _put(adapter, EntityKind.AE_TITLE, body, replace=True, as_json=as_json)


@ae_titles.command("list")
def list_ae_titles(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the AE titles."""
    _list(ctx, EntityKind.AE_TITLE, as_json=as_json)


@ae_titles.command("show")
def show_ae_title(ctx: typer.Context, name: KeyArgument, as_json: AsJson = False) -> None:
    """Show an AE title with all its settings."""
    _show(ctx, EntityKind.AE_TITLE, name, as_json=as_json)


@ae_titles.command("remove")
def remove_ae_title(ctx: typer.Context, name: KeyArgument, as_json: AsJson = False) -> None:
    """Remove an AE title; instances that were received for it are still processed."""
    _remove(ctx, EntityKind.AE_TITLE, name, as_json=as_json)


@sources.command("add")
def add_source(
    ctx: typer.Context,
    ae_title: Annotated[str, typer.Argument(metavar="AET", help="The calling AE title.")],
    host_ip: Addresses,
    as_json: AsJson = False,
) -> None:
    """Add a source: a calling AE title, and the addresses that it may send from."""
    with opened(ctx) as adapter:
        body = {"aeTitle": ae_title, "hostIp": host_ip}
        _put(adapter, EntityKind.SOURCE, body, replace=False, as_json=as_json)


@sources.command("set")
def set_source(
    ctx: typer.Context, name: KeyArgument, host_ip: Addresses, as_json: AsJson = False
) -> None:
    """Replace the addresses of a source."""
    with opened(ctx) as adapter:
        _find(adapter, EntityKind.SOURCE, name)
        _put(
            adapter,
            EntityKind.SOURCE,
            {"aeTitle": name, "hostIp": host_ip},
            replace=True,
            as_json=as_json,
        )


@sources.command("list")
def list_sources(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the sources."""
    _list(ctx, EntityKind.SOURCE, as_json=as_json)


@sources.command("show")
def show_source(ctx: typer.Context, name: KeyArgument, as_json: AsJson = False) -> None:
    """Show a source."""
    _show(ctx, EntityKind.SOURCE, name, as_json=as_json)


@sources.command("remove")
def remove_source(ctx: typer.Context, name: KeyArgument, as_json: AsJson = False) -> None:
    """Remove a source."""
    _remove(ctx, EntityKind.SOURCE, name, as_json=as_json)


@destinations.command("add")
def add_destination(
    ctx: typer.Context,
    name: KeyArgument,
    ae_title: Annotated[str, typer.Argument(metavar="AET", help="Its AE title.")],
    host: Annotated[str, typer.Argument(help="Its address or host name.")],
    port: Annotated[int, typer.Argument(help="Its TCP port.")],
    *,
    reencode: Reencode = None,
    as_json: AsJson = False,
) -> None:
    """Add a destination, e.g. `destination add archive ARCHIVE 10.0.0.7 104`."""
    with opened(ctx) as adapter:
        body = {"name": name, "aeTitle": ae_title, "hostIp": host, "port": port}
        body |= _given(reencodeUncompressed=reencode)
        _put(adapter, EntityKind.DESTINATION, body, replace=False, as_json=as_json)


@destinations.command("set")
def set_destination(
    ctx: typer.Context,
    name: KeyArgument,
    ae_title: Annotated[str | None, typer.Option("--aet", help="Its AE title.")] = None,
    host: Annotated[str | None, typer.Option(help="Its address or host name.")] = None,
    port: Annotated[int | None, typer.Option(help="Its TCP port.")] = None,
    *,
    reencode: Reencode = None,
    as_json: AsJson = False,
) -> None:
    """Change a destination; options that are not given leave their values."""
    with opened(ctx) as adapter:
        entity = _find(adapter, EntityKind.DESTINATION, name).entity
        body = entity.model_dump(mode="json", by_alias=True)
        changes = _given(aeTitle=ae_title, hostIp=host, port=port, reencodeUncompressed=reencode)
        body.update(changes)
        _put(adapter, EntityKind.DESTINATION, body, replace=True, as_json=as_json)


@destinations.command("list")
def list_destinations(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the destinations."""
    _list(ctx, EntityKind.DESTINATION, as_json=as_json)


@destinations.command("show")
def show_destination(ctx: typer.Context, name: KeyArgument, as_json: AsJson = False) -> None:
    """Show a destination."""
    _show(ctx, EntityKind.DESTINATION, name, as_json=as_json)


@destinations.command("remove")
def remove_destination(ctx: typer.Context, name: KeyArgument, as_json: AsJson = False) -> None:
    """Remove a destination; its open exports are parked when they are next tried."""
    _remove(ctx, EntityKind.DESTINATION, name, as_json=as_json)


@destinations.command("echo")
def echo_destination(
    ctx: typer.Context,
    name: KeyArgument,
    *,
    contexts: Annotated[
        bool,
        typer.Option(
            "--contexts", help="Ask, too, which SOP classes and transfer syntaxes it takes."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send a C-ECHO to a destination, and show the outcome in plain words."""
    from adapter.scu.contexts import ask_contexts  # noqa: PLC0415 - see the package's docstring
    from adapter.scu.echo import echo  # noqa: PLC0415 - the same

    with opened(ctx) as adapter:
        found = _find(adapter, EntityKind.DESTINATION, name).entity
        if not isinstance(found, DicomDestination):
            raise AdapterError(f"{name} is a destination of kind {found.kind}: no C-ECHO is for it")
        scu = adapter.settings.dicom.scu
        answer = echo(found, scu)
        taken = ask_contexts(found, scu) if contexts and answer.ok else None
    more: dict[str, Any] = {} if taken is None else {"contexts": taken}
    print_echo(answer, as_json=as_json, name=name, **more)
    if not answer.ok:
        raise typer.Exit(1)
    if taken is not None:
        _print_contexts(taken, found, as_json=as_json)


def _print_contexts(
    taken: dict[UID, list[UID]], destination: DicomDestination, *, as_json: bool
) -> None:
    from adapter.scu.contexts import advice  # noqa: PLC0415 - see the package's docstring

    if not as_json:
        rows = [
            (sop_class.name, ", ".join(one.name for one in syntaxes) or "-")
            for sop_class, syntaxes in taken.items()
        ]
        print_table(("SOP class", "transfer syntaxes that it takes"), rows, "")
    help_ = None if destination.reencode_uncompressed else advice(taken)
    if help_ is not None:
        warn(help_, as_json=as_json)
