"""Creates Kubernetes Events (core/v1), which `kubectl describe` shows for a Pod, a Node or an Intercept."""

from __future__ import annotations

import datetime as dt
import secrets

import msgspec

from sidestep.kube.api import Api
from sidestep.kube.paths import escape

COMPONENT = "sidestep"
MAX_MESSAGE = 1000
"""Characters. The API server accepts 1,024."""


class EventSubject(msgspec.Struct, frozen=True):
    """The object of an Event. Events of a cluster-wide object are created in namespace `default`."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


async def post(api: Api, subject: EventSubject, *, reason: str, message: str, node: str, warning: bool) -> None:
    """Create one Event. Raises ApiError, UnreachableClusterError."""
    namespace = subject.namespace or "default"
    now = f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
    about = {"apiVersion": subject.api_version, "kind": subject.kind, "name": subject.name, "uid": subject.uid}
    if subject.namespace:
        about["namespace"] = subject.namespace
    value = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": namespace, "name": f"{subject.name[:200]}.{secrets.token_hex(8)}"},
        "involvedObject": about,
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "type": "Warning" if warning else "Normal",
        "source": {"component": COMPONENT, "host": node},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    await api.create(f"/api/v1/namespaces/{escape(namespace)}/events", msgspec.json.encode(value))
