# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of configuration.md from the settings model: ``make docs``.

What stands outside the two marks in that file is written by hand.  A test compares the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from adapter.settings import REMOVED, Settings

PAGE = Path(__file__).parent / "configuration.md"
BEGIN = "<!-- begin: written by `make docs` from adapter/settings -->"
END = "<!-- end -->"

_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "objects",
}
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "minItems": "not empty",
}


def main() -> None:
    """Write the page anew."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + render() + after, encoding="utf-8")


def render() -> str:
    """Return what stands between the marks, and the marks."""
    tables = [*_section(Settings, ()), _removed()]
    return "\n".join([BEGIN, "", *tables, END])


def environment_variable(path: tuple[str, ...]) -> str:
    """Return the environment variable that overrides a setting."""
    return "__".join(["DICOMADAPTER", *(key.upper() for key in path)])


def settings(
    model: type[BaseModel] = Settings, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Yield every setting of a model and of those below it: its path, and its field."""
    for field in model.model_fields.values():
        path = (*above, field.alias or "")
        nested = _model(field)
        yield from settings(nested[0], (*path, *nested[1])) if nested else [(path, field)]


def _model(field: FieldInfo) -> tuple[type[BaseModel], tuple[str, ...]] | None:
    """Return the model that a field holds, and what stands between them in a path."""
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ()
    if get_origin(annotation) is dict:
        value = get_args(annotation)[1]
        if isinstance(value, type) and issubclass(value, BaseModel):
            return value, ("<id>",)
    return None


def _section(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    title = (model.__doc__ or "").partition("\n")[0]
    schema = model.model_json_schema(by_alias=True)["properties"]
    leaves = [field for field in model.model_fields.values() if _model(field) is None]
    if leaves:
        yield f"### `{' > '.join(('DicomAdapter', *path))}`\n\n{title}\n"
        yield "| key | type | default | meaning | environment variable |"
        yield "|---|---|---|---|---|"
        for field in leaves:
            key = field.alias or ""
            whole = path[: path.index("<id>")] if "<id>" in path else (*path, key)
            variable = f"`{environment_variable(whole)}`"
            yield (
                f"| `{key}` | {_type(schema[key])} | {_default(field)} "
                f"| {field.description} | {variable} |"
            )
        yield ""
    for field in model.model_fields.values():
        if nested := _model(field):
            below, between = nested
            yield from _section(below, (*path, field.alias or "", *between))


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        kinds = [kind for kind in schema["anyOf"] if kind["type"] != "null"]
        return " or ".join(_type(kind) for kind in kinds)
    if schema["type"] == "array":
        name = f"list of {_TYPES[schema['items']['type']]}"
    elif schema["type"] == "object":
        values = schema["additionalProperties"]
        name = "object" if values is True else f"object of {_TYPES[values['type']]}"
    elif schema.get("format") == "path":
        name = "path"
    else:
        name = _TYPES[schema["type"]]
    if "minimum" in schema and "maximum" in schema:
        return f"{name}, {schema['minimum']} to {schema['maximum']}"
    bounds = [words.format(schema[key]) for key, words in _BOUNDS.items() if key in schema]
    return ", ".join([name, *bounds])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value) or "empty"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`" if value not in ("", {}) else "empty"


def _removed() -> str:
    lines = ["### Removed keys", "", "These keys of old releases are refused.", ""]
    lines += ["| key | use instead |", "|---|---|"]
    lines += [f"| `{key}` | {instead} |" for key, instead in REMOVED.items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
