"""`svc/NAME` where a workload is expected: the workload whose pods the Service leads to.

A session is about one workload, so that it keeps its pods when the Service changes: the name is resolved once, when the
command begins. A Service without pods, or with those of several workloads, is refused with what there is.
"""

from __future__ import annotations

import asyncio

from sidestep.cli.backend import Backend
from sidestep.kube.access import ClusterAccess
from sidestep.kube.api import Api
from sidestep.kube.errors import ApiError
from sidestep.kube.paths import escape
from sidestep.kube.snapshot import read_inventory
from sidestep.laptop.api_refusals import explain
from sidestep.laptop.local_client import LocalClient
from sidestep.model.errors import ClusterError, RefusedError
from sidestep.policy.workloads import parse_workload
from sidestep.tunnel.messages import decode
from sidestep.tunnel.views import WorkloadView

SERVICE = "service"


def resolve_service(backend: Backend, namespace: str, workload: str) -> str:
    """Return the workload as it was written, or that behind the Service which it names. Raises RefusedError,
    ClusterError, UnreachableError.
    """
    reference = parse_workload(workload)
    if reference.kind != SERVICE:
        return workload
    if isinstance(backend, ClusterAccess):
        found = asyncio.run(_in_cluster(backend, namespace, reference.name))
    else:
        found = asyncio.run(_here(LocalClient(backend), namespace, reference.name))
    if not found:
        raise RefusedError(f"service {namespace}/{reference.name} leads to no pod; sidestep list shows workloads")
    if len(found) > 1:
        raise RefusedError(
            f"service {namespace}/{reference.name} leads to pods of {' and of '.join(sorted(found))}: name one of them"
        )
    return found.pop()


async def _in_cluster(access: ClusterAccess, namespace: str, name: str) -> set[str]:
    api = Api(access)
    try:
        try:
            await api.get(f"/api/v1/namespaces/{escape(namespace)}/services/{escape(name)}")
        except ApiError as error:
            if error.status == 404:
                raise RefusedError(f"there is no service {namespace}/{name}") from error
            raise explain(error, verb="get", resource="services", namespace=namespace) from error
        try:
            inventory = await read_inventory(api, namespace)
        except ClusterError as error:
            raise explain(error, verb="list", resource="pods", namespace=namespace) from error
    finally:
        await api.aclose()
    pods = [
        pod
        for pod in inventory.pods.values()
        if not pod.ended and any(service.name == name for service in inventory.services_of(pod))
    ]
    return {f"{pod.owners[-1].kind}/{pod.owners[-1].name}" if pod.owners else f"pod/{pod.key.name}" for pod in pods}


async def _here(client: LocalClient, namespace: str, name: str) -> set[str]:
    views = decode(await client.get("/v1/workloads"), tuple[WorkloadView, ...], what="the daemon's answer")
    return {
        f"{each.kind}/{each.name}"
        for each in views
        if each.namespace == namespace
        and any(text.startswith(f"{name}:") for port in each.ports for text in port.service_ports)
    }
