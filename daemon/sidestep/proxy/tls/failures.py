"""Why TLS of a connection is not opened, in words for the operator. Pure: text from what is known of a port.

A `TlsFailure` is reported as a condition of the port. Each text says what was found, what becomes of the connection and
what can be done.
"""

from __future__ import annotations

import msgspec

from sidestep.model.condition import ConditionType
from sidestep.snapshots.ports import PortSnapshot

SHOWN: int = 64
"""Bytes of a client's server name that are shown."""


class TlsFailure(msgspec.Struct, frozen=True):
    """The condition to report, with its text. `why` is what the other end, or the handshake with it, said."""

    type: ConditionType
    text: str
    why: str = ""


def consequence(port: PortSnapshot) -> str:
    """Say what becomes of a connection that cannot be opened."""
    if port.forward_client_cert:
        return f"the connection is closed, because sidestep.dev/forward-client-cert.{port.number} is enabled"
    return "TLS is carried end to end"


def late_client_auth(port: PortSnapshot) -> TlsFailure:
    """The app asks for client certificates after the handshake, which only its client can answer."""
    number = port.number
    return TlsFailure(
        ConditionType.CLIENT_CERTIFICATE_REQUESTED_LATER,
        f"the app on port {number} asks clients for a certificate after the handshake (post-handshake authentication, "
        f"renegotiation): for clients that it can ask, {consequence(port)}; where it was not known yet, the connection "
        f"was ended unanswered (sidestep.dev/late-client-auth.{number}: enabled makes it known from the start)",
    )


def server_name_unsupported(port: PortSnapshot, server_name: bytes) -> TlsFailure:
    """The client sent a server name that this proxy cannot send on."""
    return TlsFailure(
        ConditionType.SNI_UNSUPPORTED,
        f"a client sent {server_name[:SHOWN].decode('latin-1')!r} as its server name, which is no host name "
        f"(an address is none) and cannot be sent on: none of its requests is matched, {consequence(port)}",
    )


def certificate_requested(port: PortSnapshot) -> TlsFailure:
    """The app asks for client certificates in the handshake, and nobody has agreed that it sees ours."""
    number = port.number
    return TlsFailure(
        ConditionType.CLIENT_CERTIFICATE_REQUESTED,
        f"the app on port {number} asks clients for a certificate; {consequence(port)} unless "
        f"telepresence.io/upstream-tls-secret.{number} (or -path) and "
        f"sidestep.dev/downstream-client-auth.{number}: require (or request) are set",
    )


def unverified(port: PortSnapshot, name: str, why: str) -> TlsFailure:
    """The app could not be verified under this name."""
    authority = "its configured ca.crt" if port.upstream_trust else "the system's certificate authorities"
    return TlsFailure(
        ConditionType.UPSTREAM_UNVERIFIED,
        f"the app on port {port.number} could not be verified as {name or '(no name)'} against {authority}: "
        f"{why}; {consequence(port)} (add a ca.crt, or set "
        f"telepresence.io/upstream-insecure-skip-verify.{port.number}: enabled)",
        why,
    )


def alpn_unsupported(port: PortSnapshot, chosen: str | None) -> TlsFailure:
    """The app chose a protocol that cannot be parsed."""
    return TlsFailure(
        ConditionType.ALPN_UNSUPPORTED,
        f"the app on port {port.number} chose the protocol {chosen!r}, which cannot be filtered; {consequence(port)}",
    )


def no_common_alpn(port: PortSnapshot, offered: tuple[str, ...]) -> TlsFailure:
    """The app knows none of the protocols that the client offered."""
    return TlsFailure(
        ConditionType.ALPN_UNSUPPORTED,
        f"the app on port {port.number} knows none of the protocols the client offered ({', '.join(offered)}); "
        f"{consequence(port)}",
    )


def handshake_failed(port: PortSnapshot, reason: str) -> TlsFailure:
    """The handshake with the app failed in another way."""
    return TlsFailure(
        ConditionType.UPSTREAM_TLS_FAILED,
        f"the TLS handshake with the app on port {port.number} failed: {reason}; {consequence(port)}",
        reason,
    )


def certificate_invalid(port: PortSnapshot, error: Exception) -> TlsFailure:
    """The port's own certificate cannot be used."""
    return TlsFailure(ConditionType.CERTIFICATE_INVALID, f"the certificate of port {port.number}: {error}")


def client_unsupported(port: PortSnapshot) -> TlsFailure:
    """The client cannot speak TLS with the port's certificate."""
    return TlsFailure(
        ConditionType.CLIENT_TLS_UNSUPPORTED,
        f"a client knows no cipher or signature that goes with the certificate of port {port.number}; "
        f"{consequence(port)}",
    )
