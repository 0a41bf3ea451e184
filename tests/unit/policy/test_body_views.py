"""Views of bodies: what they are, that cuts make no difference, and that they are bounded."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.policy.body_views import REACH, BodyViews, Doubt, View
from tests.effort import examples

MOST = 64 * 1024


MULTIPART = ((b"content-type", b"multipart/form-data; boundary=b"),)


def views_of(*pieces, most=MOST, fields=MULTIPART):
    views = BodyViews(most, fields)
    made = {}
    for view, text in [each for piece in pieces for each in views.feed(piece)] + views.finish():
        made[view] = made.get(view, b"") + text
    return made


@pytest.mark.parametrize(
    "body", [b"", b"attack at dawn", b'{"a": "b", "c": [1, 2]}', b"a=b&c=d", b"=61", bytes(range(1, 37))]
)
def test_an_ordinary_body_has_none(body):
    assert views_of(body) == {}


@pytest.mark.parametrize(
    ("body", "view", "text"),
    [
        ("dawn".encode("utf-16-le"), View.NARROW, b"dawn"),
        ("dawn".encode("utf-32-be"), View.NARROW, b"dawn"),
        (b"a=%61b+c%2", View.FORM, b"a=ab c%2"),
        (b"%%61%zz%", View.FORM, b"%a%zz%"),
        (rb"\u0061\x62\/\"\\u0063\n\t", View.ESCAPED, b'ab/"\\u0063\n\t'),
        (rb"\u00e9\ud83d\ude00", View.ESCAPED, "é\ud83d\ude00".encode("utf-8", "surrogatepass")),
        (rb"\u006 \x6 \\", View.ESCAPED, b"u006 x6 \\"),
        (b"\\", View.ESCAPED, b"\\"),
        (b"Quoted-Printable =61=\r\n=62=\n= \t\r\n=zz=", View.QUOTED, b"Quoted-Printable ab=zz="),
        ("%61".encode("utf-16-le"), View.FORM, b"a"),
    ],
)
def test_views(body, view, text):
    assert views_of(body)[view] == text
    assert views_of(*(body[at : at + 1] for at in range(len(body))))[view] == text


def test_a_view_begins_before_what_makes_it_differ():
    assert views_of(b"x" * 5000 + b"%61") == {View.FORM: b"x" * (REACH - 1) + b"a"}
    assert views_of(b"x" * 10, b"%61") == {View.FORM: b"x" * 10 + b"a"}


@settings(max_examples=examples())
@given(st.text())
def test_whatever_json_writes_is_read(text):
    body = json.dumps(text).encode()
    ascii_only = "".join(each for each in text if each.isascii())
    made = views_of(body).get(View.ESCAPED, body)
    assert ascii_only.encode() == bytes(each for each in made[1:-1] if each < 128)


_PIECES = st.lists(
    st.sampled_from(
        [b"%", b"6", b"61", b"+", b"\\", b"u", b"00", b"x", b"\0", b"=", b"\r", b"\n", b" ", b"quoted-", b"printable",
         b"x" * 700, b"y" * 1500]
    ),
    max_size=30,
)  # fmt: skip


@settings(max_examples=examples())
@given(_PIECES, st.integers(1, 3000), st.sampled_from([MULTIPART, ()]))
def test_cuts_make_no_difference(pieces, most, fields):
    whole = views_of(b"".join(pieces), most=most, fields=fields)
    assert views_of(*pieces, most=most, fields=fields) == whole


@pytest.mark.parametrize(
    ("head", "body", "doubts"),
    [
        (b"text/plain; charset=utf-7", b"", {Doubt.CHARSET}),
        (b"text/plain; charset=UTF-8", b"", set()),
        (b'text/plain; Charset="ibm037"', b"", {Doubt.CHARSET}),
        (b"text/plain", b"charset=utf-7;", set()),
        (MULTIPART[0][1], b"charset=utf-7;", {Doubt.CHARSET}),
        (MULTIPART[0][1], b"Content-Transfer-Encoding: base64\r\n", {Doubt.PARTS}),
        (MULTIPART[0][1], b"content-encoding:gzip\r\n", {Doubt.PARTS}),
        (MULTIPART[0][1], b"Content-Transfer-Encoding: 8bit\r\n charset=utf-8\r\n", set()),
    ],
)
def test_doubts(head, body, doubts):
    for cut in (1, 1000):
        views = BodyViews(MOST, [(b"content-type", head)])
        for at in range(0, len(body), cut):
            views.feed(body[at : at + cut])
        assert views.doubts == doubts


def test_nothing_is_kept_twice_before_a_view_begins():
    views = BodyViews(MOST)
    for _ in range(3):
        views.feed(b"x" * 700)
        assert views.held <= REACH
    views.feed(b"%")
    assert views.held > REACH


def test_views_are_bounded():
    made = views_of(*[b"%61" * 1000] * 100, most=6000)
    assert made == {View.FORM: b"a" * 2000}


def test_each_message_has_its_own():
    views = BodyViews(MOST)
    assert views.feed(b"%6") == []
    assert views.finish() == [(View.FORM, b"%6")]
    assert views.feed(b"1") == []
    assert views.finish() == []
