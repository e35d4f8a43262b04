# SPDX-License-Identifier: Apache-2.0
"""The docs say what the code does: every setting is on the page, as the model has it."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from adapter import cli
from adapter import settings as settings_module
from adapter.api.app import create_app
from adapter.api.opening import AdapterOpening
from adapter.models import (
    AETitle,
    ArrivalState,
    DicomDestination,
    ExportState,
    GroupState,
    JobState,
    ReportState,
    Source,
)
from adapter.processors.ae_title import AETitleSettings
from adapter.stages import STAGES

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"


def load_renderer() -> Any:
    path = DOCS / "render_configuration.py"
    spec = importlib.util.spec_from_file_location("render_configuration", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


renderer = load_renderer()
INTERFACES = (DOCS / "interfaces.md").read_text(encoding="utf-8")
PAGE = renderer.PAGE.read_text(encoding="utf-8")
SETTINGS = dict(renderer.settings())
IN_ENVIRONMENT = [path for path in SETTINGS if "<id>" not in path]

#: Another value than the default's, where `other_than` cannot make one up.
OTHER_VALUES: dict[tuple[str, ...], Any] = {
    ("platforms",): {"embedded": {}},
    ("data",): "/srv/adapter",
    ("storage", "durability"): "none",
    ("storage", "temporary"): "/srv/spool",
    ("storage", "lagSeconds"): 3.0,
    ("services", "platform", "metadataDicomSource"): ["00100020"],
    ("services", "resultsService", "endpoint"): "http://results.example",
    ("services", "resultsService", "root"): "/srv/results",
    ("api", "host"): "127.0.0.2",
    ("metrics", "port"): 9090,
    ("broker", "url"): "redis://redis.example:6379/0",
    ("database", "url"): "postgresql+psycopg://ledger.example/adapter",
    ("kubernetes", "endpoint"): "https://api.example:6443",
    ("kubernetes", "credentials"): "/srv/credentials",
    ("kubernetes", "namespace"): "imaging",
    ("dicom", "scu", "export", "permanentStatuses"): ["C000", "A9xx"],
}


def other_than(default: Any) -> Any:
    match default:
        case bool():
            return not default
        case int():
            return default + 1
        case float():
            return default / 2 or 1.0
        case list():
            return ["1.2.3"]
        case str():
            return "OTHER"
    pytest.fail("give OTHER_VALUES a value for this setting")


def test_the_configuration_page_is_what_the_settings_model_says() -> None:
    """The page's tables are those that `make docs` writes."""
    written = PAGE[PAGE.index(renderer.BEGIN) : PAGE.index(renderer.END) + len(renderer.END)]

    assert written == renderer.render(), "run `make docs`"


def test_every_setting_has_a_row_with_a_description() -> None:
    """No setting is left out by the renderer, and none goes without a sentence."""
    for path, field in SETTINGS.items():
        section = " > ".join(["DicomAdapter", *path[:-1]])
        table = PAGE.partition(f"### `{section}`\n")[2].partition("\n### ")[0]

        assert f"| `{path[-1]}` |" in table, path
        assert field.description, path
        assert field.description in table, path


def test_a_setting_nobody_wrote_down_would_be_missed() -> None:
    """The model has more than sixty settings: the walk through it reaches the bottom."""
    assert len(SETTINGS) > 60
    assert ("dicom", "scp", "verification", "transferSyntaxes") in SETTINGS
    assert ("pipelines", "<id>", "memoryMB") in SETTINGS


@pytest.mark.parametrize("path", IN_ENVIRONMENT, ids=" > ".join)
def test_the_environment_variable_on_the_page_is_the_one_that_works(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each setting takes another value from the variable that its row names."""
    variable = renderer.environment_variable(path)
    assert f"`{variable}`" in PAGE

    if path[-2:] == ("resultsService", "endpoint"):  # which goes with a root only
        monkeypatch.setenv(variable.replace("ENDPOINT", "ROOT"), "/srv/results")
    if path[-1] == "passwordFile":  # which is read at once, and goes with the url of a server
        value = str(tmp_path / "password")
        Path(value).write_text("hushhush", encoding="utf-8")
        if url := OTHER_VALUES.get((path[0], "url")):
            monkeypatch.setenv(variable.replace("PASSWORDFILE", "URL"), url)
    else:
        default = SETTINGS[path].get_default(call_default_factory=True)
        value = OTHER_VALUES.get(path) or other_than(default)
    monkeypatch.setenv(variable, value if isinstance(value, str) else json.dumps(value))
    loaded: Any = settings_module.load().model_dump(mode="json", by_alias=True)

    for key in path:
        loaded = loaded[key]
    assert loaded == value


@pytest.mark.parametrize(
    ("begins", "model"),
    [
        ("An **AE title**", AETitle),
        ("Its `processorSettings`", AETitleSettings),
        ("A **source**", Source),
        ("A **destination**", DicomDestination),
    ],
)
def test_dynamic_configuration_is_on_the_page_too(begins: str, model: type[BaseModel]) -> None:
    """Every key of an AE title, a source, a destination and the default processor is explained."""
    table = PAGE[PAGE.index(begins) :].split("\n\n")[1]
    written = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    keys = {str(field.alias) for field in model.model_fields.values()}

    assert set(written) == {"pipeline-<name>" if key == "pipelines" else key for key in keys}


def test_the_example_on_the_page_is_a_valid_settings_file(tmp_path: Path) -> None:
    """What a reader copies from the page works."""
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path / "appsettings.json"
    file.write_text(example, encoding="utf-8")

    loaded = settings_module.load(config=file)

    assert loaded.pipelines["lung-1"].destinations == ["PACS"]


def commands() -> list[str]:
    """Return every command of the command line, with its group."""
    found: list[str] = []

    def walk(command: Any, path: str) -> None:
        below = getattr(command, "commands", None)
        if below is None:
            found.append(path)
        for name, one in (below or {}).items():
            walk(one, f"{path} {name}".strip())

    walk(typer.main.get_command(cli.app), "")
    return found


def test_every_command_is_on_the_page() -> None:
    """What the command line offers stands in docs/interfaces.md, and nothing that it does not."""
    on_the_page = re.findall(r"^\| `([a-z -]+)` \| [A-Z]", INTERFACES, re.MULTILINE)

    assert len(commands()) > 30
    assert sorted(on_the_page) == sorted(commands())


def test_every_route_is_on_the_page() -> None:
    """What the REST API answers stands in docs/interfaces.md, and nothing that it does not."""
    routes = set(create_app(AdapterOpening(settings_module.load())).openapi()["paths"])

    assert len(routes) > 8
    table = INTERFACES[INTERFACES.index("| route |") :].split("\n\n")[0]
    assert set(re.findall(r"`(/[^`]*)`", table)) == routes


def test_every_stage_and_processor_setting_is_on_the_page() -> None:
    """Stages and the settings of the AE Title Job Processor stand in docs/interfaces.md."""
    fields = AETitleSettings.model_fields
    names = {field.alias for name, field in fields.items() if name != "pipelines"}

    for name in [*STAGES, *names, "pipeline-<name>"]:
        assert f"| `{name}` |" in INTERFACES, name


def test_every_row_of_conformance_is_a_test() -> None:
    """What docs/conformance.md says of a bad peer has a test that sends the bytes, by its id."""
    page = (DOCS / "conformance.md").read_text(encoding="utf-8")
    tests = [path.read_text(encoding="utf-8") for path in HERE.glob("test_conformance_*.py")]
    rows = re.findall(r"^\| ([UD]\d+) \|", page, re.MULTILINE)

    assert len(rows) == 21 + 14
    for row in rows:
        assert re.search(rf'id="{row}["-]|def test_{row.lower()}_', "\n".join(tests)), row


def test_every_state_and_stage_is_in_the_glossary() -> None:
    """docs/glossary.md explains each state of each state machine, and each stage."""
    glossary = (DOCS / "glossary.md").read_text(encoding="utf-8")
    states = glossary.partition("\n## States\n")[2].partition("\n## ")[0]
    machines = {
        "arrival": ArrivalState,
        "group": GroupState,
        "job": JobState,
        "export": ExportState,
        "report": ReportState,
    }
    written: dict[str, list[str]] = {}
    of = ""
    for row in re.findall(r"^\| (\w*) ?\| (`.*?`) \|", states, re.MULTILINE):
        of = row[0] or of
        written.setdefault(of, []).extend(re.findall(r"`([\w-]+)`", row[1]))
    stages = glossary.partition("\n## Stages\n")[2]

    assert written == {of: [str(state) for state in machine] for of, machine in machines.items()}
    assert tuple(re.findall(r"^\| `(\w+)` \|", stages, re.MULTILINE)) == STAGES


def test_the_glossary_is_linked_from_readme_and_architecture() -> None:
    """A reader finds the glossary where the terms are first used."""
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    architecture = (DOCS / "architecture.md").read_text(encoding="utf-8")

    assert "(docs/glossary.md)" in readme
    assert "(glossary.md)" in architecture


def test_docs_use_the_field_s_words() -> None:
    """The former dialect is not in the docs either."""
    pages = [*DOCS.rglob("*.md"), *(DOCS.parent / "helm").rglob("*.md"), *DOCS.parent.glob("*.md")]
    jargon = re.compile(
        r"\b(roads?|(door)?bells?|ticks?|rung|tally|seats|story|surroundings|poke|tether|verdicts?"
        r"|unwanted)\b",
        re.IGNORECASE,
    )

    found = {
        f"{page.name}: {match[0]}"
        for page in pages
        for match in jargon.finditer(page.read_text(encoding="utf-8"))
    }

    assert len(pages) > 15
    assert not found
