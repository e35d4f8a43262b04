# SPDX-License-Identifier: Apache-2.0
"""PromQL, as far as needed to find the names in an expression: metrics, labels, label values."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKENS = re.compile(
    r"""
      (?P<space>\s+|\#[^\n]*)
    | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<duration>(?:\d+(?:ms|[smhdwy]))+|\$__\w+)
    | (?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)
    | (?P<name>[A-Za-z_:][A-Za-z0-9_:]*)
    | (?P<operator>=~|!~|!=|==|>=|<=|[-+*/%^<>=(){}\[\],:@])
    """,
    re.VERBOSE,
)
#: Functions and aggregations that the project's expressions may use.
_FUNCTIONS = {
    "absent", "avg", "count", "histogram_quantile", "increase", "max", "min", "rate", "sum",
}  # fmt: skip
_OPERATORS = {"and", "or", "unless", "bool"}
_LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}


@dataclass
class Named:
    """What an expression names.

    Attributes
    ----------
    matchers : list of (metric, label, operator, value)
        What is in the braces behind each metric.
    grouped : set of str
        Labels of `by` and its like.
    """

    metrics: set[str] = field(default_factory=set)
    matchers: list[tuple[str, str, str, str]] = field(default_factory=list)
    grouped: set[str] = field(default_factory=set)


def tokens(expression: str) -> list[tuple[str, str]]:
    """Return kind and text of each token; raise ValueError at what is none."""
    found, at = [], 0
    while at < len(expression):
        match = _TOKENS.match(expression, at)
        if match is None:
            raise ValueError(f"no PromQL: {expression[at : at + 20]!r}")
        at = match.end()
        if match.lastgroup != "space":
            found.append((str(match.lastgroup), match.group()))
    return found


def names(expression: str) -> Named:
    """Return what an expression names; raise ValueError at what this does not understand."""
    found, rest = Named(), tokens(expression)
    _check_brackets(rest)
    at = 0
    while at < len(rest):
        kind, text = rest[at]
        following = rest[at + 1][1] if at + 1 < len(rest) else ""
        if kind == "name" and text in _LISTS and following == "(":
            end = rest.index(("operator", ")"), at)
            found.grouped |= {word for kind, word in rest[at + 2 : end] if kind == "name"}
            at = end
        elif kind == "name" and text in _FUNCTIONS and (following == "(" or following in _LISTS):
            pass
        elif kind == "name" and text not in _OPERATORS:
            found.metrics.add(text)
            if following == "{":
                end = rest.index(("operator", "}"), at)
                found.matchers += _matchers(text, rest[at + 2 : end])
                at = end
        at += 1
    return found


def _matchers(metric: str, inside: list[tuple[str, str]]) -> list[tuple[str, str, str, str]]:
    found = []
    while inside:
        (kind, label), (_, operator), (value_kind, value), *inside = inside
        if (kind, value_kind) != ("name", "string") or operator not in {"=", "!=", "=~", "!~"}:
            raise ValueError(f"no matcher of {metric}: {label}{operator}{value}")
        found.append((metric, label, operator, value[1:-1]))
        if inside and inside.pop(0)[1] != ",":
            raise ValueError(f"no comma between matchers of {metric}")
    return found


def _check_brackets(rest: list[tuple[str, str]]) -> None:
    pairs, opened = {")": "(", "}": "{", "]": "["}, []
    for kind, text in rest:
        if kind == "operator" and text in pairs.values():
            opened.append(text)
        elif kind == "operator" and text in pairs and (not opened or opened.pop() != pairs[text]):
            raise ValueError("brackets do not match")
    if opened:
        raise ValueError("brackets do not match")
