"""The Kubernetes manifests that tie a namespace of the harness to a pod of local mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.harness.namespaces import PodNamespace

Document = dict[str, Any]


def container_port(number: int, name: str = "", protocol: str = "TCP") -> Document:
    """A port as a container declares it."""
    return {"containerPort": number, "protocol": protocol, **({"name": name} if name else {})}


def pod(
    name: str,
    space: PodNamespace,
    *,
    namespace: str = "shop",
    ports: Iterable[Document] = (),
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    owner: tuple[str, str] | None = None,
    netns: str | None = None,
) -> Document:
    """A running Pod. `owner` is (kind, name) of its controller; `netns` replaces the namespace's path."""
    metadata: Document = {
        "name": name,
        "namespace": namespace,
        "uid": f"uid-{namespace}-{name}",
        "labels": dict(labels or {"app": name}),
        "annotations": {"sidestep.dev/netns": netns or str(space.pod.path), **(annotations or {})},
    }
    if owner is not None:
        metadata["ownerReferences"] = [
            {"apiVersion": "apps/v1", "kind": owner[0], "name": owner[1], "uid": "uid-owner", "controller": True}
        ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [{"name": "app", "image": "none", "ports": list(ports)}]},
        "status": {"phase": "Running", "podIP": space.ip, "podIPs": [{"ip": ip} for ip in space.ips]},
    }


def service(
    name: str, *ports: Document, namespace: str = "shop", selector: Mapping[str, str] | None = None
) -> Document:
    """A Service; ports as in the API (`port`, `targetPort`, `name`, `appProtocol`)."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": dict(selector or {"app": name}), "ports": list(ports)},
    }


def secret(name: str, data: Mapping[str, str], *, namespace: str = "shop") -> Document:
    """A kubernetes.io/tls Secret; `data` is base64 (see `Certificate.secret`)."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": namespace},
        "data": dict(data),
    }


def deployment(
    name: str, *, namespace: str = "shop", labels: Mapping[str, str], annotations: Mapping[str, str] | None = None
) -> Document:
    """A Deployment that selects pods by labels."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace, "annotations": dict(annotations or {})},
        "spec": {
            "selector": {"matchLabels": dict(labels)},
            "template": {"metadata": {"labels": dict(labels)}, "spec": {"containers": []}},
        },
    }


def write(folder: Path, name: str, *documents: Document) -> Path:
    """Put a multi-document file in place at once (written aside, then renamed); returns its path."""
    path, aside = folder / name, folder.parent / f".{name}.new"
    aside.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    aside.replace(path)
    return path
