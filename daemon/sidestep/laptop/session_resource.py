"""The resource that a session writes in a cluster: its kind, and its spec."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Literal

from sidestep.config import capture
from sidestep.config.durations import format_duration
from sidestep.kube.resources import micro_time
from sidestep.kube.session_specs import (
    AnySpec,
    CaptureFields,
    FilterFields,
    HandlerFields,
    InspectionFields,
    PodAccessFields,
    SessionFields,
    ShowFields,
    SpecFields,
    filter_fields,
)
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest, PathCondition, PathTest
from sidestep.model.intercept import SessionKind
from sidestep.tunnel.messages import SessionSpec

_ALLOWED: Mapping[str, Literal["Environment", "Files", "Network"]] = {
    "environment": "Environment",
    "files": "Files",
    "network": "Network",
}
"""What a session may use, as `spec.allow` has it."""


def kind_of(spec: SessionSpec) -> SessionKind:
    """Return the kind of the resource that a session needs."""
    if spec.allow:
        return SessionKind.ACCESS
    if spec.capture:
        return SessionKind.CAPTURE
    return SessionKind.INSPECTION if spec.records else SessionKind(spec.kind)


def spec_fields(spec: SessionSpec, public_key: str, user: str) -> AnySpec:
    """Return the `spec` of the resource, renewed now."""
    wanted = Filter(
        headers=tuple(HeaderCondition(each.name, HeaderTest(each.test), each.value) for each in spec.headers),
        methods=spec.methods,
        paths=tuple(PathCondition(PathTest(each.test), each.value) for each in spec.paths),
    )
    filtered = FilterFields() if wanted.is_global else filter_fields(wanted)
    session = SessionFields(public_key)
    owner = (spec.claimed_owner or user)[:128]
    now = micro_time(dt.datetime.now(dt.UTC))
    if spec.allow:
        return PodAccessFields(
            workload=spec.workload,
            pod=spec.pod,
            container=spec.container,
            allow_loopback=spec.allow_loopback,
            allow=[_ALLOWED[each] for each in spec.allow],
            session=session,
            owner=owner,
            renew_time=now,
        )
    if spec.capture:
        return CaptureFields(
            workload=spec.workload,
            port=spec.port,
            session=session,
            filter=filtered,
            pod=spec.pod,
            owner=owner,
            reset_existing=spec.reset_existing,
            duration=format_duration(spec.duration) if spec.duration else capture.DEFAULT_DURATION,
            max_bytes=spec.max_bytes or capture.DEFAULT_BYTES,
            snap="All" if spec.capture == "all" else "Heads",
            egress=spec.egress,
            renew_time=now,
        )
    if spec.records:
        return InspectionFields(
            workload=spec.workload,
            port=spec.port,
            session=session,
            filter=filtered,
            pod=spec.pod,
            owner=owner,
            reset_existing=spec.reset_existing,
            records="Alerts" if spec.records == "alerts" else "All",
            alert=spec.alert,
            egress=spec.egress,
            renew_time=now,
        )
    return SpecFields(
        workload=spec.workload,
        port=spec.port,
        session=session,
        transport="UDP" if spec.transport == "udp" else "TCP",
        filter=filtered,
        pod=spec.pod,
        owner=owner,
        divert_probes=spec.divert_probes,
        reset_existing=spec.reset_existing,
        heads_only=spec.heads_only,
        handler=HandlerFields(plaintext=spec.plaintext),
        show=ShowFields(
            statuses=[*spec.statuses], since=format_duration(spec.since) if spec.since else "", last=spec.last
        ),
        egress=spec.egress,
        renew_time=now,
    )
