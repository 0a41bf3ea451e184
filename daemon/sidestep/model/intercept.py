"""An intercept or wiretap: who wants which requests of which workload."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from sidestep.model.filter import Filter
from sidestep.model.pod import Transport


class Kind(enum.StrEnum):
    """Whether matching requests are diverted or copied."""

    INTERCEPT = "intercept"
    WIRETAP = "wiretap"


@dataclass(frozen=True, slots=True)
class WorkloadRef:
    """A workload as a user names it: `name` or `kind/name`. `kind` is lower case ("deployment", "pod") or None."""

    name: str
    kind: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}" if self.kind else self.name


@dataclass(frozen=True, slots=True)
class Intercept:
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
    filter: Filter = field(default_factory=Filter)
    created: float = 0.0
    owner: str = ""
    pod: str | None = None
    divert_probes: bool = False
    plaintext: bool = False
    reset_existing: bool = False
    heads_only: bool = False
    """A wiretap that is told of requests and gets no copies (`sidestep flows`)."""

    @property
    def display(self) -> str:
        """`namespace/name`, the way errors and events name it."""
        return f"{self.namespace}/{self.name}"

    @property
    def reads_requests(self) -> bool:
        """Whether connections have to be read for it: it is filtered, or wants heads; TLS then has to be opened."""
        return self.heads_only or not self.filter.is_global

    @property
    def order(self) -> tuple[float, str, str]:
        """Sort key: creation time, then namespace/name. The oldest match wins."""
        return (self.created, self.namespace, self.name)
