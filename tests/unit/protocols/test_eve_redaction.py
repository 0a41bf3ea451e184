"""What records show of URLs and fields."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.protocols.eve_redaction import CUT, MAX_HEAD, MAX_URL, MAX_VALUE, Redaction, text
from tests.effort import examples

URLS = [
    (b"/", "/"),
    (b"/a/b;c=d", "/a/b;c=d"),
    (b"/a?", "/a?"),
    (b"/a?x=1", "/a?x=[redacted]"),
    (b"/a?x=1&y=2&z=", "/a?x=[redacted]&y=[redacted]&z=[redacted]"),
    (b"/a?x=1=2?3", "/a?x=[redacted]"),
    (b"/a?x=1;y=2", "/a?x=[redacted]"),
    (b"/a?secret", "/a?[redacted]"),
    (b"/a?&&x=1&", "/a?&&x=[redacted]&"),
    (b"/a#token=1", "/a#[redacted]"),
    (b"/a?x=1#token=1", "/a?x=[redacted]"),
    (b"http://h/p?x=1", "http://h/p?x=[redacted]"),
    (b"http://user:pw@h/p", "http://[redacted]@h/p"),
    (b"//user@h/p", "//[redacted]@h/p"),
    (b"user:pw@h:443", "[redacted]@h:443"),
    (b"http://user:p@w@h/p", "http://[redacted]@h/p"),
    (b"/mail/a@b", "/mail/a@b"),
    (b"http://h/a@b", "http://h/a@b"),
    (b"*", "*"),
    (b"", ""),
    (b"/\xff\xc3\xa9", "/\\xffé"),
]


@pytest.mark.parametrize(("target", "shown"), URLS)
def test_urls(target, shown):
    assert Redaction().url(target) == shown


def test_values_of_a_query_are_shown_where_a_policy_allows_it():
    allowed = Redaction(query_values=False)
    assert allowed.url(b"http://u:p@h/a?x=1&y#z") == "http://[redacted]@h/a?x=1&y#[redacted]"


def test_long_texts_are_cut():
    assert Redaction().url(b"/" * 5000) == "/" * MAX_URL + CUT
    assert text(b"a" * MAX_VALUE) == "a" * MAX_VALUE
    assert text(b"a" * (MAX_VALUE + 1)) == "a" * MAX_VALUE + CUT


@pytest.mark.parametrize("name", [b"authorization", b"cookie", b"set-cookie", b"proxy-authorization", b"x-api-key"])
def test_values_of_credentials_are_removed(name):
    assert Redaction(headers=frozenset((b"x-api-key",))).value(name, b"S3CRET") == "[redacted]"


@pytest.mark.parametrize("name", [b"referer", b"location", b":path", b"x-original-url", b"link", b"refresh"])
def test_fields_that_hold_urls_are_treated_as_such(name):
    assert Redaction().value(name, b"https://u:p@h/x?token=S3CRET") == "https://[redacted]@h/x?token=[redacted]"


def test_other_fields_are_shown_as_they_are():
    assert Redaction().value(b"accept", b"a?b=c") == "a?b=c"


def test_a_head_is_shown_up_to_its_bound():
    fields = [(b"a%d" % number, b"v" * 1000) for number in range(20)]
    shown = Redaction().fields(fields)
    assert len(shown) == 8
    assert sum(len(name) + len(value) for name, value in shown) <= MAX_HEAD
    assert Redaction().fields([(b"n" * 5000, b"v" * 5000)]) == [("n" * MAX_VALUE + CUT, "v" * MAX_VALUE + CUT)]


@given(st.binary(max_size=200), st.sampled_from([b"cookie", b"x-key", b"set-cookie", b"authorization"]))
@settings(deadline=None, max_examples=examples())
def test_arbitrary_secrets_are_never_shown(secret, name):
    planted = b"<<" + secret + b">>"
    redaction = Redaction(headers=frozenset((b"x-key",)))
    shown = redaction.fields([(name, planted), (b"accept", b"x")])
    assert shown[0] == (name.decode(), "[redacted]")
    query = planted.replace(b"&", b"").replace(b"?", b"")
    url = redaction.url(b"https://h.test/p?key=" + query)
    assert url == "https://h.test/p?key=[redacted]"
    assert (
        redaction.url(b"https://h.test/p?" + query.replace(b"=", b"").replace(b"#", b""))
        == "https://h.test/p?[redacted]"
    )


@given(st.text("/a?=&#@\u00e9 ", max_size=12), st.booleans())
@settings(max_examples=examples(400), deadline=None)
def test_a_path_with_one_value_is_shown_as_every_other_url(target, allowed):
    """The short way for one named value finds what the long way finds."""
    redaction = Redaction(query_values=not allowed)
    url = b"/" + target.encode()
    assert redaction.url(url) == redaction._url(url).decode("utf-8", "backslashreplace")


@given(st.text("ab=&", max_size=12))
@settings(max_examples=examples(300), deadline=None)
def test_each_part_of_a_query_keeps_its_name_and_nothing_else(query):
    parts = [part.partition("=") for part in query.split("&")]
    shown = [f"{name}=[redacted]" if equals else "[redacted]" if name else "" for name, equals, _ in parts]
    assert Redaction().url(f"/p?{query}".encode()) == f"/p?{'&'.join(shown)}"
