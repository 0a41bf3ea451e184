"""The ports of a workload that a command reads when none is named.

On a node the daemon knows which of them it can read. In a cluster Pods and Services say what they may speak; a port
whose TLS cannot be opened then has a session with a condition that says why.
"""

from __future__ import annotations

import asyncio

import click

from sidestep.cli import cluster_view
from sidestep.cli.backend import Backend
from sidestep.kube.access import ClusterAccess
from sidestep.laptop.local_client import LocalClient
from sidestep.model.errors import RefusedError
from sidestep.policy.workloads import parse_workload
from sidestep.tunnel.messages import decode
from sidestep.tunnel.views import NOT_READ, PENDING, PortView, WorkloadView


def listened_ports(
    backend: Backend, namespace: str, workload: str, port: str, *, egress: bool, whole: bool = False
) -> list[str]:
    """Return the ports of a session for each: the given one, else as `readable_ports`; one "" for connections that the
    pods make. Raises RefusedError."""
    if egress:
        if port:
            raise click.UsageError("--egress is about connections to whatever port, and goes without --port")
        return [""]
    return [port] if port else readable_ports(backend, namespace, workload, whole=whole)


def places(ports: list[str]) -> str:
    """Return what is listened to, for people."""
    return "outbound connections" if ports == [""] else f"port {', '.join(ports)}"


def readable_ports(backend: Backend, namespace: str, workload: str, *, whole: bool = False) -> list[str]:
    """Return the numbers of the workload's ports that may speak HTTP and can be read, or with `whole` of all its TCP
    ports. Raises RefusedError."""
    in_cluster = isinstance(backend, ClusterAccess)
    wanted = parse_workload(workload)
    for each in _workloads(backend, namespace):
        if each.namespace == namespace and wanted.means(each.kind, each.name):
            found = [
                str(port.number)
                for port in each.ports
                if port.transport == "tcp" and (whole or _can_be_read(port, in_cluster=in_cluster))
            ]
            if found:
                return found
            raise RefusedError(f"no port of {workload} can be read as HTTP; sidestep list shows its ports")
    raise RefusedError(f"there is no workload {workload} in namespace {namespace}; sidestep list shows those there are")


def _workloads(backend: Backend, namespace: str) -> tuple[WorkloadView, ...]:
    if isinstance(backend, ClusterAccess):
        return asyncio.run(cluster_view.workload_ports(backend, namespace))
    body = asyncio.run(LocalClient(backend).get("/v1/workloads"))
    return decode(body, tuple[WorkloadView, ...], what="the daemon's answer")


def _can_be_read(port: PortView, *, in_cluster: bool) -> bool:
    if port.protocol == "tcp":
        return False
    return in_cluster or port.tls != "always" or port.certificate is not None or _may_come(port.certificate_state)


def _may_come(certificate_state: str) -> bool:
    """Whether a certificate may become usable once somebody needs it: it is read on demand, or is not there yet."""
    return certificate_state == NOT_READ or certificate_state.startswith(PENDING)
