"""What sessions ask for as resources: the `spec` of each kind, and the intercept that it means.

    Intercept, Wiretap   deploy/daemonset.yaml      whoever has role sidestep-developer
    Capture              deploy/inspection.yaml     whoever has role sidestep-capturer; decrypted traffic
    Inspection           deploy/inspection.yaml     whoever has role sidestep-auditor; records, with secrets redacted
    PodAccess            deploy/daemonset.yaml      whoever has role sidestep-pod-access; like pods/exec

Each kind has a struct of its own, so that a spec cannot ask for what another kind is for: RBAC knows kinds and no
fields. `DEFINITIONS` has what else differs. Rules that a schema cannot express are checked here, because anybody with
the permission can write a resource.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec.structs import replace

from sidestep.config import capture
from sidestep.config.filters import check_limits, check_method, check_name, check_value
from sidestep.config.shown import check_shown, shown_of, since_of
from sidestep.kube.resource_fields import MetadataFields, ResourceFields
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest, PathCondition, PathTest
from sidestep.model.intercept import Allow, Intercept, Kind, Live, SessionKind, Snap, WorkloadRef
from sidestep.model.pod import Transport
from sidestep.model.secret_fields import SECRET
from sidestep.policy.earlier_alerts import check_alert
from sidestep.policy.matching import prove
from sidestep.policy.outbound_sessions import check_egress
from sidestep.policy.pod_access import check_access
from sidestep.policy.workloads import parse_workload

_PORT = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")
_POD = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_PRINTABLE = re.compile(r"[ -~]{0,128}")


class HeaderFields(ResourceFields, frozen=True):
    """`spec.filter.headers[]`."""

    name: str
    match: Literal["Exact", "Regex", "Present"] = "Exact"
    value: str = ""


class PathFields(ResourceFields, frozen=True):
    """`spec.filter.paths[]`."""

    match: Literal["Equal", "Prefix", "Regex"]
    value: str


class FilterFields(ResourceFields, frozen=True):
    """`spec.filter`: headers AND methods AND (paths OR-ed)."""

    headers: list[HeaderFields] = msgspec.field(default_factory=list)
    methods: list[str] = msgspec.field(default_factory=list)
    paths: list[PathFields] = msgspec.field(default_factory=list)


class SessionFields(ResourceFields, frozen=True, omit_defaults=False):
    """`spec.session`: the public key of the session that may open the tunnel."""

    public_key: str


class HandlerFields(ResourceFields, frozen=True):
    """`spec.handler`: the handler's address, for display only."""

    plaintext: bool = False


class ShowFields(ResourceFields, frozen=True):
    """`spec.show`: which of its requests the session is shown (`model.shown.Shown`). `since` is text like 10m."""

    statuses: list[str] = msgspec.field(default_factory=list)
    since: str = ""
    last: int = 0


class SpecFields(ResourceFields, frozen=True):
    """`spec` of an Intercept or Wiretap. It has no field of a capture: who may create these may not capture."""

    workload: str
    session: SessionFields
    port: str | int = ""
    transport: Literal["TCP", "UDP"] = "TCP"
    filter: FilterFields = msgspec.field(default_factory=FilterFields)
    pod: str = ""
    owner: str = ""
    divert_probes: bool = False
    reset_existing: bool = False
    heads_only: bool = False
    handler: HandlerFields = msgspec.field(default_factory=HandlerFields)
    show: ShowFields = msgspec.field(default_factory=ShowFields)
    egress: bool = False
    renew_time: str | None = None


class CaptureFields(ResourceFields, frozen=True):
    """`spec` of a Capture. `duration` is text like 60s, `max_bytes` bounds what each node sends."""

    workload: str
    session: SessionFields
    port: str | int = ""
    filter: FilterFields = msgspec.field(default_factory=FilterFields)
    pod: str = ""
    owner: str = ""
    reset_existing: bool = False
    duration: str = capture.DEFAULT_DURATION
    max_bytes: int = capture.DEFAULT_BYTES
    snap: Literal["Heads", "All"] = "Heads"
    egress: bool = False
    renew_time: str | None = None


class InspectionFields(ResourceFields, frozen=True):
    """`spec` of an Inspection."""

    workload: str
    session: SessionFields
    port: str | int = ""
    filter: FilterFields = msgspec.field(default_factory=FilterFields)
    pod: str = ""
    owner: str = ""
    reset_existing: bool = False
    records: Literal["All", "Alerts"] = "All"
    alert: str = ""
    egress: bool = False
    renew_time: str | None = None


class PodAccessFields(ResourceFields, frozen=True):
    """`spec` of a PodAccess. At least one of `workload` and `pod`: a pod alone is meant by its name."""

    allow: list[Literal["Environment", "Files", "Network"]]
    session: SessionFields
    workload: str = ""
    pod: str = ""
    container: str = ""
    allow_loopback: bool = False
    owner: str = ""
    renew_time: str | None = None


AnySpec = SpecFields | CaptureFields | InspectionFields | PodAccessFields


class Definition(msgspec.Struct, frozen=True):
    """How a kind of session is a resource."""

    kind: str
    """As in `kind` of a manifest."""
    plural: str
    """The name of its collection."""
    fields: type[AnySpec]
    role: str = "sidestep-developer"
    """The ClusterRole whose holders may create it."""
    manifest: str = "daemonset.yaml"
    """The file in deploy/ that defines it."""
    optional: bool = False
    """Whether a cluster may lack it."""
    is_told: bool = False
    """Whether an Event has to say who asks for what before a node serves it."""


DEFINITIONS: Mapping[SessionKind, Definition] = {
    SessionKind.INTERCEPT: Definition("Intercept", "intercepts", SpecFields),
    SessionKind.WIRETAP: Definition("Wiretap", "wiretaps", SpecFields),
    SessionKind.CAPTURE: Definition(
        "Capture",
        "captures",
        CaptureFields,
        role="sidestep-capturer",
        manifest="inspection.yaml",
        optional=True,
        is_told=True,
    ),
    SessionKind.INSPECTION: Definition(
        "Inspection",
        "inspections",
        InspectionFields,
        role="sidestep-auditor",
        manifest="inspection.yaml",
        optional=True,
    ),
    SessionKind.ACCESS: Definition(
        "PodAccess", "podaccesses", PodAccessFields, role="sidestep-pod-access", optional=True
    ),
}


def intercept_of(kind: SessionKind, metadata: MetadataFields, spec: AnySpec) -> Intercept:
    """Return the intercept that a spec requests. Raises ConfigurationError or RefusedError with the invalid field."""
    made = _intercept_of(kind, metadata, spec)
    check_egress(made)
    check_access(made)
    return made


def _intercept_of(kind: SessionKind, metadata: MetadataFields, spec: AnySpec) -> Intercept:
    if isinstance(spec, CaptureFields):
        seconds = capture.duration_of(spec.duration, subject="spec.duration")
        size = capture.size_of(spec.max_bytes, subject="spec.maxBytes")
        basis = _basis(Kind.WIRETAP, metadata, spec)
        return replace(basis, capture=Snap(spec.snap.lower()), duration=seconds, max_bytes=size)
    if isinstance(spec, InspectionFields):
        _check_shows_no_secret(spec.filter)
        made = replace(_basis(Kind.WIRETAP, metadata, spec), records=Live(spec.records.lower()), alert=spec.alert)
        check_alert(made)
        return made
    if isinstance(spec, PodAccessFields):
        return _access_of(metadata, spec)
    transport = Transport(spec.transport.lower())
    intercept = replace(
        _basis(Kind(kind.value), metadata, spec),
        transport=transport,
        divert_probes=spec.divert_probes,
        plaintext=spec.handler.plaintext,
        heads_only=spec.heads_only and kind is SessionKind.WIRETAP,
        shown=shown_of(
            spec.show.statuses, since=since_of(spec.show.since, subject="spec.show.since"), last=spec.show.last
        ),
    )
    check_shown(intercept)
    if transport is Transport.UDP and not intercept.filter.is_global:
        raise RefusedError("a filter on a UDP port is not possible: datagrams are carried, never opened")
    return intercept


def _access_of(metadata: MetadataFields, spec: PodAccessFields) -> Intercept:
    if not spec.allow or len(set(spec.allow)) < len(spec.allow):
        raise ConfigurationError("must name what is allowed, each once", subject="spec.allow")
    if not spec.workload and not spec.pod:
        raise ConfigurationError("is missing, and so is spec.pod", subject="spec.workload")
    _check_pod(spec.pod)
    return Intercept(
        uid=metadata.uid,
        namespace=metadata.namespace,
        name=metadata.name,
        kind=Kind.WIRETAP,
        workload=parse_workload(spec.workload) if spec.workload else WorkloadRef(spec.pod, "pod"),
        port="",
        created=parse_time(metadata.creation_timestamp),
        owner=owner_of(spec),
        pod=spec.pod or None,
        allow=frozenset(Allow(each.lower()) for each in spec.allow),
        container=spec.container,
        allow_loopback=spec.allow_loopback,
    )


def _check_shows_no_secret(fields: FilterFields) -> None:
    """Raise RefusedError for a filter on the value of a credential: which requests are told would tell the value."""
    for header in fields.headers:
        name = header.name.lower().replace("_", "-")
        if header.match != "Present" and name.encode() in SECRET:
            raise RefusedError(f"an inspection may ask whether a request has {name}, not for its value: it is a secret")


def _check_pod(name: str) -> None:
    if name and not _POD.fullmatch(name):
        raise ConfigurationError("is no pod's name", subject="spec.pod", value=name[:100])


def _basis(kind: Kind, metadata: MetadataFields, spec: SpecFields | CaptureFields | InspectionFields) -> Intercept:
    """Return what the specs of the kinds that get traffic have in common."""
    _check_pod(spec.pod)
    port = str(spec.port)
    if not _PORT.fullmatch(port) and not (spec.egress and not port):
        raise ConfigurationError("is no port's name or number", subject="spec.port", value=port[:100])
    return Intercept(
        uid=metadata.uid,
        namespace=metadata.namespace,
        name=metadata.name,
        kind=kind,
        workload=parse_workload(spec.workload),
        port=port,
        filter=_filter_of(spec.filter),
        created=parse_time(metadata.creation_timestamp),
        owner=owner_of(spec),
        pod=spec.pod or None,
        reset_existing=spec.reset_existing,
        egress=spec.egress,
    )


def owner_of(spec: AnySpec) -> str:
    """Return the claimed owner; "" where it is not printable."""
    return spec.owner if _PRINTABLE.fullmatch(spec.owner) else ""


def _filter_of(fields: FilterFields) -> Filter:
    for header in fields.headers:
        check_name(header.name)
        check_value(header.value, subject=f"header {header.name}")
    for method in fields.methods:
        check_method(method)
    for path in fields.paths:
        check_value(path.value, subject="path")
    wanted = Filter(
        headers=tuple(
            HeaderCondition(each.name, HeaderTest(each.match.lower()), each.value) for each in fields.headers
        ),
        methods=tuple(fields.methods),
        paths=tuple(PathCondition(PathTest(each.match.lower()), each.value) for each in fields.paths),
    )
    check_limits(wanted)
    prove(wanted)
    return wanted


def filter_fields(wanted: Filter) -> FilterFields:
    """Convert a filter to the form that a spec contains."""
    headers = [(each.name, each.test.value.capitalize(), each.value) for each in wanted.headers]
    paths = [(each.test.value.capitalize(), each.value) for each in wanted.paths]
    value = {
        "headers": [dict(zip(("name", "match", "value"), row, strict=True)) for row in headers],
        "methods": list(wanted.methods),
        "paths": [dict(zip(("match", "value"), row, strict=True)) for row in paths],
    }
    return msgspec.convert(value, FilterFields)


def parse_time(text: str) -> float:
    """Parse an RFC 3339 time; returns seconds since the epoch, 0.0 when it is invalid."""
    try:
        return dt.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
