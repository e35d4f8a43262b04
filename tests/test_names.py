# SPDX-License-Identifier: Apache-2.0
"""Names in the code are the field's: one meaning each, and no jargon of our own."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULES = {
    path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8"))
    for package in ("adapter", "workers")
    for path in sorted((ROOT / package).rglob("*.py"))
}

#: Words of a former dialect.  docs/glossary.md has the terms that replace them.
JARGON = {
    *("road", "bell", "doorbell", "ring", "ringer", "rung", "tick", "ticker", "ticking", "beside"),
    *("tally", "seat", "slot", "figure", "story", "tell", "told", "admit", "reception"),
    *("surrounding", "around", "poke", "peek", "tether", "leaving", "patience", "verdict"),
    *("trouble", "unwanted", "access"),
}

#: Names that contain such a word in another sense, which somebody else has given them.
NOT_JARGON = {
    "MSG_PEEK": "recv(2)",
    "access_log": "uvicorn's parameter",
    "destination_patience_seconds": "a setting whose key is kept; docs/glossary.md explains it",
    "slots": "the parameter of dataclass()",
    "tell": "the method of files",
}


def identifiers(path: Path, tree: ast.Module) -> Iterator[str]:
    """Yield every name of a module: its own, those it defines and those it uses."""
    yield from path.with_suffix("").parts
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name
            case ast.Name():
                yield node.id
            case ast.Attribute():
                yield node.attr
            case ast.arg():
                yield node.arg
            case ast.keyword(arg=str(name)):
                yield name
            case ast.alias():
                yield node.asname or node.name


def words(identifier: str) -> set[str]:
    """Return the words of an identifier in the singular, in lower case."""
    found = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", identifier)
    return {word.lower() for word in found} | {word.lower().removesuffix("s") for word in found}


def test_words_of_an_identifier_are_found() -> None:
    """snake_case, CamelCase, CONSTANTS and plurals are taken apart."""
    assert {"bell", "ringer"} <= words("BellRinger")
    assert {"due", "tick"} <= words("_due_ticks")
    assert "slot" in words("FREE_SLOTS")
    assert not words("string_offset") & JARGON
    assert not words("ContextResult") & JARGON


def test_no_identifier_is_jargon() -> None:
    """Modules, classes, functions, arguments, attributes and variables use the field's words."""
    found = {
        f"{path}: {name}"
        for path, tree in MODULES.items()
        for name in identifiers(path, tree)
        if words(name) & JARGON and name not in NOT_JARGON
    }

    assert not found


def test_every_exception_is_needed() -> None:
    """A name that is no longer used is no longer an exception."""
    used = {name for path, tree in MODULES.items() for name in identifiers(path, tree)}

    assert not NOT_JARGON.keys() - used


def test_no_two_classes_have_the_same_name() -> None:
    """A public class has a name of its own, which no import from another package has either."""
    owners = defaultdict(set)
    for path, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                owners[node.name].add(str(path))
    ours = dict(owners)
    for tree in MODULES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and not node.level:
                package = str(node.module).partition(".")[0]
                for alias in node.names:
                    name = alias.asname or alias.name
                    if package not in {"adapter", "workers"} and name in ours:
                        owners[name].add(str(node.module))

    shared = {name: sorted(places) for name, places in owners.items() if len(places) > 1}

    assert len(owners) > 200
    assert not shared
