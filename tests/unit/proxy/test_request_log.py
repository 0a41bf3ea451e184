"""Log lines of requests: what one message holds, and what is only counted."""

import pytest

from sidestep.proxy import messages
from sidestep.proxy.control import Codec
from sidestep.proxy.request_log import RequestLog

CODEC = Codec(messages.FromProxy, folds=False)


class Line:
    """Takes what a proxy could send; `behind`: nothing more after so many."""

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
        self.sent.append(message)
        return True


def line(number, text, fields=()):
    return messages.DivertedRequest("u" * 36, 80, "::1", number, text, text, text, copied=True, fields=fields)


def told(lines, **options):
    line = Line(**options)
    log = RequestLog(None, line)
    log._lines = list(lines)
    log.flush()
    return line, log


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
    log._lines = [line(0, "x")]
    log.flush()
    assert out.sent[-1].dropped == 40 - len(out.sent[0].requests)
