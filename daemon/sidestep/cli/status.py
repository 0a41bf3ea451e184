"""`sidestep status`: the node daemon, its target pods, sessions and problems."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from collections.abc import Iterable
from typing import Final

import click
import msgspec

from sidestep import __version__
from sidestep.cli import cluster_policies, cluster_view
from sidestep.cli.backend import Backend, backend_options, namespace_for
from sidestep.cli.cluster_view import ClusterStatusView
from sidestep.cli.command import NAMESPACE, Command
from sidestep.cli.listing import condition_lines
from sidestep.cli.output import json_line
from sidestep.cli.table import table
from sidestep.cli.viewing import name_lines, show, view_options, yaml_lines
from sidestep.kube.access import ClusterAccess
from sidestep.laptop.local_client import LocalClient
from sidestep.model.text import harmless
from sidestep.tunnel.messages import PodState, decode
from sidestep.tunnel.versions import difference
from sidestep.tunnel.views import EngineView, InterceptView, NodeStatus, PodView, PolicyView, StatusView

MIB: Final = 1024 * 1024
_POD: Final = re.compile(r"pod [^/ ]+/")
"""Prefix of the subject of a condition about a pod."""
_RELEASE: Final = re.compile(r"v?[0-9]+\.[0-9]+")
"""Beginning of an image's tag that names a release."""


@click.command(cls=Command, short_help="Show the node daemon, target pods, sessions, problems.")
@click.option(
    "--namespace",
    "-n",
    type=NAMESPACE,
    metavar="NS",
    help="Only this namespace. [default: all; in a cluster the context's]",
)
@click.option("--all-namespaces", "-A", is_flag=True, help="All namespaces of a cluster.")
@view_options
@backend_options
def status(namespace: str | None, all_namespaces: bool, backend: Backend, output: str, watch: bool) -> None:
    """Show the node daemon (of a cluster: the daemons), target pods, sessions, and every known problem.

    \b
      sidestep status
      sidestep status --output json
    """

    def look() -> tuple[object, Iterable[str]]:
        if isinstance(backend, ClusterAccess):
            scope = "" if all_namespaces else namespace_for(backend, namespace)
            found = asyncio.run(cluster_view.status(backend, scope))
            return found, _lines(found, _cluster_text(found), output)
        body = asyncio.run(LocalClient(backend).get("/v1/status"))
        view = decode(body, StatusView, what="the daemon's answer")
        if namespace is not None and not all_namespaces:
            view = _in_namespace(view, namespace)
        # Its uptime and its event loop change all the time.
        changing = msgspec.structs.replace(
            view, node=NodeStatus(view.node.name, view.node.version, view.node.pid, 0, {})
        )
        return changing, _lines(view, _text(view, wide=output == "wide"), output)

    show(look, watch=watch)


def _lines(view: StatusView | ClusterStatusView, text: Iterable[str], output: str) -> Iterable[str]:
    """Return a status in a form."""
    if output == "json":
        return [json_line(view)]
    if output == "yaml":
        return yaml_lines([view])
    if output == "name":
        return name_lines((each.kind, each.name) for each in view.intercepts)
    return text


def _in_namespace(view: StatusView, namespace: str) -> StatusView:
    """Return the parts of one namespace, and those that belong to none."""
    return StatusView(
        node=view.node,
        pods=tuple(each for each in view.pods if each.namespace == namespace),
        policies=tuple(each for each in view.policies if each.namespace in {"", namespace}),
        intercepts=tuple(each for each in view.intercepts if each.namespace == namespace),
        conditions=tuple(
            each
            for each in view.conditions
            if _POD.match(each.subject) is None or each.subject.startswith(f"pod {namespace}/")
        ),
    )


def _text(view: StatusView, *, wide: bool = False) -> Iterable[str]:
    node = view.node
    yield harmless(f"Node {node.name}: sidestep {node.version}, pid {node.pid}, up {_duration(node.uptime)}")
    if note := difference(node.version):
        yield harmless(note)
    if counted := _counters(node.counters):
        yield f"  {counted}"
    yield ""
    if view.pods:
        head = ("TARGET POD", "PROXY", "STEERED", "CLIENT ADDRESSES", "COUNTERS")
        rows = [
            (
                f"{pod.namespace}/{pod.name}",
                " ".join([pod.proxy, *map(str, pod.proxy_pids or ([pod.proxy_pid] if pod.proxy_pid else []))]),
                " ".join(pod.steered),
                pod.client_addresses,
                _counters(pod.counters),
            )
            for pod in view.pods
        ]
        yield from table(head, rows)
        for pod in view.pods:
            for port, protocol in pod.protocols.items():
                yield harmless(f"  {pod.namespace}/{pod.name} {port}: {protocol}")
            if pod.why_fewer_workers:
                yield harmless(
                    f"  {pod.namespace}/{pod.name}: fewer proxy processes than asked for: {pod.why_fewer_workers}"
                )
            if count := sum(pod.anomalies.values()):
                reasons = _counters(pod.anomalies)
                yield harmless(f"  {pod.namespace}/{pod.name}: whole connections passed through: {count} ({reasons})")
            yield from _inspection_of(pod)
            yield from _outbound_of(pod)
    else:
        yield "No pod is steered."
    yield ""
    yield from _engines(view.pods)
    yield from _policies(view.policies)
    if view.intercepts:
        columns = ("SESSION", "KIND", "OWNER", "WORKLOAD", "PORT", "FILTER", "ACTIVE", "COUNTERS")
        yield from table(columns, [_intercept(each) for each in view.intercepts])
        for each in view.intercepts:
            for covered in each.state.pods:
                if wide or covered.state != "active":
                    yield harmless(f"  {each.namespace}/{each.name}: pod {covered.pod} is {_pod_state(covered)}")
    else:
        yield "No sessions."
    yield from condition_lines(view.conditions)


def _inspection_of(pod: PodView) -> Iterable[str]:
    """What a policy has closed, and for how long ports with policies were not inspected; empty if neither."""
    name = f"{pod.namespace}/{pod.name}"
    if pod.closed:
        yield harmless(f"  {name}: closed to clients: {' '.join(pod.closed)}")
    if pod.uninspected:
        times = ", ".join(f"{each.seconds:.1f} s {each.outcome} ({each.reason})" for each in pod.uninspected)
        yield harmless(f"  {name}: not inspected: {times}")


def _outbound_of(pod: PodView) -> Iterable[str]:
    """The connections that a pod makes; nothing while they are nobody's business."""
    outbound = pod.outbound
    if outbound is None:
        return
    parts = [f"{outbound.state}, {outbound.open} open", _counters(outbound.counters)]
    if outbound.problem:
        parts.insert(0, f"not inspected: {outbound.problem}")
    if kernel := _counters(outbound.verdicts):
        parts.append(f"kernel: {kernel}")
    yield harmless(f"  {pod.namespace}/{pod.name} outbound: {'; '.join(filter(None, parts))}")


def _engines(pods: Iterable[PodView]) -> Iterable[str]:
    """The processes that inspect beside the proxies; nothing without any."""
    found = [(f"{pod.namespace}/{pod.name}", each) for pod in pods for each in pod.engines]
    if not found:
        return
    head = ("INSPECTION ENGINE", "POD", "STATE", "RULES", "MEMORY", "RESTARTS", "CONNECTIONS")
    rows = [
        (
            f"{each.kind} {each.version}".strip(),
            name,
            f"{each.state} {each.pid or ''}".strip(),
            str(each.rules),
            f"{each.memory / MIB:.0f} of {each.memory_limit / MIB:.0f} MiB",
            str(each.restarts),
            _counters(each.connections) if each.connections else _verdicts(each),
        )
        for name, each in found
    ]
    yield from table(head, rows)
    for name, each in found:
        if each.problem:
            yield harmless(f"  {name}: {each.kind}: {each.problem}")
    yield ""


def _verdicts(engine: EngineView) -> str:
    """How many requests an inspector has judged, within which times, and how many it should have judged and did not."""
    verdicts = engine.verdicts
    said = []
    if verdicts.get("judged"):
        times = [f"{name}<={verdicts[name]}ms" for name in ("p50", "p99") if verdicts.get(name)]
        said.append(" ".join([f"judged={verdicts['judged']}", *times]))
    if unjudged := _counters(engine.bypassed):
        said.append(f"not judged: {unjudged}")
    return "; ".join(said) or "-"


def _policies(policies: Iterable[PolicyView]) -> Iterable[str]:
    """The inspection policies; nothing without any."""
    rows = [
        (
            f"{each.namespace}/{each.name}".lstrip("/"),
            " ".join(filter(None, (each.mode, each.failure_policy))) if each.in_force else "not in force",
            f"{len(each.programmed)} of {len(each.programmed) + each.failing_pods}",
            _counters(each.hits),
            _counters(each.bypassed),
            _counters(each.closed),
        )
        for each in policies
    ]
    if rows:
        yield from table(("INSPECTION POLICY", "MODE", "PODS", "HITS", "NOT INSPECTED", "CLOSED"), rows)
        for each in policies:
            for covered in each.failing:
                name = f"{each.namespace}/{each.name}".lstrip("/")
                yield harmless(f"  {name}: pod {covered.pod} is {_pod_state(covered)}")
            for gap in each.gaps:
                name = f"{each.namespace}/{each.name}".lstrip("/")
                on = f"on {gap.pods} {'pod' if gap.pods == 1 else 'pods'}"
                yield harmless(
                    f"  {name}: not inspected {on} from {_time(gap.start)} to {_time(gap.end)} ({gap.reason})"
                )
        yield ""


def _time(seconds: float) -> str:
    """RFC 3339, in UTC, to the second."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _cluster_text(view: ClusterStatusView) -> Iterable[str]:
    yield harmless(f"Cluster {view.server}, " + (f"namespace {view.namespace}" if view.namespace else "all namespaces"))
    yield ""
    if view.daemons:
        rows = [
            (each.node, each.pod, "ready" if each.ready else "not ready", str(each.restarts), each.version)
            for each in view.daemons
        ]
        yield from table(("NODE", "DAEMON", "STATE", "RESTARTS", "VERSION"), rows)
        others = sorted(
            {each.version for each in view.daemons if _RELEASE.match(each.version)} - {__version__, f"v{__version__}"}
        )
        if others:
            yield harmless(difference(" and ".join(others)))
    else:
        yield "No node daemons can be seen (role sidestep-tunnel in namespace sidestep lets you)."
    yield ""
    yield from cluster_policies.text(view.policies)
    if view.intercepts:
        head = ("SESSION", "KIND", "OWNER", "WORKLOAD", "PORT", "FILTER", "STATE", "PODS", "NODES", "MESSAGE")
        yield from table(
            head,
            [
                (
                    f"{each.namespace}/{each.name}",
                    each.kind,
                    each.owner,
                    each.workload,
                    each.port,
                    each.filter,
                    each.state,
                    str(each.active_pods),
                    " ".join(each.nodes),
                    each.message,
                )
                for each in view.intercepts
            ],
        )
    else:
        yield "No sessions."
    yield from condition_lines(view.conditions)


def _intercept(each: InterceptView) -> tuple[str, ...]:
    return (
        f"{each.namespace}/{each.name}",
        each.kind,
        each.owner,
        each.workload,
        f"{each.port}/{each.transport}",
        each.filter,
        f"{each.state.active} of {len(each.state.pods)}",
        _counters(each.counters),
    )


def _pod_state(pod: PodState) -> str:
    """Describe a pod's state. An attached pod without traffic and one whose traffic bypasses the hook look alike."""
    state = "attached, no connection seen" if pod.state == "attached" else pod.state
    return f"{state}: {pod.detail}" if pod.detail else state


def _counters(counters: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counters.items() if count)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
