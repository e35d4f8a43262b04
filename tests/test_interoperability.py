# SPDX-License-Identifier: Apache-2.0
"""Senders of others: what they send is stored unchanged, bit for bit.

A sender may write a data set anew before it sends it, so what arrives is compared with what DCMTK's
storescp, keeping bytes as they come, gets from the same sender.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pydicom
import pydicom.data
import pytest

from adapter.dicom.part10 import read_file_meta
from adapter.dicom.storage_classes import STANDARD
from tests.support_conformance import receiver
from tests.support_waiting import eventually
from tests.test_scp_processes import free_port

SHARED = Path(__file__).parents[2] / "shared" / "data"
WHEEL = ("CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "JPEG2000.dcm",
         "JPEG-lossy.dcm", "rtplan.dcm", "rtdose.dcm", "reportsi.dcm", "image_dfl.dcm",
         "SC_rgb_rle.dcm", "693_J2KI.dcm", "examples_overlay.dcm", "waveform_ecg.dcm",
         "MR_small_RLE.dcm")  # fmt: skip


needs = pytest.mark.needs
pytestmark = needs("dcmtk")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of DICOM files: one of each SOP class in each transfer syntax."""
    folder = tmp_path_factory.mktemp("corpus")
    uids: set[str | None] = {None, ""}
    kinds: set[tuple[str | None, str | None]] = set()
    wheel = [Path(pydicom.data.get_testdata_file(name)) for name in WHEEL]
    shared = sorted(path for path in SHARED.rglob("*") if path.is_file())
    for path in [*wheel, *shared]:
        try:
            with path.open("rb") as file:
                meta = read_file_meta(file)
        except Exception:  # noqa: BLE001 - not a DICOM file, or a broken one
            continue
        uid, kind = meta.get(0x0003), (meta.get(0x0002), meta.get(0x0010))
        if uid not in uids and kind not in kinds:
            uids.add(uid)
            kinds.add(kind)
            shutil.copy(path, folder / f"{len(kinds):04d}.dcm")
    return folder


def arrived(paths):
    """Return the SHA-256 of each data set of a storage class, by SOP instance and syntax."""
    found = {}
    for path in paths:
        with path.open("rb") as file:
            meta = read_file_meta(file)
            if meta[0x0002] not in STANDARD:
                continue  # dcmsend makes do with what it finds in a broken file
            found[meta[0x0003], meta[0x0010]] = hashlib.sha256(file.read()).hexdigest()
    return found


@contextmanager
def storescp(folder):
    """Run DCMTK's storescp, which stores everything unchanged."""
    folder.mkdir()
    port = free_port()
    command = ["storescp", "+xa", "+B", "-od", str(folder), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: subprocess.run(
            ["echoscu", "127.0.0.1", str(port)], capture_output=True, check=False
        ).returncode == 0)  # fmt: skip
        yield port
    finally:
        process.terminate()
        process.wait()


def run(*command, seconds=100, says=""):
    """Run a sender; some fail or hang at a file that they cannot send."""
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [str(word) for word in command],
            input=says.encode(), capture_output=True, timeout=seconds, check=False,
        )  # fmt: skip


TITLES = ("-aet", "MODALITY", "-aec", "ADAPTER")


def by_storescu(*options):
    def sender(port, folder):
        run("storescu", *options, *TITLES, "-nh", "+sd", "+r", "127.0.0.1", port, folder)

    return sender


def by_dcmsend(*options):
    def sender(port, folder):
        run("dcmsend", *options, *TITLES, "-nh", "+sd", "+r", "-nuc", "127.0.0.1", port, folder)

    return sender


#: The files of the corpus that a sender gets which starts anew for each few files.
SLOW = slice(24)


def by_gdcmscu(port, folder):
    for path in sorted(folder.iterdir())[SLOW]:
        run("gdcmscu", "--store", "--aetitle", "MODALITY", "--call", "ADAPTER",
            "127.0.0.1", port, path, seconds=5)  # fmt: skip


def by_pynetdicom(port, folder):
    run(sys.executable, "-m", "pynetdicom", "storescu", "127.0.0.1", port, folder, "-r", "-cx",
        "-aet", "MODALITY", "-aec", "ADAPTER")  # fmt: skip


def by_pixelmed(port, folder):
    jars = ":".join(map(str, Path("/usr/share/java").glob("*.jar")))
    names = sorted(map(str, folder.iterdir()))[SLOW]
    for at in range(0, len(names), 6):  # a file that it dislikes costs those that are sent with it
        run("java", "-cp", jars, "com.pixelmed.network.StorageSOPClassSCU", "127.0.0.1", port,
            "ADAPTER", "MODALITY", "-", says="\n".join(names[at : at + 6]))  # fmt: skip


def by_orthanc(port, folder):
    with orthanc(folder, port) as http:
        ids = []
        for path in sorted(folder.iterdir()):
            answer = http.post("/instances", content=path.read_bytes())
            if answer.status_code == 200:
                ids.append(answer.json()["ID"])
        for one in ids:  # one by one: it stops at the first that has no context
            http.post("/modalities/other/store", content=one)


@contextmanager
def orthanc(folder, port):
    """Run Orthanc, which knows the receiver as `other`."""
    home = folder.with_name(f"orthanc-{port}")
    home.mkdir()
    rest = free_port()
    (home / "orthanc.json").write_text(json.dumps({
        "StorageDirectory": str(home), "IndexDirectory": str(home), "HttpPort": rest,
        "DicomServerEnabled": False, "DicomAet": "MODALITY", "RemoteAccessAllowed": False,
        "DicomModalities": {"other": ["ADAPTER", "127.0.0.1", port]},
    }))  # fmt: skip
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", home / "orthanc.json"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{rest}", timeout=60) as http:
            eventually(lambda: _answers(http), timeout=20)
            yield http
    finally:
        process.terminate()
        process.wait()


def _answers(http):
    try:
        return http.get("/system").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # of pydicom, reading the corpus
@pytest.mark.parametrize(
    "sender",
    [
        pytest.param(by_storescu(), id="storescu"),
        pytest.param(by_storescu("-R"), id="storescu-required"),
        pytest.param(by_storescu("-xs"), id="storescu-jpeg-lossless"),
        pytest.param(by_storescu("-xi"), id="storescu-implicit"),
        pytest.param(by_storescu("--max-pdu", "4096"), id="storescu-small-pdu"),
        pytest.param(by_dcmsend(), id="dcmsend"),
        pytest.param(by_dcmsend("+ma"), id="dcmsend-several-associations"),
        pytest.param(by_pynetdicom, id="pynetdicom"),
        pytest.param(by_gdcmscu, id="gdcmscu", marks=needs("libgdcm-tools")),
        pytest.param(by_orthanc, id="orthanc", marks=needs("orthanc")),
        pytest.param(
            by_pixelmed, id="pixelmed", marks=needs("libpixelmed-java", "default-jre-headless")
        ),
    ],
)
def test_it_arrives_as_it_was_sent(settings, corpus, tmp_path, sender):
    """All that DCMTK receives from a sender is stored too, with the same bytes."""
    with storescp(tmp_path / "dcmtk") as port:
        sender(port, corpus)
    theirs = arrived((tmp_path / "dcmtk").iterdir())
    with receiver(settings, artim_seconds=10.0, pdu_seconds=30.0, idle_seconds=30.0) as scp:
        sender(scp.port, corpus)
        ours = arrived(scp.stored())
    assert len(ours) >= 5
    same = set(ours) & set(theirs)
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    assert {uid for uid, _ in theirs} <= {uid for uid, _ in ours} | unfit(corpus)


def unfit(corpus):
    """Return the instances that a receiver must refuse: their UIDs are not those of the command."""
    found = set()
    for path in corpus.iterdir():
        data_set = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        meta = data_set.file_meta
        uids = (meta.get("MediaStorageSOPInstanceUID"), meta.get("MediaStorageSOPClassUID"))
        same = uids == (data_set.get("SOPInstanceUID"), data_set.get("SOPClassUID"))
        if not same or not all(uid.is_valid for uid in uids):
            found |= {str(uids[0]), str(data_set.get("SOPInstanceUID"))}
    return found
