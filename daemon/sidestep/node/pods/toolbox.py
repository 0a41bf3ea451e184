"""What every target of a node needs; the daemon makes one `Toolbox`, the reconciler hands it to each target."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sidestep.node.pods.late_client_auth import LateClientAuth

if TYPE_CHECKING:
    import socket

    from sidestep.model.pod import PodKey
    from sidestep.node.conditions import Conditions
    from sidestep.node.proxies.supervisor import CredentialSource, ProxySupervisor
    from sidestep.proxy.control.messages import LoggedRequest, LostCopies, Open
    from sidestep.steering import CompiledProgram, PeernamePrograms


class Handlers(Protocol):
    """What is needed of `SessionRegistry`."""

    async def open_stream(self, opening: Open, *, pod: PodKey, proxy: int) -> socket.socket:
        """Connect to a handler. `proxy` is who asks, by its uid."""

    def reset_stream(self, stream: int, *, proxy: int) -> None:
        """Break a connection to a handler."""

    def record(self, requests: tuple[LoggedRequest, ...], *, pod: PodKey) -> None:
        """Log diverted requests."""

    def record_losses(self, losses: tuple[LostCopies, ...], *, pod: PodKey) -> None:
        """Tell of copies that were held back."""


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What all targets of a node are made with. `credential` gives the source of a named credential of a pod."""

    program: CompiledProgram
    supervisor: ProxySupervisor
    handlers: Handlers
    credential: Callable[[PodKey, str], CredentialSource]
    conditions: Conditions
    now: Callable[[], float]
    peernames: Callable[[], Awaitable[PeernamePrograms]]
    """The programs that let apps see their clients; compiled when first asked for. Raises SidestepError."""
    on_change: Callable[[PodKey], None]
    """Called when what the target can do has changed by itself: its proxy is back, has failed, lost its app."""
    late_client_auth: LateClientAuth = field(default_factory=LateClientAuth)
    """Which apps ask for client certificates after the handshake."""
