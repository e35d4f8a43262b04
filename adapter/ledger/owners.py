# SPDX-License-Identifier: Apache-2.0
"""The owner of an entity of the configuration: people, or a custom resource of Kubernetes.

An entity that a custom resource manages is changed only there, because the operator would undo any
other change.
"""

from __future__ import annotations

from adapter.errors import ConfigurationError
from adapter.models import EntityKind

#: The owner of entities that people enter, by command line or REST.
PEOPLE = "operator"

_SCHEME = "kubernetes:"

#: The API group of the custom resources.
GROUP = "dicom.adapter.io"


def of_resource(namespace: str, kind: str, name: str) -> str:
    """Return the owner for a custom resource: ``kubernetes:imaging/ClaraAeTitle/ct``."""
    return f"{of_namespace(namespace)}{kind}/{name}"


def of_namespace(namespace: str) -> str:
    """Return the common prefix of the owners for a namespace's custom resources."""
    return f"{_SCHEME}{namespace}/"


def is_resource(owner: str) -> bool:
    """Return whether an owner is a custom resource."""
    return owner.startswith(_SCHEME)


def describe(owner: str) -> str:
    """Return an owner in words."""
    if not is_resource(owner):
        return "people (command line or REST)"
    namespace, kind, name = owner.removeprefix(_SCHEME).split("/", 2)
    return f"the custom resource {kind} {namespace}/{name}"


def check(kind: EntityKind, key: str, owner: str, actor: str) -> None:
    """Check that `actor` may change an entity of `owner`.

    Raises
    ------
    ConfigurationError
        If not; the text says where to change it instead.
    """
    if owner == actor:
        return
    advice = f"remove it with `dicom-adapter {kind} remove {key!r}` first"
    if is_resource(owner):
        namespace, resource, name = owner.removeprefix(_SCHEME).split("/", 2)
        advice = (
            f"change it there: `kubectl edit --namespace {namespace} "
            f"{resource.lower()}.{GROUP}/{name}` (or `kubectl delete ...`)"
        )
    raise ConfigurationError([f"{kind} {key!r} is managed by {describe(owner)}; {advice}"])
