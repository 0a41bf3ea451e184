"""Decides what a port speaks from what is written about it (docs/design.md, "TLS"): the first matching row wins.

The answer is used for `list`, `status`, refusals and handlers. A connection whose own bytes contradict it becomes a
wire. Rows compare in lower case. An appProtocol without TLS overrides a configured downstream certificate; the
contradiction becomes a condition.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import msgspec

from sidestep.config.annotation_names import DOWNSTREAM_PATH, DOWNSTREAM_SECRET
from sidestep.config.annotations import CertificateScope
from sidestep.model.pod import Transport


class Use(enum.StrEnum):
    """Whether a port uses a protocol: known not to, known to, or to be found out by probing."""

    NEVER = "never"
    ALWAYS = "always"
    PROBE = "probe"


class PortFacts(msgspec.Struct, frozen=True):
    """What is written about one container port.

    `names` and `numbers` are those of the container port and of every service port that leads to it;
    `certificate_annotation` is the annotation that configures the downstream certificate, for the text of a condition;
    `certificate_problem` says what is wrong with the one that was meant to.
    """

    number: int
    transport: Transport = Transport.TCP
    app_protocol: str = ""
    names: frozenset[str] = frozenset()
    numbers: frozenset[int] = frozenset()
    certificate: CertificateScope = CertificateScope.NONE
    certificate_annotation: str = ""
    certificate_problem: str = ""


class PortProtocol(msgspec.Struct, frozen=True):
    """The decision. `source` says which row decided, for `list`; `refusal` is empty unless an intercept with HTTP
    filters must be refused on this port, and then says why; `contradiction` is the text of a condition, or None."""

    tls: Use
    http2: Use
    http_filters: bool
    refusal: str
    source: str
    contradiction: str | None = None


class _Row(msgspec.Struct, frozen=True):
    applies: Callable[[PortFacts], bool]
    source: Callable[[PortFacts], str]
    tls: Use
    http2: Use
    http_filters: bool = True


def _app_protocol(*values: str) -> Callable[[PortFacts], bool]:
    return lambda facts: facts.app_protocol.lower() in values


def _named(facts: PortFacts) -> str:
    return f"appProtocol {facts.app_protocol.lower()}"


_TABLE = (
    _Row(lambda facts: facts.transport is Transport.UDP, lambda _: "UDP", Use.NEVER, Use.NEVER, http_filters=False),
    _Row(_app_protocol("tcp", "udp"), _named, Use.NEVER, Use.NEVER, http_filters=False),
    _Row(_app_protocol("kubernetes.io/h2c", "h2c"), _named, Use.NEVER, Use.ALWAYS),
    _Row(_app_protocol("kubernetes.io/ws", "ws"), _named, Use.NEVER, Use.NEVER),
    _Row(_app_protocol("http", "kubernetes.io/http"), _named, Use.NEVER, Use.NEVER),
    _Row(_app_protocol("grpc", "http2"), _named, Use.ALWAYS, Use.ALWAYS),
    _Row(_app_protocol("https", "wss", "kubernetes.io/wss"), _named, Use.ALWAYS, Use.PROBE),
    _Row(
        lambda facts: facts.certificate is CertificateScope.PORT,
        lambda _: "downstream certificate",
        Use.ALWAYS,
        Use.PROBE,
    ),
    _Row(
        lambda facts: any(name.lower() == "https" for name in facts.names),
        lambda _: "port name https",
        Use.ALWAYS,
        Use.PROBE,
    ),
    _Row(lambda facts: facts.number == 443 or 443 in facts.numbers, lambda _: "port number 443", Use.ALWAYS, Use.PROBE),
    _Row(lambda _: True, lambda _: "probing", Use.PROBE, Use.PROBE),
)
"""Most specific first; the last row always applies."""


def choose(facts: PortFacts) -> PortProtocol:
    """Apply the table. Pure and total."""
    row = next(row for row in _TABLE if row.applies(facts))
    return PortProtocol(
        tls=row.tls,
        http2=row.http2,
        http_filters=row.http_filters,
        refusal=_refusal(facts, row),
        source=row.source(facts),
        contradiction=_contradiction(facts, row),
    )


def _refusal(facts: PortFacts, row: _Row) -> str:
    if facts.transport is Transport.UDP:
        return "HTTP filters do not apply to UDP: leave them out to take the whole port"
    if not row.http_filters:
        return f"appProtocol {facts.app_protocol.lower()} rules out HTTP filters: leave them out to take the whole port"
    if row.tls is Use.ALWAYS and facts.certificate is CertificateScope.NONE:
        if facts.certificate_problem:
            return (
                f"port {facts.number} speaks TLS ({row.source(facts)}) and its certificate cannot be used: "
                f"{facts.certificate_problem}"
            )
        return (
            f"port {facts.number} speaks TLS ({row.source(facts)}) and no certificate is configured to open it: set "
            f"{DOWNSTREAM_PATH}.{facts.number} or {DOWNSTREAM_SECRET}.{facts.number}"
        )
    return ""


def _contradiction(facts: PortFacts, row: _Row) -> str | None:
    if facts.transport is Transport.UDP or row.tls is not Use.NEVER or facts.certificate is not CertificateScope.PORT:
        return None
    annotation = facts.certificate_annotation or f"{DOWNSTREAM_PATH}.{facts.number}"
    return (
        f"appProtocol {facts.app_protocol.lower()} of port {facts.number} rules out TLS, yet annotation {annotation} "
        f"configures a downstream certificate: appProtocol wins, the certificate is not used"
    )
