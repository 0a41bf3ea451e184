"""What an `AccessServer` uses of the pods' world; `node.pod_world` implements it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sidestep.model.errors import RefusedError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from sidestep.model.intercept import Intercept
    from sidestep.model.pod import PodKey
    from sidestep.tunnel.channel import Channel


class PodWorld(Protocol):
    """Each method raises SidestepError with a reason for the developer. Rights have been checked before."""

    async def environment(self, access: Intercept, pod: PodKey, container: str) -> bytes:
        """Return the variables of a container's main process, each ended by NUL."""

    async def files(
        self, access: Intercept, pod: PodKey, container: str, paths: tuple[str, ...], max_bytes: int
    ) -> socket.socket:
        """Begin a snapshot; returns a stream socket from which its frames are read (`protocols.file_frames`)."""

    async def connect(
        self, access: Intercept, pod: PodKey, host: str, port: int, protocol: str, *, ended: Callable[[str], None]
    ) -> Channel:
        """Make a connection in the pod's network namespace; returns a channel for its bytes, or capsules.

        `ended` gets the reason when the node ends it later, just before the channel breaks; it cancels who uses it.
        """


class NoWorld:
    """A `PodWorld` that has nothing."""

    async def environment(self, access: Intercept, pod: PodKey, container: str) -> bytes:
        """As PodWorld.environment."""
        raise _refused(access, pod, container)

    async def files(
        self, access: Intercept, pod: PodKey, container: str, paths: tuple[str, ...], max_bytes: int
    ) -> socket.socket:
        """As PodWorld.files."""
        raise _refused(access, pod, container, paths, max_bytes)

    async def connect(
        self, access: Intercept, pod: PodKey, host: str, port: int, protocol: str, *, ended: Callable[[str], None]
    ) -> Channel:
        """As PodWorld.connect."""
        raise _refused(access, pod, host, port, protocol, ended)


def _refused(*_asked: object) -> RefusedError:
    return RefusedError("this node daemon gives no access to pods")
