# SPDX-License-Identifier: Apache-2.0
"""An instance, as far as its header tells."""

from __future__ import annotations

from dataclasses import dataclass, field


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
