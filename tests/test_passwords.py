# SPDX-License-Identifier: Apache-2.0
"""Passwords in files: put into the URLs they belong to, and shown nowhere."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from redis import Redis
from sqlalchemy import make_url

from adapter import passwords
from adapter import settings as settings_module
from adapter.embedded import broker
from adapter.embedded.roles import flower_environment, own_command, worker_command
from adapter.errors import ConfigurationError
from adapter.stages import broker_url, make_app
from tests.support_stack import free_port
from tests.support_waiting import eventually

#: Everything that means something in a URL.
PASSWORD = "p@s:s/w?o#r%d&;=! é"
SERVERS = {
    "broker": {"url": "redis://redis.example"},
    "database": {"url": "postgresql+psycopg://db.example"},
}


@pytest.fixture
def password_file(tmp_path):
    path = tmp_path / "password"
    path.write_text(f"  {PASSWORD}\n", encoding="utf-8")
    return path


@pytest.fixture
def load(tmp_path):
    """Write settings, and load them."""

    def load(**sections):
        file = tmp_path / "appsettings.json"
        file.write_text(json.dumps({"DicomAdapter": {"data": str(tmp_path / "data"), **sections}}))
        return settings_module.load(config=file)

    return load


def problem_of(load, **sections):
    with pytest.raises(ConfigurationError) as caught:
        load(**sections)
    (problem,) = caught.value.problems
    return problem


def test_the_password_of_redis_comes_from_its_file(load, password_file):
    """Whatever characters it has, Celery connects with the password that the file holds."""
    settings = load(
        broker={"url": "rediss://redis.example:6380/2", "passwordFile": str(password_file)}
    )

    with make_app(settings).connection_for_write() as connection:
        assert connection.password == PASSWORD
        assert (connection.hostname, connection.port) == ("redis.example", 6380)
        assert connection.virtual_host == "2"


def test_each_sentinel_gets_the_password(load, password_file):
    """Of several URLs, each has the password."""
    urls = "sentinel://one.example:26379;sentinel://user@two.example:26379"
    settings = load(broker={"url": urls, "passwordFile": str(password_file)})

    with make_app(settings).connection_for_write() as connection:
        assert connection.password == PASSWORD
    assert passwords.hide(broker_url(settings)) == (
        "sentinel://:***@one.example:26379;sentinel://user:***@two.example:26379"
    )


def test_the_password_of_postgresql_comes_from_its_file(load, password_file):
    """Whatever characters it has, SQLAlchemy connects with the password that the file holds."""
    server = "postgresql+psycopg://adapter@db.example:5433/ledger?sslmode=require"
    settings = load(database={"url": server, "passwordFile": str(password_file)})

    url = make_url(settings.database_url)

    assert (url.username, url.password, url.host, url.port) == (
        "adapter",
        PASSWORD,
        "db.example",
        5433,
    )
    assert (url.database, url.query["sslmode"]) == ("ledger", "require")


def test_the_password_of_flower_comes_from_its_file(load, password_file):
    """Flower asks for the password that the file holds, and none is made in the data folder."""
    settings = load(flower={"passwordFile": str(password_file), "user": "who"})

    assert flower_environment(settings)["FLOWER_BASIC_AUTH"] == f"who:{PASSWORD}"
    assert not settings.data.exists()


def test_a_password_is_read_once_at_start(load, password_file):
    """Who runs already goes on with what was there at start: no look at a file later can fail."""
    settings = load(
        broker={"url": "redis://redis.example", "passwordFile": str(password_file)},
        flower={"passwordFile": str(password_file)},
    )
    password_file.unlink()

    assert "redis.example" in broker_url(settings)
    assert PASSWORD in flower_environment(settings.model_copy())["FLOWER_BASIC_AUTH"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file or directory"),
        (b" \n", "is empty; it must contain the password"),
        (b"hushhush\nhushhush\n", "only the password, in one line"),
        (b"hushhush\xff", "only the password, in one line of UTF-8"),
        (b"hushhush" * 1000, "only the password"),
    ],
    ids=["missing", "empty", "two lines", "not UTF-8", "a whole book"],
)
@pytest.mark.parametrize("section", ["broker", "database", "flower"])
def test_a_file_without_a_password_is_refused(load, tmp_path, content, says, section):
    """The message names the setting, the file and what is wrong, and never what is in the file."""
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)

    server = SERVERS.get(section, {})
    problem = problem_of(load, **{section: {**server, "passwordFile": str(path)}})

    assert problem.startswith(f"DicomAdapter > {section}: passwordFile: {path}: ")
    assert says in problem
    assert "hushhush" not in problem


@pytest.mark.parametrize(
    ("section", "url"),
    [
        ("broker", "redis://:hushhush@redis.example"),
        ("broker", "sentinel://one.example:26379;sentinel://:hushhush@two.example:26379"),
        ("broker", "redis://redis.example/0?password=hushhush"),
        ("database", "postgresql+psycopg://adapter:hush/hush@db.example/ledger"),
    ],
)
def test_a_url_with_a_password_refuses_a_password_file(load, password_file, section, url):
    """Two passwords are one too many: the message says which to take out, and shows neither."""
    problem = problem_of(load, **{section: {"url": url, "passwordFile": str(password_file)}})

    assert problem == (
        f"DicomAdapter > {section}: both url and passwordFile contain a password; "
        "take it out of url"
    )


@pytest.mark.parametrize(
    ("section", "body"),
    [("broker", {}), ("database", {}), ("database", {"url": "sqlite:////var/ledger.sqlite"})],
)
def test_a_password_file_needs_a_server(load, password_file, section, body):
    """Our own Redis and SQLite ask for no password that could be given."""
    problem = problem_of(load, **{section: body | {"passwordFile": str(password_file)}})

    assert problem == (
        f"DicomAdapter > {section}: passwordFile needs the url of a server that requires a password"
    )


def test_flower_takes_no_password_with_a_comma(load, tmp_path):
    """Flower would read two passwords from it."""
    path = tmp_path / "password"
    path.write_text("hush,hush")

    problem = problem_of(load, flower={"passwordFile": str(path)})

    assert "no password with a comma" in problem
    assert "hush,hush" not in problem


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://redis.example:6379/0", "redis://redis.example:6379/0"),
        ("redis://user@redis.example", "redis://user@redis.example"),
        ("redis://:a@redis.example", "redis://:***@redis.example"),
        ("redis://u:a/b@c#d@redis.example/0", "redis://u:***@redis.example/0"),
        ("postgresql://h/d?user=u&password=a&x=y", "postgresql://h/d?user=u&password=***&x=y"),
        ("postgresql://h/d?sslpassword=a", "postgresql://h/d?sslpassword=***"),
    ],
)
def test_a_url_is_shown_without_its_password(url, shown):
    """Also where the password was not quoted as a URL asks."""
    assert passwords.hide(url) == shown


@pytest.fixture
def redis(tmp_path):
    """A Redis that asks for a password, and the settings it belongs to."""
    settings = settings_module.load(data=tmp_path / "redis")
    section = settings.broker.model_copy(update={"port": free_port()})
    settings = settings.model_copy(update={"broker": section})
    settings.data.mkdir()
    command = [broker.find_server(), broker.prepare(settings)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    eventually(lambda: broker.is_ready(settings))
    yield settings
    server.kill()
    server.wait()


def test_the_password_from_the_file_opens_the_server(redis, load):
    """A Redis that asks for the password of the file answers."""
    url, file = f"redis://127.0.0.1:{redis.broker.port}/0", redis.data / "redis.password"
    settings = load(broker={"url": url, "passwordFile": str(file)})

    with Redis.from_url(broker_url(settings)) as client:
        assert client.ping()


def test_nobody_says_a_password(redis, load, tmp_path):
    """Neither check-config nor a worker that Redis turns away shows what is in the file."""
    password = tmp_path / "password"
    password.write_text("hushhush")
    url = f"redis://127.0.0.1:{redis.broker.port}/0"
    load(
        broker={"url": url, "passwordFile": str(password)},
        flower={"passwordFile": str(password)},
    )
    environment = {**os.environ, "DICOMADAPTER_CONFIG": str(tmp_path / "appsettings.json")}

    shown = ""
    for arguments in ((), ("--json",)):
        command = own_command("check-config", *arguments)
        shown += subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout
    log = tmp_path / "worker.log"
    with log.open("w") as file:
        worker = subprocess.Popen(
            worker_command(["grouping"], 1, "test"), env=environment, stdout=file, stderr=file
        )
    try:
        eventually(lambda: "username-password pair" in log.read_text(), timeout=30)
    finally:
        worker.kill()
        worker.wait()

    assert shown.count(str(password)) == 4
    assert "hushhush" not in shown + log.read_text()
