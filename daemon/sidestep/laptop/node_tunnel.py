"""One tunnel of a cluster session: a port-forward to the daemon of one node, TLS with a pinned certificate, the proof.

A broken tunnel is opened again, with growing pauses, while the status of the resource names that daemon. After a tunnel
that was given up because the daemon was silent, the next one permits a longer silence. Refusals of
the API server (no permission for port-forwards) are reported separately; the session decides how long to tolerate them.

The status names the pod of the port-forward. Whoever may write a status must not make developers connect, with their
own permissions, to an arbitrary pod; therefore only pods in Sidestep's namespace are accepted.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sidestep.kube.api import Api
from sidestep.kube.errors import ApiError
from sidestep.kube.resources import DaemonEntry, NodeEntry
from sidestep.laptop.api_refusals import DAEMON_NAMESPACE, explain
from sidestep.laptop.retry import Retry
from sidestep.model.errors import ClusterError, PeerError, RefusedError, SidestepError
from sidestep.tunnel.access import AccessClient
from sidestep.tunnel.cli_end import CliEnd, Dial, Hear
from sidestep.tunnel.errors import TunnelSilentError
from sidestep.tunnel.limits import DEFAULT_LIMITS, TunnelLimits
from sidestep.tunnel.messages import AnyEvent, Hello
from sidestep.tunnel.node_tls import pinned_context
from sidestep.tunnel.proof import sign

if TYPE_CHECKING:
    from sidestep.kube.portforward import PortForward

HANDSHAKE_TIMEOUT = 10.0
FIRST_PAUSE, LAST_PAUSE = 0.2, 5.0
"""Seconds between attempts; doubled each time, with jitter, and reset after a tunnel that lasted."""

_POD = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")

TunnelKey = tuple[str, str, str]
"""(node, daemon pod, certificate): identifies one run of a daemon."""


def key_of(node: str, entry: NodeEntry) -> TunnelKey:
    """Return the key of the daemon that a status entry describes."""
    return (node, entry.daemon.pod, entry.certificate)


@dataclass(slots=True)
class NodeTunnel:
    """Keeps one tunnel open until `run` is cancelled, or `wanted` is unset while no tunnel is open."""

    api: Api
    node: str
    entry: NodeEntry
    uid: str
    key: Ed25519PrivateKey
    dial: Dial
    hear: Hear
    access: AccessClient | None
    on_event: Callable[[AnyEvent], None]
    on_end: Callable[[str], None]
    """Called with the reason whenever a tunnel ended or could not be opened."""
    on_refusal: Callable[[SidestepError], None]
    """Called with each refusal of the API server, and of a daemon's version, as an error with a text for the user."""
    on_hello: Callable[[Hello], None]
    """Called with the hello of each tunnel."""
    limits: TunnelLimits = DEFAULT_LIMITS
    """Limits of the next tunnel."""
    wanted: bool = True
    _greeted_at: float = math.inf

    async def run(self) -> None:
        """Open the tunnel, and again after it breaks."""
        retry = Retry(FIRST_PAUSE, LAST_PAUSE)
        while self.wanted:
            self._greeted_at = math.inf
            try:
                reason = await self._once()
            except ApiError as error:
                if error.forbidden:
                    namespace = self.entry.daemon.namespace
                    self.on_refusal(explain(error, verb="create", resource="pods/portforward", namespace=namespace))
                reason = str(error)
            except (ClusterError, PeerError, RefusedError) as error:
                reason = str(error)
            self.on_end(reason)
            retry.succeeded(lived=asyncio.get_running_loop().time() - self._greeted_at)
            await asyncio.sleep(retry.pause())

    async def _once(self) -> str:
        # Loaded by the first tunnel: its library is large, and commands and daemons without one do not pay for it.
        from sidestep.kube.portforward import PortForward

        daemon = self.entry.daemon
        _check(daemon)
        try:
            certificate = base64.b64decode(self.entry.certificate, validate=True)
        except (binascii.Error, ValueError) as error:
            raise PeerError("the node's certificate in the resource's status cannot be read") from error
        context = pinned_context(certificate)
        forward = await PortForward.open(self.api, namespace=daemon.namespace, pod=daemon.pod, port=daemon.port)

        def prove(hello: Hello) -> str:
            return sign(self.key, nonce=hello.nonce, certificate=certificate, uid=self.uid)

        def greeted(hello: Hello) -> None:
            self._greeted_at = asyncio.get_running_loop().time()
            self.on_hello(hello)

        end = CliEnd(
            dial=self.dial,
            hear=self.hear,
            access=self.access,
            on_hello=greeted,
            on_event=self.on_event,
            prove=prove,
            intercept=self.uid,
            limits=self.limits,
        )
        try:
            await self._handshake(end, forward, context, certificate)
            broken = await end.run()
            if end.refusal is not None:
                self.on_refusal(end.refusal)
            if isinstance(broken, TunnelSilentError):
                self.limits = self.limits.after_silence()
            return str(broken) if broken is not None else forward.error
        finally:
            end.connection.close()
            if end.connection.closed.done():
                await end.connection.wait_closed()
            await forward.aclose()

    async def _handshake(self, end: CliEnd, forward: PortForward, context: ssl.SSLContext, certificate: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.create_connection(
                lambda: end.connection,
                sock=forward.socket,
                ssl=context,
                server_hostname="",
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT,
            )
        except (OSError, ssl.SSLError) as error:
            forward.socket.close()
            reason = forward.error or str(error)
            raise PeerError(f"no tunnel to node {self.node}: {reason}") from error
        found = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        if found != certificate:
            transport.abort()
            raise PeerError(f"node {self.node} shows another certificate than the resource's status")


def _check(daemon: DaemonEntry) -> None:
    """Raise RefusedError unless the entry can be a daemon's pod and port."""
    if daemon.namespace != DAEMON_NAMESPACE:
        raise RefusedError(
            f"the resource's status names a pod of namespace {daemon.namespace[:100]!r} as a node daemon; they run in "
            f"namespace {DAEMON_NAMESPACE}, and nothing is sent elsewhere"
        )
    if not _POD.fullmatch(daemon.pod) or not 0 < daemon.port <= 65535:
        raise RefusedError(f"the resource's status names no pod and port: {daemon.pod[:100]!r}, {daemon.port}")
