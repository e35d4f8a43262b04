# SPDX-License-Identifier: Apache-2.0
"""Writes what is derived in this folder: ``make docs``.

`README.md` gets the table of all values from the comments of `values.yaml`; `values.schema.json`
is written whole, with the settings as the adapter's own model has them, so that Helm refuses what
the adapter would refuse.  Tests compare both with what stands here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from adapter.settings import Settings
from adapter.stages import STAGES

CHART = Path(__file__).parent
BEGIN = "<!-- begin: written by `make docs` from values.yaml -->"
END = "<!-- end -->"

#: Settings that the chart makes: folders, addresses, ports and passwords.
OWN_SETTINGS = ("data", "storage.temporary", "dicom.scp.host", "dicom.scp.port", "metrics")
OWN_SETTINGS += ("broker", "database", "flower.enabled", "flower.host", "flower.port")
OWN_SETTINGS += ("flower.passwordFile", "api.host", "api.port", "api.withoutAuthentication")

Schema = dict[str, Any]


def main() -> None:
    """Write both files again."""
    for path, text in (
        (CHART / "README.md", readme((CHART / "README.md").read_text(encoding="utf-8"))),
        (CHART / "values.schema.json", schema_text()),
    ):
        path.write_text(text, encoding="utf-8")


# -- the table -----------------------------------------------------------------------------------


def descriptions() -> dict[str, str]:
    """Return what values.yaml says about its values, by their dotted paths."""
    found: dict[str, str] = {}
    above: list[str] = []
    comment = ""
    for line in (CHART / "values.yaml").read_text(encoding="utf-8").splitlines():
        if match := re.match(r" *# -- (.+)", line):
            comment = match[1]
        elif match := re.match(r"( *)([A-Za-z][A-Za-z0-9]*):", line):
            above = [*above[: len(match[1]) // 2], match[2]]
            if comment:
                found[".".join(above)] = comment
            comment = ""
    return found


def defaults() -> dict[str, Any]:
    """Return values.yaml."""
    document: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    return document


def readme(text: str) -> str:
    """Return the README with a new table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([before + BEGIN, "", *_table(), "", END + after])


def _table() -> Iterator[str]:
    values = defaults()
    yield "| value | default | meaning |"
    yield "|---|---|---|"
    for path, description in descriptions().items():
        default: Any = values
        for key in path.split("."):
            default = default[key]
        written = json.dumps(default) if default not in ("", None) else ""
        cell = f"`{written}`" if written else "none" if default is None else "empty"
        yield f"| `{path}` | {cell} | {description} |"


# -- the schema ----------------------------------------------------------------------------------


def schema_text() -> str:
    """Return values.schema.json."""
    schema = _closed(_values())
    schema["$schema"] = "http://json-schema.org/draft-07/schema#"
    schema["title"] = "Values of the chart dicom-adapter"
    for path, description in descriptions().items():
        node = schema
        for key in path.split("."):
            node = node["properties"][key]
        node["description"] = description
    properties, definitions = _settings()
    schema["properties"]["settings"].update(properties)
    schema["definitions"] = definitions
    return json.dumps(schema, indent=2) + "\n"


def _closed(properties: dict[str, Schema]) -> Schema:
    """Return the schema of an object that has these properties and no others."""
    return {"type": "object", "additionalProperties": False, "properties": deepcopy(properties)}


def _text(**more: Any) -> Schema:
    return {"type": "string", **more}


def _number(least: float, most: float | None = None, **more: Any) -> Schema:
    return {"type": "integer", "minimum": least, **more} | ({"maximum": most} if most else {})


def _one_of(*values: str) -> Schema:
    return _text(enum=list(values))


_FLAG: Schema = {"type": "boolean"}
_SECONDS: Schema = {"type": "number", "minimum": 0, "maximum": 86400}
_MAP: Schema = {"type": "object"}
_OBJECTS: Schema = {"type": "array", "items": _MAP}
_LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_PORT = _number(1, 65535)
_PORTS: Schema = {"type": "array", "items": _PORT}
_QUANTITY = _text(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")
#: What a database takes; null is computed, or unknown.
_CONNECTIONS: Schema = {"type": ["integer", "null"], "minimum": 10, "maximum": 10000}
#: Settings of a server, by name.
_SERVER_SETTINGS: Schema = {
    "type": "object",
    "propertyNames": {"pattern": "^[a-z][a-z0-9_.]*$"},
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}
_AE_TITLE = _text(pattern=r"^[^\\\s]([^\\]{0,14}[^\\\s])?$")
_NAME = _text(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", maxLength=253)
_NETWORKS: Schema = {"type": "array", "items": _text(pattern=r"^[0-9a-fA-F:.]+/[0-9]+$")}
_PEERS: Schema = {
    "type": "array",
    "items": _closed({"ipBlock": _MAP, "podSelector": _MAP, "namespaceSelector": _MAP}),
}
_IMAGE = _closed(
    {
        "registry": _text(pattern="^([^/].*[^/])?$"),
        "repository": _text(minLength=1),
        "tag": _text(maxLength=128),
        "digest": _text(pattern="^(sha256:[0-9a-f]{64})?$"),
        "pullPolicy": _one_of("Always", "IfNotPresent", "Never"),
    }
)
_RESOURCES = _closed({"requests": _MAP, "limits": _MAP, "claims": _OBJECTS})
_STRATEGY = _closed({"type": _one_of("RollingUpdate", "Recreate"), "rollingUpdate": _MAP})

#: The values of every component.
_COMPONENT: dict[str, Schema] = {
    "stopSeconds": _SECONDS,
    "preStopSeconds": _number(0, 3600),
    "resources": _RESOURCES,
    "temporarySize": _QUANTITY,
    "nodeSelector": _LABELS,
    "tolerations": _OBJECTS,
    "affinity": _MAP,
    "topologySpreadConstraints": {"type": ["array", "null"], "items": _MAP},
    "priorityClassName": _NAME,
    "runtimeClassName": _NAME,
    "podAnnotations": _LABELS,
    "podLabels": _LABELS,
    "podSecurityContext": _MAP,
    "securityContext": _MAP,
    "extraEnv": _OBJECTS,
    "extraVolumes": _OBJECTS,
    "extraVolumeMounts": _OBJECTS,
    "extraInitContainers": _OBJECTS,
    "extraContainers": _OBJECTS,
    "serviceAccountAnnotations": _LABELS,
    "maxUnavailable": {
        "anyOf": [_number(0), _text(pattern="^[0-9]{1,2}%$|^100%$")],
    },
    "strategy": _STRATEGY,
    "revisionHistoryLimit": _number(0),
}


def _component(**more: Schema) -> Schema:
    """Return the schema of a component: the keys of `defaults`, and more."""
    shared = {key: {"$ref": f"#/properties/defaults/properties/{key}"} for key in _COMPONENT}
    return _closed({"image": {"$ref": "#/properties/image"}, **shared, **more})


def _stage_autoscaling(**keda: Schema) -> Schema:
    return _closed(
        {
            "keda": _closed(
                {
                    "enabled": _FLAG,
                    "minReplicas": _number(0),
                    "maxReplicas": _number(1),
                    "targetOldestSeconds": _number(1),
                    "pollingInterval": _number(1),
                    "cooldownPeriod": _number(0),
                    "scaleDownSeconds": _number(0, 3600),
                    **keda,
                }
            ),
            "hpa": _closed(
                {
                    "enabled": _FLAG,
                    "minReplicas": _number(1),
                    "maxReplicas": _number(1),
                    "targetCPU": _number(1, 1000),
                    "scaleDownSeconds": _number(0, 3600),
                }
            ),
        }
    )


def _stage(stage: str) -> Schema:
    # A study's quiet time must not depend on the start of a pod.
    least = 1 if stage in {"notification", "grouping"} else 0
    return _component(
        replicas=_number(least),
        concurrency={"type": ["integer", "null"], "minimum": 1, "maximum": 64},
        autoscaling=_stage_autoscaling(targetUnfinished=_number(1)),
    )


def _server(**more: Schema) -> Schema:
    return _closed(
        {
            "enabled": _FLAG,
            "image": _IMAGE,
            "userId": _number(1),
            "existingSecret": _NAME,
            "existingSecretKey": _text(minLength=1),
            "resources": _RESOURCES,
            "nodeSelector": _LABELS,
            "tolerations": _OBJECTS,
            "affinity": _MAP,
            **more,
        }
    )


def _external(scheme: str, **more: Schema) -> Schema:
    return _closed(
        {
            # A password would stand in a ConfigMap: it comes from a Secret.
            "url": _text(pattern=rf"^$|^{scheme}://([^:@/]+@)?[^@]+$"),
            "existingSecret": _NAME,
            "existingSecretKey": _text(minLength=1),
            "ports": _PORTS,
            **more,
        }
    )


def _scp() -> Schema:
    hpa = _closed(
        {
            "enabled": _FLAG,
            "minReplicas": _number(1),
            "maxReplicas": _number(1),
            "targetAssociations": _number(1),
            "scaleDownSeconds": _number(0, 3600),
        }
    )
    service = _closed(
        {
            "type": _one_of("NodePort", "LoadBalancer", "ClusterIP"),
            "port": _PORT,
            "nodePort": {"type": ["integer", "null"], "minimum": 1, "maximum": 65535},
            "externalTrafficPolicy": _one_of("Local", "Cluster"),
            "loadBalancerSourceRanges": _NETWORKS,
            "annotations": _LABELS,
        }
    )
    return _component(replicas=_number(0), service=service, autoscaling=_closed({"hpa": hpa}))


def _monitoring() -> Schema:
    monitor = {"enabled": _FLAG, "labels": _LABELS}
    return _closed(
        {
            "annotations": _FLAG,
            "serviceMonitor": _closed({**monitor, "interval": _text(pattern="^[0-9]+(s|m)$")}),
            "prometheusRule": _closed(monitor),
            "dashboard": _closed({**monitor, "annotations": _LABELS}),
        }
    )


def _network_policy() -> Schema:
    blocks = {"type": "array", "items": _closed({"ipBlock": _MAP}) | {"required": ["ipBlock"]}}
    sides = {
        "from": {
            "dicom": blocks,
            **dict.fromkeys(("api", "flower", "metrics", "keda"), _PEERS),
        },
        "to": {
            **dict.fromkeys(("destinations", "redis", "database", "kubernetes", "dns"), _PEERS),
            "pipelines": _OBJECTS,
        },
    }
    return _closed(
        {
            "enabled": _FLAG,
            "kubernetesPorts": _PORTS,
            **{side: _closed(lists) for side, lists in sides.items()},
        }
    )


def _values() -> dict[str, Schema]:
    service = _closed({"port": _PORT})
    return {
        "global": _MAP,
        "nameOverride": _text(maxLength=40),
        "fullnameOverride": _text(maxLength=40, pattern="^([a-z]([-a-z0-9]*[a-z0-9])?)?$"),
        "commonLabels": _LABELS,
        "image": _IMAGE,
        "imagePullSecrets": {"type": "array", "items": _NAME},
        "settings": {},
        "listen": _one_of("0.0.0.0", "::"),
        "defaults": _closed(_COMPONENT),
        "scp": _scp(),
        "stages": _closed({stage: _stage(stage) for stage in STAGES}),
        "stageAutoscaling": _stage_autoscaling(),
        "api": _component(replicas=_number(1), service=service),
        "flower": _component(
            enabled=_FLAG,
            existingSecret=_NAME,
            existingSecretKey=_text(minLength=1),
            service=service,
        ),
        "operator": _component(enabled=_FLAG),
        "crds": _closed({"install": _FLAG, "keep": _FLAG}),
        "migrate": _component(useHelmHooks=_FLAG, activeDeadlineSeconds=_number(1)),
        "spool": _closed(
            {
                "existingClaim": _NAME,
                "storageClass": _NAME,
                "accessMode": _one_of("ReadWriteMany", "ReadWriteOnce"),
                "size": _QUANTITY,
                "annotations": _LABELS,
                "subPath": _text(pattern="^([^/].*)?$"),
            }
        ),
        "redis": _server(),
        "externalRedis": _external("(rediss?|sentinel)"),
        "postgresql": _server(
            size=_QUANTITY,
            storageClass=_NAME,
            maxConnections=_CONNECTIONS,
            settings=_SERVER_SETTINGS,
        ),
        "externalDatabase": _external(r"postgresql\+psycopg", maxConnections=_CONNECTIONS),
        "networkPolicy": _network_policy(),
        "monitoring": _monitoring(),
        "echoTest": _closed(
            {
                "enabled": _FLAG,
                "calledAETitle": _AE_TITLE,
                "callingAETitle": _AE_TITLE,
                "strict": _FLAG,
            }
        ),
        "extraObjects": {"type": "array", "items": {"type": ["object", "string"]}},
    }


def _settings() -> tuple[Schema, dict[str, Schema]]:
    """Return the schema of the settings, and the definitions that it refers to."""
    schema = Settings.model_json_schema(by_alias=True, ref_template="#/definitions/{model}")
    definitions: dict[str, Schema] = schema.pop("$defs")
    for path in OWN_SETTINGS:
        *above, key = path.split(".")
        node = schema
        for step in above:
            node = definitions[node["properties"][step]["$ref"].rpartition("/")[2]]
        node["properties"].pop(key, None)
    return schema, _referred(schema, definitions)


def _referred(schema: Schema, definitions: dict[str, Schema]) -> dict[str, Schema]:
    """Return the definitions that a schema refers to, and those that they refer to."""
    found: dict[str, Schema] = {}
    waiting = [json.dumps(schema)]
    while waiting:
        for name in re.findall(r'"#/definitions/(\w+)"', waiting.pop()):
            if name not in found:
                found[name] = definitions[name]
                waiting.append(json.dumps(definitions[name]))
    return dict(sorted(found.items()))


if __name__ == "__main__":
    main()
