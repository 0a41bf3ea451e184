"""What of a head is shown."""

import pytest

from sidestep.model.secret_fields import REDACTED, SECRET
from sidestep.policy import redaction
from sidestep.policy.redaction import MAX_BYTES, answer_lines, redact


@pytest.mark.parametrize("name", sorted(SECRET))
def test_credentials_are_there_and_not_shown(name):
    assert redact([(b"a", b"1"), (name, b"s3cret"), (b"b", b"2")]) == ((b"a", b"1"), (name, REDACTED), (b"b", b"2"))


def test_each_secret_name_is_looked_for_in_answers():
    assert all(b"cookie" in name or b"authorization" in name for name in SECRET)


def test_the_secret_names_are_those_of_the_design():
    assert {b"authorization", b"cookie", b"set-cookie", b"proxy-authorization"} == SECRET


def test_other_fields_are_shown_as_they_are():
    fields = ((b":path", b"/?token=x"), (b"x-authorization", b"shown"), (b"cookies", b"shown"))
    assert redact(fields) == fields


def test_what_is_shown_is_bounded_by_whole_fields():
    shown = redact([(b"x-%d" % number, b"v" * 996) for number in range(100)])
    assert [name for name, _ in shown] == [b"x-0", b"x-1", b"x-2", b"x-3"]
    assert sum(len(name) + len(value) for name, value in shown) <= MAX_BYTES


@pytest.mark.parametrize("name", sorted(SECRET))
@pytest.mark.parametrize("separator", [b":", b": ", b":\t"])
def test_credentials_of_an_answer_are_not_shown(name, separator):
    for written in (name, name.upper(), name.title()):
        raw = b"HTTP/1.1 200 OK\r\nA: 1\r\n" + written + separator + b"s3cret\r\nB: s\r\n\r\n"
        assert answer_lines(raw, None) == b"A: 1\r\n" + written + b": [redacted]\r\nB: s"
    assert answer_lines(b"", [(b":status", b"200"), (name.title(), b"s3cret")]) == name.title() + b": [redacted]"


def test_other_fields_of_an_answer_are_shown_as_they_are():
    raw = b"HTTP/1.1 200 OK\r\nX-Cookie: shown\r\nCookies: shown: cookie: shown\r\n\r\n"
    assert answer_lines(raw, None) == b"X-Cookie: shown\r\nCookies: shown: cookie: shown"
    assert answer_lines(b"HTTP/1.1 200 OK\r\n\r\n", None) == b""


def test_a_field_of_http2_with_a_line_in_it_is_left_out():
    fields = [(b"a", b"1"), (b"b", b"x\r\nset-cookie: y"), (b"set-cookie\n", b"s3cret"), (b"c", b"\0"), (b"d", b"2")]
    assert answer_lines(b"", fields) == b"a: 1\r\nd: 2"


def test_what_is_shown_of_an_answer_is_bounded_by_whole_lines():
    line = b"x-%d: " + b"v" * 1000
    raw = b"HTTP/1.1 200 OK\r\n" + b"\r\n".join(line % number for number in range(50)) + b"\r\n\r\n"
    shown = answer_lines(raw, None)
    assert shown.split(b"\r\n") == [line % number for number in range(4)]
    assert answer_lines(b"HTTP/1.1 200 OK\r\nx: " + b"v" * (MAX_BYTES - 3) + b"\r\n\r\n", None)
    assert answer_lines(b"HTTP/1.1 200 OK\r\nx: " + b"v" * (MAX_BYTES - 2) + b"\r\n\r\n", None) == b""


def test_lines_of_repeated_heads_are_those_of_each_head():
    def raw(number):
        return b"HTTP/1.1 200 OK\r\nX-N: %d\r\nSet-Cookie: s3cret\r\n\r\n" % number

    for number in [*range(200), *range(200), 0, 0]:
        assert answer_lines(raw(number), None) == b"X-N: %d\r\nSet-Cookie: [redacted]" % number
    assert 0 < len(redaction._remembered) <= redaction._MEMO_ENTRIES
    redaction._remembered.clear()
    answer_lines(b"HTTP/1.1 200 OK\r\nX: " + b"v" * redaction._MEMO_HEAD + b"\r\n\r\n", None)
    assert not redaction._remembered
