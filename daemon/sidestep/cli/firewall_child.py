"""Has requests of a capture judged by the web application firewall, in a process of its own that can do nothing else.

`inspector.alone` loads the engine and the Core Rule Set and locks itself. It is thrown away with the command, and made
anew where a request ends it or takes longer than PATIENCE: that request has no verdict. As in a pod (`asking`) what it
says is bounded and checked.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from sidestep.engine.inspection.asking import Answer, Asking, Subject
from sidestep.inspector.zygote_messages import Loaded
from sidestep.model.errors import ConfigurationError, KernelError, PeerError
from sidestep.protocols.waf_messages import MAX_PACKET, VERSION, Configure, Configured, Ready
from sidestep.snapshots.waf import PortWaf, Profile

START: Final = 60.0
"""Seconds for loading the rules, and for taking a profile."""
PATIENCE: Final = 30.0
"""Seconds for one request: machines that check policies are slower than nodes, and nobody waits for an answer."""
PACKAGES: Final = "libmodsecurity3 and modsecurity-crs (Debian)"

_encoder = msgspec.msgpack.Encoder()
_first: msgspec.msgpack.Decoder[Loaded | Ready] = msgspec.msgpack.Decoder(Loaded | Ready)
_later: msgspec.msgpack.Decoder[Ready | Configured] = msgspec.msgpack.Decoder(Ready | Configured)


class FirewallChild:
    """See the module. A context manager; `crs` is the folder of a Core Rule Set, None for Debian's.

    Entering raises ConfigurationError where the engine or the rules are missing, or the settings cannot be used.
    """

    def __init__(self, settings: PortWaf, crs: Path | None) -> None:
        self.settings = settings
        self.version = ""
        self.names: Mapping[int, str] = {}
        """What rules of the Core Rule Set say, by id."""
        self._options = [] if crs is None else ["--crs", str(crs.absolute())]
        self._asking = Asking()
        self._asking.configure((settings.profile,))
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
            self.check(self.settings.profile)
        except BaseException:
            self._end()
            raise
        self._asking.connected()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def check(self, profile: Profile) -> None:
        """Have it take a profile. Raises ConfigurationError for one that is not possible."""
        sock = self._present()
        sock.settimeout(START)
        sock.send(_encoder.encode(Configure((profile,))))
        told = self._receive(sock, _later, "taking rules")
        if not isinstance(told, Configured):
            raise PeerError("the inspector answers with something else than Configured")
        if told.error is not None:
            raise ConfigurationError(told.error, subject="waf")

    def ask(self, subject: Subject) -> Answer:
        """Have a request judged."""
        answers: list[Answer] = []
        asking = self._asking
        asking.ask(subject, seconds=PATIENCE, on_answer=answers.append, now=time.monotonic())
        while not answers:
            try:
                sock = self._present()
                sock.settimeout(PATIENCE)
                while asking.outgoing:
                    sock.send(asking.outgoing[0])
                    asking.outgoing.popleft()
                packet = sock.recv(MAX_PACKET)
            except OSError:
                packet = b""
            if packet:
                asking.received(packet, time.monotonic())
            else:
                asking.is_late = True
            if asking.is_late:
                self._again()
        return answers[0]

    def _again(self) -> None:
        """It has ended, hangs or breaks the protocol: make another one."""
        self._end()
        self._asking.lost(time.monotonic())
        self._start()
        self._asking.connected()

    def _present(self) -> socket.socket:
        if self._sock is None:
            raise PeerError("there is no inspector")
        return self._sock

    def _start(self) -> None:
        if sys.platform != "linux":
            raise ConfigurationError("a firewall judges on Linux only; leave out --replay", subject="waf")
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise KernelError("socketpair", error.errno or 0, doing="making an inspector") from error
        self._sock = ours
        ours.settimeout(START)
        module = [sys.executable, "-I", "-m", "sidestep.inspector.alone", str(theirs.fileno()), *self._options]
        try:
            self._process = subprocess.Popen(
                module, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), cwd="/"
            )
        except OSError as error:
            raise KernelError("execve", error.errno or 0, doing="making an inspector") from error
        finally:
            theirs.close()
        told = self._receive(ours, _first, "loading the rules")
        if isinstance(told, Loaded):
            if told.version != VERSION:
                raise PeerError("the inspector is of another version")
            self.version, self.names = told.engine, told.names
            told = self._receive(ours, _later, "locking the inspector")
        if not isinstance(told, Ready):
            raise PeerError("the inspector begins with something else than Ready")
        if told.error is not None:
            raise ConfigurationError(
                f"requests cannot be judged: {told.error}; it needs {PACKAGES}, or leave out --replay", subject="waf"
            )

    def _receive(self, sock: socket.socket, decoder: msgspec.msgpack.Decoder[Any], doing: str) -> Any:
        """Wait for a message. Raises PeerError."""
        try:
            packet = sock.recv(MAX_PACKET)
        except OSError as error:
            raise PeerError(f"{doing}: the inspector does not answer ({error})") from error
        if not packet:
            raise PeerError(f"{doing}: the inspector has ended")
        try:
            return decoder.decode(packet)
        except msgspec.DecodeError as error:
            raise PeerError(f"{doing}: the inspector sends no message") from error

    def _end(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
