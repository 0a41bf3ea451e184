"""`Skimmer` against `parse_request`: it may not know, it is never wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.protocols.http1 import (
    CHUNKED,
    CLOSE,
    CONNECT,
    HEAD,
    HTTP_1_0,
    LIMITS,
    UPGRADE,
    RequestHead,
    parse_request,
)
from sidestep.protocols.http1_skim import Skimmer
from tests.harness.table import each_row
from tests.unit.engine.hostile_heads import HOSTILE

SKIMMER = Skimmer((b"\nx-dev:",), (), LIMITS)

NAMES = st.sampled_from(
    b"Host host Content-Length Content_Length Transfer-Encoding Connection Upgrade X-Dev Accept Content-Type Cookie "
    b"Upgrade-Insecure-Requests X-Developer Proxy-Connection Expect TE Trailer".split()
)
VALUES = st.sampled_from(
    b"orders.test|a b|0|12| 12 |+5|1_0|chunked|close|keep-alive|websocket||keep-alive, close|x-dev: y|5\t|\xff|"
    b"100-continue|trailers".split(b"|")
)
METHODS = st.sampled_from([b"GET", b"POST", b"HEAD", b"CONNECT", b"OPTIONS"])
TARGETS = st.sampled_from([b"/", b"/a?b=c", b"*", b"http://orders.test/", b"/a#b", b"orders.test:443"])


@st.composite
def heads(draw):
    lines = [draw(METHODS) + b" " + draw(TARGETS) + b" HTTP/1." + draw(st.sampled_from([b"1", b"1", b"1", b"0"]))]
    separator = st.sampled_from([b": ", b": ", b":", b":  ", b":\t", b" : "])
    for name, value in draw(st.lists(st.tuples(NAMES, VALUES), max_size=6)):
        lines.append(name + draw(separator) + value)
    if draw(st.booleans()):
        lines.append(b"Host: orders.test")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def never_wrong(head):
    length = SKIMMER.skim(head)
    parsed = parse_request(head)
    if length is None:
        return
    assert isinstance(parsed, RequestHead), parsed
    assert parsed.body == length != CHUNKED
    assert not parsed.flags & (HEAD | CONNECT | UPGRADE | HTTP_1_0 | CLOSE)
    assert b"x-dev" not in dict(parsed.fields)


@given(heads())
def test_what_it_knows_is_what_the_parser_says(head):
    never_wrong(head)


@each_row("head", [data[: data.find(b"\r\n\r\n") + 4] for _, data in HOSTILE], ids=[name for name, _ in HOSTILE])
def test_hostile_heads(head):
    never_wrong(head)


@pytest.mark.parametrize(
    ("lines", "length"),
    [
        (b"", 0),
        (b"Accept: */*\r\n", 0),
        (b"Connection: keep-alive\r\n", 0),
        (b"Content-Type: text/plain\r\nContent-Length: 12\r\n", 12),
        (b"Upgrade-Insecure-Requests: 1\r\n", 0),
        (b"X-Dev: ada\r\n", None),
        (b"x-dev:\r\n", None),
        (b"Connection: close\r\n", None),
        (b"Transfer-Encoding: chunked\r\n", None),
    ],
)
def test_common_heads_are_known(lines, length):
    assert SKIMMER.skim(b"GET /a?b HTTP/1.1\r\nHost: orders.test\r\n" + lines + b"\r\n") == length


def test_rules_without_headers_are_asked():
    asked = []

    def matches(method, path, fields):
        asked.append((method, path, fields))
        return path == b"/a"

    head = b"GET /%s?x HTTP/1.1\r\nHost: orders.test\r\n\r\n"
    skimmer = Skimmer((), (matches,), LIMITS)
    assert skimmer.skim(head % b"a") is None
    assert skimmer.skim(head % b"b") == 0
    assert asked == [(b"GET", b"/a", ()), (b"GET", b"/b", ())]


@pytest.mark.parametrize("needle", [b"\nx-dev:", b"a.b*c", b"\\d[", b"\xe9"])
def test_needles_are_bytes_and_no_patterns(needle):
    skimmer = Skimmer((b"\nother:", needle), (), LIMITS)
    head = b"GET / HTTP/1.1\r\nHost: orders.test\r\nA: 1%s\r\n\r\n"
    assert skimmer.skim(head % needle.replace(b"\n", b"\r\n").title()) is None
    assert skimmer.skim(head % b"axbbc 7 \xe8") == 0


def test_an_automaton_stays_within_its_memory_and_right():
    skimmer = Skimmer(tuple(b"\nx-%d:" % number for number in range(64)), (), LIMITS)
    for number in range(2000):
        path = b"%d" % (number * 7919)
        head = b"GET /%s HTTP/1.1\r\nHost: %s\r\n%s: x\r\n" % (path, path, path)
        assert skimmer.skim(head + b"\r\n") == 0
        assert skimmer.skim(head + b"X-%d: 1\r\n\r\n" % (number % 64)) is None


def test_too_many_fields_are_not_known():
    head = b"GET / HTTP/1.1\r\nHost: orders.test\r\n" + b"a:\r\n" * (LIMITS.fields + 1) + b"\r\n"
    assert SKIMMER.skim(head) is None
    assert isinstance(parse_request(head), str)


@pytest.mark.parametrize(
    "lines",
    [
        b"Content_Length: 5\r\n",
        b"Content-Length: 5\r\nContent_Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5x\r\n",
        b"Content-Length:\r\n",
    ],
)
def test_a_length_that_is_not_certain_is_not_known(lines):
    head = b"POST / HTTP/1.1\r\nHost: orders.test\r\n" + lines + b"\r\n"
    assert SKIMMER.skim(head) is None


def test_rules_of_method_and_path_are_asked():
    seen = []

    def test(method, path, fields):
        seen.append((method, path, fields))
        return path == b"/mine"

    skimmer = Skimmer((), (test,), LIMITS)
    rest = b" HTTP/1.1\r\nHost: orders.test\r\n\r\n"
    assert skimmer.skim(b"GET /yours?a=b" + rest) == 0
    assert skimmer.skim(b"PUT /mine?a=b" + rest) is None
    assert seen == [(b"GET", b"/yours", ()), (b"PUT", b"/mine", ())]
