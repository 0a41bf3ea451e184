"""Builds the intercept that a session at the unix socket requests: validated, named, numbered."""

from __future__ import annotations

import re
import time
import uuid
from typing import TYPE_CHECKING

from sidestep.config import capture
from sidestep.config.filters import check_limits, check_method, check_name
from sidestep.config.shown import check_shown, shown_of
from sidestep.model.errors import ConfigurationError
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest, PathCondition, PathTest
from sidestep.model.intercept import Allow, Intercept, Kind, Live, Snap
from sidestep.model.pod import Transport
from sidestep.policy.earlier_alerts import check_alert
from sidestep.policy.outbound_sessions import check_egress
from sidestep.policy.pod_access import check_access
from sidestep.policy.workloads import parse_workload

if TYPE_CHECKING:
    from sidestep.tunnel.messages import SessionSpec

_DNS_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
"""RFC 1123 subdomain, as Kubernetes names are (k8s.io/docs/concepts/overview/working-with-objects/names)."""
_UID = re.compile(r"[0-9a-f-]{36}")
_PRINTABLE = re.compile(r"[ -~]{0,64}")


def intercept_of(spec: SessionSpec, *, name: str, owner: str) -> Intercept:
    """Return the intercept that a spec requests: a new one, or a resumed one, which keeps its uid and start time.

    Whoever may connect here may end any intercept, so a forged uid or time gains nothing. Raises ConfigurationError or
    RefusedError.
    """
    now = time.time()
    if spec.resume and not _UID.fullmatch(spec.resume):
        raise ConfigurationError("is no uid of an intercept", subject="resume", value=spec.resume)
    for subject, value in (("namespace", spec.namespace), ("--name", name), ("--pod", spec.pod or "x")):
        if not _DNS_NAME.fullmatch(value):
            raise ConfigurationError(
                "is no Kubernetes name: lower-case letters, digits, - and . only", subject=subject, value=value[:100]
            )
    snap = Snap(spec.capture) if spec.kind == "wiretap" else Snap.NOTHING
    if not spec.port and not spec.egress and not spec.allow:
        raise ConfigurationError("is missing", subject="port", value="")
    made = Intercept(
        uid=spec.resume or str(uuid.uuid4()),
        namespace=spec.namespace,
        name=name,
        kind=Kind(spec.kind),
        workload=parse_workload(spec.workload),
        port=spec.port,
        transport=Transport(spec.transport),
        filter=_filter_of(spec),
        created=spec.created if spec.resume and 0 < spec.created < now else now,
        owner=owner if _PRINTABLE.fullmatch(owner) else "",
        pod=spec.pod or None,
        divert_probes=spec.divert_probes,
        plaintext=spec.plaintext,
        reset_existing=spec.reset_existing,
        heads_only=spec.heads_only and spec.kind == "wiretap",
        capture=snap,
        records=Live(spec.records) if spec.kind == "wiretap" and not snap else Live.NOTHING,
        duration=capture.seconds_of(spec.duration, subject="--for") if snap else 0.0,
        max_bytes=capture.size_of(spec.max_bytes, subject="--max-size") if snap else 0,
        egress=spec.egress,
        allow=frozenset(map(Allow, spec.allow)),
        container=spec.container,
        allow_loopback=spec.allow_loopback,
        shown=shown_of(spec.statuses, since=spec.since, last=spec.last),
        alert=spec.alert,
    )
    check_egress(made)
    check_alert(made)
    check_access(made)
    check_shown(made)
    return made


def _filter_of(spec: SessionSpec) -> Filter:
    for header in spec.headers:
        check_name(header.name)
    for method in spec.methods:
        check_method(method)
    wanted = Filter(
        headers=tuple(HeaderCondition(each.name, HeaderTest(each.test), each.value) for each in spec.headers),
        methods=spec.methods,
        paths=tuple(PathCondition(PathTest(each.test), each.value) for each in spec.paths),
    )
    check_limits(wanted)
    return wanted
