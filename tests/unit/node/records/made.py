"""Records as a pod proxy sends them."""

from __future__ import annotations

import time

import msgspec

from sidestep.model.pod import Location, Owner, Pod, PodKey
from sidestep.protocols import eve
from sidestep.protocols.eve_records import Anomaly, Kubernetes, Origin, Record, Sidestep
from sidestep.protocols.eve_redaction import Redaction
from sidestep.proxy.control import messages

RULES = {"shop/orders": frozenset({"no-admin", "cards"})}
ORIGIN = Origin(
    flow_id=77, client=("192.0.2.1", 40000), server=("10.0.0.7", 8443), protocol="http", kubernetes=Kubernetes()
)
DECIDED = Sidestep(policy="shop/orders", rule="no-admin", action="Block", id="a-1", inspected=True)


def http(target: bytes = b"/admin"):
    return eve.http(method=b"GET", target=target, authority=b"shop", fields=[], redaction=Redaction())


def alert(target: bytes = b"/admin", *, at: int | None = None, sidestep: Sidestep = DECIDED) -> Record:
    made = eve.alert("shop/orders", "no-admin", blocked=True)
    when = time.time_ns() if at is None else at
    return eve.record(when, ORIGIN, made, transaction=3, http=http(target), sidestep=sidestep)


def anomaly(reason: str = "h1-ambiguous-length") -> Record:
    noticed = Anomaly(type="applayer", event=reason, layer="proto_parser", app_proto="http")
    decided = Sidestep(action="Pass", inspected=False, reason=reason)
    return eve.record(time.time_ns(), ORIGIN, noticed, sidestep=decided)


def encoded(*records: Record) -> tuple[bytes, ...]:
    return tuple(map(msgspec.msgpack.encode, records))


def message(*records: Record, **dropped: int) -> messages.Records:
    return messages.Records(1, encoded(*records), dropped)


def pod() -> Pod:
    return Pod(
        key=PodKey("shop", "orders-1"), uid="u", ips=(), location=Location(), owners=(Owner("deployment", "orders"),)
    )
