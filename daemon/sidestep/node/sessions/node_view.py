"""What sessions and the local API ask of the node; `node.api.status` answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sidestep.model.intercept import Intercept
    from sidestep.tunnel.messages import State
    from sidestep.tunnel.views import StatusView, WorkloadView


class NodeView(Protocol):
    """The node as its readers see it. Every method but `prepare` returns at once."""

    def status(self) -> StatusView:
        """Everything."""

    def workloads(self) -> tuple[WorkloadView, ...]:
        """All workloads of this node, in all namespaces."""

    async def prepare(self, intercept: Intercept) -> None:
        """Find out what `check` has to know: certificates are read now that somebody wants them."""

    def check(self, intercept: Intercept) -> None:
        """Whether this intercept may begin: workload and port exist, the filter compiles, nothing conflicts.

        Raises RefusedError or ConfigurationError. Called before the intercept is among `Sessions.intercepts()`.
        """

    def state(self, intercept_uid: str) -> State:
        """The pods of an intercept and the conditions that concern it."""
