# SPDX-License-Identifier: Apache-2.0
"""The chart's custom resource definitions, obeyed as an API server obeys them.

Defaults are filled in, unknown fields are refused (as `kubectl` asks for), the schema is checked,
then the rules in CEL.  What only a real server checks: that the schema is structural, and what a
rule costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import celpy
import yaml
from openapi_schema_validator import OAS30Validator

FOLDER = Path(__file__).parents[1] / "helm" / "files" / "crds"


class Definition:
    """One custom resource definition, in its only version."""

    def __init__(self, document: dict[str, Any]) -> None:
        names = document["spec"]["names"]
        self.document = document
        self.kind: str = names["kind"]
        self.plural: str = names["plural"]
        (version,) = document["spec"]["versions"]
        self.schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
        self._validator = OAS30Validator(_strict(self.schema))

    def with_defaults(self, resource: dict[str, Any]) -> dict[str, Any]:
        """Return the resource with the schema's defaults filled in."""
        filled = deepcopy(resource)
        _fill(self.schema, filled)
        return filled

    def problems(self, resource: dict[str, Any]) -> list[str]:
        """Return what a server says against a resource, by path; nothing if it takes it."""
        found = [
            f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
            for error in self._validator.iter_errors(resource)
        ]
        return found or list(_broken_rules(self.schema, resource, ""))


@cache
def definitions() -> dict[str, Definition]:
    """Return the chart's definitions, by kind."""
    documents = [yaml.safe_load(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.yaml"))]
    return {found.kind: found for found in map(Definition, documents)}


def _strict(schema: dict[str, Any], *, root: bool = True) -> dict[str, Any]:
    strict = dict(schema)
    if "properties" in schema:
        strict["properties"] = {
            key: below if root and key == "metadata" else _strict(below, root=False)
            for key, below in schema["properties"].items()
        }
        strict["additionalProperties"] = False
    if "items" in schema:
        strict["items"] = _strict(schema["items"], root=False)
    return strict


def _fill(schema: dict[str, Any], node: Any) -> None:
    if isinstance(node, dict):
        for key, below in schema.get("properties", {}).items():
            if key not in node and "default" in below:
                node[key] = deepcopy(below["default"])
            if key in node:
                _fill(below, node[key])


def _broken_rules(schema: dict[str, Any], node: Any, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", []):
        if not _holds(rule["rule"], node):
            yield f"{path.lstrip('.')}: {rule['message']}"
    if isinstance(node, dict):
        for key, below in schema.get("properties", {}).items():
            if key in node:
                yield from _broken_rules(below, node[key], f"{path}.{key}")


#: Made before any test: it raises the interpreter's recursion limit, which Hypothesis watches.
_ENVIRONMENT = celpy.Environment()


@cache
def _program(rule: str) -> celpy.Runner:
    return _ENVIRONMENT.program(_ENVIRONMENT.compile(rule))


def _holds(rule: str, node: Any) -> bool:
    try:
        return bool(_program(rule).evaluate({"self": celpy.json_to_cel(node)}))
    except celpy.CELEvalError:
        return False  # as an API server has it
