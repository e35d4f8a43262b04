# SPDX-License-Identifier: Apache-2.0
"""As much of a Kubernetes API server as `helm install` and `helm upgrade` talk to.

It keeps what it is given, remembers the order, and lets every Job succeed at once.  Nothing runs.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from helm_python import Config

from tests.support_chart import CHART, NAMESPACE, RELEASE

#: The kinds of a chart, by group and version.
KINDS = {
    "v1": ("ConfigMap", "PersistentVolumeClaim", "Pod", "Secret", "Service", "ServiceAccount"),
    "apps/v1": ("Deployment", "StatefulSet"),
    "apiextensions.k8s.io/v1": ("CustomResourceDefinition",),
    "autoscaling/v2": ("HorizontalPodAutoscaler",),
    "batch/v1": ("Job",),
    "networking.k8s.io/v1": ("NetworkPolicy",),
    "policy/v1": ("PodDisruptionBudget",),
    "rbac.authorization.k8s.io/v1": ("Role", "RoleBinding"),
}

Object = dict[str, Any]


def plural(kind: str) -> str:
    return kind.lower().removesuffix("y") + ("ies" if kind.endswith("y") else "s")


class HelmServer:
    """The server, and a Helm that talks to it.

    Attributes
    ----------
    objects : dict
        What is there, by plural and name.
    changes : list
        What was written and deleted, in order: (verb, kind, name).
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.changes: list[tuple[str, str, str]] = []
        #: What was there when each Job was made.
        self.before_jobs: list[set[tuple[str, str]]] = []
        self.minor = 37  # of the release of Kubernetes that it says it is
        self.version = 0
        self.closed = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.owner = self  # type: ignore[attr-defined]
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.helm = Config(
            namespace=NAMESPACE,
            storage_driver="memory",
            kube_apiserver=f"http://127.0.0.1:{self._http.server_port}",
            qps=10_000,  # by default Helm asks slowly
            burst_limit=10_000,
        )

    def close(self) -> None:
        self.closed.set()
        self._http.shutdown()
        self._http.server_close()

    def install(self, values: dict[str, Any], **how: Any) -> None:
        self.helm.install(str(CHART), RELEASE, values, namespace=NAMESPACE, timeout=20, **how)

    def upgrade(self, values: dict[str, Any], **how: Any) -> None:
        self.helm.upgrade(str(CHART), RELEASE, values, namespace=NAMESPACE, timeout=20, **how)

    def uninstall(self) -> None:
        self.helm.uninstall(RELEASE, timeout=20)

    def put(self, item: Object) -> Object:
        """Keep an object."""
        self.version += 1
        metadata = item["metadata"]
        metadata.setdefault("uid", f"uid-{self.version}")
        metadata["resourceVersion"] = str(self.version)
        if item["kind"] == "Job":
            self.before_jobs.append(set(self.objects))
            item["status"] = {
                "succeeded": 1,
                "conditions": [{"type": "Complete", "status": "True"}],
            }
        self.objects[plural(item["kind"]), metadata["name"]] = item
        return item

    def find(self, kind: str, end: str) -> Object:
        (found,) = [
            item
            for (plural_name, name), item in self.objects.items()
            if plural_name == plural(kind) and name.endswith(end)
        ]
        return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: Any) -> None:
        pass

    @property
    def _owner(self) -> HelmServer:
        return self.server.owner  # type: ignore[attr-defined,no-any-return]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/openapi/v2":  # an empty document, in protobuf
            self._send(b"", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
            return
        found = self._discovery(url.path.strip("/"))
        if found is None:
            name, rest = self._name(url.path)
            query = parse_qs(url.query)
            if name is None:
                self._list(rest, query)
                return
            found = self._owner.objects.get((rest, name))
        self._answer(found)

    def do_POST(self) -> None:
        self._write("create")

    def do_PATCH(self) -> None:
        self._write("patch")

    def do_DELETE(self) -> None:
        self._body()
        name, rest = self._name(urlsplit(self.path).path)
        found = self._owner.objects.pop((rest, str(name)), None)
        if found is not None:
            self._owner.changes.append(("delete", found["kind"], str(name)))
        self._answer(found)

    def _write(self, verb: str) -> None:
        body = yaml.safe_load(self._body())  # server-side apply sends YAML
        if verb == "patch" and "kind" not in body:
            name, rest = self._name(urlsplit(self.path).path)
            known = self._owner.objects[rest, str(name)]
            body = {**known, **{key: body[key] for key in body if key != "metadata"}}
        self._owner.changes.append((verb, body["kind"], body["metadata"]["name"]))
        self._answer(self._owner.put(body))

    def _discovery(self, path: str) -> Object | None:
        groups = [group for group in KINDS if "/" in group]
        if path == "version":
            minor = self._owner.minor
            return {"major": "1", "minor": str(minor), "gitVersion": f"v1.{minor}.0"}
        if path == "api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "openapi/v3":
            return {"paths": {}}
        if path == "apis":
            versions = [{"groupVersion": g, "version": g.partition("/")[2]} for g in groups]
            listed = [
                {
                    "name": v["groupVersion"].partition("/")[0],
                    "versions": [v],
                    "preferredVersion": v,
                }
                for v in versions
            ]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
        group = path.partition("/")[2]
        if group not in KINDS:
            return None
        resources = [
            {
                "name": plural(kind),
                "singularName": kind.lower(),
                "namespaced": kind != "CustomResourceDefinition",
                "kind": kind,
                "verbs": ["create", "delete", "get", "list", "patch", "watch"],
            }
            for kind in KINDS[group]
        ]
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group,
            "resources": resources,
        }

    def _list(self, resource: str, query: dict[str, list[str]]) -> None:
        if "watch" in query:
            self._watch(resource)
            return
        items = [item for (of, _), item in self._owner.objects.items() if of == resource]
        version = str(self._owner.version)
        kind = items[0]["kind"] if items else "Unknown"
        self._answer(
            {
                "kind": f"{kind}List",
                "apiVersion": items[0]["apiVersion"] if items else "v1",
                "metadata": {"resourceVersion": version},
                "items": items,
            }
        )

    def _watch(self, resource: str) -> None:
        """Send the present objects and the end of the watch; nothing changes during a watch."""
        items = [item for (of, _), item in self._owner.objects.items() if of == resource]
        events: list[Object] = [{"type": "ADDED", "object": item} for item in items]
        metadata = {
            "resourceVersion": str(self._owner.version),
            "annotations": {"k8s.io/initial-events-end": "true"},
        }
        kind = {key: items[0][key] for key in ("apiVersion", "kind")} if items else {}
        events.append({"type": "BOOKMARK", "object": {**kind, "metadata": metadata}})
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write("".join(json.dumps(event) + "\n" for event in events).encode())
        self._owner.closed.wait(30)

    def _name(self, path: str) -> tuple[str | None, str]:
        """Return the name of an object, or None, and the plural of its kind."""
        steps = path.strip("/").split("/")
        steps = steps[2:] if steps[0] == "api" else steps[3:]
        if steps and steps[0] == "namespaces":
            steps = steps[2:]
        return (steps[1] if len(steps) > 1 else None), (steps[0] if steps else "")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, found: Object | None) -> None:
        if found is None:
            found = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
            found |= {"reason": "NotFound", "code": 404}
        code = 404 if found.get("code") == 404 else 200
        self._send(json.dumps(found).encode(), "application/json", code)

    def _send(self, data: bytes, kind: str, code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
