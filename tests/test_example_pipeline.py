# SPDX-License-Identifier: Apache-2.0
"""The example pipeline: what it derives from real images, and what it says where it cannot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from adapter.dicom.uids import check_uid
from adapter.models import JobState
from tests.support_jobs import CT_SERIES, TEST_FILES, add_group, make_work, row
from workers import pipeline
from workers.stage import take_all
from workers.submission import take as submit

JOB = str(uuid.UUID(int=7))

CLI = [sys.executable, "-m", "adapter.cli"]

#: A study of three MR series of several slices each.
MR_STUDY = sorted(
    path for path in (TEST_FILES / "dicomdirtests" / "98892003").rglob("*") if path.is_file()
)


def derive(tmp_path, files, job=JOB, out="out"):
    """Run the example pipeline on files, as a run does; return what it said and its output."""
    source, target = tmp_path / f"{out}-in", tmp_path / out
    source.mkdir()
    for number, path in enumerate(files):
        shutil.copy(path, source / f"{number:03d}.dcm")
    target.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "adapter.demo.pipeline"],
        env={
            "PATH": os.environ["PATH"],
            "DICOM_ADAPTER_INPUT": str(source),
            "DICOM_ADAPTER_OUTPUT": str(target),
            "DICOM_ADAPTER_JOB_ID": job,
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done, [dcmread(path) for path in sorted(target.iterdir())]


def by_series(files):
    found = {}
    for path in files:
        ds = dcmread(path)
        found.setdefault(ds.SeriesInstanceUID, []).append(ds)
    return found


def test_each_series_becomes_a_derived_series(tmp_path):
    """New UIDs, the same patient and study, and a reference to every source image."""
    sources = by_series(MR_STUDY)

    done, derived = derive(tmp_path, MR_STUDY)

    assert done.returncode == 0, done.stderr
    assert len(derived) == len(sources) > 1
    assert len({ds.SeriesInstanceUID for ds in derived}) == len(derived)
    assert not {ds.SeriesInstanceUID for ds in derived} & set(sources)
    for ds in derived:
        references = {item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence}
        (series,) = [
            images
            for images in sources.values()
            if {i.SOPInstanceUID for i in images} == references
        ]
        assert (
            ds.SOPClassUID == ds.file_meta.MediaStorageSOPClassUID == SecondaryCaptureImageStorage
        )
        assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID
        assert ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert check_uid(ds.SOPInstanceUID).startswith("2.25.")
        assert ds.ImageType == ["DERIVED", "SECONDARY"]
        assert f"of {len(series)} frame(s)" in ds.DerivationDescription
        for name in ("StudyInstanceUID", "PatientID", "PatientName", "StudyDate", "Modality"):
            assert ds[name].value == series[0][name].value


def test_pixels_are_the_maximum_in_the_units_of_the_source(tmp_path):
    """A CT's projection, rescaled, is the maximum of its slices in Hounsfield units."""
    slices = [dcmread(path) for path in CT_SERIES]
    units = [ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for ds in slices]

    _, (ds,) = derive(tmp_path, CT_SERIES)

    projected = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    np.testing.assert_array_equal(projected, np.max(units, axis=0))
    assert (ds.Rows, ds.Columns) == units[0].shape
    assert (ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation) == (16, 16, 15, 0)


def test_a_repeated_run_makes_the_same_instances(tmp_path):
    """Bytes and UIDs follow from the job and its input; another job makes others."""
    _, first = derive(tmp_path, CT_SERIES, out="first")
    _, again = derive(tmp_path, CT_SERIES, out="again")
    _, other = derive(tmp_path, CT_SERIES, out="other", job=str(uuid.UUID(int=8)))

    assert first == again
    assert first[0].SOPInstanceUID != other[0].SOPInstanceUID
    files = [min((tmp_path / name).iterdir()).read_bytes() for name in ("first", "again")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("name", "shape", "frames"),
    [
        ("MR_small_RLE.dcm", (64, 64), 1),  # compressed, decoded by pydicom itself
        ("rtdose.dcm", (10, 10), 15),  # multi-frame, 32 bits
        ("SC_rgb_rle_2frame.dcm", (100, 100), 2),  # colour
        ("examples_palette.dcm", (350, 800), 1),  # colour by a palette
        ("liver_1frame.dcm", (512, 512), 1),  # one bit, a segmentation
        ("MR_small_bigendian.dcm", (64, 64), 1),
    ],
)
def test_images_of_many_kinds_are_projected(tmp_path, name, shape, frames):
    """Whatever pydicom decodes becomes one image of 16 bits."""
    done, derived = derive(tmp_path, [TEST_FILES / name])

    assert done.returncode == 0, done.stderr
    (ds,) = derived
    assert ds.pixel_array.shape == shape
    assert f"of {frames} frame(s)" in ds.DerivationDescription


def test_images_of_different_sizes_are_projected_apart(tmp_path):
    """Slices of another size in the same series make a second image of the derived series."""
    ds = dcmread(CT_SERIES[0])
    ds.SOPInstanceUID += ".1"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.Rows, ds.PixelData = ds.Rows // 2, ds.PixelData[: len(ds.PixelData) // 2]
    ds.save_as(tmp_path / "half.dcm")

    _, derived = derive(tmp_path, [*CT_SERIES, tmp_path / "half.dcm"])

    assert [(d.Rows, d.InstanceNumber) for d in derived] == [(16, 1), (8, 2)]
    assert len({d.SeriesInstanceUID for d in derived}) == 1
    assert len({d.SOPInstanceUID for d in derived}) == 2


def test_it_says_so_where_there_is_no_pixel_data(tmp_path):
    """Exit code 3, and a sentence that counts what could not be read, and why."""
    files = [TEST_FILES / name for name in ("rtplan.dcm", "test-SR.dcm", "JPEG2000.dcm")]

    done, derived = derive(tmp_path, files)

    assert (done.returncode, derived) == (3, [])
    assert "no pixel data that can be read in 3 instances: " in done.stderr
    assert "1 unreadable in JPEG 2000 Image Compression, 2 without pixel data" in done.stderr


def test_what_cannot_be_read_is_left_out_and_counted(tmp_path):
    """Images are derived from the rest."""
    done, derived = derive(tmp_path, [TEST_FILES / "rtplan.dcm", *CT_SERIES])

    assert (done.returncode, len(derived)) == (0, 1)
    assert done.stdout == "4 instances read, left out: 1 without pixel data, 1 images derived\n"


def test_the_embedded_platform_runs_it(adapter):
    """From queued to a published derived series, with the command that the demo uses."""
    command = ["{python}", "-m", "adapter.demo.pipeline", "{input}", "{output}"]
    work = make_work(adapter, pipelines={"one": {"command": command}})
    (job,) = add_group(adapter, MR_STUDY, state=JobState.QUEUED)

    assert submit(work).outcome == "started"
    assert take_all(work, pipeline.take) == {"succeeded": 1}, row(adapter, job).message

    results = [dcmread(path) for path in sorted(adapter.spool.result_folder(job).iterdir())]
    assert len(results) == len(by_series(MR_STUDY))
    assert (
        Path(adapter.spool.work_folder(job) / "stdout.txt").read_text().startswith("17 instances")
    )


def test_a_pipeline_is_tried_without_dicom(tmp_path):
    """`pipeline test` runs it on a folder as a worker would, and leaves its results where asked."""
    (tmp_path / "data").mkdir(mode=0o700)
    command = ["{python}", "-m", "adapter.demo.pipeline", "{input}", "{output}"]
    pipelines = {
        "mip": {"name": "MIP", "command": command, "export": False},
        "false": {"name": "Fails", "command": ["false"], "export": False},
    }
    document = {"DicomAdapter": {"pipelines": pipelines}}
    (tmp_path / "data" / "appsettings.json").write_text(json.dumps(document))
    source = tmp_path / "source"
    source.mkdir()
    for number, path in enumerate(CT_SERIES):
        shutil.copy(path, source / f"{number}.dcm")
    (source / "readme.txt").write_text("no DICOM")

    def try_pipeline(name, *options):
        return subprocess.run(
            [*CLI, "--data", tmp_path / "data", "pipeline", "test", name, source, *options],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    done = try_pipeline("mip", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "4 instances read" in done.stdout
    assert "succeeded: 4 files in, 1 out" in done.stdout
    assert "left out: " in done.stderr
    assert len([dcmread(path) for path in (tmp_path / "out").iterdir()]) == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["appsettings.json"]

    done = try_pipeline("false")
    assert (done.returncode, "exit-code: exit code 1" in done.stderr) == (1, True)
    done = try_pipeline("lung")
    assert (done.returncode, "there are: false, mip" in done.stderr) == (2, True)
