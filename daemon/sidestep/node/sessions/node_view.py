"""The interface of the node for sessions and the local API; `node.api.status` implements it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sidestep.model.intercept import Intercept
    from sidestep.policy.exceptions import By
    from sidestep.tunnel.messages import State
    from sidestep.tunnel.views import AlertView, PolicyView, StatusView, WorkloadView


class NodeView(Protocol):
    """Read access to the node. Every method except `prepare` returns at once."""

    def status(self) -> StatusView:
        """Return everything that `sidestep status` shows."""

    def policies(self) -> tuple[PolicyView, ...]:
        """Return the inspection policies that are written, as this node has them."""

    def alert(self, exchange: str, by: By, policy: str) -> AlertView | None:
        """Return the alerts with this id, and what excepts them; None if it is not among the last ones.

        `policy` is what the client was told, "" if unknown. Raises RefusedError if several exchanges have the id.
        """

    def workloads(self) -> tuple[WorkloadView, ...]:
        """Return all workloads of this node, in all namespaces."""

    async def prepare(self, intercept: Intercept) -> None:
        """Obtain what `check` needs: reads the certificates of this intercept."""

    def check(self, intercept: Intercept) -> None:
        """Check whether this intercept may begin: workload and port exist, the filter compiles, nothing conflicts.

        Raises RefusedError or ConfigurationError. Called before `SessionRegistry.intercepts` contains the intercept.
        """

    def state(self, intercept_uid: str) -> State:
        """Return the pods of an intercept and the conditions that concern it."""
