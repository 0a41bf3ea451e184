"""The ports of a workload that a command reads when none is named."""

from __future__ import annotations

import asyncio

import click

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
    if isinstance(backend, ClusterAccess):
        raise RefusedError("in a cluster, give the port with --port PORT")
    body = asyncio.run(LocalClient(backend).get("/v1/workloads"))
    wanted = parse_workload(workload)
    for each in decode(body, tuple[WorkloadView, ...], what="the daemon's answer"):
        if each.namespace == namespace and each.name == wanted.name and wanted.kind in {None, each.kind}:
            found = [
                str(port.number) for port in each.ports if port.transport == "tcp" and (whole or _can_be_read(port))
            ]
            if found:
                return found
            raise RefusedError(f"no port of {workload} can be read as HTTP; sidestep list shows its ports")
    raise RefusedError(f"there is no workload {workload} in namespace {namespace}; sidestep list shows those there are")


def _can_be_read(port: PortView) -> bool:
    if port.protocol == "tcp":
        return False
    return port.tls != "always" or port.certificate is not None or _may_come(port.certificate_state)


def _may_come(certificate_state: str) -> bool:
    """Whether a certificate may become usable once somebody needs it: it is read on demand, or is not there yet."""
    return certificate_state == NOT_READ or certificate_state.startswith(PENDING)
