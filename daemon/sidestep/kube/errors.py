"""Errors of a cluster: the API server is unreachable, or it answers with a failure."""

from __future__ import annotations

from sidestep.model.errors import ClusterError


class UnreachableClusterError(ClusterError):
    """The server does not answer, or breaks off its answer. A later attempt may succeed."""


class ApiError(ClusterError):
    """The API server answered with a failure (meta/v1 Status). `status` is the HTTP status, `reason` a fixed word."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(message)

    @property
    def forbidden(self) -> bool:
        """Whether authorization or authentication failed (401, 403)."""
        return self.status in {401, 403}

    @property
    def gone(self) -> bool:
        """Whether a resourceVersion or continue token has expired (410)."""
        return self.status == 410
