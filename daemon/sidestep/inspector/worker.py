"""The loop of an inspector: reads questions from its socket, judges them one after the other, answers.

It blocks only while it waits for a packet or for room to answer, and ends when the other end closes. A message that
cannot be decoded, is out of order or exceeds a bound raises PeerError: whoever asks is broken, or taken over.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from sidestep.inspector.arguments import count_arguments
from sidestep.inspector.modsecurity import Request
from sidestep.model.errors import ConfigurationError, PeerError
from sidestep.protocols.http1 import HTTP_1_0, parse_request
from sidestep.protocols.waf_messages import (
    MAX_BODY,
    MAX_HEAD,
    MAX_PACKET,
    MAX_PROFILES,
    VERSION,
    Configure,
    Configured,
    FromInspector,
    Head,
    Outcome,
    Part,
    Question,
    Ready,
    Several,
    ToInspector,
    Verdict,
)
from sidestep.snapshots.waf import Profile

if TYPE_CHECKING:
    from sidestep.inspector.modsecurity import Engine, RuleSet
    from sidestep.inspector.regexes import Regexes
    from sidestep.inspector.rules import CoreRules

_decoder: msgspec.msgpack.Decoder[ToInspector] = msgspec.msgpack.Decoder(ToInspector)
_encoder = msgspec.msgpack.Encoder()


class Inspector:
    """One pod's inspector; `sock` is blocking."""

    def __init__(self, sock: socket.socket, engine: Engine, core: CoreRules, regexes: Regexes) -> None:
        self._sock = sock
        self._engine = engine
        self._core = core
        self._regexes = regexes
        self._profiles: tuple[tuple[Profile, RuleSet, RuleSet | None], ...] = ()
        """With the sets for requests and for responses."""
        self._wanted: tuple[Profile, ...] = ()
        """Profiles that have come, of which others follow."""
        self._packet = bytearray(MAX_PACKET)

    def run(self) -> None:
        """Serve until the other end closes. Raises PeerError."""
        self._send(Ready(VERSION))
        while True:
            message = self._receive()
            if message is None:
                return
            if isinstance(message, Configure):
                configured = self._take(message)
                if configured is not None:
                    self._send(configured)
            elif isinstance(message, Part):
                raise PeerError("a part of a body without its question")
            else:
                for question in message.questions if isinstance(message, Several) else (message,):
                    answer = self._answer(read_head(question) if isinstance(question, Head) else question)
                    if answer is None:
                        return
                    self._send(answer)

    def _take(self, message: Configure) -> Configured | None:
        """Take profiles; returns what becomes of all of them, None while there are more."""
        wanted = (*self._wanted, *message.profiles)
        if len(wanted) > MAX_PROFILES:
            raise PeerError("too many profiles")
        self._wanted = wanted if message.more else ()
        return None if message.more else self._configure(wanted)

    def _configure(self, profiles: tuple[Profile, ...]) -> Configured:
        """Make all rule sets anew; on an error the earlier ones stay."""
        made: list[tuple[Profile, RuleSet, RuleSet | None]] = []
        for place, profile in enumerate(profiles):
            try:
                for regex in profile.regexes:
                    self._regexes.check(regex)
                rules = self._core.profile(profile)
                made.append((profile, rules, self._core.profile_of_responses(profile) if profile.responses else None))
            except ConfigurationError as error:
                _close(made)
                return Configured(place, error.reason[:1000])
        _close(self._profiles)
        self._profiles = tuple(made)
        return Configured()

    def _answer(self, question: Question) -> Verdict | None:
        """Judge a question, whose body may still be on its way; None if the other end closed meanwhile."""
        body, more = question.body, question.more
        while more:
            part = self._receive()
            if part is None:
                return None
            if not isinstance(part, Part) or part.id != question.id:
                raise PeerError("something else than the rest of a body")
            body += part.body
            more = part.more
            if len(body) > MAX_BODY:
                raise PeerError("a body that is too long")
        if question.profile >= len(self._profiles):
            raise PeerError("a question about a profile that there is not")
        if time.monotonic() >= question.expires:
            return Verdict(question.id, Outcome.EXPIRED)
        profile, rules, responses = self._profiles[question.profile]
        if b"\0" in question.target or b"\0" in question.method:
            return Verdict(question.id, Outcome.BLOCK)  # The engine would read only what stands before it.
        size = len(question.target) + sum(len(name) + len(value) for name, value in question.fields)
        if question.status:
            if responses is None:
                raise PeerError("a question about a response that is not judged")
            rules, count = responses, 0
        else:
            count = count_arguments(question.target, question.fields, body)
        if size > MAX_HEAD or count > profile.arguments:
            return Verdict(question.id, Outcome.OVER_LIMIT)
        findings = self._engine.judge(
            rules,
            Request(
                method=question.method,
                target=question.target,
                version=question.version.encode(),
                fields=question.fields,
                client=question.client,
                server=question.server,
                body=body,
                status=question.status,
            ),
        )
        judged = self._core.judgement(findings, profile.threshold)
        outcome = Outcome.BLOCK if judged.blocked else Outcome.PASS
        return Verdict(question.id, outcome, judged.rules, judged.score)

    def _receive(self) -> ToInspector | None:
        """Wait for a message; None when the other end has closed."""
        try:
            size, _, flags, _ = self._sock.recvmsg_into([self._packet])
        except ConnectionError:
            return None
        if not size:
            return None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise PeerError("a packet that is too long, or has a descriptor")
        try:
            return _decoder.decode(memoryview(self._packet)[:size])
        except (msgspec.DecodeError, RecursionError) as error:
            raise PeerError(f"a packet that is no message: {error}") from error

    def _send(self, message: FromInspector) -> None:
        send(self._sock, message)


def read_head(asked: Head) -> Question:
    """The question about a head as it was sent. Raises PeerError."""
    parsed = parse_request(asked.head)
    if isinstance(parsed, str):
        raise PeerError("a head that cannot be read")
    version = "1.0" if parsed.flags & HTTP_1_0 else "1.1"
    return Question(
        asked.id, asked.profile, asked.expires, parsed.method, parsed.target, version, tuple(parsed.fields),
        asked.client, asked.server,
    )  # fmt: skip


def _close(profiles: Iterable[tuple[Profile, RuleSet, RuleSet | None]]) -> None:
    for _, *sets in profiles:
        for rules in sets:
            if rules is not None:
                rules.close()


def send(sock: socket.socket, message: FromInspector) -> None:
    """Send a message; one that nobody reads any more is lost, and the next read finds the end."""
    try:
        sock.sendmsg([_encoder.encode(message)], [], socket.MSG_NOSIGNAL)
    except ConnectionError:
        pass
