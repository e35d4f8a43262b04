# SPDX-License-Identifier: Apache-2.0
"""Which custom resources are in force: plain decisions about what was read, without any effect.

What an entity is found by (its name; an AE title's called AE title too) is claimed by one resource
only: what people entered goes first, then the older resource.  A resource that cannot be used, for
what it says or for who was first, keeps in force what it last described, if that is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from adapter.errors import ConfigurationError
from adapter.ledger import configuration, owners
from adapter.ledger.configuration import Changes, Entity
from adapter.models import AETitle, Versioned
from adapter.operator.resources import Resource
from adapter.processors import registry

#: The longest name of a resource; the ledger's column for owners holds it with all around it.
LONGEST_NAME = 63

APPLIED, INVALID, CONFLICT = "Applied", "Invalid", "Conflict"

#: What an entity is found by, and its value.
Claim: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a resource describes, or why it describes nothing."""

    resource: Resource
    entity: Entity | None
    problems: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Readiness:
    """What came of a resource; `version` is the one in force for it, if there is one."""

    reason: str
    message: str
    version: int | None = None

    @property
    def ready(self) -> bool:
        """Whether what the resource says is in force."""
        return self.reason == APPLIED


@dataclass(slots=True)
class Plan:
    """What to change, and what to tell each resource about it, by owner."""

    puts: list[tuple[Entity, str]] = field(default_factory=list)
    removals: list[str] = field(default_factory=list)
    refusals: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def changes(self) -> Changes:
        """What to change."""
        return Changes(self.puts, self.removals)


def read(resource: Resource) -> Reading:
    """Find out what a resource describes, by the same rules as the command line."""
    if len(resource.name) > LONGEST_NAME:
        return Reading(resource, None, [f"metadata.name: at most {LONGEST_NAME} characters"])
    if not isinstance(resource.spec, dict):
        return Reading(resource, None, ["spec: is needed"])
    try:
        entity = configuration.parse(resource.kind.entity, resource.spec)
        if isinstance(entity, AETitle):
            registry.validate(entity)
    except ConfigurationError as error:
        return Reading(resource, None, error.problems)
    return Reading(resource, entity)


def make_plan(
    readings: Iterable[Reading], current: Sequence[Versioned[Any]], namespace: str
) -> Plan:
    """Decide what has to change so that the resources of a kind are in force.

    Parameters
    ----------
    readings : iterable of Reading
        All the kind's resources of the namespace.
    current : sequence of Versioned
        What is in force now.
    namespace : str
        Whose entities are ours to change.
    """
    plan = Plan()
    mine = owners.of_namespace(namespace)
    owned = {found.owner: found.entity for found in current if found.owner.startswith(mine)}
    claimed: dict[Claim, str] = {}
    wanted: dict[str, tuple[Entity, str]] = {}
    for found in current:
        if not found.owner.startswith(mine):
            claimed.update(dict.fromkeys(_claims(found.entity), found.owner))
    for reading in sorted(readings, key=lambda reading: reading.resource.age_order):
        owner = reading.resource.owner
        entity = reading.entity
        if entity is None:
            plan.refusals[owner] = (INVALID, "; ".join(reading.problems))
        elif (claim := _taken(entity, claimed)) is not None:
            plan.refusals[owner] = (CONFLICT, _explain(reading, claim, claimed[claim]))
            entity = None
        if entity is None:
            entity = owned.get(owner)
            if entity is None or _taken(entity, claimed) is not None:
                continue
        claimed.update(dict.fromkeys(_claims(entity), owner))
        wanted[entity.key] = (entity, owner)
    for found in current:
        if found.owner.startswith(mine) and found.entity.key not in wanted:
            plan.removals.append(found.entity.key)
    in_force = {found.entity.key: (found.entity, found.owner) for found in current}
    plan.puts = [want for key, want in wanted.items() if in_force.get(key) != want]
    return plan


def judge(plan: Plan, reading: Reading, current: Sequence[Versioned[Any]]) -> Readiness:
    """Return what came of a resource, given what is in force after the plan was carried out."""
    owner = reading.resource.owner
    version = next((found.version for found in current if found.owner == owner), None)
    if owner not in plan.refusals:
        return Readiness(APPLIED, f"in force as version {version}", version)
    reason, message = plan.refusals[owner]
    if version is not None:
        message += f"; version {version}, which it described before, stays in force"
    return Readiness(reason, message, version)


def _claims(entity: Entity) -> list[Claim]:
    claims = [("name", entity.key)]
    return [*claims, ("aeTitle", entity.ae_title)] if isinstance(entity, AETitle) else claims


def _taken(entity: Entity, claimed: dict[Claim, str]) -> Claim | None:
    return next((claim for claim in _claims(entity) if claim in claimed), None)


def _explain(reading: Reading, claim: Claim, holder: str) -> str:
    what, value = claim
    text = f"{what} {value!r} is taken by {owners.describe(holder)}"
    if holder == owners.PEOPLE:
        text += f"; to have it here, find it with `dicom-adapter {reading.resource.kind.entity} "
        text += "list` and remove it there"
    return text
