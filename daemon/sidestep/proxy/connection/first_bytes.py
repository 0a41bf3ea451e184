"""Waits for the first bytes of a connection: in clear, peeked and not consumed; inside TLS, read.

Both classes turn what happens to sockets and timers into the events that `engine.classification` asks about. `next`
takes the verdict that asked for more and returns the next event with all bytes at hand. Each wait ends at a deadline
that the verdict names, so the caller's loop over verdicts ends as well.

`PeekedBytes`, before TLS. States, and the events that end them:

    state     watched                          events
    WAITING   client                           DATA, EOF; SILENT, or STILL_SILENT the second time, at the deadline
    ASKING    client, the dial of the app      DATA, EOF; STILL_SILENT; a dial that fails ends the connection
    ASKED     client, app                      DATA, EOF; STILL_SILENT; SERVER_FIRST
    REST      client for more bytes (and app)  DATA; INCOMPLETE; SERVER_FIRST with an app

REST begins with the first Wait after DATA, and its deadline is that of this first Wait: a client that sends a byte now
and then gains no time. SO_RCVLOWAT keeps epoll quiet until as many bytes are there as were asked for; the end of the
stream wakes as well (socket(7)), and is INCOMPLETE.

`DecryptedBytes`, after both handshakes. It watches both streams; the deadlines are those of silence and of the rest.
What was read is kept in `data` for the relay. The app's descriptor is readable after every TLS 1.3 handshake: session
tickets are no data and no event.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Final

from sidestep.engine.classification import PEEK, AskApp, Event, Wait
from sidestep.model.errors import PeerError
from sidestep.protocols.detection import is_greeting, is_http2_server
from sidestep.proxy.connection.dial import Done
from sidestep.proxy.io.loop import READ, Loop, Timer
from sidestep.proxy.io.stream import TlsStream, reset
from sidestep.proxy.io.task import Cancel, Operation

GREETING: Final = 16
"""Bytes of an app's first data that tell whether its protocol is one in which servers begin."""

_Outcome = tuple[Event, bytes] | PeerError


class _FirstBytes:
    """One event at a time, from whichever source comes first."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._timer: Timer | None = None
        self._expired: Event | None = None
        """The deadline has passed, and nobody has been told."""
        self._done: Callable[[_Outcome], None] | None = None

    async def _outcome(self) -> tuple[Event, bytes]:
        if self._expired is not None:
            return self._expired, b""
        outcome = await Operation(self._begin)
        if isinstance(outcome, PeerError):
            raise outcome
        return outcome

    def _begin(self, done: Callable[[_Outcome], None]) -> Cancel:
        self._done = done
        return self._forget

    def _forget(self) -> None:
        self._done = None

    def _tell(self, event: Event, data: bytes = b"") -> None:
        self._finish((event, data))

    def _fail(self, reason: str) -> None:
        self._finish(PeerError(reason))

    def _finish(self, outcome: _Outcome) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(outcome)

    def abandon(self) -> None:
        """End the waiting: an error of ours was met in a callback."""
        self._fail("internal error")

    def _set_deadline(self, seconds: float, event: Event) -> None:
        self._stop_timer()
        self._timer = self._loop.later(seconds, lambda: self._expire(event))

    def _expire(self, event: Event) -> None:
        if self._done is None:
            self._expired = event
        self._tell(event)

    def _stop_timer(self) -> None:
        self._expired = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class PeekedBytes(_FirstBytes):
    """The first bytes of an accepted connection. See the module.

    `dial(done)` connects to the app and returns a function that cancels. The client's socket stays the caller's, and
    registered with the loop. `close` must be called before anybody else reads the client.
    """

    def __init__(self, loop: Loop, sock: socket.socket, dial: Callable[[Done], Cancel]) -> None:
        super().__init__(loop)
        self._sock = sock
        self._dial = dial
        self._cancel_dial: Cancel | None = None
        self._app: socket.socket | None = None
        self._wanted = 1
        """Bytes that must be there before the client is looked at again; 1 outside REST."""
        self._was_silent = False
        self.greeted = False
        """The app sent what a server sends that begins."""
        self.has_waited = False
        """Something else ran since the connection was accepted."""
        loop.add(sock.fileno(), self._client_ready, READ)

    async def next(self, verdict: Wait | AskApp, have: int) -> tuple[Event, bytes]:
        """Wait for what comes next. `have`: bytes that were at hand for the verdict.

        Raises PeerError when the client breaks or the app cannot be reached.
        """
        if isinstance(verdict, AskApp):
            self._set_deadline(verdict.seconds, Event.STILL_SILENT)
            self._cancel_dial = self._dial(self._dialled)
        elif have:
            self._wait_for_rest(verdict, have)
        elif self._was_silent:
            self._set_deadline(verdict.seconds, Event.STILL_SILENT)
        else:
            event = self._look()  # a client's first bytes often come with it
            if event is not None:
                return event
            self._set_deadline(verdict.seconds, Event.SILENT)
        self.has_waited = True
        event = await self._outcome()
        self._was_silent |= event[0] is Event.SILENT
        return event

    def _wait_for_rest(self, wait: Wait, have: int) -> None:
        if self._wanted == 1:
            self._set_deadline(wait.seconds, Event.INCOMPLETE)
        self._wanted = have + wait.more
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, self._wanted)

    def _look(self) -> tuple[Event, bytes] | None:
        """Return what the client has sent, None if that is nothing. Raises PeerError when the client is gone."""
        try:
            data = self._sock.recv(PEEK, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError as error:
            raise PeerError(f"the client is gone: {error}") from error
        if not data:
            return Event.EOF, b""
        if len(data) < self._wanted:
            return Event.INCOMPLETE, data  # woken with less than was asked for: no more comes
        return Event.DATA, data

    def _client_ready(self, mask: int) -> None:
        del mask
        try:
            event = self._look()
        except PeerError as error:
            self._finish(error)
            return
        if event is not None:
            self._tell(*event)

    def _dialled(self, app: socket.socket | None, error: OSError | None) -> None:
        self._cancel_dial = None
        if app is None:
            self._fail(f"the app cannot be reached: {error}")
            return
        self._app = app
        try:
            self._loop.add(app.fileno(), self._app_ready, READ)
        except OSError as failure:
            self._fail(f"the app cannot be watched: {failure}")

    def _app_ready(self, mask: int) -> None:
        """The app speaks first, or ends, unless the client has spoken in this very moment."""
        del mask
        if self._wanted == 1:
            if _peek(self._sock):
                self._client_ready(READ)
                return
            self.greeted = is_greeting(_peek(self._app))
        self._tell(Event.SERVER_FIRST)

    def holds_app(self) -> bool:
        """Hear no more of the app before the client but its end, if the app has said what HTTP/2 servers say at once;
        returns whether it has. Clients of such servers speak without having heard them (RFC 9113 section 3.4)."""
        if self._app is None or not is_http2_server(_peek(self._app)):
            return False
        self._loop.rebind(self._app.fileno(), self._held_app_ended, select.EPOLLRDHUP)
        self._wanted = 1  # the deadline for the rest of the client's first message begins anew
        return True

    def _held_app_ended(self, mask: int) -> None:
        """The app has waited for the client long enough: so have we."""
        del mask
        if self._app is not None:
            self._loop.remove(self._app.fileno())
        self._tell(Event.STILL_SILENT)

    def take_app(self) -> socket.socket | None:
        """Give out the connection to the app, if there is one. A dial that is under way is given up."""
        if self._cancel_dial is not None:
            self._cancel_dial()
            self._cancel_dial = None
        app, self._app = self._app, None
        if app is not None:
            self._loop.remove(app.fileno())
        return app

    def close(self) -> None:
        """Stop waiting. The client's socket is left as it was found; the app's is closed unless it was taken."""
        self._stop_timer()
        app = self.take_app()
        if app is not None:
            reset(app)
        if self._wanted != 1 and self._sock.fileno() >= 0:
            self._wanted = 1
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


class DecryptedBytes(_FirstBytes):
    """The client's first bytes inside TLS. See the module.

    The client's descriptor is registered with the loop already and stays so; `close` must be called before anybody
    else reads either stream.
    """

    def __init__(self, loop: Loop, client: TlsStream, app: TlsStream) -> None:
        super().__init__(loop)
        self._client = client
        self._app = app
        self.data = b""
        """All that was read from the client."""
        self._began = False
        loop.rebind(client.fd, self._client_ready, READ)
        loop.add(app.fd, self._app_ready, READ)

    async def next(self, wait: Wait) -> tuple[Event, bytes]:
        """Wait for what comes next. Raises PeerError when the client or the app breaks."""
        if self._app.early:
            return Event.SERVER_FIRST, self.data
        if self.data:
            if not self._began:
                self._began = True
                self._set_deadline(wait.seconds, Event.INCOMPLETE)
            return await self._outcome()
        self._set_deadline(wait.seconds, Event.SILENT)
        outcome = self._look()  # it may have come with the end of the handshake
        if isinstance(outcome, PeerError):
            raise outcome
        return outcome or await self._outcome()

    def _look(self) -> _Outcome | None:
        try:
            data = self._client.read()
        except OSError as error:
            return PeerError(f"the client is gone: {error}")
        if data is None:
            return None
        self.data += data
        return Event.DATA if data else Event.EOF, self.data

    def _client_ready(self, mask: int) -> None:
        del mask
        outcome = self._look()
        if outcome is not None:
            self._finish(outcome)

    def _app_ready(self, mask: int) -> None:
        del mask
        try:
            data = self._app.read()
        except OSError as error:
            self._fail(f"the app is gone: {error}")
            return
        if data is not None:
            self._app.early = data
            self._tell(Event.SERVER_FIRST, self.data)

    def close(self) -> None:
        """Stop waiting. Both streams are left open."""
        self._stop_timer()
        self._loop.remove(self._app.fd)


def _peek(sock: socket.socket | None) -> bytes:
    """Return what a peer has sent and nobody has read; b"" when that is nothing, or cannot be told."""
    try:
        return sock.recv(GREETING, socket.MSG_PEEK) if sock is not None else b""
    except OSError:
        return b""
