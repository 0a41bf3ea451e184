"""An intercept or wiretap: who wants which requests of which workload."""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

from sidestep.model.filter import Filter
from sidestep.model.pod import Transport
from sidestep.model.shown import Shown


class Kind(enum.StrEnum):
    """Whether matching requests are diverted or copied."""

    INTERCEPT = "intercept"
    WIRETAP = "wiretap"


class SessionKind(enum.StrEnum):
    """What a session is: the noun of messages, views and conditions, and in a cluster the kind of its resource. A
    capture and an inspection are planned as wiretaps."""

    INTERCEPT = "intercept"
    WIRETAP = "wiretap"
    CAPTURE = "capture"
    INSPECTION = "inspection"
    ACCESS = "access"
    """To the world of pods (`Allow`). It is planned as a wiretap that gets no traffic."""


FLOWS = "flows"
"""What a wiretap that gets no copies is called."""


class Snap(enum.StrEnum):
    """What a capture keeps of decrypted traffic."""

    NOTHING = ""
    """It is no capture."""
    HEADS = "heads"
    """Heads of HTTP messages, secrets redacted in the pod; no body leaves it."""
    ALL = "all"
    """Every byte. Without a filter: of all connections, whatever they carry."""


class Live(enum.StrEnum):
    """Which records of inspection a session gets while it lasts (`sidestep inspect`)."""

    NOTHING = ""
    """It gets none."""
    ALERTS = "alerts"
    """Those of what rules found with an alert, and of what was not inspected."""
    ALL = "all"
    """All, and one of every request that matches the filter, whether or not there is a policy."""


MAX_ENVIRONMENT = 1024 * 1024
"""Bytes of the variables of a process. Linux permits 6 MiB for them and the arguments together (execve(2))."""


class Allow(enum.StrEnum):
    """What of a pod's world a session may use on the developer's machine (PodAccess)."""

    ENVIRONMENT = "environment"
    """The variables that the container's main process was started with."""
    NETWORK = "network"
    """Connections from the pod's network namespace."""
    FILES = "files"
    """Snapshots of files of the container."""


class WorkloadRef(msgspec.Struct, frozen=True):
    """A workload as a user names it: `name` or `kind/name`. `kind` is lower case ("deployment", "pod") or None."""

    name: str
    kind: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}" if self.kind else self.name

    def means(self, kind: str, name: str) -> bool:
        """Whether this is what the user named; without a kind he named all that have the name."""
        return name == self.name and self.kind in {None, kind}


class Intercept(msgspec.Struct, frozen=True):
    """One intercept or wiretap as it was asked for; the planner resolves it to pods and container ports.

    `uid` is unique for the life of the resource; `port` is a service or container port, name or number, as written;
    `created` is seconds since the epoch (the oldest match wins); `owner` is a *claimed* identity, shown, never trusted;
    `pod` narrows to one pod; `plaintext` and `address` describe the handler for `list` and events only.
    """

    uid: str
    namespace: str
    name: str
    kind: Kind
    workload: WorkloadRef
    port: str
    transport: Transport = Transport.TCP
    filter: Filter = msgspec.field(default_factory=Filter)
    created: float = 0.0
    owner: str = ""
    pod: str | None = None
    divert_probes: bool = False
    plaintext: bool = False
    reset_existing: bool = False
    heads_only: bool = False
    """A wiretap that is told of requests and gets no copies (`sidestep flows`)."""
    capture: Snap = Snap.NOTHING
    """A wiretap that gets both directions of connections as a capture (`sidestep capture`)."""
    records: Live = Live.NOTHING
    """A wiretap that gets records of inspection, and no copies (`sidestep inspect`)."""
    duration: float = 0.0
    """Seconds after which a capture ends."""
    max_bytes: int = 0
    """Bytes of frames (`protocols.capture_frames`) that one node sends of a capture at most."""
    egress: bool = False
    """A wiretap of the connections that the pods make, to whatever port: `port` is empty. Without a copy of requests:
    it gets heads, records or a capture."""
    allow: frozenset[Allow] = frozenset()
    """What it may use of the pods' world. It is about no port and gets no traffic. Empty for every other kind."""
    container: str = ""
    """The container whose world it is; empty: the one that `policy.pod_access` chooses."""
    allow_loopback: bool = False
    """With `Allow.NETWORK`: connections to the pod's loopback, too."""
    shown: Shown = msgspec.field(default_factory=Shown)
    """Which of its requests it is shown."""
    alert: str = ""
    """With `Live.ALERTS`: the id of an exchange whose alerts the daemon knows already, which come first
    (`sidestep policy except`)."""

    @property
    def session_kind(self) -> SessionKind:
        """What it is called."""
        if self.allow:
            return SessionKind.ACCESS
        if self.capture:
            return SessionKind.CAPTURE
        return SessionKind.INSPECTION if self.records else SessionKind(self.kind.value)

    @property
    def shown_kind(self) -> str:
        """What people call it: `session_kind`, but `flows` for a wiretap of heads only."""
        return FLOWS if self.heads_only and self.session_kind is SessionKind.WIRETAP else self.session_kind.value

    @property
    def leave_name(self) -> str:
        """`kind/name`, as `sidestep leave` takes it."""
        return f"{self.shown_kind}/{self.name}"

    @property
    def display(self) -> str:
        """`namespace/name`, the way errors and events name it."""
        return f"{self.namespace}/{self.name}"

    @property
    def reads_requests(self) -> bool:
        """Whether connections have to be read for it: it is filtered, or wants heads; TLS then has to be opened."""
        wants_heads = self.heads_only or self.capture is Snap.HEADS or self.records is not Live.NOTHING
        return wants_heads or not self.filter.is_global

    @property
    def wants_opened(self) -> bool:
        """Whether TLS is to be opened for it: what it reads, and all that is captured. Where a capture of whole
        connections cannot have that, it gets them as they are."""
        return self.reads_requests or self.capture is not Snap.NOTHING

    @property
    def place(self) -> str:
        """The port with its transport, for people; of an access what it may use."""
        if self.allow:
            return ", ".join(sorted(self.allow))
        return "outbound" if self.egress else f"{self.port}/{self.transport.value}"

    @property
    def has_port(self) -> bool:
        """Whether it is about a port of its pods."""
        return not self.egress and not self.allow

    @property
    def captures_whole(self) -> bool:
        """Whether it captures whole connections."""
        return self.capture is Snap.ALL and not self.reads_requests

    @property
    def takes_whole(self) -> bool:
        """Whether it is a global intercept: it takes whole connections, or all datagrams."""
        return self.kind is Kind.INTERCEPT and self.filter.is_global

    @property
    def order(self) -> tuple[float, str, str]:
        """Sort key: creation time, then namespace/name. The oldest match wins."""
        return (self.created, self.namespace, self.name)


def intercepts_among(sessions: Iterable[Intercept]) -> tuple[str, ...]:
    """`namespace/name` of those that are intercepts, sorted."""
    return tuple(sorted(each.display for each in sessions if each.session_kind is SessionKind.INTERCEPT))


def sessions_among(sessions: Iterable[Intercept]) -> tuple[str, ...]:
    """`kind/name` of all, sorted."""
    return tuple(sorted({each.leave_name for each in sessions}))
