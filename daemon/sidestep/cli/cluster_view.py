"""`list`, `status` and `leave` in a cluster: they read and write its API and contact no daemon.

Ports and protocols come from the same survey that daemons use. Data that only a daemon has (certificates, probed
protocols) is shown where the status of a resource or an Event contains it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sidestep.cli.cluster_policies import InspectedPorts, PolicyResourceView, inspected_ports, policies
from sidestep.cli.session_choice import Wanted, choose
from sidestep.config.filters import describe_filter
from sidestep.kube.access import ClusterAccess
from sidestep.kube.api import Api
from sidestep.kube.errors import ApiError
from sidestep.kube.events import COMPONENT
from sidestep.kube.paths import escape
from sidestep.kube.resource_fields import GROUP
from sidestep.kube.resources import Resource, collection_path, deletion, read, resource_path
from sidestep.kube.session_specs import DEFINITIONS
from sidestep.kube.snapshot import list_all, read_inventory
from sidestep.kube.watch import decode
from sidestep.laptop.api_refusals import DAEMON_LABELS, DAEMON_NAMESPACE, explain
from sidestep.model.errors import ClusterError, ConfigurationError, RefusedError, SidestepError
from sidestep.model.intercept import Intercept, SessionKind, intercepts_among, sessions_among
from sidestep.model.inventory import Inventory
from sidestep.model.pod import PodKey, Transport, common_labels
from sidestep.policy.pod_ports import ports_of
from sidestep.policy.survey import PodSurvey, PortSurvey, protocol_text, survey
from sidestep.policy.workloads import pods_of
from sidestep.tunnel.views import ConditionView, PortView, WorkloadView


class DaemonView(msgspec.Struct, frozen=True):
    """A node daemon, from its pod."""

    pod: str
    node: str
    ready: bool
    restarts: int
    version: str


class ResourceView(msgspec.Struct, frozen=True):
    """A session."""

    namespace: str
    name: str
    kind: str
    owner: str
    workload: str
    port: str
    filter: str
    state: str
    message: str
    active_pods: int
    nodes: tuple[str, ...]


class ClusterStatusView(msgspec.Struct, frozen=True):
    """Everything that `sidestep status` shows of a cluster."""

    server: str
    namespace: str
    daemons: tuple[DaemonView, ...] = ()
    policies: tuple[PolicyResourceView, ...] = ()
    intercepts: tuple[ResourceView, ...] = ()
    conditions: tuple[ConditionView, ...] = ()


async def workloads(access: ClusterAccess, namespace: str) -> tuple[tuple[WorkloadView, ...], InspectedPorts]:
    """Return the workloads of a namespace, and what policies say of ports. Raises RefusedError, ClusterError."""
    api = Api(access)
    try:
        try:
            inventory = await read_inventory(api, namespace)
        except ClusterError as error:
            raise explain(error, verb="list", resource="pods", namespace=namespace) from error
        resources = [each for each in await _resources(api, namespace) if each.intercept is not None]
        conditions = await _events(api, namespace)
        inspected = await inspected_ports(api, namespace)
    finally:
        await api.aclose()
    return tuple(_inspected(each, inspected) for each in _views(inventory, resources, conditions)), inspected


async def workload_ports(access: ClusterAccess, namespace: str) -> tuple[WorkloadView, ...]:
    """Return the workloads of a namespace with what Pods and Services say of their ports. Raises RefusedError,
    ClusterError.
    """
    api = Api(access)
    try:
        inventory = await read_inventory(api, namespace)
    except ClusterError as error:
        raise explain(error, verb="list", resource="pods", namespace=namespace) from error
    finally:
        await api.aclose()
    return _views(inventory, [], {})


async def status(access: ClusterAccess, namespace: str) -> ClusterStatusView:
    """Return the daemons, and the resources and problems of a namespace. Raises RefusedError, ClusterError."""
    api = Api(access)
    try:
        resources = await _resources(api, namespace)
        daemons = await _daemons(api)
        inspection = await policies(api, namespace)
        conditions = [each for found in (await _events(api, namespace)).values() for each in found]
    finally:
        await api.aclose()
    for resource in resources:
        for entry in resource.status.nodes.values():
            if entry is not None:
                conditions += [ConditionView(each.type, each.subject, each.text) for each in entry.conditions]
    return ClusterStatusView(
        server=str(access),
        namespace=namespace,
        daemons=daemons,
        policies=inspection,
        intercepts=tuple(_resource_view(each) for each in resources),
        conditions=tuple(dict.fromkeys(conditions)),
    )


async def session_views(api: Api, namespace: str) -> list[ResourceView]:
    """Return the sessions of a namespace. Raises RefusedError, ClusterError."""
    return [_resource_view(each) for each in await _resources(api, namespace)]


async def leave(access: ClusterAccess, namespace: str, wanted: Wanted) -> str:
    """Delete the session that is meant (`session_choice`); returns its kind. Kinds that the user may not read are
    passed over where another has the name. Raises RefusedError, ClusterError.
    """
    api = Api(access)
    try:
        there, refused = await _named_so(api, namespace, wanted.name)
        if not there and refused is not None:
            raise refused
        chosen = choose(wanted, there, namespace)
        found = there[chosen]
        try:
            await api.delete(found.path, deletion(found.metadata.uid))
        except ApiError as error:
            if error.status != 404:
                raise explain(error, verb="delete", resource=_named(found.kind), namespace=namespace) from error
    finally:
        await api.aclose()
    return chosen


async def _named_so(api: Api, namespace: str, name: str) -> tuple[dict[str, Resource], SidestepError | None]:
    """Return the sessions of a name by what they are called, and why one of the kinds could not be read, if so."""
    there: dict[str, Resource] = {}
    refused: SidestepError | None = None
    for kind, definition in DEFINITIONS.items():
        try:
            found = read(kind, decode(await api.get(resource_path(kind, namespace, name)), dict))
        except ApiError as error:
            if error.status == 404 and (error.reason or definition.optional):
                continue
            explained = explain(error, verb="get", resource=_named(kind), namespace=namespace)
            if not error.forbidden:
                raise explained from error
            refused = refused or (None if definition.optional else explained)
        else:
            there[_shown_kind(found)] = found
    return there, refused


def _shown_kind(resource: Resource) -> str:
    """What people call a session."""
    return resource.intercept.shown_kind if resource.intercept is not None else resource.kind.value


# --- reading ------------------------------------------------------------------------------------------------------


async def _resources(api: Api, namespace: str) -> list[Resource]:
    """Return the sessions of a namespace, of the kinds that are installed and that the user may read. Raises what is
    in the way where they may read none.
    """
    found = []
    refused: dict[SessionKind, SidestepError] = {}
    for kind, definition in DEFINITIONS.items():
        try:
            values = await list_all(api, collection_path(kind, namespace))
        except ClusterError as error:
            explained = explain(error, verb="list", resource=_named(kind), namespace=namespace)
            absent = isinstance(error, ApiError) and error.status == 404 and definition.optional
            if not absent and not (isinstance(error, ApiError) and error.forbidden):
                raise explained from error
            refused[kind] = explained
            continue
        for value in values:
            try:
                found.append(read(kind, value))
            except ConfigurationError:
                continue  # a resource without a name cannot be shown
    if len(refused) == len(DEFINITIONS):
        raise next(iter(refused.values()))
    return sorted(found, key=lambda each: (each.metadata.creation_timestamp, each.display))


def _named(kind: SessionKind) -> str:
    return f"{DEFINITIONS[kind].plural}.{GROUP}"


async def _daemons(api: Api) -> tuple[DaemonView, ...]:
    """Return the daemons' pods; nothing when the user may not read them."""
    try:
        values = await list_all(
            api,
            f"/api/v1/namespaces/{DAEMON_NAMESPACE}/pods",
            query={"labelSelector": DAEMON_LABELS},
        )
    except ApiError as error:
        if error.forbidden:
            return ()
        raise
    return tuple(sorted((_daemon(value) for value in values), key=lambda each: (each.node, each.pod)))


def _daemon(value: dict[str, Any]) -> DaemonView:
    containers = (value.get("status") or {}).get("containerStatuses") or [{}]
    image = str(((value.get("spec") or {}).get("containers") or [{}])[0].get("image", ""))
    return DaemonView(
        pod=str(value["metadata"]["name"]),
        node=str((value.get("spec") or {}).get("nodeName", "")),
        ready=bool(containers[0].get("ready")),
        restarts=int(containers[0].get("restartCount", 0)),
        version=image.rpartition(":")[2],
    )


async def _events(api: Api, namespace: str) -> dict[PodKey | None, list[ConditionView]]:
    """Return the current conditions that daemons have reported as Events, by pod; key None for other objects."""
    scope = f"namespaces/{escape(namespace)}/" if namespace else ""
    try:
        values = await list_all(api, f"/api/v1/{scope}events", query={"fieldSelector": f"source={COMPONENT}"})
    except ApiError as error:
        if error.forbidden:
            return {}
        raise
    found: dict[tuple[PodKey | None, ConditionView], None] = {}
    for value in sorted(values, key=lambda each: str(each.get("lastTimestamp"))):
        about = value.get("involvedObject") or {}
        name, space, kind = str(about.get("name")), str(about.get("namespace", "")), str(about.get("kind"))
        pod = PodKey(space, name) if kind == "Pod" else None
        reason = str(value.get("reason"))
        if kind == DEFINITIONS[SessionKind.CAPTURE].kind and reason.startswith(kind):
            continue  # it tells of a capture, which is shown itself while it is there
        subject = f"{kind.lower()} {space}/{name}".replace(" /", " ")
        view = ConditionView(reason.removesuffix("Resolved"), subject, str(value.get("message")))
        if reason.endswith("Resolved"):
            found.pop((pod, view), None)
        else:
            found[pod, view] = None
    grouped: dict[PodKey | None, list[ConditionView]] = {}
    for pod, view in found:
        grouped.setdefault(pod, []).append(view)
    return grouped


# --- views --------------------------------------------------------------------------------------------------------


def _views(
    inventory: Inventory, resources: list[Resource], conditions: dict[PodKey | None, list[ConditionView]]
) -> tuple[WorkloadView, ...]:
    surveys: dict[tuple[str, str, str], list[PodSurvey]] = {
        (key.namespace, key.kind, key.name): [] for key, each in inventory.workloads.items() if not each.owners
    }
    for pod in inventory.pods.values():
        if pod.ended:
            continue
        owner = (pod.owners[-1].kind, pod.owners[-1].name) if pod.owners else ("pod", pod.key.name)
        found = survey(pod, inventory, node_annotations={})
        surveys.setdefault((pod.key.namespace, *owner), []).append(found)
    covering: dict[PodKey, list[Intercept]] = {}
    for resource in resources:
        if resource.intercept is not None:
            for key in _covered(resource.intercept, inventory):
                covering.setdefault(key, []).append(resource.intercept)
    return tuple(
        _view(name, found, inventory, covering, conditions) for name, found in sorted(surveys.items(), key=_first)
    )


def _inspected(view: WorkloadView, inspected: InspectedPorts) -> WorkloadView:
    """A workload with the policies that apply to its ports, and to connections that it makes."""
    ports = (
        msgspec.structs.replace(port, policies=inspected.of(view.namespace, view.kind, view.name, port.number))
        if port.transport == Transport.TCP.value
        else port
        for port in view.ports
    )
    outward = inspected.outward(view.namespace, view.kind, view.name)
    return msgspec.structs.replace(view, ports=tuple(ports), egress=outward)


def _first(item: tuple[tuple[str, str, str], object]) -> tuple[str, str, str]:
    return item[0]


def _covered(intercept: Intercept, inventory: Inventory) -> list[PodKey]:
    try:
        return [pod.key for pod in pods_of(intercept, inventory)]
    except RefusedError:
        return []


def _view(
    name: tuple[str, str, str],
    surveys: list[PodSurvey],
    inventory: Inventory,
    covering: dict[PodKey, list[Intercept]],
    conditions: dict[PodKey | None, list[ConditionView]],
) -> WorkloadView:
    ports: dict[tuple[int, str], PortView] = {}
    stated: dict[ConditionView, None] = {}
    sessions: set[Intercept] = set()
    claimed: dict[tuple[int, str], set[Intercept]] = {}
    for found in surveys:
        here = covering.get(found.pod.key, [])
        sessions.update(here)
        for port, claiming in ports_of(found.pod, inventory).claimed(here).items():
            claimed.setdefault((port[0], port[1].value), set()).update(claiming)
        stated.update(dict.fromkeys(conditions.get(found.pod.key, ())))
        for condition in found.conditions:
            stated[ConditionView(condition.type.value, condition.subject, condition.text)] = None
        for each in found.ports:
            ports.setdefault((each.port.number, each.port.transport.value), _port(each))
    return WorkloadView(
        namespace=name[0],
        kind=name[1],
        name=name[2],
        pods=tuple(sorted(found.pod.key.name for found in surveys)),
        ports=tuple(
            msgspec.structs.replace(
                view,
                intercepts=intercepts_among(claimed.get(key, ())),
                sessions=sessions_among(claimed.get(key, ())),
            )
            for key, view in sorted(ports.items())
        ),
        intercepts=intercepts_among(sessions),
        sessions=sessions_among(sessions),
        listening=sessions_among(each for each in sessions if each.egress),
        labels=common_labels(found.pod for found in surveys),
        conditions=tuple(stated),
    )


def _port(each: PortSurvey) -> PortView:
    protocol = each.protocol
    return PortView(
        number=each.port.number,
        transport=each.port.transport.value,
        protocol=protocol_text(protocol, each.port.transport),
        tls=protocol.tls.value,
        http2=protocol.http2.value,
        known=protocol.source if protocol.source != "probing" else "not known yet",
        name=each.port.name,
        service_ports=each.resolved.services,
    )


def _resource_view(resource: Resource) -> ResourceView:
    intercept, fields = resource.intercept, resource.status
    return ResourceView(
        namespace=resource.metadata.namespace,
        name=resource.metadata.name,
        kind=_shown_kind(resource),
        owner=intercept.owner if intercept is not None else "",
        workload=str(intercept.workload) if intercept is not None else "",
        port=intercept.place if intercept is not None else "",
        filter=describe_filter(intercept.filter) if intercept is not None else "",
        state=fields.state or "Pending",
        message=resource.problem or fields.message,
        active_pods=fields.active_pods,
        nodes=tuple(sorted(name for name, entry in fields.nodes.items() if entry is not None)),
    )
