# SPDX-License-Identifier: Apache-2.0
"""Custom resources as they come from the API server: taken apart, not judged."""

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
        When, as the server writes it: sorted as text it is sorted by time.
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
        """Return the resource that an item of a list or an event holds.

        Raises
        ------
        ValueError
            If it is none.
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
        """The owner, in the ledger, of what the resource describes."""
        return owners.of_resource(self.namespace, self.kind.name, self.name)

    @property
    def age_order(self) -> tuple[str, str]:
        """Sorts resources by age; the same for every operator, also within one second."""
        return (self.created, self.uid)
