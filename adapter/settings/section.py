# SPDX-License-Identifier: Apache-2.0
"""The base of all sections of the settings file, and the types of their values."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat
from pydantic.alias_generators import to_camel

from adapter.dicom.tags import parse_tag

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = PositiveFloat


def _tag_text(value: object) -> str:
    return f"{parse_tag(str(value)):08X}"


TagText = Annotated[str, BeforeValidator(_tag_text)]


class Section(BaseModel):
    """A section of the settings file: immutable, camelCase in JSON, unknown keys refused."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True
    )
