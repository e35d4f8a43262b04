# SPDX-License-Identifier: Apache-2.0
"""docker-compose.yml, as far as it can be judged without an engine; compose_e2e.sh runs it."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from adapter import cli
from adapter import settings as settings_module
from adapter.demo import scene
from adapter.stages import STAGES
from tests.test_docs import IN_ENVIRONMENT, renderer

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker-compose.yml"
#: Those that end by themselves.
ONE_SHOT = {"migrate", "demo"}
#: Seconds beyond `workers > stopSeconds` in which a role has killed what did not stop.
KILL_SECONDS = 5


def run(tool, *arguments, **variables):
    """Run a tool of the development environment without any variable of the adapter."""
    known = ("DICOM_", "API_", "FLOWER_", "PIPELINE_", "REDIS_", "POSTGRES_", "COMPOSE_", "BASE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(known)}
    return subprocess.run(
        [Path(sys.executable).with_name(tool), *map(str, arguments)],
        cwd=ROOT,
        env={**kept, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def config(*options, **variables):
    """Return the project as Compose understands it, those of all profiles included."""
    ended = run(
        *("docker-compose", "--file", FILE, "--profile", "*", "config", "--format", "json"),
        *options,
        **variables,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


PROJECT = config()
SERVICES = PROJECT["services"]
#: Those that run our image.
OURS = {name for name, service in SERVICES.items() if service["image"].startswith("dicom-adapter")}

each_service = pytest.mark.parametrize("name", SERVICES)
each_of_ours = pytest.mark.parametrize("name", sorted(OURS))


@pytest.mark.parametrize("profile", [[], ["--profile", "demo"]], ids=["plain", "demo"])
def test_compose_takes_the_file_without_a_word(profile):
    """No variable has to be set, and nothing is deprecated."""
    ended = run("docker-compose", "--file", FILE, *profile, "config", "--quiet")

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_the_file_follows_the_specification():
    """What this release of Compose forgives, another may not."""
    ended = run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", FILE)

    assert ended.returncode == 0, ended.stdout


def test_yamllint_has_nothing_to_say():
    """Not one key stands there twice, and the file is laid out like the others."""
    rules = "{extends: default, rules: {line-length: {max: 110}, document-start: disable}}"

    ended = run("yamllint", "--strict", "--config-data", rules, FILE)

    assert (ended.returncode, ended.stdout) == (0, "")


def test_each_stage_has_a_worker():
    """Each stage has a worker of the same name, and there are no other workers."""
    workers = {
        name: service["command"][1:]
        for name, service in SERVICES.items()
        if (service.get("command") or [""])[0] == "worker"
    }

    assert workers == {stage: [stage] for stage in STAGES}


def test_every_other_role_is_there():
    """Receiver, API, Flower, the schema, what keeps state; the demo only where it is asked for."""
    asked = {name for name, service in SERVICES.items() if service.get("profiles") == ["demo"]}

    assert asked == {"demo", "demo-pacs"}
    assert set(SERVICES) - asked - set(STAGES) == {
        *("redis", "database", "migrate", "scp", "api", "flower")
    }


@each_of_ours
def test_every_command_exists(name):
    """What a container is started as, the command line knows, with each of its options."""
    command = typer.main.get_command(cli.app)
    words = list(SERVICES[name]["command"])
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    options = {option for parameter in command.params for option in parameter.opts}

    assert {word for word in words if word.startswith("--")} <= options


@each_of_ours
def test_every_setting_in_the_environment_is_one(name):
    """A variable with a typo in it would be refused at start, or mean nothing."""
    variables = SERVICES[name].get("environment") or {}
    known = {renderer.environment_variable(path) for path in IN_ENVIRONMENT}

    assert set(variables) <= known
    assert variables["DICOMADAPTER__METRICS__PORT"] == "9090"


@each_service
def test_nobody_is_privileged(name):
    """No root, no capabilities, nothing of the host's, and a root folder that is read-only."""
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc"} & set(service)
    assert name in OURS or service["user"] == "999:999"  # ours says so itself: test_image.py
    for volume in service.get("volumes", []):
        assert volume["type"] == "volume", volume


@each_service
def test_everything_is_bounded(name):
    """Memory, processes and logs have a limit each; who ends by itself is not started for ever."""
    service = SERVICES[name]
    limits = service["deploy"]["resources"]["limits"]

    assert int(limits["memory"]) > 0
    assert limits["pids"] > 0
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    assert (service["restart"] == "unless-stopped") == (name not in ONE_SHOT)


def test_ports_are_published_on_loopback_unless_told_otherwise():
    """DICOM, REST and Flower, and nothing else; a variable for each says where."""

    def published(project):
        return {
            name: [(port["host_ip"], port["published"], port["target"]) for port in ports]
            for name, service in project["services"].items()
            if (ports := service.get("ports"))
        }

    assert published(PROJECT) == {
        "scp": [("127.0.0.1", "11112", 11112)],
        "api": [("127.0.0.1", "5000", 5000)],
        "flower": [("127.0.0.1", "5555", 5555)],
    }
    open_to_all = config(DICOM_ADDRESS="0.0.0.0", DICOM_PORT="104")
    assert published(open_to_all)["scp"] == [("0.0.0.0", "104", 11112)]
    assert published(open_to_all)["api"] == published(PROJECT)["api"]


def test_redis_and_the_ledger_are_on_a_network_of_their_own():
    """Only the adapter reaches them, and they reach no other network."""
    assert PROJECT["networks"]["state"]["internal"] is True
    for name in ("redis", "database"):
        assert list(SERVICES[name]["networks"]) == ["state"]
    assert list(SERVICES["demo-pacs"]["networks"]) == ["stages"]


@each_service
def test_start_waits_for_health(name):
    """Each running service has a health check; services wait only for services that have one."""
    service = SERVICES[name]

    assert ("test" in service["healthcheck"]) == (name not in ONE_SHOT)
    for other, waits in service.get("depends_on", {}).items():
        done = "service_completed_successfully"
        assert waits["condition"] == (done if other in ONE_SHOT else "service_healthy")
    if name in OURS - ONE_SHOT - {"demo-pacs"}:
        assert "migrate" in service["depends_on"]


def test_the_receiver_waits_for_the_schema_alone():
    """It receives without Redis, and after its first start without the ledger."""
    assert set(SERVICES["scp"]["depends_on"]) == {"migrate"}


@each_of_ours
def test_who_is_told_to_stop_may_end_its_work(name):
    """Docker's grace period is longer than the adapter's own."""
    if name == "demo-pacs":
        return
    settings = settings_module.load()

    grace = SERVICES[name]["stop_grace_period"]

    assert float(grace.removesuffix("s")) > settings.workers.stop_seconds + KILL_SECONDS


# -- secrets and settings --------------------------------------------------------------------------


def make_secrets(folder):
    ended = subprocess.run(
        ["sh", ROOT / "docker/make-secrets.sh", folder], capture_output=True, text=True, check=True
    )
    return ended.stdout


def test_every_secret_is_defined_made_and_ignored(tmp_path):
    """What services use is what the project defines and what the script makes; git sees none."""
    used = {secret["source"] for one in SERVICES.values() for secret in one.get("secrets", [])}
    files = {name: Path(secret["file"]) for name, secret in PROJECT["secrets"].items()}
    make_secrets(tmp_path)

    assert used == set(files) == {path.name for path in tmp_path.iterdir()}
    assert {path.parent for path in files.values()} == {ROOT / "docker/secrets"}
    assert "/docker/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_secrets_are_made_once(tmp_path):
    """They are long, differ, stay what they are, and their folder keeps others out."""
    folder = tmp_path / "secrets"

    first = make_secrets(folder)
    made = {path.name: path.read_text() for path in folder.iterdir()}
    again = make_secrets(folder)

    assert first.count("made ") == 3
    assert again == ""
    assert {path.name: path.read_text() for path in folder.iterdir()} == made
    assert len(set(made.values())) == 3
    assert all(len(secret) == 48 and secret.isalnum() for secret in made.values())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    # Redis, PostgreSQL and the adapter are users that this host does not know.
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}
    assert not any(secret in first for secret in made.values())


def test_no_password_is_shown(tmp_path):
    """Neither the project as Compose shows it nor any environment holds one."""
    make_secrets(tmp_path)

    shown = json.dumps(config(DICOM_ADAPTER_SECRETS=str(tmp_path)))

    assert not any(path.read_text() in shown for path in tmp_path.iterdir())
    for service in SERVICES.values():
        for variable in service.get("environment") or {}:
            assert "PASSWORD" not in variable or variable.endswith("FILE")


@each_of_ours
def test_every_password_file_is_mounted(name, tmp_path, monkeypatch):
    """A role finds each password file that the settings name for it, and starts."""
    service = SERVICES[name]
    if name == "demo-pacs":
        assert not service.get("secrets")
        return
    (mounted,) = service["configs"]
    assert mounted["target"] == "/etc/dicom-adapter/appsettings.json"
    make_secrets(tmp_path)
    text = Path(PROJECT["configs"][mounted["source"]]["file"]).read_text()
    file = tmp_path / "appsettings.json"
    file.write_text(text.replace("/run/secrets", str(tmp_path)))
    for variable, value in service["environment"].items():
        monkeypatch.setenv(variable, value.replace("/run/secrets", str(tmp_path)))

    settings = settings_module.load(config=file)

    files = {
        section.password_file
        for section in (settings.broker, settings.database, settings.flower)
        if section.password_file
    }
    assert {path.name for path in files} == {secret["source"] for secret in service["secrets"]}
    assert "@redis:6379" in settings.broker.whole_url
    assert "@database:5432" in settings.database.whole_url
    assert (settings.flower.password is not None) == (name == "flower")


def test_the_demo_finds_its_pipeline_and_its_pacs():
    """What the demo registers is what the settings and the services of the demo are made for."""
    settings = json.loads((ROOT / "docker/compose-settings.json").read_text())["DicomAdapter"]
    sender, pacs = SERVICES["demo"]["command"], SERVICES["demo-pacs"]["command"]

    assert settings["pipelines"][scene.PIPELINE]["destinations"] == [scene.DESTINATION]
    assert sender[sender.index("--pacs") + 1] == f"demo-pacs:{pacs[pacs.index('--port') + 1]}"
    assert sender[sender.index("--scp") + 1] == "scp:11112"


def test_every_variable_is_on_the_page():
    """What may differ from host to host stands in docs/compose.md, with its default."""
    page = (ROOT / "docs/compose.md").read_text(encoding="utf-8")
    table = page.partition("| variable |")[2].partition("\n\n")[0]
    variables = dict(re.findall(r"\$\{([A-Z_]+):-([^$}]*)", FILE.read_text(encoding="utf-8")))

    assert set(re.findall(r"`([A-Z_]+)`", table)) == set(variables)
    for name, default in variables.items():
        assert default.removeprefix("./") in table, name


def test_every_service_is_on_the_page():
    """The page describes each container."""
    page = (ROOT / "docs/compose.md").read_text(encoding="utf-8")
    table = page.partition("| service |")[2].partition("\n\n")[0]

    for name in SERVICES:
        assert f"`{name}`" in table, name
