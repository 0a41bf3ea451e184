"""One session of the cluster as a node knows it, from its first observation to its end; and limits on their number.

    observed   known: name, owner, digest of the spec. Has no effect
    validated  its regexes are compiled, its key is parsed. It is *pinned*: the spec first observed is decisive for its
               UID, so that nobody who may change a resource later can take over a running session
    accepted   the status carries the digest of the pinned spec; only now it is served
    refused    final: the spec cannot be used, or the status carries another digest
    over       final: it is a capture that has reached its bounds on this node

The digest makes the pin outlive the daemon and valid for all nodes: the first node writes it, conditional on the
resource being unchanged since it was read, and nobody writes it again. A spec changed before or after is refused by
every node that observes it, including a restarted daemon. Newer API servers reject such a change themselves
(deploy/daemonset.yaml).

Of the living resources at most `MAX_IN_NAMESPACE` per namespace count, and `MAX_OF_OWNER` per owner in it: the oldest.
The owner is a claim, so that limit protects against mistakes only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from sidestep.kube.resources import ObservedResource, validate
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.intercept import Intercept
from sidestep.tunnel.proof import parse_public

CHANGED = "its spec was changed after it began, which is not followed: end it and create a new one"
OVERRULED = "its spec was changed after it was accepted, which is refused: end it and create a new one"

MAX_IN_NAMESPACE = 2048
"""Living resources of a namespace, of all kinds together. A node serves 1024 sessions."""
MAX_OF_OWNER = 256
"""Living resources of one claimed owner in a namespace."""


@dataclass(slots=True)
class SessionResource:
    """One resource. `latest` is its newest version; `digest`, `intercept` and `key` are pinned; `problem` is final."""

    latest: ObservedResource
    seen: float
    """Time of the last renewal, by this node's clock."""
    digest: str
    pinned: ObservedResource | None
    """The version to validate; None afterwards."""
    intercept: Intercept | None = None
    key: bytes = b""
    problem: str = ""
    over: bool = False

    @property
    def uid(self) -> str:
        """The UID of the resource."""
        return self.latest.metadata.uid

    @property
    def validated(self) -> bool:
        """Whether the spec has been validated: it is usable, or `problem` has the reason."""
        return self.pinned is None or bool(self.problem)

    @property
    def accepted(self) -> bool:
        """Whether the status carries the digest of the pinned spec."""
        return self.latest.status.spec_digest == self.digest

    @property
    def changed(self) -> bool:
        """Whether the newest spec differs from the pinned one."""
        return self.latest.digest != self.digest and not self.problem

    def validate(self) -> None:
        """Parse the pinned spec and its key. Takes up to 50 ms, for 32 long regexes."""
        if self.pinned is None:
            return
        found = validate(self.pinned)
        self.pinned, self.intercept, self.problem = None, found.intercept, found.problem
        if not self.problem:
            try:
                self.key = parse_public(found.public_key)
            except (ConfigurationError, RefusedError) as error:
                self.problem = str(error)

    def overrule(self) -> None:
        """Refuse the resource, because the status carries the digest of another spec."""
        self.pinned, self.problem, self.key = None, OVERRULED, b""

    def conclude(self, reason: str) -> None:
        """End a capture that has reached its bounds."""
        self.pinned, self.problem, self.key, self.over = None, reason, b"", True


def within_bounds(living: Iterable[SessionResource]) -> tuple[list[SessionResource], dict[str, str]]:
    """Return the resources within the limits, and the reasons for the others, by UID. `living` is oldest first."""
    counted: list[SessionResource] = []
    beyond: dict[str, str] = {}
    of_namespace: Counter[str] = Counter()
    of_owner: Counter[tuple[str, str]] = Counter()
    for resource in living:
        namespace, owner = resource.latest.metadata.namespace, resource.latest.owner
        if of_namespace[namespace] >= MAX_IN_NAMESPACE:
            beyond[resource.uid] = (
                f"namespace {namespace} has {MAX_IN_NAMESPACE} living intercepts and wiretaps already, which is the "
                f"most possible: end some"
            )
        elif of_owner[namespace, owner] >= MAX_OF_OWNER:
            beyond[resource.uid] = (
                f"{owner or 'one owner'} holds {MAX_OF_OWNER} living intercepts and wiretaps in namespace {namespace} "
                f"already, which is the most possible: end some"
            )
        else:
            of_namespace[namespace] += 1
            of_owner[namespace, owner] += 1
            counted.append(resource)
    return counted, beyond
