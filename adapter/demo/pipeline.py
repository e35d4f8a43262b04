# SPDX-License-Identifier: Apache-2.0
"""The example pipeline: a maximum intensity projection of every series, as new DICOM series.

The embedded platform runs it as ``{python} -m adapter.demo.pipeline``.  DICOM_ADAPTER_INPUT and
DICOM_ADAPTER_OUTPUT, or two arguments, name its input and output folders.  It knows nothing else of
the adapter: your pipeline can be any program with the same interface.

The frames of a series are projected where they have the same size; each projection is a Secondary
Capture image of 16 bits, in the units of its source (e.g. Hounsfield).  Its UIDs follow from the
job's id and its source, so a repeated run creates the same instances.

Exit codes: 0 success; 2 wrong usage; 3 no readable pixel data in the input.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileMetaDataset, config, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from pydicom.valuerep import DSfloat

from adapter.dicom.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

#: Attributes of the patient and the study that a derived image copies from its source; those of
#: type 2 are present even if empty (PS3.3 sections C.7.1.1 and C.7.2.1).
TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
TYPE_3 = (
    "SpecificCharacterSet",
    "IssuerOfPatientID",
    "PatientAge",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "StudyDescription",
    "BodyPartExamined",
    "Laterality",
    "BurnedInAnnotation",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")

#: Exceptions of pydicom for a broken data set, or for pixel data without an installed decoder.
_BROKEN = (
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
)

_FIRST_SERIES_NUMBER = 9001
_NOTHING_READABLE = 3


@dataclass
class Projection:
    """The maximum over all frames of one size in one series, and its source instances."""

    example: Dataset
    values: NDArray[np.float64]
    frames: int = 0
    sources: dict[str, str] = field(default_factory=dict)

    def add(self, ds: Dataset, values: NDArray[np.float64], frames: int) -> None:
        """Add an instance to the projection."""
        self.values = _brighter(ds, self.values, values)
        self.frames += frames
        self.sources[ds.SOPInstanceUID] = ds.SOPClassUID


class LeftOut(Exception):
    """An instance has no readable pixel data; the text says why."""


def project(folder: Path) -> tuple[list[Projection], Counter[str]]:
    """Return the projections of all series below a folder, and why instances were left out."""
    projections: dict[tuple[Any, ...], Projection] = {}
    left_out: Counter[str] = Counter()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            ds, values, frames = _read(path)
        except LeftOut as reason:
            left_out[str(reason)] += 1
            continue
        key = (ds.SeriesInstanceUID, values.shape, ds.PhotometricInterpretation)
        projections.setdefault(key, Projection(ds, values)).add(ds, values, frames)
    return list(projections.values()), left_out


def _read(path: Path) -> tuple[Dataset, NDArray[np.float64], int]:
    """Return an instance without its pixel data, the projection of its frames, and their number.

    Raises
    ------
    LeftOut
        If there is nothing to project.
    """
    try:
        ds = dcmread(path)
    except (InvalidDicomError, *_BROKEN):
        raise LeftOut("not DICOM") from None
    if not any(name in ds for name in _PIXELS):
        raise LeftOut("without pixel data")
    try:
        values, frames = _project_frames(ds)
    except _BROKEN:
        syntax = ds.file_meta.get("TransferSyntaxUID")
        name = "an unknown transfer syntax" if syntax is None else syntax.name
        raise LeftOut(f"unreadable in {name}") from None
    for name in _PIXELS:
        ds.pop(name, None)
    if not all(ds.get(name) for name in _UIDS):
        raise LeftOut("without a UID to refer to")
    return ds, values, frames


def _project_frames(ds: Dataset) -> tuple[NDArray[np.float64], int]:
    """Return the projection of an instance's frames, one decoded at a time, and their number."""
    frames = iter_pixels(ds)
    values, count = _in_units(ds, next(frames)), 1
    for frame in frames:
        values = _brighter(ds, values, _in_units(ds, frame))
        count += 1
    return values, count


def _inverted(ds: Dataset) -> bool:
    """Return whether the lowest value is the brightest (PS3.3 section C.7.6.3.1.2)."""
    return bool(ds.PhotometricInterpretation == "MONOCHROME1")


def _brighter(
    ds: Dataset, one: NDArray[np.float64], other: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.minimum(one, other) if _inverted(ds) else np.maximum(one, other)


def _in_units(ds: Dataset, frame: NDArray[Any]) -> NDArray[np.float64]:
    """Return a frame in the units of its modality, in one channel (PS3.3 section C.11.1)."""
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        frame = apply_color_lut(frame, ds)
    values = frame.astype(np.float64)
    if values.ndim == 3:
        values = values.mean(axis=2)
    slope, intercept = ds.get("RescaleSlope"), ds.get("RescaleIntercept")
    return values * float(slope or 1) + float(intercept or 0)


def derive(projection: Projection, job: uuid.UUID, series: int, instance: int) -> Dataset:
    """Return a projection as a Secondary Capture image.

    References
    ----------
    PS3.3 section A.8.1 (Secondary Capture Image IOD), C.7.6.1 (General Image).
    """
    source = projection.example
    ds = Dataset()
    for name in (*TYPE_2, *TYPE_3):
        if source.get(name):
            ds[name] = deepcopy(source[name])
        elif name in TYPE_2:
            setattr(ds, name, "")
    if "BodyPartExamined" not in ds and "Laterality" not in ds:
        ds.Laterality = ""  # type 2C: it may be a paired part (PS3.3 section C.7.3.1)
    ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.SOPInstanceUID = _uid(job, f"instance|{sorted(projection.sources)}|{instance}")
    ds.StudyInstanceUID = source.StudyInstanceUID
    ds.SeriesInstanceUID = _uid(job, f"series|{source.SeriesInstanceUID}")
    ds.SeriesNumber = _FIRST_SERIES_NUMBER + series
    ds.InstanceNumber = instance
    ds.Modality = source.get("Modality") or "OT"
    ds.SeriesDescription = f"Projection of series {source.get('SeriesNumber') or '?'}"[:64]
    ds.ConversionType = "WSD"
    ds.Manufacturer = "dicom-adapter"
    ds.ManufacturerModelName = "example pipeline"
    ds.PatientOrientation = ""
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.DerivationDescription = f"Maximum intensity projection of {projection.frames} frame(s)"
    ds.SourceImageSequence = [_reference(*item) for item in projection.sources.items()]
    _set_pixels(ds, projection)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    ds.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return ds


def _uid(job: uuid.UUID, name: str) -> str:
    """Return a UID that is always the same for a job and a name (PS3.5 Annex B.2)."""
    return f"2.25.{uuid.uuid5(job, name).int}"


def _reference(instance: str, sop_class: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class
    item.ReferencedSOPInstanceUID = instance
    return item


def _set_pixels(ds: Dataset, projection: Projection) -> None:
    values = np.nan_to_num(projection.values)
    low, high = float(values.min()), float(values.max())
    whole = np.array_equal(values, np.rint(values)) and high - low <= 65535
    slope = 1.0 if whole or high == low else (high - low) / 65535
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if _inverted(projection.example) else "MONOCHROME2"
    ds.Rows, ds.Columns = values.shape
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 0
    ds.RescaleIntercept = DSfloat(low, auto_format=True)
    ds.RescaleSlope = DSfloat(slope, auto_format=True)
    ds.RescaleType = projection.example.get("RescaleType") or "US"
    ds.WindowCenter = DSfloat((low + high) / 2, auto_format=True)
    ds.WindowWidth = DSfloat(max(high - low, 1.0), auto_format=True)
    ds.PixelData = np.rint((values - low) / slope).astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"


def write(projections: list[Projection], folder: Path, job: uuid.UUID) -> int:
    """Write a derived image for each projection, and return how many there are."""
    series: dict[str, int] = {}
    images: Counter[str] = Counter()
    for projection in projections:
        uid = projection.example.SeriesInstanceUID
        series.setdefault(uid, len(series))
        images[uid] += 1
        ds = derive(projection, job, series[uid], images[uid])
        path = folder / f"series-{series[uid] + 1:03d}-image-{images[uid]:03d}.dcm"
        ds.save_as(path, enforce_file_format=True)
    return images.total()


def main(arguments: list[str]) -> int:
    """Run the pipeline, and return its exit code."""
    if len(arguments) not in {0, 2}:
        sys.stderr.write("usage: python -m adapter.demo.pipeline [INPUT OUTPUT]\n")
        return 2
    given = arguments or [os.environ["DICOM_ADAPTER_INPUT"], os.environ["DICOM_ADAPTER_OUTPUT"]]
    source, target = map(Path, given)
    job = uuid.UUID(os.environ.get("DICOM_ADAPTER_JOB_ID", str(uuid.NAMESPACE_OID)))
    # Elements are copied as the sender wrote them, valid or not.
    with config.disable_value_validation():
        projections, left_out = project(source)
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        if not projections:
            sys.stderr.write(
                f"no pixel data that can be read in {left_out.total()} instances: {reasons}\n"
            )
            return _NOTHING_READABLE
        target.mkdir(exist_ok=True)
        written = write(projections, target, job)
    read = len({uid for projection in projections for uid in projection.sources})
    sys.stdout.write(
        f"{read} instances read, left out: {reasons or 'none'}, {written} images derived\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
