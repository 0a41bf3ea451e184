"""One set of exchanges, written in many ways over HTTP/2: what rules say does not depend on the way.

Client and app write header blocks with padding, priorities and CONTINUATION, bodies in frames of any size, with padding
and with empty frames, streams in any order, other frames between them, and the shell reads pieces of any size. The
relay that is compared with gets each stream for itself, in few frames, and its gate has everything read: it knows no
fast way.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.engine.http2.asked_streams import STREAMS
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.http2.request_blocks import BODY_FRAMES
from sidestep.engine.inspection.gate import Gate
from sidestep.engine.inspection.sampling import Sampling
from sidestep.model.inspection import Action, Direction, Pattern, Rule
from sidestep.policy.inspection import Inspection
from sidestep.protocols.hpack import encode
from sidestep.protocols.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADER,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS_ACK,
    STREAM,
    WITH_PRIORITY,
    frame,
    header_frames,
    window_update,
)
from sidestep.protocols.http2 import settings as settings_frame
from tests.effort import examples
from tests.unit.engine.http2.talk import Talk
from tests.unit.engine.http2_peers import MATCH, Peers, request, rule
from tests.unit.engine.inspection.inspecting import (
    DETECT,
    ENFORCE,
    FAIL,
    MODES,
    NO_LEAK,
    NO_SECRET,
    SECRET,
    Recorder,
    gate,
    inspection,
)
from tests.unit.engine.inspection.test_random import PATHS, WORDS, rules, some_text

Fields = list[tuple[bytes, bytes]]
UNKNOWN = 0xBB
"""A kind of frame that nobody knows."""


@dataclass
class Half:
    """A request or an answer: its blocks, and what stands between the last two of them."""

    head: Fields
    body: bytes = b""
    trailers: Fields | None = None
    interim: Fields | None = None


@dataclass
class Seen:
    """What came of a half."""

    blocks: list[Fields] = field(default_factory=list)
    body: bytes = b""
    ended: bool = False
    reset: bool = False


class Side:
    """Writes halves in frames, and reads those of the other side. `random` is None for the plainest way.

    `answer` makes this a server: it gets the path of a request that is whole.
    """

    def __init__(self, random: Random | None, answer: Callable[[bytes], Half] | None = None) -> None:
        self.random = random
        self.answer = answer
        self.dead = False
        self.seen: dict[int, Seen] = {}
        self._steps: dict[int, list[tuple[str, object, bool]]] = {}
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._in = bytearray()
        self._block = b""
        self._out = bytearray(PREFACE + settings_frame({}) if answer is None else settings_frame({}) + SETTINGS_ACK)
        self._begun = answer is None
        self._opened = 0
        """The last stream of which something was written."""

    # --- writing ------------------------------------------------------------------------------------------------------

    def say(self, stream: int, half: Half) -> None:
        steps: list[tuple[str, object, bool]] = []
        if half.interim is not None:
            steps.append(("block", half.interim, False))
        is_alone = not half.body and half.trailers is None
        empties = is_alone and self._chance(0.2)
        steps.append(("block", half.head, is_alone and not empties))
        pieces = self._pieces(half.body) if half.body else [b""] if empties else []
        if half.body and self._chance(0.2):
            pieces.append(b"")
        for at, piece in enumerate(pieces, 1):
            steps.append(("data", piece, at == len(pieces) and half.trailers is None))
        if half.trailers is not None:
            steps.append(("block", half.trailers, True))
        self._steps[stream] = steps

    def _chance(self, share: float) -> bool:
        return self.random is not None and self.random.random() < share

    def _pieces(self, body: bytes) -> list[bytes]:
        size = len(body)
        if self.random is not None:
            size = max(self.random.choice((1, 2, 7, 300, 2000, 16000)), size // 100)
        return [body[at : at + size] for at in range(0, len(body), size)]

    def work(self) -> bool:
        """Write something, if there is anything to write."""
        if not self._steps:
            return False
        streams = sorted(self._steps)
        stream = streams[0] if self.random is None else self.random.choice(self._ready(streams))
        steps = self._steps[stream]
        kind, what, ends = steps.pop(0)
        if kind == "block":
            self._out += self._headers(stream, self._encoder.encode(what), ends=ends)
            self._opened = max(self._opened, stream)
        else:
            assert isinstance(what, bytes)
            self._out += self._padded(DATA, END_STREAM * ends, stream, what)
        if not steps:
            del self._steps[stream]
        if self._chance(0.1):
            self._out += self._noise(stream)
        return True

    def _ready(self, streams: list[int]) -> list[int]:
        """A client opens its streams in order."""
        if self.answer is not None:
            return streams
        new = [each for each in streams if each > self._opened]
        return [each for each in streams if each <= self._opened] + new[:1]

    def _padded(self, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        if not self._chance(0.2):
            return frame(kind, flags, stream, payload)
        assert self.random is not None
        padding = self.random.choice((0, 1, 30))
        return frame(kind, flags | PADDED, stream, bytes((padding,)) + payload + bytes(padding))

    def _headers(self, stream: int, block: bytes, *, ends: bool) -> bytes:
        cuts = [] if not self._chance(0.4) else sorted(self.random.choices(range(len(block) + 1), k=2))  # type: ignore[union-attr]
        parts = [block[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(block)], strict=True)]
        flags = END_STREAM * ends | END_HEADERS * (len(parts) == 1)
        first = parts[0]
        if self.answer is None and self._chance(0.2):
            flags, first = flags | WITH_PRIORITY, b"\0\0\0\0\x10" + first
        made = (
            self._padded(HEADERS, flags, stream, first)
            if flags & WITH_PRIORITY == 0
            else frame(HEADERS, flags, stream, first)
        )
        for at, part in enumerate(parts[1:], 2):
            made += frame(CONTINUATION, END_HEADERS * (at == len(parts)), stream, part)
        return made

    def _noise(self, stream: int) -> bytes:
        assert self.random is not None
        noises = [
            frame(PING, 0, 0, bytes(8)),
            window_update(0, 1),
            window_update(stream, 1),
            frame(UNKNOWN, 3, 1, b"x"),
        ]
        if self.answer is None:
            noises.append(frame(PRIORITY, 0, stream, b"\0\0\0\0\x01"))
        return self.random.choice(noises)

    def take(self) -> bytes:
        out = bytes(self._out)
        self._out.clear()
        return out

    # --- reading ------------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        self._in += data
        if not self._begun:
            if len(self._in) < len(PREFACE):
                return
            del self._in[: len(PREFACE)]
            self._begun = True
        while len(self._in) >= HEADER.size:
            high, low, kind, flags, stream = HEADER.unpack_from(self._in)
            stop = HEADER.size + (high << 8 | low)
            if len(self._in) < stop:
                return
            payload = bytes(self._in[HEADER.size : stop])
            del self._in[:stop]
            self._frame(kind, flags, stream & STREAM, payload)

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        seen = self.seen.setdefault(stream, Seen())
        if kind in (HEADERS, DATA) and flags & PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if kind == HEADERS:
            self._block = payload[5:] if flags & WITH_PRIORITY else payload
            seen.ended |= bool(flags & END_STREAM)
        elif kind == CONTINUATION:
            self._block += payload
        elif kind == DATA:
            seen.body += payload
            seen.ended |= bool(flags & END_STREAM)
        elif kind == RST_STREAM:
            seen.reset = True
            self._steps.pop(stream, None)
        if kind in (HEADERS, CONTINUATION) and flags & END_HEADERS:
            seen.blocks.append([(bytes(n), bytes(v)) for n, v in self._decoder.decode(self._block, raw=True)])
        is_whole = seen.ended and (kind == DATA or (kind in (HEADERS, CONTINUATION) and flags & END_HEADERS))
        if self.answer is not None and is_whole and not seen.reset:
            self.say(stream, self.answer(dict(seen.blocks[0])[b":path"]))


class Thorough(Gate):
    """A gate that has everything read."""

    __slots__ = ()
    asks = is_quick = False

    def clears(self, target, fields, body=b""):
        return False

    def rules_out_request(self, target, fields):
        return False


def some_exchanges(random: Random) -> list[tuple[Half, Half]]:
    made = []
    for number in range(random.randint(1, 6)):
        body = some_text(random, random.choice((1, 20, 900))) if random.random() < 0.5 else b""
        head = [
            (b":method", b"POST" if body else b"GET"), (b":scheme", b"https"), (b":authority", b"shop"),
            (b":path", random.choice(PATHS) + b"?mark%dmark" % number), (b"x-kind", random.choice((b"1", b"2"))),
        ]  # fmt: skip
        head += [(b"x-note", random.choice(WORDS))] * (random.random() < 0.2) + [MATCH] * (random.random() < 0.2)
        reply = some_text(random, random.choice((1, 20, 300, 1500)))
        if random.random() < 0.3:
            reply = random.choice((b"x" * random.randrange(8000), b"")) + b" " + random.choice(WORDS)
        told = [(b":status", random.choice((b"200", b"404"))), (b"server", b"app")]
        told += [(b"x-note", random.choice(WORDS))] * (random.random() < 0.1)
        if reply and random.random() < 0.2:
            told.append((b"content-encoding", b"gzip"))
            reply = gzip.compress(reply, mtime=0)
        note = [(b"x-sum", random.choice((b"1", *WORDS)))]
        made.append(
            (
                Half(head, body, note if random.random() < 0.15 else None),
                Half(
                    told, reply, note if random.random() < 0.15 else None,
                    [(b":status", b"103"), (b"link", b"x")] if random.random() < 0.1 else None,
                ),
            )
        )  # fmt: skip
    return made


@dataclass
class Run:
    """What came of all exchanges, in the order of the requests."""

    answers: list[object]
    reached: set[bytes]
    told: set[tuple[int, str]]
    samples: set[tuple[object, ...]]
    reasons: list[tuple[str, bool]]


def run(made: list[tuple[Half, Half]], inspected: Inspection, random: Random | None, *, percent: float) -> Run:
    """Let client, app and handler say it all."""
    recorder = Recorder()
    by_path = {dict(asked.head)[b":path"]: reply for asked, reply in made}
    gates: list[Gate] = []
    servers: list[Side] = []

    def server() -> Side:
        servers.append(Side(random, by_path.__getitem__))
        return servers[-1]

    def relay(port):
        gates.append(gate(inspected, recorder, sampling=Sampling(percent, 1)))
        if random is None:
            gates[0].__class__ = Thorough
        return Http2Relay(port, tls=True, gate=gates[0])

    client = Side(random)
    peers = Peers(
        client, server(), second=server, handler=lambda _: server(), rules=(rule("dev", MATCH),), relay=relay,  # type: ignore[arg-type, return-value]
        rng=random or Random(1), chunk=random.choice((3, 40, 1000, 1 << 16)) if random is not None else 1 << 20,
    )  # fmt: skip
    for number, (asked, _) in enumerate(made):
        client.say(1 + 2 * number, asked)
        if random is None:
            peers.run()
    peers.run()
    answers: list[object] = []
    refused = set()
    for number in range(len(made)):
        seen = client.seen[1 + 2 * number]
        if seen.reset or any(dict(block).get(b":status") == b"403" for block in seen.blocks):
            refused.add(number)
            answers.append("refused")
        else:
            assert seen.ended
            answers.append((seen.blocks, seen.body))
    reached = set()
    bodies = {dict(asked.head)[b":path"]: asked.body for asked, _ in made}
    for each in servers:
        for seen in each.seen.values():
            if seen.blocks:
                reached.add(path := dict(seen.blocks[0])[b":path"])
                assert bodies[path].startswith(seen.body)
                assert seen.body == bodies[path] or not seen.ended
    told = {(hit.exchange.number, hit.rule) for hit in recorder.records if hit.exchange.number not in refused}
    # Whether the answer of a handler is told depends on whether anything has to be judged of a request after its head.
    diverted = {number for number, (asked, _) in enumerate(made) if MATCH in asked.head}
    samples = {
        (each.number, each.target, *((each.status, each.length) if each.number not in diverted else ()))
        for each in recorder.exchanges
    }
    gates[0].end()
    connection = peers.relay._connection
    assert connection.inspection is not None
    assert not connection.inspection.asked
    return Run(answers, reached, told, samples, sorted(recorder.reasons))


SEE = (
    Rule("see", Action.ALERT, patterns=(Pattern(regex=r"\balpha\b"),)),
    Rule("see-answer", Action.LOG, Direction.RESPONSE, patterns=(Pattern(regex="bravo|delta$"),)),
)


@pytest.mark.timeout(600)
@settings(max_examples=examples(150), deadline=None)
@given(st.integers(0, 1 << 40), st.sampled_from(sorted(MODES)), st.booleans(), st.sampled_from([0.0, 100.0]))
def test_verdicts_do_not_depend_on_how_exchanges_are_written(seed, mode, only_sees, percent):
    random = Random(seed)
    made = some_exchanges(random)
    chosen = random.sample(SEE, random.randint(1, 2)) if only_sees else [*rules(random), random.choice(SEE)]
    plain = run(made, inspection(*chosen, **MODES[mode]), None, percent=percent)
    wild = run(made, inspection(*chosen, **MODES[mode]), random, percent=percent)
    assert wild == plain


def test_only_an_answer_in_which_something_is_found_is_read():
    made = gate(inspection(SEE[1], **MODES["Enforce+Ignore"]), recorder := Recorder(), sampling=Sampling(100.0, 1))
    talk = Talk(relay=lambda port: Http2Relay(port, tls=True, gate=made))
    streams = talk.relay._connection.inspection
    assert streams is not None
    for stream in range(1, 13, 2):
        talk.send(talk.head(stream, request(b"/")))
    assert [*streams.asked] == [1, 3, 5, 7, 9, 11]
    assert made.memory.held > 0
    for stream in (1, 3, 5, 7):
        talk.from_app(talk.respond(stream, ends=False) + frame(DATA, 0, stream, b"nothing, bra"))
    assert not streams.responses
    talk.from_app(frame(DATA, END_STREAM, 1, b"vo is said"))  # across two frames
    talk.from_app(frame(DATA, 0, 3, b"x" * 5000) + frame(DATA, END_STREAM, 3, b"bravo"))  # longer than what is kept
    talk.from_app(frame(DATA, PADDED | END_STREAM, 5, b"\x01vo\x00"))
    talk.from_app(frame(DATA, END_STREAM, 7, b"ss") + talk.respond(9) + talk.respond(11, (b"x-note", b"bravo")))
    assert [(hit.exchange.stream, hit.exchange.status) for hit in recorder.records] == [
        (1, 200), (3, 200), (5, 200), (11, 200),
    ]  # fmt: skip
    assert {each.stream: each.length for each in recorder.exchanges} == {7: 14, 9: 0}  # a hit tells of its exchange
    assert not streams.asked
    assert made.memory.held == 0


def test_answers_that_may_be_blocked_and_requests_that_are_searched_are_not_only_asked_for():
    for chosen, mode, method in ((NO_LEAK, ENFORCE, b"GET"), (SEE[1], FAIL, b"GET"), (SEE[0], DETECT, b"POST")):
        made = gate(inspection(chosen, SEE[1], **mode), Recorder())
        talk = Talk(relay=lambda port, made=made: Http2Relay(port, tls=True, gate=made))
        talk.send(talk.head(1, request(b"/", method=method), ends=method == b"GET"))
        assert not talk.relay._connection.inspection.asked


def test_few_streams_are_only_asked_for():
    made = gate(inspection(SEE[1], **DETECT), recorder := Recorder())
    talk = Talk(relay=lambda port: Http2Relay(port, tls=True, gate=made))
    for stream in range(1, 2 * STREAMS + 7, 2):
        talk.send(talk.head(stream, request(b"/")))
    streams = talk.relay._connection.inspection
    assert len(streams.asked) == STREAMS
    assert len(streams.responses) == 3
    for stream in (1, 2 * STREAMS + 5):
        talk.from_app(talk.respond(stream, ends=False) + frame(DATA, END_STREAM, stream, b"bravo"))
    assert [hit.exchange.stream for hit in recorder.records] == [1, 2 * STREAMS + 5]


BODY = b"a body"


@pytest.mark.parametrize("mode", [DETECT, ENFORCE, FAIL])
@pytest.mark.parametrize(
    ("behind", "goes_on"),
    [
        (frame(DATA, END_STREAM, 1, BODY), True),
        (frame(DATA, END_STREAM, 1, BODY) + frame(PING, 0, 0, bytes(8)), True),
        (frame(DATA, 0, 1, BODY) + frame(DATA, END_STREAM, 1, b""), True),
        (frame(DATA, 0, 1, BODY[:2]) + frame(DATA, 0, 1, b"") + frame(DATA, END_STREAM, 1, BODY[2:]), True),
        (frame(DATA, 0, 1, SECRET[:4]) + frame(DATA, END_STREAM, 1, SECRET[4:]), False),
        (frame(DATA, 0, 1, BODY) + frame(DATA, END_STREAM, 3, b""), False),
        (frame(DATA, 0, 1, b"") * BODY_FRAMES + frame(DATA, END_STREAM, 1, BODY), False),
        (frame(DATA, END_STREAM, 1, BODY)[:-1], False),
        (frame(DATA, 0, 1, BODY), False),
        (frame(DATA, END_STREAM | PADDED, 1, b"\0" + BODY), False),
        (frame(DATA, END_STREAM, 3, BODY), False),
        (frame(PING, 0, 0, bytes(8)) + frame(DATA, END_STREAM, 1, BODY), False),
        (frame(DATA, END_STREAM, 1, SECRET), False),
        (header_frames(1, encode([(b"x-sum", b"1")]), end_stream=True), False),
        (header_frames(1, encode([(b"x-sum", SECRET)]), end_stream=True), False),
        (b"", False),
    ],
)
@pytest.mark.parametrize("more", [(), (SEE[1],)])
def test_a_request_that_is_here_whole_goes_on_unread_if_nothing_is_found(mode, behind, goes_on, more, monkeypatch):
    judge, judged = Gate.judge, []
    monkeypatch.setattr(Gate, "judge", lambda self, *head, **more: judged.append(head) or judge(self, *head, **more))
    made = gate(inspection(NO_SECRET, *more, **mode), recorder := Recorder())
    talk = Talk(relay=lambda port: Http2Relay(port, tls=True, gate=made))
    streams = talk.relay._connection.inspection
    talk.send(talk.head(1, request(b"/", method=b"POST"), ends=False) + behind)
    goes_on = goes_on and not (more and mode is FAIL)
    assert bool(judged) is not goes_on
    assert [*streams.asked] == [1] * (goes_on and bool(more))
    assert not talk.seconds or not goes_on
    assert bool(talk.app.of(HEADERS, 1)) is (goes_on or mode is DETECT)
    if goes_on:
        assert b"".join(data for _, data in talk.app.of(DATA, 1)) == BODY
    assert bool(recorder.records) is (SECRET[4:] in behind)
