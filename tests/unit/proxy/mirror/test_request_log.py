"""Log lines of requests: what one message holds, and what is only counted."""

from collections import Counter
from types import SimpleNamespace

import pytest

from sidestep.engine.mirror.notes import Answer, Note
from sidestep.policy.route import Rule
from sidestep.proxy.control import messages
from sidestep.proxy.control.channel import Codec
from sidestep.proxy.mirror import request_log
from sidestep.proxy.mirror.recent_requests import RecentRequests
from sidestep.proxy.mirror.request_log import RequestLog

TLS = messages.LoggedTls("TLSv1.3", "TLS_AES_256_GCM_SHA384", "h2", "\ufffd" * messages.MAX_TLS_TEXT, "CN=ada")
RULE = Rule("uid", "", lambda *_: True, heads_only=True)
CODEC = Codec(messages.FromProxy, folds=False)


class DaemonLink:
    """Takes what a proxy could send; `behind`: nothing more after so many."""

    is_open = True

    def __init__(self, behind=1 << 30):
        self.behind = behind
        self.sent = []

    def next_seq(self):
        return 1

    def send(self, message, *, droppable):
        assert droppable
        data, memfd = CODEC.encode(message)
        assert len(data) <= messages.MAX_INLINE
        assert memfd is None
        if len(self.sent) >= self.behind:
            return False
        self.sent.append(CODEC.decode(data, None)[0])
        return True


class Clock:
    """Stands for the loop."""

    now = 1.0

    def later(self, delay, call):
        """Nobody waits."""


def line(number, text, fields=()):
    return messages.LoggedRequest("u" * 36, 80, "::1", number, text, text, text, copied=True, fields=fields)


def told(lines, **options):
    line = DaemonLink(**options)
    log = RequestLog(None, line)
    log._lines = [request_log.encode(each) for each in lines]
    log.flush()
    return line, log


def connection(*notes, tls=False):
    """A connection whose mirror has these notes."""
    return SimpleNamespace(
        relay=SimpleNamespace(mirror=SimpleNamespace(notes=[*notes])),
        port=SimpleNamespace(
            counters=Counter(), steered=SimpleNamespace(number=80), outward=None, recent=RecentRequests()
        ),
        endpoints=SimpleNamespace(client="::1", client_port=1),
        tls=tls,
        tls_facts=TLS if tls else None,
    )


@pytest.mark.parametrize("text", ["x", "x" * messages.MAX_TEXT, "\ufffd" * messages.MAX_TEXT, "\U0001f600" * 512])
@pytest.mark.parametrize("fields", [(), (("n", "v"),) * 256, (("\ufffd" * 512, "\ufffd" * 512),) * 4])
def test_every_line_is_told_once_in_messages_that_fit(text, fields):
    lines = [line(number, text, fields) for number in range(messages.MAX_LINES)]
    out, _ = told(lines)
    assert [each for message in out.sent for each in message.requests] == lines
    if len(text) == 1 and not fields:
        assert len(out.sent) == 2 or len(out.sent) == 1


def test_lines_that_are_not_told_are_counted_in_the_next_message():
    lines = [line(number, "x" * 2000) for number in range(40)]
    out, log = told(lines, behind=1)
    assert log._dropped == 40 - len(out.sent[0].requests) > 0
    out.behind = 2
    log._lines = [request_log.encode(line(0, "x"))]
    log.flush()
    assert out.sent[-1].dropped == 40 - len(out.sent[0].requests)


def test_more_bytes_than_the_daemon_takes_in_a_second_are_only_counted():
    out, clock = DaemonLink(), Clock()
    log = RequestLog(clock, out)
    rule = Rule("u" * 36, "", lambda *_: True)
    request = Note(rule, b"GET", b"/" + b"\xff" * 2000, b"a", copied=False)
    conductor = connection()
    for _ in range(300):
        conductor.relay.mirror.notes = [request] * 100
        log.add(conductor)
        log.flush()
        clock.now += 0.01
    size = sum(len(CODEC.encode(message)[0]) for message in out.sent)
    assert 0.5 * 3 * request_log.RATE < size <= 3 * request_log.RATE + request_log.BURST
    told = sum(len(message.requests) + message.dropped for message in out.sent)
    assert told + log._dropped == 30_000


@pytest.mark.parametrize(
    ("received", "shown"),
    [
        (b"/plain?q=%C3%A9", "/plain?q=%C3%A9"),
        (b"/caf\xc3\xa9", "/café"),
        (b"/caf\xe9", "/caf\ufffd"),
        (b"/\xff\xfe\x00", "/\ufffd\ufffd\x00"),
        (b"/" + b"x" * 3000, "/" + "x" * (messages.MAX_TEXT - 1)),
        (b"x" * (messages.MAX_TEXT - 1) + b"\xc3\xa9", "x" * (messages.MAX_TEXT - 1) + "\ufffd"),
    ],
)
def test_bytes_of_a_head_are_shown_as_utf_8_and_what_is_not_is_replaced(received, shown):
    out = DaemonLink()
    log = RequestLog(Clock(), out)
    request = Note(RULE, b"GET", received, received, copied=True, fields=((b"x-a", received),))
    shown_to = connection(request)
    log.add(shown_to)
    log.flush()
    (told,) = out.sent[0].requests
    assert (told.path, told.authority, told.fields) == (shown, shown, (("x-a", shown),))
    assert CODEC.decode(CODEC.encode(out.sent[0])[0], None)[0] == out.sent[0]
    assert shown_to.port.counters == {"flows": 1}


ANSWER = Answer(200, "handler", "shop/dev", 0.25, 1 << 40, 1 << 40, is_whole=True, head=b"x-a: \xff\r\nx-b: 1")


def test_the_answer_is_told_with_its_request_or_by_its_number():
    out = DaemonLink()
    log = RequestLog(Clock(), out)
    asked = connection(
        Note(RULE, b"GET", b"/", b"a", copied=True, at=0.25, protocol="h2", trace=b"ab", answer=ANSWER),
        Note(RULE, b"", b"", b"", copied=True, number=7, answer=ANSWER, is_answer=True),
        tls=True,
    )
    log.add(asked)
    log.flush()
    request, later = out.sent[0].requests
    assert request.tls_facts == TLS
    assert (request.age, request.protocol, request.tls, request.trace, request.is_answer) == (
        0.75,
        "h2",
        True,
        "ab",
        False,
    )
    assert request.answer == later.answer
    assert (later.number, later.is_answer) == (7, True)
    assert (request.answer.seconds, request.answer.head) == (0.25, "x-a: \ufffd\r\nx-b: 1")
    assert asked.port.counters == {"flows": 1}


@pytest.mark.parametrize("head", [b"", b"x" * 4096, b"\xff" * 4096])
def test_the_largest_answers_are_told(head):
    out = DaemonLink()
    log = RequestLog(Clock(), out)
    answer = Answer(599, "handler", "n" * 200, 1e6, 1 << 62, 1 << 62, is_whole=False, head=head)
    note = Note(
        RULE,
        b"GET",
        b"/",
        b"a",
        copied=True,
        at=0.1,
        protocol="http/1.1",
        trace=b"a" * 32,
        number=1 << 40,
        answer=answer,
    )
    log.add(connection(note, tls=True))
    log.flush()
    (told,) = out.sent[0].requests
    assert (told.answer.received, told.answer.head) == (1 << 62, head.decode(errors="replace"))
    assert (told.number, told.tls_facts) == (1 << 40, TLS)
