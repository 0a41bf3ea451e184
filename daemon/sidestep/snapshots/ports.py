"""What a pod proxy has to know about a steered port.

The planner makes a `PortSnapshot`, `proxy.control.messages.Configure` carries it, the pod proxy applies it. A snapshot
is whole: applying one twice changes nothing, and equal snapshots mean that nothing has to be told.

They are msgspec structs, encoded as arrays, and not dataclasses: four ports with four rules each take half the bytes on
the control channel, three fifths of the time to decode and a fifth of the time to compare, and the planner compares
those of all pods of the node whenever something changes.
"""

from __future__ import annotations

import msgspec

from sidestep.snapshots.filter_row import FilterRow
from sidestep.snapshots.inspection import PolicySnapshot
from sidestep.snapshots.waf import PortWaf

OUTBOUND = 65536
"""Stands for connections that the pod makes where something is told by port; no port has this number."""


class RuleSnapshot(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """One intercept or wiretap that reads the requests of a port. The oldest comes first in its list."""

    uid: str
    display: str
    kind: str
    """"intercept" or "wiretap"."""
    conditions: tuple[FilterRow, ...]
    divert_probes: bool
    heads_only: bool = False
    """A wiretap that is told of requests and gets no copies."""
    capture: str = ""
    """"", or what a capture keeps: "heads" or "all" (`model.intercept.Snap`)."""
    records: str = ""
    """"", or which records of inspection a session gets: "alerts" or "all" (`model.intercept.Live`)."""
    statuses: tuple[str, ...] = ()
    """What its session is shown (`model.shown.Shown`), ..."""
    since: float = 0.0
    last: int = 0
    """... and of earlier requests, once, when the proxy is first told of the rule."""


class PortSnapshot(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """All that the proxy must know about one steered port."""

    number: int
    transport: str
    """"tcp" or "udp"."""
    tls: str
    """"never", "always" or "probe" (`policy.protocol_choice.Use`)."""
    http2: str
    """"never", "always" or "probe"."""
    rules: tuple[RuleSnapshot, ...]
    global_uid: str = ""
    """uid of a global intercept; the whole port is carried unparsed."""
    global_display: str = ""
    global_taps: tuple[str, ...] = ()
    """uids of global wiretaps."""
    pass_sources: tuple[str, ...] = ()
    """Client addresses that a global intercept leaves to the app (kubelet probes)."""
    identity: str = ""
    """Name of the downstream `Credential` (certificate and key); empty: TLS is carried end to end."""
    client_trust: str = ""
    """Name of the downstream `ca.crt` credential."""
    client_auth: str = "auto"
    """"auto", "require", "request" or "none"."""
    upstream_identity: str = ""
    upstream_trust: str = ""
    """Name of the credential that verifies the app; empty: the system store."""
    upstream_name: str = ""
    """Name to verify when the client sent no SNI: first DNS name of the downstream certificate."""
    skip_verify: bool = False
    forward_client_cert: bool = False
    probe_timeout: float = 2.0
    """Seconds that a probe of the app may take."""
    app: str = ""
    """Tells one process of the app from the next: when it changes, what a probe found does not hold any more."""
    late_client_auth: bool = False
    """The app asks for client certificates after the handshake: clients that it can ask are carried end to end."""
    policies: tuple[PolicySnapshot, ...] = ()
    """Inspection policies that apply to the port."""
    probe_sources: tuple[str, ...] = ()
    """Client addresses from which the kubelet probes the port: the node's own."""
    probes: tuple[tuple[str, str], ...] = ()
    """(method, target) of the requests that its probes are declared to send. From these addresses, they are exempt from
    inspection."""

    waf: PortWaf | None = None
    """What those policies that have a web application firewall say of it together."""
    captures: tuple[str, ...] = ()
    """uids of captures that get whole connections."""
    recent: bool = False
    """Heads of all requests are kept, for sessions that ask for earlier ones (`proxy.mirror.recent_requests`)."""
    opens: bool = False
    """Connections are read, and their TLS is opened, although no rule asks for it: for captures."""

    @property
    def uids(self) -> frozenset[str]:
        """The uids of all intercepts and wiretaps of the port."""
        return frozenset(
            {self.global_uid, *self.global_taps, *self.captures, *(rule.uid for rule in self.rules)} - {""}
        )

    @property
    def closes(self) -> bool:
        """Whether what cannot be inspected is closed: one of the policies wants it."""
        return any(policy.closes for policy in self.policies)

    @property
    def credentials(self) -> dict[str, str]:
        """The names of the credentials that the port uses, with their kinds, "identity" or "trust"."""
        identities = dict.fromkeys((self.identity, self.upstream_identity), "identity")
        kinds = identities | dict.fromkeys((self.client_trust, self.upstream_trust), "trust")
        kinds.pop("", None)
        return kinds

    def without_credentials(self) -> PortSnapshot:
        """The port as it is served when one of its credentials cannot be used: TLS is carried end to end."""
        return msgspec.structs.replace(self, identity="", upstream_identity="", client_trust="", upstream_trust="")
