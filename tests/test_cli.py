# SPDX-License-Identifier: Apache-2.0
"""The command line: what it changes, what it shows, how it fails."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import structlog
from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian

from adapter import heartbeat
from adapter.cli import jobs as job_commands
from adapter.ledger import configuration, owners, schema
from adapter.ledger import jobs as verbs
from adapter.ledger.queries import find_export, find_job
from adapter.models import EntityKind, Priority
from adapter.processors.ae_title import AETitleJobProcessor
from adapter.processors.base import JobRequest
from adapter.scp import Scp
from adapter.timeline import short
from tests.support_jobs import CT_SERIES
from tests.support_ledger import (
    STUDY,
    add_ae_title,
    add_arrival,
    add_export,
    add_group,
    add_job,
    add_task,
    change_rows,
)
from tests.support_peers import ScriptedPacs
from tests.support_scp import add_ae_title as add_scp_ae_title
from tests.support_scp import add_source, with_scp


@pytest.fixture
def data(settings):
    return settings.data


@pytest.fixture
def write_settings(data):
    def write(text):
        data.mkdir(parents=True, exist_ok=True)
        body = text if isinstance(text, str) else json.dumps({"DicomAdapter": text})
        (data / "appsettings.json").write_text(body)

    return write


# -- settings --------------------------------------------------------------------------------------


def test_check_config_lists_every_problem_at_once(cli, write_settings):
    """One run names every bad setting with its path: removed, unknown and out of bounds."""
    write_settings(
        {
            "dicom": {"scp": {"port": 70000, "timeout-group": 5, "colour": "red"}},
            "pipelines": {"lung": {"name": "Lung", "command": ["true"]}},
        }
    )

    code, out, err = cli("check-config")

    assert (code, out) == (2, "")
    assert [line.split(": ")[1] for line in err.splitlines()] == [
        "DicomAdapter > dicom > scp > timeout-group",
        "DicomAdapter > dicom > scp > port",
        "DicomAdapter > dicom > scp > colour",
        "DicomAdapter > pipelines > lung",
    ]
    assert "the AE title's processor setting `timeout`" in err


def test_yaml_is_refused_with_what_replaces_it(cli, tmp_path):
    """A YAML file of old releases is refused, and the message says what to write instead."""
    (tmp_path / "old.yaml").write_text("dicom:\n")

    code, _, err = cli("check-config", "--config", tmp_path / "old.yaml", data=None)

    assert code == 2
    assert "appsettings.json" in err


def test_yaml_that_was_left_behind_is_refused(cli, data):
    """A data folder of an old release, with app.yaml alone, is not taken for one without settings.

    Next to an appsettings.json, the old file is ignored.
    """
    data.mkdir(parents=True, exist_ok=True)
    (data / "app.yaml").write_text("dicom:\n")

    code, _, err = cli("check-config")

    assert code == 2
    assert "YAML is no longer read" in err
    assert "appsettings.json" in err
    (data / "appsettings.json").write_text('{"DicomAdapter": {}}')
    assert cli("check-config")[0] == 0


def test_a_misspelt_variable_is_refused(cli, monkeypatch):
    """A variable that would override nothing is named, at every level."""
    monkeypatch.setenv("DICOMADAPTER__DICM__SCP__PORT", "104")
    monkeypatch.setenv("DICOMADAPTER__DICOM__SCP__PROT", "104")

    code, _, err = cli("check-config")

    assert code == 2
    assert "DICOMADAPTER__DICM__SCP__PORT" in err
    assert "dicom > scp > prot" in err


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("DICOMADAPTER_DICOM_SCP_PORT", "DICOMADAPTER__DICOM__SCP__PORT"),
        ("DICOM_ADAPTER__FLOWER__READ_ONLY", "DICOMADAPTER__FLOWER__READONLY"),
        ("DICOMADAPTER__DICOM_SCP_PORT", "DICOMADAPTER__DICOM__SCP__PORT"),
        ("DICOMADAPTER__DICOM__SCP_PORT", "DICOMADAPTER__DICOM__SCP__PORT"),
        ("DICOM_ADAPTER_DATA", "DICOMADAPTER_DATA"),
    ],
)
def test_a_variable_with_other_underscores_is_refused(cli, monkeypatch, variable, meant):
    """One that overrides nothing but looks like ours is named, with the one that is meant."""
    monkeypatch.setenv(variable, "104")
    code, _, err = cli("check-config")
    assert code == 2
    assert f"{variable}: " in err
    assert f"did you mean {meant}?" in err

    monkeypatch.setenv(variable, "tcp://10.0.0.1:104")  # as Kubernetes names services to a pod
    assert cli("check-config")[0] == (2 if variable.startswith("DICOMADAPTER__") else 0)


def test_check_config_shows_no_password(cli, write_settings):
    """The settings are shown without the passwords of URLs."""
    write_settings(
        {
            "broker": {"url": "rediss://u:hushhush@redis.example:6379/0"},
            "database": {"url": "postgresql+psycopg://adapter:hushhush@db.example/adapter"},
        }
    )

    for arguments in ((), ("--json",)):
        code, out, _ = cli("check-config", *arguments)
        assert code == 0
        assert "hushhush" not in out
        assert "postgresql+psycopg://adapter:***@db.example/adapter" in out


def test_check_config_warns_of_a_program_that_is_not_there(cli, write_settings):
    """A pipeline whose program cannot be found is legal, and warned of."""
    pipeline = {"name": "Lung", "command": ["no-such-program"], "export": False}
    write_settings({"pipelines": {"lung": pipeline}})

    code, _, err = cli("check-config")

    assert code == 0
    assert "no program 'no-such-program'" in err


def test_the_adapter_may_be_chosen_before_or_after_the_command(cli, adapter, data):
    """--data works on either side of a command, also with an equals sign."""
    assert cli("source", "add", "CT1", "10.0.0.1")[0] == 0

    for words in (
        ["--data", data, "source", "list"],
        [f"--data={data}", "source", "list"],
        ["source", "list", "--data", data],
        ["source", f"--data={data}", "list"],
    ):
        code, out, _ = cli(*words, data=None)
        assert code == 0
        assert "CT1" in out


@pytest.mark.parametrize(
    "words",
    [
        ["studies", "list"],
        ["aet", "add", "CT-AI", "--set", "pipeline-a=lung"],
        ["source", "add", "CT1", "10.0.0.1"],
        ["destination", "add", "A", "ARCHIVE", "10.0.0.7", "104"],
        ["source", "remove", "CT1"],
        ["jobs", "retry", "--all"],
        ["quarantine", "discard", "1"],
        ["verify"],
        ["operator", "--release"],
        ["status"],
    ],
    ids=" ".join,
)
def test_a_mistyped_folder_is_an_error_and_not_a_new_adapter(cli, tmp_path, words):
    """A command that shows or changes something does not make an adapter."""
    elsewhere = tmp_path / "mistyped"

    code, out, err = cli(*words, data=elsewhere)

    assert (code, out) == (1, "")
    assert f"no adapter in {elsewhere}" in err
    assert not elsewhere.exists()


def test_status_is_this_adapters_or_nobodys(cli, settings, adapter, tmp_path, write_settings):
    """What another adapter answers on the same port is not shown, nor is there a new folder."""

    class Other(BaseHTTPRequestHandler):
        spool = "another"

        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            known = {"status": "green", "reasons": [], "services": {}, "spool": Other.spool}
            known |= {"queues": None, "unfinished": None, "disk": None}
            self.wfile.write(json.dumps({**known, "activeDimseConnections": 0}).encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        write_settings({"api": {"port": server.server_port}})

        code, out, err = cli("status")
        assert (code, out) == (1, "")
        assert f"another adapter than the one in {settings.data}" in err

        nowhere = tmp_path / "nowhere"
        nowhere.mkdir()
        shutil.copy(settings.data / "appsettings.json", nowhere)
        for command in ("status", "rebuild"):
            code, out, err = cli(command, data=nowhere)
            assert (code, out) == (1, "")
            assert "there is no" in err
        assert [path.name for path in nowhere.iterdir()] == ["appsettings.json"]

        Other.spool = adapter.spool.id
        assert "health is green" in cli("status")[1]
        (adapter.spool.root / "id").rename(tmp_path / "id")  # its volume is away
        assert "health is green" in cli("status")[1]
        server.shutdown()


def test_an_unreachable_ledger_is_told_in_words(cli, write_settings, adapter):
    """A ledger that does not answer ends a command with a sentence that names the setting."""
    write_settings({"database": {"url": "postgresql+psycopg://u:hushhush@127.0.0.1:1/adapter"}})

    code, _, err = cli("aet", "list")

    assert code == 1
    assert "database > url" in err
    assert "hushhush" not in err


def test_an_unknown_stage_is_refused(cli):
    """`worker` names the stages there are."""
    code, _, err = cli("worker", "exports")

    assert code == 2
    assert "notification, grouping, submission, pipeline, export, reclamation" in err


def test_every_command_is_there(cli):
    """The help lists every command, and each command has its own help."""
    _, out, _ = cli("--help", data=None)
    for command in (
        *("check-config", "up", "demo", "scp", "worker", "api", "flower", "send", "status"),
        *("aet", "source", "destination", "studies", "jobs", "exports", "quarantine"),
        *("verify", "rebuild"),
    ):
        assert f" {command} " in out
        assert cli(command, "--help", data=None)[0] == 0


# -- dynamic configuration -------------------------------------------------------------------------


@pytest.mark.every_ledger
def test_an_ae_title_is_added_changed_and_removed(cli, adapter):
    """What add, set and remove do is in the ledger; set changes only what is named."""
    # Given
    sop_class = "1.2.840.10008.5.1.4.1.1.2"
    code, out, _ = cli(
        *("aet", "add", "CT-AI", "--set", "pipeline-ct=lung", "--set", "timeout=7"),
        *("--overwrite-same-instance", "--ignored-sop-class", sop_class, "--resend", "rerun"),
        *("--on-patient-conflict", "hold"),
    )
    assert code == 0
    assert "'CT-AI' is in force as version 1" in out

    # If
    assert cli("aet", "set", "CT-AI", "--set", "timeout=9", "--keep-same-instance")[0] == 0
    code, out, _ = cli("aet", "show", "CT-AI", "--json")

    # Then
    assert json.loads(out) == {
        "name": "CT-AI",
        "aeTitle": "CT-AI",
        "processor": "ae-title",
        "processorSettings": {"pipeline-ct": "lung", "timeout": "9"},
        "overwriteSameInstance": False,
        "ignoredSopClasses": [sop_class],
        "resend": "rerun",
        "onPatientConflict": "hold",
        "version": 2,
        "owner": "operator",
    }
    assert cli("aet", "remove", "CT-AI")[0] == 0
    assert configuration.current(adapter.ledger, EntityKind.AE_TITLE) == []
    assert json.loads(cli("aet", "list", "--json")[1]) == []


@pytest.mark.every_ledger
def test_what_a_custom_resource_manages_is_not_changed_here(cli, adapter):
    """Each command that would change it is refused, and says what to do; all show the owner."""
    owner = owners.of_resource("imaging", "Source", "ct1")
    source = configuration.parse(EntityKind.SOURCE, {"aeTitle": "CT1", "hostIp": "10.0.0.7"})
    configuration.put(adapter.ledger, EntityKind.SOURCE, source, replace=False, owner=owner)

    for words in (["add", "CT1", "10.0.0.8"], ["set", "CT1", "10.0.0.8"], ["remove", "CT1"]):
        code, _, err = cli("source", *words)
        assert code == 2
        assert "managed by the custom resource Source imaging/ct1" in err
        assert "kubectl edit --namespace imaging source.dicom.adapter.io/ct1" in err

    assert owner in cli("source", "list")[1]
    assert owner in cli("source", "show", "CT1")[1]
    assert json.loads(cli("source", "list", "--json")[1])[0]["owner"] == owner
    assert json.loads(cli("source", "show", "CT1", "--json")[1])["owner"] == owner


@pytest.mark.every_ledger
def test_what_custom_resources_managed_can_be_released(cli, adapter):
    """Outside of the cluster people take over as they find it, unless an operator still runs."""
    owner = owners.of_resource("imaging", "Source", "ct1")
    source = configuration.parse(EntityKind.SOURCE, {"aeTitle": "CT1", "hostIp": "10.0.0.7"})
    configuration.put(adapter.ledger, EntityKind.SOURCE, source, replace=False, owner=owner)
    heartbeat.write(adapter.spool, "operator")
    code, _, err = cli("operator", "--release")
    assert code == 1
    assert "an operator runs" in err

    heartbeat.remove(adapter.spool, "operator")
    code, out, _ = cli("operator", "--release")

    assert code == 0
    assert "source 'CT1' is released" in out
    (found,) = configuration.current(adapter.ledger, EntityKind.SOURCE)
    assert (found.entity, found.owner) == (source, "operator")
    assert cli("source", "set", "CT1", "10.0.0.8")[0] == 0
    assert "nothing is released" in cli("operator", "--release")[1]


@pytest.mark.every_ledger
def test_a_processor_setting_can_be_dropped(cli, adapter):
    """--unset takes a setting away, and the default holds again."""
    cli("aet", "add", "CT-AI", "--set", "pipeline-ct=lung", "--set", "timeout=7")

    assert cli("aet", "set", "CT-AI", "--unset", "timeout")[0] == 0

    entity = configuration.find(adapter.ledger, EntityKind.AE_TITLE, "CT-AI").entity
    assert entity.processor_settings == {"pipeline-ct": "lung"}


def test_settings_that_the_processor_refuses_are_listed(cli, adapter):
    """An AE title whose processor settings are wrong is not created; each is named."""
    code, _, err = cli(
        *("aet", "add", "X", "--set", "timeout=1", "--set", "colour=red", "--set", "pipeline-a=b")
    )

    assert code == 2
    assert "processorSettings.timeout" in err
    assert "processorSettings.colour: unknown setting" in err
    assert configuration.current(adapter.ledger, EntityKind.AE_TITLE) == []


def test_loose_ends_are_warned_of(cli, adapter, write_settings):
    """A pipeline that is not defined, and a destination that is not there, are warned of."""
    pipeline = {"name": "Lung", "command": ["true"], "destinations": ["ARCHIVE"]}
    write_settings({"pipelines": {"lung": pipeline}})

    code, _, err = cli("aet", "add", "A", "--set", "pipeline-a=lung", "--set", "pipeline-b=brain")
    assert code == 0
    assert "no pipeline 'brain'" in err
    assert "no destination 'ARCHIVE'" in err
    _, _, err = cli("check-config")
    assert "AE title 'A': the settings have no pipeline 'brain'" in err
    assert "pipeline 'lung': there is no destination 'ARCHIVE'" in err

    cli("destination", "add", "ARCHIVE", "ARCHIVE", "10.0.0.7", "104")
    _, _, err = cli("aet", "set", "A", "--unset", "pipeline-b")
    assert err == ""
    _, _, err = cli("check-config")
    assert "pipeline" not in err


def test_what_any_job_processor_names_is_looked_for(cli, adapter, monkeypatch):
    """The pipelines of a job processor of a package are asked for, whatever its settings are."""
    request = JobRequest("a", "liver", Priority.NORMAL, 1.0)
    monkeypatch.setattr(AETitleJobProcessor, "jobs", lambda _processor: [request])

    _, _, err = cli("aet", "add", "A", "--set", "pipeline-a=lung")

    assert "no pipeline 'liver'" in err
    assert "lung" not in err


@pytest.mark.every_ledger
def test_adding_twice_and_changing_nothing_fail(cli, adapter):
    """`add` does not replace, `set` does not create, and the message says what does."""
    assert cli("source", "add", "CT1", "10.0.0.1")[0] == 0

    code, _, err = cli("source", "add", "CT1", "10.0.0.2")
    assert code == 2
    assert "change it with `set`" in err
    code, _, err = cli("source", "set", "CT2", "10.0.0.2")
    assert code == 1
    assert "there is no source 'CT2'; known: CT1" in err


def test_a_source_has_addresses_and_networks(cli, adapter):
    """Addresses are checked, and host names refused."""
    assert cli("source", "add", "CT1", "10.0.0.1", "10.1.0.0/16")[0] == 0

    _, out, _ = cli("source", "show", "CT1", "--json")
    assert json.loads(out)["hostIp"] == ["10.0.0.1", "10.1.0.0/16"]
    code, _, err = cli("source", "set", "CT1", "ct.example")
    assert code == 2
    assert "host names are not looked up" in err


@pytest.mark.every_ledger
def test_a_destination_is_changed(cli, adapter):
    """`set` changes the port and keeps the rest; a port that cannot be is refused."""
    assert cli("destination", "add", "archive", "ARCHIVE", "pacs.example", "104")[0] == 0

    assert cli("destination", "set", "archive", "--port", "11112")[0] == 0

    entity = configuration.find(adapter.ledger, EntityKind.DESTINATION, "archive").entity
    assert (entity.ae_title, entity.host_ip, entity.port) == ("ARCHIVE", "pacs.example", 11112)
    assert cli("destination", "set", "archive", "--port", "70000")[0] == 2


def test_peers_text_does_not_steer_the_terminal(cli, adapter):
    """Markup and control characters of a value are shown, not obeyed."""
    cli("destination", "add", "[red]x", "A", "10.0.0.7", "104")

    assert "[red]x" in cli("destination", "list")[1]


# -- talking to peers ------------------------------------------------------------------------------


@pytest.fixture
def scp(settings, adapter):
    """An SCP with the AE title CT-AI and the source CT1; it logs nothing."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    add_scp_ae_title(adapter, "CT-AI")
    add_source(adapter, "CT1")
    running = Scp(with_scp(settings, processes=1))
    running.start()
    yield running
    running.stop(grace=0)
    structlog.reset_defaults()


def test_send_stores_files_and_counts_the_others(cli, scp, adapter, tmp_path):
    """A folder is sent file by file; a DICOMDIR and what is no DICOM is skipped with a count."""
    # Given
    folder = tmp_path / "study"
    folder.mkdir()
    for path in CT_SERIES:
        shutil.copy(path, folder)
    shutil.copy(CT_SERIES[0].parents[2] / "DICOMDIR", folder)
    (folder / "README").write_text("not an image")

    # If
    arguments = ("send", "CT-AI", folder, "--port", scp.port, "--calling", "CT1")
    code, out, _ = cli(*arguments)

    # Then
    assert code == 0
    assert "4 of 4 files stored by CT-AI" in out
    assert "skipped: 1 DICOMDIR, 1 not DICOM" in out
    assert len(list(adapter.spool.list_incoming())) == 4
    _, out, _ = cli(*arguments, "--json")
    assert json.loads(out) == {
        "stored": 4,
        "skipped": {"DICOMDIR": 1, "not DICOM": 1},
        "failed": {},
    }


def test_send_says_why_files_were_refused(cli, scp, tmp_path):
    """A file that the peer refuses is a failure by status, and the exit code is 1."""
    broken = tmp_path / "broken.dcm"
    raw = CT_SERIES[0].read_bytes()
    at = raw.index(b"DICM") + 4 + 12 + int.from_bytes(raw[140:144], "little")
    broken.write_bytes(raw[:at] + b"no data set at all" * 10)

    code, out, _ = cli("send", "CT-AI", broken, "--port", scp.port, "--calling", "CT1")

    assert code == 1
    assert "status C000" in out


def test_send_says_that_nobody_knows_us(cli, scp):
    """A rejected association ends the command with the reason in words, and what to do."""
    code, _, err = cli("send", "CT-AI", CT_SERIES[0], "--port", scp.port, "--calling", "STRANGER")

    assert code == 1
    text = " ".join(err.split())
    assert "the calling AE title is not recognised" in text
    assert "`--calling`" in text
    assert "dicom-adapter source add STRANGER" in text

    code, _, err = cli("send", "NOBODY", CT_SERIES[0], "--port", scp.port, "--calling", "CT1")
    assert code == 1
    assert "`dicom-adapter aet list`" in " ".join(err.split())


def test_destination_echo_tells_what_is_wrong(cli, adapter, scp, settings):
    """An echo that fails says why in plain words and exits 1; one that works exits 0."""
    add_source(adapter, settings.dicom.scu.ae_title)
    scp.stop(grace=0)
    again = Scp(with_scp(settings, processes=1))
    again.start()
    try:
        cli("destination", "add", "self", "CT-AI", "127.0.0.1", again.port)
        code, out, err = cli("destination", "echo", "self")
        assert (code, err) == (0, "")
        assert out
    finally:
        again.stop(grace=0)

    code, out, err = cli("destination", "echo", "self")

    assert (code, out) == (1, "")
    assert "nobody listens" in err


def test_destination_echo_says_what_would_help(cli, adapter):
    """A destination that takes Implicit VR only can have the rest re-encoded, and is told so."""
    with ScriptedPacs(syntaxes=[ImplicitVRLittleEndian]) as pacs:
        cli("destination", "add", "old", "PACS", "127.0.0.1", pacs.port)
        code, out, err = cli("destination", "echo", "old", "--contexts")
        assert code == 0
        assert "CT Image Storage" in out
        assert "--reencode-uncompressed" in " ".join(err.split())

        assert cli("destination", "set", "old", "--reencode-uncompressed")[0] == 0
        code, out, err = cli("destination", "echo", "old", "--contexts", "--json")
        assert (code, err) == (0, "")
        contexts = json.loads(out)["contexts"]
        assert contexts[CTImageStorage] == [ImplicitVRLittleEndian]
        assert {len(taken) for taken in contexts.values()} == {0, 1}

    assert json.loads(cli("destination", "show", "old", "--json")[1])["reencodeUncompressed"]
    cli("destination", "set", "old", "--as-is")
    assert not json.loads(cli("destination", "show", "old", "--json")[1])["reencodeUncompressed"]


def test_echo_goes_to_any_address(cli, scp):
    """An echo needs no destination, only an address; who calls is up to the caller."""
    code, out, err = cli("echo", "CT-AI", "127.0.0.1", scp.port, "--calling", "CT1")

    assert (code, err) == (0, "")
    assert f"answered as CT-AI at 127.0.0.1:{scp.port}" in out


def test_echo_may_take_a_rejection_for_an_answer(cli, scp):
    """A rejection is a failure unless it is asked to be an answer; silence always is one."""
    stranger = ("echo", "CT-AI", "127.0.0.1", scp.port, "--calling", "STRANGER")

    assert cli(*stranger)[0] == 1
    code, out, err = cli(*stranger, "--accept-rejection", "--json")
    assert code == 0
    assert json.loads(out)["rejected"]
    assert "the calling AE title is not recognised" in err

    scp.stop(grace=0)
    assert cli(*stranger, "--accept-rejection")[0] == 1


# -- what happened ---------------------------------------------------------------------------------


@pytest.fixture
def history(adapter):
    """A study with a parked job and a parked export; the ids of both."""
    version = add_ae_title(adapter)
    group = add_group(adapter, version, state="closed")
    add_arrival(adapter, version, group_id=group)
    parked = add_job(adapter, group, state="parked", parked_in="created", message="no answer")
    done = add_job(adapter, group, pipeline="liver", state="succeeded")
    export = add_export(
        adapter, add_task(adapter, done), state="parked", receipts={1: "stored", 2: "retry"}
    )
    return {"job": parked, "done": done, "export": export}


def test_a_studys_timeline_is_shown(cli, history):
    """`studies show` lists associations, jobs and exports, down to each unconfirmed file."""
    code, out, _ = cli("studies", "show", STUDY)

    assert code == 0
    assert "MODALITY begins to send to BRAIN" in out
    assert "is parked (no answer)" in out
    assert "1 of 2 files stored at PACS, parked" in out
    assert f"not confirmed: {STUDY}.9.2: out of resources" in out
    assert json.loads(cli("studies", "show", STUDY, "--json")[1])["studyInstanceUID"] == STUDY
    assert STUDY in cli("studies", "list")[1]
    assert cli("studies", "show", "1.2.3")[0] == 1


def test_lists_come_in_pages(cli, history):
    """A page ends with how to get the next one, and that one goes on."""
    _, first, _ = cli("jobs", "list", "--limit", "1")
    after = first.split("--after ")[1].split()[0]

    _, second, _ = cli("jobs", "list", "--limit", "1", "--after", after)

    assert {short(history["job"]) in first, short(history["job"]) in second} == {True, False}
    items = json.loads(cli("jobs", "list", "--state", "parked", "--json")[1])["items"]
    assert [item["id"] for item in items] == [history["job"]]


def test_a_parked_job_is_retried(cli, adapter, history):
    """`jobs retry` lets a parked job go on where it stood; an ended one is refused."""
    assert cli("jobs", "show", history["job"])[0] == 0

    code, out, _ = cli("jobs", "retry", history["job"])

    assert code == 0
    assert "is created again" in out
    assert find_job(adapter.ledger, history["job"]).state == "created"
    code, _, err = cli("jobs", "retry", history["done"])
    assert code == 1
    assert "only a parked job" in err


def test_what_a_pipeline_printed_is_shown(cli, adapter, history):
    """`jobs logs` prints either stream, follows a job to its end, and says if nothing is kept."""
    code, _, err = cli("jobs", "logs", history["job"])
    assert (code, "nothing is kept" in err) == (1, True)
    folder = adapter.spool.work_folder(history["job"])
    folder.mkdir()
    (folder / "stdout.txt").write_text("hello\n")
    (folder / "stderr.txt").write_text("alas\n")

    assert cli("jobs", "logs", history["job"][:8])[:2] == (0, "hello\n")
    assert cli("jobs", "logs", history["job"], "--stderr")[:2] == (0, "alas\n")
    assert cli("jobs", "logs", history["job"], "--follow")[:2] == (0, "hello\n")


def test_a_job_that_runs_is_followed_to_its_end(cli, adapter, history, monkeypatch):
    """What is printed meanwhile, and by the next run, is shown as it comes."""
    folder = adapter.spool.work_folder(history["job"])
    folder.mkdir()
    stdout = folder / "stdout.txt"
    verbs.retry(adapter.ledger, history["job"])

    def add_more(_seconds):
        if not stdout.exists():
            stdout.write_text("first ")
        elif stdout.read_text() == "first ":
            stdout.write_text("first second ")
        else:
            (folder / "new").write_text("third")
            (folder / "new").replace(stdout)
            verbs.discard(adapter.ledger, history["job"])

    monkeypatch.setattr(job_commands.time, "sleep", add_more)

    assert cli("jobs", "logs", history["job"], "--follow")[:2] == (0, "first second third")


def test_a_job_is_discarded(cli, adapter, history):
    """`jobs discard` gives a job up for good."""
    assert cli("jobs", "discard", history["job"])[0] == 0

    assert find_job(adapter.ledger, history["job"]).state == "discarded"


@pytest.mark.every_ledger
@pytest.mark.parametrize("words", [["--all"], ["--state", "parked"], ["--reason", "exit-code"]])
def test_parked_jobs_are_retried_together(cli, adapter, history, words):
    """All that are parked, or those of one outcome; `jobs list` shows the same ones first."""
    cli("jobs", "retry", history["job"])
    group = add_group(adapter, 1, generation=2, state="closed")
    ids = [
        add_job(adapter, group, pipeline=name, state="parked", outcome=outcome)
        for name, outcome in (("a", "exit-code"), ("b", "exit-code"), ("c", "timed-out"))
    ]
    meant = set(ids[:2] if "--reason" in words else ids)
    if "--reason" in words:
        items = json.loads(cli("jobs", "list", *words, "--json")[1])["items"]
        assert {item["id"] for item in items} == meant

    code, out, _ = cli("jobs", "retry", *words, "--json")

    assert code == 0
    assert json.loads(out) == {"jobs": dict.fromkeys(meant, "queued"), "failed": {}}
    states = {job: find_job(adapter.ledger, job).state for job in ids}
    assert states == {job: "queued" if job in meant else "parked" for job in ids}


@pytest.mark.parametrize(
    "words",
    [
        ["jobs", "retry"],
        ["jobs", "retry", "1", "--all"],
        ["jobs", "retry", "--state", "queued"],
        ["exports", "retry", "--state", "sending"],
        ["exports", "discard"],
    ],
)
def test_a_decision_is_about_rows_that_wait(cli, adapter, words):
    """Either ids or a selection is needed, and a selection names only what waits for a decision."""
    assert cli(*words)[0] == 2


@pytest.mark.every_ledger
def test_a_beginning_of_an_id_is_enough(cli, adapter, history):
    """What lists and timelines show of an id is accepted, and one that several have is refused."""
    (row,) = json.loads(cli("jobs", "list", "--state", "parked", "--json")[1])["items"]
    assert short(row["id"]) in cli("studies", "show", STUDY)[1] + cli("jobs", "list")[1]
    version = add_ae_title(adapter, "OTHER")
    file = add_arrival(adapter, version, 7, state="quarantined", reason="not-dicom")
    add_group(adapter, version, state="parked", id="00000000-1")
    add_group(adapter, version, generation=2, state="parked", id="00000000-2")

    for words in (
        ("jobs", "show", history["job"][:6]),
        ("jobs", "retry", short(history["job"])),
        ("jobs", "discard", history["job"][:6]),
        ("exports", "show", history["export"][:6]),
        ("exports", "retry", short(history["export"])),
        ("exports", "discard", history["export"][:6]),
        ("studies", "show", STUDY[:-2]),
        ("quarantine", "show", file[:-2]),
        ("quarantine", "discard", file[:-2]),
        ("groups", "discard", "00000000-1"),
    ):
        assert cli(*words)[0] == 0, words
    code, _, err = cli("groups", "discard", "0000")
    assert code == 1
    assert "0000: several ids begin so" in err


def test_what_was_decided_is_told_in_json(cli, adapter, history):
    """Each row's state, and why a row was left as it is; the exit code says whether any was."""
    code, out, err = cli("jobs", "retry", history["job"], history["done"], "--json")
    why = f"job {history['done']} is succeeded: only a parked job can be retried"
    assert (code, json.loads(out)) == (
        1,
        {"jobs": {history["job"]: "created"}, "failed": {history["done"]: why}},
    )
    assert json.loads(err) == {"errors": [why]}

    answer = json.loads(cli("jobs", "discard", history["job"], "--json")[1])
    assert answer == {"jobs": {history["job"]: "discarded"}, "failed": {}}
    answer = json.loads(cli("exports", "retry", "--all", "--json")[1])
    assert answer == {"exports": {history["export"]: "pending"}, "failed": {}}
    answer = json.loads(cli("exports", "discard", history["export"], "--json")[1])
    assert answer == {"exports": {history["export"]: "discarded"}, "failed": {}}


def test_what_was_configured_is_told_in_json(cli, adapter):
    """`add`, `set` and `remove` print the entity as `show` does; warnings are JSON, too."""
    for words in (
        ("aet", "add", "CT", "--set", "pipeline-a=nowhere"),
        ("aet", "set", "CT", "--resend", "rerun"),
        ("source", "add", "CT1", "10.0.0.1"),
        ("source", "set", "CT1", "10.0.0.2"),
        ("destination", "add", "A", "ARCHIVE", "10.0.0.7", "104"),
        ("destination", "set", "A", "--port", "105"),
    ):
        code, out, err = cli(*words, "--json")
        assert code == 0
        assert out == cli(words[0], "show", words[2], "--json")[1]
        if words[0] == "aet":
            assert "no pipeline 'nowhere'" in json.loads(err)["warnings"][0]
    for words in (("aet", "CT"), ("source", "CT1"), ("destination", "A")):
        shown = cli(words[0], "show", words[1], "--json")[1]
        assert cli(words[0], "remove", words[1], "--json")[1] == shown


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["jobs", "list", "--limit", "many"], 2, "--limit"),
        (["no-such-command"], 2, "No such command"),
        (["jobs", "show", "1.2.3"], 1, "there is no job 1.2.3"),
        (["source", "add", "CT1", "ct.example"], 2, "host names are not looked up"),
        (["jobs", "list", "--after", "1"], 1, "no such row to go on from"),
    ],
)
def test_errors_are_json_where_answers_are(cli, adapter, words, code, says):
    """A program reads what is wrong as it reads the rest: usage, configuration, and what fails."""
    ended, out, err = cli(*words, "--json")

    assert (ended, out) == (code, "")
    assert says in " ".join(json.loads(err)["errors"])


@pytest.mark.parametrize("by_destination", [True, False])
def test_a_parked_export_is_retried(cli, adapter, history, by_destination):
    """`exports retry` takes ids, or everything for a destination, but not neither."""
    assert cli("exports", "retry")[0] == 2
    assert f"{STUDY}.9.2" in cli("exports", "show", history["export"])[1]
    assert short(history["export"]) in cli("exports", "list", "--destination", "PACS")[1]

    words = ["--destination", "PACS"] if by_destination else [history["export"]]
    code, out, _ = cli("exports", "retry", *words)

    assert code == 0
    assert "pending again" in out
    assert find_export(adapter.ledger, history["export"]).state == "pending"


@pytest.mark.parametrize("by_destination", [True, False])
def test_an_export_is_discarded(cli, adapter, history, by_destination):
    """`exports discard` gives up for good the exports named, or all that wait for an operator."""
    words = ["--destination", "PACS"] if by_destination else [history["export"]]
    assert cli("exports", "discard", *words)[0] == 0

    assert find_export(adapter.ledger, history["export"]).state == "discarded"


def test_quarantined_files_are_shown_and_discarded(cli, adapter):
    """A quarantined file is listed with its reason, shown with its path, and discarded once."""
    version = add_ae_title(adapter)
    arrival = add_arrival(
        adapter, version, state="quarantined", reason="not-parseable", message="cut short"
    )

    assert "not-parseable" in cli("quarantine", "list")[1]
    shown = json.loads(cli("quarantine", "show", arrival, "--json")[1])
    assert shown["path"] == str(adapter.spool.outside(adapter.spool.quarantine_path(arrival)))
    assert cli("quarantine", "discard", arrival)[0] == 0

    code, _, err = cli("quarantine", "discard", arrival)
    assert code == 1
    assert "not in quarantine" in err


def test_verify_tells_a_file_that_was_removed(cli, adapter):
    """Verify exits 0 while all is accounted for, and 1 with a table when a file is gone."""
    version = add_ae_title(adapter)
    group = add_group(adapter, version, state="open")
    arrival = add_arrival(adapter, version, group_id=group)
    change_rows(adapter, schema.groups, instances=1)
    assert cli("verify")[0] == 0

    adapter.spool.instance_path(arrival).unlink()

    code, out, _ = cli("verify")
    assert code == 1
    assert arrival in out
    assert "its file is not in instances/" in out
    assert [item["id"] for item in json.loads(cli("verify", "--json")[1])] == [arrival]
