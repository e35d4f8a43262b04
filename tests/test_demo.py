# SPDX-License-Identifier: Apache-2.0
"""The demo and `up`: everything started on one machine, as a new user does it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress

import httpx
import pytest

from adapter.demo import proof
from adapter.demo.command import DEFAULT_STUDY
from adapter.demo.scene import in_force
from adapter.embedded.roles import own_command
from adapter.settings import load
from tests.support_stack import free_port
from tests.support_supervisor import children, environment, runs

#: Images without pixel data.
EMPTY = DEFAULT_STUDY.parent / "TINY_ALPHA" / "PT000000" / "ST000000" / "SE000000"

#: Everything starts at once here, beside other tests.
pytestmark = pytest.mark.timeout(240)

ROLES = {"redis", "scp", "short", "pipeline", "export", "api", "flower"}


@contextmanager
def program(tmp_path, *arguments, **variables):
    """Run `dicom-adapter`, and leave nothing of it behind."""
    variables = environment(TMPDIR=str(tmp_path), PYTHONUNBUFFERED="1", **variables)
    with subprocess.Popen(
        own_command(*map(str, arguments)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=variables,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process, pattern):
    """Return the lines up to one that a pattern is found in."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return lines
    pytest.fail(f"{pattern!r} was never said:\n{''.join(lines)}")


def test_the_demo_passes_and_leaves_nothing(tmp_path):
    """All stages run once on a real study of two series; the result is checked and cleaned up."""
    begin = time.monotonic()
    with program(tmp_path, "demo") as process:
        output, _ = process.communicate()

    assert process.returncode == 0, output
    assert time.monotonic() - begin < 90
    assert "rejected" not in output  # nobody sends before every receiving process knows of it
    assert "Sending 7 files to DEMO" in output
    assert "registered  7 instances of 2 series, 1 study" in output
    assert "Timeline of study 1.3.6.1.4.1.5962.1.1.0.0.0.1194734704.16302.0.1" in output
    assert "group closed: reason quiet, instances 7, jobs 1" in output
    assert re.search(r"What arrived is what the pipeline wrote, bit for bit: [1-9]", output)
    assert "Spool and ledger account for each other." in output
    assert "The demo has passed" in output
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_is_in_force_when_every_receiving_process_has_it(adapter):
    """One that has not taken it over yet would reject the demo's association."""
    assert not in_force(adapter, 3)
    for pid, version, ago in ((1, 3, 0), (2, 2, 0), (3, 1, 60)):  # the last is gone
        beat = {"role": "scp", "host": "a", "pid": pid, "at": time.time() - ago}
        file = adapter.spool.status / f"scp-{pid}.json"
        file.write_text(json.dumps({**beat, "configuration_version": version}))

    assert not in_force(adapter, 3)
    assert in_force(adapter, 2)


def test_the_demo_survives_the_death_of_each_process(tmp_path):
    """With the user's own studies: every child process is killed once, and all ends well."""
    # Given
    study = tmp_path / "study"
    shutil.copytree(DEFAULT_STUDY.parent / "77654033", study / "one")
    shutil.copytree(DEFAULT_STUDY, study / "two")
    shutil.copy(DEFAULT_STUDY.parent / "DICOMDIR", study)
    (study / "notes.txt").write_text("no image")
    with program(tmp_path, "demo", "--study", study) as process:
        lines = read_until(process, "ready after")

        # If
        for moment, roles in (
            (r"Sending", {"scp", "redis"}),
            (r"groups +[1-9]", {"short", "pacs", "api"}),
            (r"jobs .* started", {"pipeline", "flower"}),
            (r"exports +[1-9]", {"export"}),
        ):
            lines += read_until(process, moment)
            there = children(process.pid)
            for role in roles:
                os.kill(there[role], signal.SIGKILL)
        output, _ = process.communicate()
    output = "".join(lines) + output

    # Then
    assert process.returncode == 0, output
    assert "skipped: 1 DICOMDIR, 1 not DICOM" in output
    for role in ROLES | {"pacs"}:
        assert f"{role} ended (killed by SIGKILL)" in output
    assert "The demo has passed" in output


def test_a_study_without_dicom_is_refused_at_once(tmp_path):
    """Nothing is started for a folder that has no DICOM file."""
    (tmp_path / "notes.txt").write_text("no image")
    with program(tmp_path, "demo", "--study", tmp_path) as process:
        output, _ = process.communicate(timeout=30)

    assert process.returncode == 1
    assert "no DICOM file to send" in output
    assert "skipped: 1 not DICOM" in output


def test_the_demo_joins_an_adapter_that_runs(tmp_path):
    """Each time all stages run and are checked again; results of an earlier run do not count.

    Images without pixel data are the third study: the pipeline fails, and the demo says so.
    """
    # Given
    data, received, elsewhere = (tmp_path / name for name in ("data", "received", "elsewhere"))
    data.mkdir()
    elsewhere.mkdir()
    pacs, port = free_port(), free_port()
    command = ["{python}", "-m", "adapter.demo.pipeline", "{input}", "{output}"]
    document = {
        "dicom": {"scp": {"host": "127.0.0.1", "port": port}},
        "storage": {"watermarkPercent": 100, "reserveSpaceGB": 0},
        "pipelines": {
            "example": {"name": "Example", "command": command, "destinations": ["demo-pacs"]}
        },
        "flower": {"enabled": False},
        "api": {"port": free_port()},
        "broker": {"port": free_port()},
    }
    (data / "appsettings.json").write_text(json.dumps({"DicomAdapter": document}))
    options = ("--data", data, "--pacs", f"127.0.0.1:{pacs}", "--patience", "60")
    said = []

    # If
    with (
        program(tmp_path, "up", "--data", data) as adapter,
        program(tmp_path, "demo-pacs", "--port", pacs, received),
    ):
        read_until(adapter, r"Ready\.")
        for folder in (received, elsewhere):
            with program(tmp_path, "demo-sender", *options, folder) as sender:
                output, _ = sender.communicate()
            said.append((sender.returncode, output))
        with program(tmp_path, "demo-sender", *options, "--study", EMPTY, received) as sender:
            output, _ = sender.communicate()
        said.append((sender.returncode, output))
        adapter.send_signal(signal.SIGTERM)
        adapter.communicate(timeout=40)

    # Then
    (passed, first), (failed, second), (fruitless, third) = said
    assert passed == 0, first
    assert "bit for bit: 2 files" in first
    assert failed == 1, second
    assert "jobs        1 succeeded" in second
    assert second.count("the PACS has not received it") == 2
    assert len(list(received.iterdir())) == 4
    assert fruitless == 1, third
    assert "the demo failed" in third
    assert "is parked (exit-code" in third


@pytest.mark.parametrize("address", ["pacs", ":104", "pacs:70000"])
def test_an_address_that_is_none_is_refused(tmp_path, address):
    """The demo says which option is wrong, and how an address is written."""
    with program(tmp_path, "demo-sender", "--pacs", address, tmp_path) as process:
        output, _ = process.communicate(timeout=30)

    assert process.returncode == 2
    assert f"--pacs: '{address}' is not HOST:PORT" in output


@pytest.mark.parametrize("difference", ["none", "other bytes", "missing", "stranger"])
def test_the_proof_sees_every_difference(tmp_path, difference):
    """What arrived has to be what was written: each file, each byte of the data set, no other."""
    # Given
    results, received = tmp_path / "results", tmp_path / "received"
    for folder in (results, received):
        shutil.copytree(DEFAULT_STUDY / "CT2N", folder)
        for path in list(folder.iterdir()):
            path.rename(path.with_suffix(".dcm"))
    one = min(received.iterdir())

    # If
    if difference == "other bytes":
        raw = one.read_bytes()
        one.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    elif difference == "missing":
        one.unlink()
    elif difference == "stranger":
        shutil.copy(DEFAULT_STUDY / "CT5N" / "2062", received / "stranger.dcm")

    # Then
    same, problems = proof.compare(proof.digests(results), proof.digests(received))
    assert (same, len(problems)) == {
        "none": (2, 0),
        "other bytes": (1, 1),
        "missing": (1, 1),
        "stranger": (2, 1),
    }[difference]


def open_to_others(folder):
    """Return what other users of this machine may use of a folder, itself included."""
    found = []
    for path in [folder, *folder.rglob("*")]:
        with suppress(FileNotFoundError):  # a heartbeat is replaced all the time
            if path.lstat().st_mode & 0o077:
                found.append(path)
    return found


def test_up_runs_until_it_is_killed_or_told_to_stop(tmp_path):
    """`up` says where everything is, serves, and guards its ports and files.

    When it is killed its roles end too, and it starts again on the same data at once.  Told to
    stop, it stops all within 30 s.
    """
    # Given
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    ports = {name: free_port() for name in ("scp", "api", "flower", "broker")}
    document = {
        "dicom": {"scp": {"host": "127.0.0.1", "port": ports["scp"]}},
        "storage": {"watermarkPercent": 100, "reserveSpaceGB": 0},
        **{name: {"port": ports[name]} for name in ("api", "flower", "broker")},
    }
    (data / "appsettings.json").write_text(json.dumps({"DicomAdapter": document}))
    (data / "appsettings.json").chmod(0o600)

    # If
    with program(tmp_path, "up", "--data", data) as process:
        said = "".join(read_until(process, r"Ready\."))
        there = children(process.pid)

        # Then
        assert set(there) == ROLES
        for words in (str(ports["scp"]), f"http://127.0.0.1:{ports['api']}", str(data)):
            assert words in said
        assert httpx.get(f"http://127.0.0.1:{ports['api']}/health/ready").status_code == 200
        flower = f"http://127.0.0.1:{ports['flower']}/workers"
        assert httpx.get(flower).status_code == 401
        password = (data / "flower.password").read_text().strip()
        assert password not in said
        assert httpx.get(flower, auth=("admin", password)).status_code == 200
        flower = f"http://127.0.0.1:{ports['flower']}"
        assert httpx.get(f"{flower}/metrics").status_code == 401
        assert httpx.get(f"{flower}/metrics", auth=("admin", password)).status_code == 200
        shut = httpx.post(f"{flower}/api/worker/shutdown/x", auth=("admin", password))
        assert (shut.status_code, shut.text) == (403, "Read only mode is enabled")
        assert open_to_others(data) == []
        niceness = {role: os.getpriority(os.PRIO_PROCESS, pid) for role, pid in there.items()}
        assert niceness["scp"] < niceness["short"] == niceness["pipeline"] == niceness["export"]
        with program(tmp_path, "up", "--data", data) as second:
            output, _ = second.communicate(timeout=30)
        assert second.returncode == 1
        assert f"runs already (process {process.pid})" in output

        # If
        process.kill()

    # Then
    # At once: the roles of the first one may still be ending.
    with program(tmp_path, "up", "--data", data) as again:
        read_until(again, r"Ready\.")
        assert not any(runs(pid) for pid in there.values())
        there = children(again.pid)

        # If
        begin = time.monotonic()
        again.send_signal(signal.SIGTERM)
        output, _ = again.communicate(timeout=40)

    # Then
    assert again.returncode == 0, output
    assert time.monotonic() - begin < 30
    assert "Stopped." in output
    assert not any(runs(pid) for pid in there.values())
    assert list(load(data=data).spool_path.joinpath("status").iterdir()) == []
