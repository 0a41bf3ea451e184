"""`sidestep list`: workloads with their ports, protocols, certificates, sessions, policies and problems."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import click

from sidestep.cli import cluster_view
from sidestep.cli.backend import Backend, backend_options, namespace_for
from sidestep.cli.command import NAMESPACE, Command
from sidestep.cli.output import json_line
from sidestep.cli.table import table
from sidestep.cli.viewing import name_lines, show, view_options, yaml_lines
from sidestep.config.label_selector import parse_label_selector
from sidestep.kube.access import ClusterAccess
from sidestep.laptop.local_client import LocalClient
from sidestep.model.errors import ConfigurationError
from sidestep.model.text import harmless
from sidestep.tunnel.messages import decode
from sidestep.tunnel.views import ConditionView, PortView, WorkloadView

_HEAD = ("NAMESPACE", "WORKLOAD", "PODS", "PORT", "PROTOCOL", "KNOWN BY", "CERTIFICATE", "SESSIONS")
_INSPECTED = "INSPECTED BY"
"""One more column on a node, and in a cluster where the statuses of policies that the user may read name ports."""
OUTBOUND = "outbound"
"""Stands in the column of ports for connections that the pods make."""


@click.command("list", cls=Command, short_help="Show workloads, ports, certificates, sessions, problems.")
@click.option(
    "--namespace",
    "-n",
    type=NAMESPACE,
    metavar="NS",
    help="Only this namespace. [default: all; in a cluster the context's]",
)
@click.option("--all-namespaces", "-A", is_flag=True, help="All namespaces of a cluster.")
@click.option(
    "--selector",
    "-l",
    default="",
    metavar="SELECTOR",
    help="Only workloads whose pods all have such labels.",
)
@view_options
@backend_options
def list_command(
    namespace: str | None, all_namespaces: bool, selector: str, backend: Backend, output: str, watch: bool
) -> None:
    """Show workloads, their ports, certificates and sessions, which policies inspect them, and what is wrong.

    Sessions are shown as `sidestep leave` takes them: intercept/orders, wiretap/orders-2, flows/orders-flows.

    \b
      sidestep list
      sidestep list -n shop --output json
      sidestep list -l app=orders,env!=test -o wide --watch
    """
    try:
        wanted = parse_label_selector(selector)
    except ConfigurationError as error:
        raise click.UsageError(f"--selector: {error}") from error

    def look() -> tuple[object, Iterable[str]]:
        more: list[str] = []
        where = namespace
        if isinstance(backend, ClusterAccess):
            where = "" if all_namespaces else namespace_for(backend, namespace)
            found, inspected = asyncio.run(cluster_view.workloads(backend, where))
            more = inspected.more
        else:
            body = asyncio.run(LocalClient(backend).get("/v1/workloads"))
            found = decode(body, tuple[WorkloadView, ...], what="the daemon's answer")
        shown = [
            each
            for each in found
            if where in {None, "", each.namespace} and (not selector or wanted.matches(each.labels))
        ]
        return (shown, more), _lines(shown, more, where or "", output, in_cluster=isinstance(backend, ClusterAccess))

    show(look, watch=watch)


def _lines(
    workloads: list[WorkloadView], more: list[str], namespace: str, output: str, *, in_cluster: bool
) -> Iterable[str]:
    """Return the workloads in a form; `more` are policies that inspect others, too."""
    if output == "json":
        yield from map(json_line, workloads)
    elif output == "yaml":
        yield from yaml_lines(workloads)
    elif output == "name":
        yield from name_lines((each.kind, each.name) for each in workloads)
    else:
        if not workloads:
            yield harmless(f"No workloads in namespace {namespace}.") if namespace else "No workloads."
        yield from _text(workloads, in_cluster=in_cluster, wide=output == "wide")
        yield from (harmless(f"{name} inspects more workloads than its status names.") for name in more)


def _text(workloads: list[WorkloadView], *, in_cluster: bool, wide: bool = False) -> Iterable[str]:
    rows: list[tuple[str, ...]] = []
    for each in workloads:
        first = (each.namespace, f"{each.kind}/{each.name}", str(len(each.pods)))
        lines = [(*_port(port), ", ".join(_sessions(port)), ", ".join(port.policies)) for port in each.ports]
        if each.egress or each.listening:
            lines.append((OUTBOUND, "", "", "", ", ".join(each.listening), ", ".join(each.egress)))
        elsewhere = set(_sessions(each)).difference(each.listening, *(_sessions(port) for port in each.ports))
        if elsewhere or not lines:
            lines.append(("", "", "", "", ", ".join(sorted(elsewhere)), ""))  # sessions of a port that no pod has
        rows += [(*(first if index == 0 else (" ", " ", " ")), *line) for index, line in enumerate(lines)]
    if in_cluster and not any(row[-1] for row in rows):
        yield from table(_HEAD, [row[:-1] for row in rows]) if rows else ()
    elif rows:
        yield from table((*_HEAD, _INSPECTED), rows)
    if wide:
        yield from _wide(workloads)
    yield from condition_lines(condition for each in workloads for condition in each.conditions)


def _wide(workloads: Iterable[WorkloadView]) -> Iterable[str]:
    """Return what there is no room for beside the ports: Services, pods and labels."""
    rows = [
        (
            each.namespace,
            f"{each.kind}/{each.name}",
            ", ".join(dict.fromkeys(service for port in each.ports for service in port.service_ports)),
            str(max((port.steered_pods for port in each.ports), default=0)),
            ", ".join(each.pods),
            ",".join(f"{key}={value}" for key, value in each.labels.items()),
        )
        for each in workloads
    ]
    if rows:
        yield ""
        yield from table(("NAMESPACE", "WORKLOAD", "SERVICES", "STEERED", "POD NAMES", "LABELS"), rows)


def _sessions(view: PortView | WorkloadView) -> tuple[str, ...]:
    """`kind/name` of its sessions. A daemon of an earlier version does not tell; it says which intercepts there are."""
    return view.sessions or view.intercepts


def _port(port: PortView) -> tuple[str, str, str, str]:
    name = f" {port.name}" if port.name else ""
    certificate = port.certificate_state
    if port.certificate is not None:
        names = ", ".join(port.certificate.names) or "no name"
        certificate = f"{names} (until {port.certificate.expires[:10]}, {port.certificate.source})"
    return f"{port.number}/{port.transport}{name}", port.protocol, port.known, certificate


def condition_lines(found: Iterable[ConditionView]) -> Iterable[str]:
    """Format conditions as lines, after an empty one."""
    unique = list(dict.fromkeys((each.type, each.subject, each.text) for each in found))
    if unique:
        yield ""
        yield from (harmless(f"{kind}: {subject}: {text}") for kind, subject, text in unique)
