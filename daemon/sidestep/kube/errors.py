"""What can go wrong with a cluster, split by what helps: nothing answers, or the API server says no."""

from __future__ import annotations

from sidestep.model.errors import ClusterError


class UnreachableClusterError(ClusterError):
    """Nothing answers, or what answers breaks off: try again later."""


class ApiError(ClusterError):
    """The API server answered with a failure (meta/v1 Status). `status` is the HTTP status, `reason` a fixed word."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(message)

    @property
    def forbidden(self) -> bool:
        """Whether RBAC (or a missing login) is what stands in the way."""
        return self.status in {401, 403}

    @property
    def gone(self) -> bool:
        """Whether a resourceVersion or continue token is too old (410)."""
        return self.status == 410
