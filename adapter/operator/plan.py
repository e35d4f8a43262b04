# SPDX-License-Identifier: Apache-2.0
"""Decides which custom resources are in force; pure functions without side effects.

Only one resource can claim a key of an entity (its name; of an AE title also the called AE title).
Entities that people entered go first, then the older resource.  If a resource is invalid or in
conflict, its last valid version stays in force, unless another one has claimed its keys.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from adapter.errors import ConfigurationError
from adapter.ledger import configuration, owners
from adapter.ledger.configuration import Changes, Entity
from adapter.models import AETitle, Versioned
from adapter.operator.resources import Resource
from adapter.processors import registry

#: The longest name of a resource; with namespace and kind it fits the ledger's column for owners.
LONGEST_NAME = 63

APPLIED, INVALID, CONFLICT = "Applied", "Invalid", "Conflict"
#: In force, but its jobs will be parked: the settings have none of the pipelines it names.
UNKNOWN_PIPELINE = "UnknownPipeline"

#: A key of an entity, and its value.
Claim: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Reading:
    """The entity that a resource describes, or the reasons why it describes none.

    Attributes
    ----------
    doubts : sequence of str
        Why an entity that can be in force will not do its work.
    """

    resource: Resource
    entity: Entity | None
    problems: Sequence[str] = ()
    doubts: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Readiness:
    """The condition Ready of a resource; `version` is the version in force for it, if any."""

    reason: str
    message: str
    version: int | None = None

    @property
    def ready(self) -> bool:
        """Whether the resource is in force, and can do its work."""
        return self.reason == APPLIED


@dataclass(slots=True)
class Plan:
    """The changes to make, and the refused resources, by owner."""

    puts: list[tuple[Entity, str]] = field(default_factory=list)
    removals: list[str] = field(default_factory=list)
    refusals: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def changes(self) -> Changes:
        """The changes to make."""
        return Changes(self.puts, self.removals)


def read(resource: Resource, pipelines: Collection[str]) -> Reading:
    """Return the entity that a resource describes, by the same rules as the command line.

    Parameters
    ----------
    resource : Resource
        The resource.
    pipelines : collection of str
        The ids of the settings' pipelines.
    """
    doubts = []
    if len(resource.name) > LONGEST_NAME:
        return Reading(resource, None, [f"metadata.name: at most {LONGEST_NAME} characters"])
    if not isinstance(resource.spec, dict):
        return Reading(resource, None, ["spec: is needed"])
    try:
        entity = configuration.parse(resource.kind.entity, resource.spec)
        if isinstance(entity, AETitle):
            named = registry.validate(entity)
            known = ", ".join(sorted(pipelines)) or "none"
            doubts = [
                f"the settings have no pipeline {name!r}, so its jobs will be parked; there are: "
                f"{known}"
                for name in named
                if name not in pipelines
            ]
    except ConfigurationError as error:
        return Reading(resource, None, error.problems)
    return Reading(resource, entity, doubts=doubts)


def make_plan(
    readings: Iterable[Reading], current: Sequence[Versioned[Any]], namespace: str
) -> Plan:
    """Return the changes that put the resources of a kind in force.

    Parameters
    ----------
    readings : iterable of Reading
        All the kind's resources of the namespace.
    current : sequence of Versioned
        The entities in force now.
    namespace : str
        The namespace whose entities may be changed.
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
    """Return the condition Ready of a resource, given the entities in force after the plan."""
    owner = reading.resource.owner
    version = next((found.version for found in current if found.owner == owner), None)
    if owner not in plan.refusals:
        message = f"in force as version {version}"
        if reading.doubts:
            return Readiness(UNKNOWN_PIPELINE, "; ".join([message, *reading.doubts]), version)
        return Readiness(APPLIED, message, version)
    reason, message = plan.refusals[owner]
    if version is not None:
        message += f"; its former version {version} stays in force"
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
