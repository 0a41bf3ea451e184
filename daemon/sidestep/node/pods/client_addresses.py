"""Lets the apps of one pod see their clients' own addresses.

On: the pod's cgroup (v2) is known, the getpeername programs are attached to it, and the proxy has every dial named
before it connects. Off: `status` says why, and the proxy dials from the pod's own address.

Requests of the proxy are checked: it may name connections from loopback or from the pod's own addresses, to ports that
it serves. A name lasts as long as its connection; the names that a process of the proxy made are dropped with it.
"""

from __future__ import annotations

from collections.abc import Collection, Container
from ipaddress import IPv4Address, IPv6Address, ip_address

from sidestep.model.errors import RefusedError, SidestepError
from sidestep.observability.logs import get_logger
from sidestep.proxy.control.messages import ForgetClient, NameClient
from sidestep.steering import ClientNames, PeernamePrograms

Address = IPv4Address | IPv6Address

NO_CGROUP = "off: the pod's cgroup v2 folder is not known"


class ClientAddresses:
    """Those of one pod. Make it with `attach` or `off`; close it with the pod."""

    def __init__(self, names: ClientNames | None, status: str) -> None:
        self._names = names
        self.status = status
        """`on`, or `off: reason`."""

    @classmethod
    def off(cls, reason: str = NO_CGROUP) -> ClientAddresses:
        """The feature is not available for this pod."""
        return cls(None, reason)

    @classmethod
    def attach(cls, programs: PeernamePrograms, cgroup: str) -> ClientAddresses:
        """Attach to the pod's cgroup; what fails makes it off. Never raises SidestepError."""
        try:
            return cls(ClientNames.attach(programs, cgroup), "on")
        except SidestepError as error:
            get_logger("client-addresses").warning("not available", cgroup=cgroup, reason=str(error))
            return cls.off(f"off: {error}")

    @property
    def sources(self) -> str:
        """The network from which the proxy reaches the app over IPv4; empty when connections cannot be named."""
        return str(self._names.sources) if self._names is not None else ""

    def name(self, message: NameClient, *, ports: Container[int], own: Collection[Address], worker: int = 0) -> None:
        """Name a connection of a process of the proxy. Raises RefusedError for what it may not name, KernelError."""
        if self._names is None:
            raise RefusedError("client addresses are off")
        peer, client = _address(message.peer), _address(message.client)
        self._check(peer, message.port, ports, own)
        port = message.client_port
        self._names.name(peer, message.peer_port, message.port, client=client, client_port=port, maker=worker)

    def forget(self, message: ForgetClient, *, worker: int = 0) -> None:
        """A connection that a process of the proxy named is over. Raises RefusedError, KernelError."""
        if self._names is not None:
            self._names.forget(_address(message.peer), message.peer_port, message.port, maker=worker)

    def reset(self, worker: int | None = None) -> None:
        """The proxy is gone, or one of its processes. Never raises SidestepError."""
        if self._names is not None:
            try:
                self._names.forget_all(worker)
            except SidestepError as error:
                get_logger("client-addresses").warning("names could not be taken back", reason=str(error))
                self.close()

    def close(self) -> None:
        """Detach. Closing twice does nothing."""
        names, self._names = self._names, None
        if names is not None:
            self.status = "off: closed"
            names.close()

    @staticmethod
    def _check(peer: Address, port: int, ports: Container[int], own: Collection[Address]) -> None:
        if port not in ports:
            raise RefusedError(f"port {port} is not served")
        if not peer.is_loopback and peer not in own:
            raise RefusedError(f"{peer} is no address of the proxy's")


def _address(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError as error:
        raise RefusedError(f"{text[:60]!r} is no address") from error
