# SPDX-License-Identifier: Apache-2.0
"""The image's recipe, as far as it can be judged without building it; compose_e2e.sh builds it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from adapter import __version__
from adapter import settings as settings_module

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
#: Each instruction in one line, comments left out.
INSTRUCTIONS = [
    " ".join(line.split())
    for line in re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE)).splitlines()
    if line.strip()
]


def arguments_of(name):
    return [line.partition(" ")[2] for line in INSTRUCTIONS if line.startswith(f"{name} ")]


def environment():
    """Return the variables that the last stage sets."""
    found = {}
    for line in arguments_of("ENV"):
        found |= dict(item.partition("=")[::2] for item in line.split())
    return found


def test_hadolint_has_nothing_to_say():
    """The recipe follows the rules of its trade."""
    hadolint = Path(sys.executable).with_name("hadolint")

    ended = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )

    assert (ended.returncode, ended.stdout) == (0, "")


def test_any_builder_will_do():
    """Nothing in it needs BuildKit: no mounts, no here-documents, no flags of its own."""
    assert "syntax=" not in DOCKERFILE
    for line in INSTRUCTIONS:
        assert not re.match(r"RUN --|ADD ", line), line
        assert not re.match(r"COPY .*--(chmod|link|parents|exclude)", line), line
        assert "<<" not in line, line


def test_both_stages_stand_on_the_base_that_is_asked_for():
    """The virtual environment is built with the interpreter that it will run with."""
    assert arguments_of("ARG")[0] == "BASE=python:3.12-slim-bookworm"
    assert arguments_of("FROM") == ["${BASE} AS build", "${BASE}"]


def test_only_locked_packages_are_installed_and_no_index_is_named():
    """Every file that pip takes has its hash in requirements.txt; where from is the builder's."""
    assert "--require-hashes --requirement requirements.txt" in DOCKERFILE
    assert not re.search(r"https?://", "\n".join(INSTRUCTIONS))


def test_it_is_nobody_special_who_runs_behind_an_init():
    """The user is a number, as Kubernetes requires, and the role runs without a shell."""
    assert arguments_of("USER") == ["10001:10001"]
    (entry,) = arguments_of("ENTRYPOINT")
    assert json.loads(entry) == ["/usr/bin/tini", "-s", "--", "dicom-adapter"]


def test_all_that_is_written_is_on_volumes(monkeypatch):
    """Data and spool are volumes, also if another settings file is mounted over ours."""
    for name, value in environment().items():
        if name.startswith("DICOMADAPTER__"):
            monkeypatch.setenv(name, value)
    (volumes,) = arguments_of("VOLUME")
    data, spool = json.loads(volumes)

    settings = settings_module.load(data=Path(environment()["DICOMADAPTER_DATA"]))

    assert (str(settings.data), str(settings.spool_path)) == (data, spool)
    assert environment()["PYTHONDONTWRITEBYTECODE"] == "1"


def test_its_settings_are_valid_and_its_ports_exposed():
    """The file in the image is a settings file; REST and Flower are reached from outside."""
    assert environment()["DICOMADAPTER_CONFIG"] == "/etc/dicom-adapter/appsettings.json"

    settings = settings_module.load(config=ROOT / "docker/appsettings.json")

    assert (settings.api.host, settings.flower.host) == ("0.0.0.0", "0.0.0.0")
    ports = [settings.dicom.scp.port, settings.api.port, settings.flower.port, 9090]
    assert arguments_of("EXPOSE") == [" ".join(map(str, ports))]


def test_its_version_is_ours():
    """The label says the version of the package."""
    assert f"VERSION={__version__}" in arguments_of("ARG")


def test_what_is_copied_and_nothing_else_reaches_the_builder():
    """The context is a list of what may come in: no secret, and no data, ever does."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    copied = {
        word for line in arguments_of("COPY") if "--from" not in line for word in line.split()[:-1]
    }

    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert all((ROOT / path).exists() for path in copied)


class Answer(BaseHTTPRequestHandler):
    """Says that all is well at /ready, and nowhere else."""

    def do_GET(self):
        self.send_response(200 if self.path == "/ready" else 503)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def port():
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def ask(where):
    return subprocess.run(
        [sys.executable, "-IS", ROOT / "docker/healthy.py", where],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_a_role_is_healthy_while_it_says_so(port):
    """Only a 200 is well; the reason for another answer goes to the health log."""
    assert ask(f"{port}/ready").returncode == 0

    ill = ask(f"{port}/live")

    assert ill.returncode == 1
    assert "503" in ill.stderr


def test_a_role_that_does_not_answer_is_not_healthy():
    """A closed port, or a connection without an answer, is unhealthy, and prints no stack."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"{server.getsockname()[1]}/ready"

        def hang_up():
            server.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        silent = ask(where)
        thread.join()
    gone = ask(where)

    for ended in (silent, gone):
        assert ended.returncode == 1
        assert ended.stderr.startswith(where)
        assert "Traceback" not in ended.stderr
