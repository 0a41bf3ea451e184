"""Reads the cluster once, without watches, for the command line's `list` and first checks.

Collections that the caller may not read are left out; only pods are required.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sidestep.config.field_error import FieldError
from sidestep.config.ownership import link_owners
from sidestep.kube.api import JSON, Api
from sidestep.kube.conversion import PODS, SERVICES, WORKLOADS, Collection, trimmed
from sidestep.kube.errors import ApiError
from sidestep.kube.paths import escape
from sidestep.kube.watch import METADATA_LIST, decode
from sidestep.model.inventory import Inventory

PAGE = 500


class _Metadata(msgspec.Struct):
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    metadata: _Metadata
    items: list[dict[str, Any]] | None = None


async def list_all(
    api: Api, path: str, *, accept: str = JSON, query: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """Return all objects of a collection. Raises ApiError, UnreachableClusterError."""
    found: list[dict[str, Any]] = []
    token = ""
    while True:
        parameters: dict[str, str | int] = {**(query or {}), "limit": PAGE}
        if token:
            parameters["continue"] = token
        page = decode(await api.get(path, parameters, accept=accept), _List)
        found += page.items or ()
        token = page.metadata.continue_
        if not token:
            return found


async def read_inventory(api: Api, namespace: str = "") -> Inventory:
    """Return pods, services and workloads of one namespace or of all. Raises ApiError, UnreachableClusterError."""
    pods = await _converted(api, PODS, namespace, must=True)
    services = await _converted(api, SERVICES, namespace)
    workloads = {each.key: each for collection in WORKLOADS for each in await _converted(api, collection, namespace)}
    linked = [link_owners(seen.object.pod, seen.object.owners, workloads) for seen in pods]
    return Inventory(pods={pod.key: pod for pod in linked}, services=tuple(services), workloads=workloads)


async def _converted(api: Api, collection: Collection, namespace: str, *, must: bool = False) -> list[Any]:
    accept = METADATA_LIST if collection.metadata_only else JSON
    try:
        values = await list_all(api, collection.scoped(escape(namespace))[0], accept=accept)
    except ApiError as error:
        if must or not error.forbidden:
            raise
        return []
    found = []
    for value in values:
        try:
            found.append(collection.convert(trimmed(value)))
        except FieldError:
            continue  # the daemon of its node reports the fault
    return found
