# SPDX-License-Identifier: Apache-2.0
"""Custom resources as they come from the API server: parsed, not validated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from adapter.ledger import owners
from adapter.models import EntityKind

GROUP = owners.GROUP
VERSION = "v1"


@dataclass(frozen=True, slots=True)
class ResourceKind:
    """A kind of custom resource, and the kind of entity that it describes."""

    name: str
    plural: str
    entity: EntityKind


KINDS = (
    ResourceKind("ClaraAeTitle", "claraaetitles", EntityKind.AE_TITLE),
    ResourceKind("Source", "sources", EntityKind.SOURCE),
    ResourceKind("Destination", "destinations", EntityKind.DESTINATION),
)


@dataclass(frozen=True, slots=True)
class Resource:
    """One custom resource at one moment.

    Attributes
    ----------
    created : str
        Creation time as the server writes it: its order as text is the order in time.
    generation : int
        Grows with each change of the spec.
    being_deleted : bool
        Whether it is being deleted.
    """

    kind: ResourceKind
    namespace: str
    name: str
    uid: str
    created: str
    generation: int
    being_deleted: bool
    spec: Any = field(default_factory=dict, repr=False)
    status: Any = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, kind: ResourceKind, item: Any) -> Self:
        """Return the resource in an item of a list or an event.

        Raises
        ------
        ValueError
            If the item is not a resource.
        """
        try:
            metadata = item["metadata"]
            return cls(
                kind=kind,
                namespace=str(metadata["namespace"]),
                name=str(metadata["name"]),
                uid=str(metadata["uid"]),
                created=str(metadata["creationTimestamp"]),
                generation=int(metadata["generation"]),
                being_deleted="deletionTimestamp" in metadata,
                spec=item.get("spec"),
                status=item.get("status") or {},
            )
        except (KeyError, TypeError, AttributeError, ValueError):
            raise ValueError("not a custom resource") from None

    @property
    def owner(self) -> str:
        """The owner, in the ledger, of the entity that the resource describes."""
        return owners.of_resource(self.namespace, self.kind.name, self.name)

    @property
    def age_order(self) -> tuple[str, str]:
        """A key that sorts resources by age, for every operator alike, also within one second."""
        return (self.created, self.uid)
