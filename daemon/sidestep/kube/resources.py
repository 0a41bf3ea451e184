"""Sessions as resources (sidestep.dev/v1alpha1): read, validated, written. `session_specs` has their kinds.

    spec    what is requested: workload, port, filter, and the session that renews it
    status  what the node daemons report: each patches its own entry of `nodes`, so writes do not conflict

Reading has two steps. `observe` runs for every event: identity, renewal, status, and the digest of the spec. `validate`
interprets the spec and compiles its regexes, which takes up to 50 ms, and runs once per spec. `read` does both.

The digest covers the meaning of the spec without `renewTime`: an absent field and a field with its default value are
equal, and unknown fields do not count. Neither defaults filled in by an API server nor a newer resource definition
change it.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from sidestep.config.schema_fault import fault_of
from sidestep.kube.paths import escape
from sidestep.kube.resource_fields import GROUP, VERSION, MetadataFields, ResourceFields
from sidestep.kube.session_specs import DEFINITIONS, AnySpec, intercept_of, owner_of
from sidestep.kube.watch import KubeObject
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.intercept import Intercept, SessionKind

RENEWAL = 10.0
"""Seconds between two renewals by the CLI."""
INERT_AFTER = 30.0
"""Seconds without renewal after which a resource neither matches traffic nor conflicts with others."""
DELETED_AFTER = 600.0
"""Seconds without renewal after which a daemon deletes it."""

_UID = re.compile(r"[0-9A-Za-z-]{1,64}")


class PodEntry(ResourceFields, frozen=True):
    """`status.nodes.NODE.pods[]`."""

    name: str
    state: str
    detail: str = ""


class DaemonEntry(ResourceFields, frozen=True, omit_defaults=False):
    """`status.nodes.NODE.daemon`: the pod for port-forwards. `started` orders two daemons of one node."""

    namespace: str
    pod: str
    port: int
    started: str


class ConditionEntry(ResourceFields, frozen=True, omit_defaults=False):
    """`status.nodes.NODE.conditions[]`: `model.condition.Condition`."""

    type: str
    subject: str
    text: str


class NodeEntry(ResourceFields, frozen=True, omit_defaults=False):
    """`status.nodes.NODE`. `refusal` is the reason why this node serves none of its pods; otherwise empty."""

    daemon: DaemonEntry
    certificate: str
    pods: tuple[PodEntry, ...] = ()
    refusal: str = ""
    conditions: tuple[ConditionEntry, ...] = ()


class StatusCondition(ResourceFields, frozen=True, omit_defaults=False):
    """`status.conditions[]` (meta/v1 Condition)."""

    type: str
    status: str
    reason: str
    message: str
    last_transition_time: str


class StatusFields(ResourceFields, frozen=True):
    """`status`. `spec_digest` is the digest of the accepted spec; the first daemon writes it and it never changes."""

    spec_digest: str = ""
    state: str = ""
    message: str = ""
    filter: str = ""
    active_pods: int = 0
    nodes: dict[str, NodeEntry | None] = msgspec.field(default_factory=dict)
    conditions: tuple[StatusCondition, ...] = ()


class _Envelope(ResourceFields, frozen=True):
    metadata: MetadataFields
    spec: Any = None
    status: Any = None


class ObservedResource(msgspec.Struct, frozen=True):
    """A resource whose spec is not validated. `fields` is None when the spec has the wrong types; `flaw` is the
    reason.
    """

    kind: SessionKind
    metadata: MetadataFields
    status: StatusFields
    renewed: str
    digest: str
    fields: AnySpec | None
    flaw: str = ""

    @property
    def owner(self) -> str:
        """The claimed owner; "" when absent or not printable."""
        return owner_of(self.fields) if self.fields is not None else ""

    @property
    def display(self) -> str:
        """`namespace/name`."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def path(self) -> str:
        """Path of the resource at the API server."""
        return resource_path(self.kind, self.metadata.namespace, self.metadata.name)


def collection_path(kind: SessionKind, namespace: str = "") -> str:
    """Return the path of all resources of a kind, in one namespace or in all."""
    scope = f"/namespaces/{escape(namespace)}" if namespace else ""
    return f"/apis/{GROUP}/{VERSION}{scope}/{DEFINITIONS[kind].plural}"


def resource_path(kind: SessionKind, namespace: str, name: str) -> str:
    """Return the path of one resource."""
    return f"{collection_path(kind, namespace)}/{escape(name)}"


class Resource(msgspec.Struct, frozen=True):
    """A validated resource. `intercept` and `public_key` are set unless `problem` is."""

    kind: SessionKind
    metadata: MetadataFields
    status: StatusFields
    intercept: Intercept | None
    public_key: str
    problem: str = ""

    @property
    def display(self) -> str:
        """`namespace/name`."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def path(self) -> str:
        """Path of the resource at the API server."""
        return resource_path(self.kind, self.metadata.namespace, self.metadata.name)


def read(kind: SessionKind, value: KubeObject) -> Resource:
    """Read and validate a resource; a fault of its spec becomes its `problem`.

    Raises ConfigurationError when it has no identity.
    """
    return validate(observe(kind, value))


def observe(kind: SessionKind, value: KubeObject) -> ObservedResource:
    """Read a resource without validating its spec. Raises ConfigurationError when it has no identity."""
    try:
        envelope = msgspec.convert(value, _Envelope)
    except msgspec.ValidationError as error:
        raise ConfigurationError(fault_of(error), subject=DEFINITIONS[kind].kind) from error
    metadata = envelope.metadata
    if not (metadata.name and metadata.namespace and _UID.fullmatch(metadata.uid)):
        raise ConfigurationError("has no name, namespace or uid", subject=DEFINITIONS[kind].kind)
    fields, flaw = None, ""
    try:
        fields = msgspec.convert(envelope.spec, DEFINITIONS[kind].fields)
    except msgspec.ValidationError as error:
        flaw = f"spec: {fault_of(error)}"
    try:
        status = msgspec.convert(envelope.status or {}, StatusFields)
    except msgspec.ValidationError:
        status = StatusFields()
    renewed = (fields.renew_time if fields is not None else "") or ""
    return ObservedResource(kind, metadata, status, renewed, digest_of(fields, envelope.spec), fields, flaw)


def digest_of(fields: AnySpec | None, spec: object) -> str:
    """Return the digest of a spec for `status.specDigest`: SHA-256, hexadecimal.

    `spec` is the raw value; it is used when `fields` is None.
    """
    if fields is not None:
        meant: object = msgspec.structs.replace(fields, renew_time=None)
    else:
        meant = {name: value for name, value in spec.items() if name != "renewTime"} if isinstance(spec, dict) else spec
    return hashlib.sha256(msgspec.json.encode(meant, order="deterministic")).hexdigest()


def validate(seen: ObservedResource) -> Resource:
    """Interpret a spec; a fault becomes the `problem` of the result. Compiles regexes, which takes up to 50 ms."""
    intercept, key, problem = None, "", seen.flaw
    if seen.fields is not None:
        key = seen.fields.session.public_key
        try:
            intercept = intercept_of(seen.kind, seen.metadata, seen.fields)
        except (ConfigurationError, RefusedError) as error:
            problem = str(error)
    return Resource(seen.kind, seen.metadata, seen.status, intercept, key, problem)


def manifest(kind: SessionKind, namespace: str, name: str, spec: AnySpec) -> bytes:
    """Return the resource to create, as JSON."""
    value: Mapping[str, object] = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": DEFINITIONS[kind].kind,
        "metadata": {"namespace": namespace, "name": name},
        "spec": spec,
    }
    return msgspec.json.encode(value)


def renewal(now: dt.datetime) -> bytes:
    """Return the merge patch of a renewal."""
    return msgspec.json.encode({"spec": {"renewTime": micro_time(now)}})


def status_patch(fields: Mapping[str, object], *, resource_version: str = "") -> bytes:
    """Return a merge patch of the status. With `resource_version` the server applies it to that version only (else
    409).

    Empty strings are removed instead of written: API servers built with some Go versions treat "" as null and reject it
    (go-openapi/validate compares with reflect.Zero, whose address became that of every empty string).
    """
    value: dict[str, object] = {"status": _without_empty_texts(fields)}
    if resource_version:
        value["metadata"] = {"resourceVersion": resource_version}
    return msgspec.json.encode(value)


def _without_empty_texts(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: None if each == "" else _without_empty_texts(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nulls(_without_empty_texts(each)) for each in value]
    return value


def _without_nulls(value: object) -> object:
    """Drop null from lists, where a merge patch would write it."""
    if isinstance(value, Mapping):
        return {name: each for name, each in value.items() if each is not None}
    return value


def deletion(uid: str, *, resource_version: str = "") -> bytes:
    """Return DeleteOptions that delete exactly this object, and with `resource_version` exactly this version."""
    preconditions = {"uid": uid} | ({"resourceVersion": resource_version} if resource_version else {})
    return msgspec.json.encode({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions})


def micro_time(now: dt.datetime) -> str:
    """Format a time as meta/v1 MicroTime: RFC 3339 in UTC with microseconds."""
    return f"{now.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def encode_certificate(certificate: bytes) -> str:
    """Encode a certificate (DER) for `status.nodes.NODE.certificate`."""
    return base64.b64encode(certificate).decode()
