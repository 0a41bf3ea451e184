"""The CLI's end of a tunnel: answers the hello, receives events, serves streams of diverted connections.

`dial` connects a stream to the handler and returns a channel, or raises RefusedError, which is answered as 502 with its
text in `sidestep-reason`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sidestep import __version__
from sidestep.model.errors import PeerError, RefusedError, SidestepError
from sidestep.tunnel.access import PROTOCOL_ACCESS, PROTOCOL_ACCESS_DATA, AccessClient, NoAccess
from sidestep.tunnel.channel import Channel
from sidestep.tunnel.connection import Connection
from sidestep.tunnel.daemon_end import read_all
from sidestep.tunnel.limits import DEFAULT_LIMITS, TunnelLimits
from sidestep.tunnel.messages import AnyEvent, Hello, HelloAnswer, decode, decode_event, encode
from sidestep.tunnel.opening import (
    PROTOCOL,
    PROTOCOL_CAPTURE,
    PROTOCOL_RECORDS,
    PROTOCOL_UDP,
    REASON,
    StreamOpening,
    clean_reason,
)
from sidestep.tunnel.pump import pump
from sidestep.tunnel.stream import CANCEL, Stream
from sidestep.tunnel.versions import common_version

Dial = Callable[[StreamOpening], Awaitable[Channel]]
"""Connects to the handler, including the TLS handshake. Raises RefusedError."""
Hear = Callable[[], Awaitable[Channel]]
"""Returns what takes the records of inspection, as lines. Raises RefusedError where the session wants none."""
Prove = Callable[[Hello], str]
"""Creates the proof for a hello; "" in local mode."""


def prove_nothing(_hello: Hello) -> str:
    """The `Prove` of local mode."""
    return ""


async def hear_nothing() -> Channel:
    """The `Hear` of a session without records."""
    raise RefusedError("this session takes no records")


class CliEnd:
    """Serves one tunnel. The caller hands `connection`, the server side, to a transport.

    `intercept` is the uid for the answer to a hello that names none.
    """

    def __init__(
        self,
        *,
        dial: Dial,
        on_hello: Callable[[Hello], None],
        on_event: Callable[[AnyEvent], None],
        hear: Hear = hear_nothing,
        prove: Prove = prove_nothing,
        access: AccessClient | None = None,
        intercept: str = "",
        limits: TunnelLimits = DEFAULT_LIMITS,
    ) -> None:
        self._dial = dial
        self._access = access or NoAccess()
        self._hear = hear
        self._on_hello = on_hello
        self._on_event = on_event
        self._prove = prove
        self._intercept = intercept
        self._limits = limits
        self.refusal: RefusedError | None = None
        """Why this end closed the tunnel at the hello: the daemon's version."""
        self.connection = Connection(serve=self._serve, limits=limits)

    async def run(self) -> SidestepError | None:
        """Wait until the tunnel ends. Returns the result of `Connection.closed`."""
        return await self.connection.wait_closed()

    async def _serve(self, stream: Stream) -> None:
        fields = dict(stream.headers)
        request = (fields.get(":method"), fields.get(":path"), fields.get(":protocol"))
        match request:
            case ("CONNECT", _, protocol) if protocol in {PROTOCOL, PROTOCOL_UDP, PROTOCOL_CAPTURE}:
                await self._connect(stream, lambda: self._dial(StreamOpening.from_headers(stream.headers)))
            case ("CONNECT", _, protocol) if protocol == PROTOCOL_RECORDS:
                await self._connect(stream, self._hear)
            case ("CONNECT", _, protocol) if protocol == PROTOCOL_ACCESS:
                await self._access.talk(self, stream)
            case ("CONNECT", _, protocol) if protocol == PROTOCOL_ACCESS_DATA:
                await self._access.take(self, stream)
            case ("POST", "/v1/hello", None):
                await self._answer_hello(stream)
            case ("POST", "/v1/events", None):
                await self._hear_events(stream)
            case ("CONNECT", _, _):
                stream.respond(501, ((REASON, "this session does not carry that protocol"),), end_stream=True)
                stream.reset(CANCEL)
            case _:
                stream.respond(404, end_stream=True)
                stream.reset(CANCEL)

    async def _connect(self, stream: Stream, connect: Hear) -> None:
        try:
            channel = await connect()
        except (RefusedError, PeerError) as error:
            stream.respond(502, ((REASON, clean_reason(str(error))),), end_stream=True)
            return
        stream.respond(200)
        await pump(stream, channel)

    async def _answer_hello(self, stream: Stream) -> None:
        hello = decode(await read_all(stream, self._limits.hello), Hello, what="the daemon's hello")
        try:
            version = common_version(hello.version)
        except RefusedError as error:
            self.refusal = error
            self.connection.close(error)
            return
        serves = (self._intercept or hello.intercept,)
        answer = HelloAnswer(version=version, serves=serves, proof=self._prove(hello), software=__version__)
        self._on_hello(hello)
        stream.respond(200, (("content-type", "application/json"),))
        await stream.write(encode(answer))
        await stream.write_eof()

    async def _hear_events(self, stream: Stream) -> None:
        stream.respond(200)
        rest = b""
        while data := await stream.read():
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > self._limits.event_line:
                raise PeerError("the daemon sent an event without end")
            for line in lines:
                event = decode_event(line)
                if event is not None:
                    self._on_event(event)
        await stream.write_eof()
