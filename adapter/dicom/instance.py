# SPDX-License-Identifier: Apache-2.0
"""An instance, as far as its header tells."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Self

from adapter.dicom.ae_titles import check_ae_title
from adapter.dicom.uids import is_uid


@dataclass(frozen=True, slots=True)
class Instance:
    """The header of an acknowledged file, as far as the stages need it.

    Attributes
    ----------
    arrival : str
        The arrival's id.
    size : int
        Bytes of the whole file.
    digest : str
        SHA-256 of the transfer syntax and the bytes of the data set, in hexadecimal.  Two files
        with the same digest hold the same instance.
    values : dict of int to str
        The values of the tags that were asked for, by tag.  They may be PHI: they are never logged
        or stored.
    patient : tuple of (str, str), or None
        Patient ID and Issuer of Patient ID, as far as they are there and can be read.  They are
        PHI: compared by their hash, and otherwise used nowhere.
    """

    arrival: str
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str | None
    series_instance_uid: str | None
    transfer_syntax_uid: str
    calling_ae_title: str
    called_ae_title: str
    size: int
    digest: str
    values: dict[int, str] = field(default_factory=dict, repr=False)
    patient: tuple[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class PartialHeader:
    """What is known of an acknowledged file that cannot be registered; None where nothing is.

    Attributes
    ----------
    size : int or None
        Bytes of the whole file.
    """

    calling_ae_title: str | None = None
    called_ae_title: str | None = None
    sop_class_uid: str | None = None
    sop_instance_uid: str | None = None
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    transfer_syntax_uid: str | None = None
    size: int | None = None

    @classmethod
    def checked(cls, *, size: int | None, **texts: str | None) -> Self:
        """Return a header of the values that look like what they should be."""
        good = {
            name: text
            for name, text in texts.items()
            if text and (is_uid(text) if name.endswith("_uid") else _is_ae_title(text))
        }
        return cls(size=size, **good)

    @classmethod
    def of(cls, instance: Instance) -> Self:
        """Return what a whole header tells."""
        return cls(**{item.name: getattr(instance, item.name) for item in fields(cls)})


def _is_ae_title(text: str) -> bool:
    try:
        return check_ae_title(text) == text
    except ValueError:
        return False
