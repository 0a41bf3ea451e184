"""What `--save` keeps: the file, its entries, requests with their answers and copies."""

import asyncio
import json
import stat

import pytest
from msgspec.structs import replace

from sidestep.aio.time_limit import time_limit
from sidestep.cli import har_file, saved_requests
from sidestep.cli.har_entries import entry_of
from sidestep.cli.har_file import HarFile
from sidestep.cli.saved_requests import SavedRequests
from sidestep.laptop.copied_requests import CopiedRequest
from sidestep.laptop.recorded_body import Body
from sidestep.model.errors import ConfigurationError
from sidestep.protocols import har
from sidestep.tunnel.messages import Answer, Answered, Request, TlsFacts
from tests.unit.tunnel.ends import OPENING

ANSWER = Answer(302, "app", seconds=0.5, sent=3, received=7, head="Content-Type: text/plain\r\nLocation: /b")
COPY = CopiedRequest(
    replace(OPENING, pod="shop/a", client="10.0.0.1", client_port=9),
    b"POST",
    b"/x?y=1&z=",
    [(b"host", b"a.test"), (b"content-type", b"text/plain"), (b"authorization", b"s3cret")],
    bytearray(b"abc"),
    [(b"x-sum", b"1"), (b"cookie", b"s3cret")],
)


def request(**more):
    values = {"method": "POST", "path": "/x?y=1&z=", "authority": "a.test", "protocol": "http/1.1"} | more
    return Request(time=1e9, pod="shop/a", port=80, client="10.0.0.1", client_port=9, **values)


def entries(path):
    return json.loads(path.read_bytes())["log"]["entries"]


def test_an_entry_says_what_was_asked_and_answered():
    facts = TlsFacts("TLSv1.3", "TLS_AES_128_GCM_SHA256", ja4="t13d")
    entry = entry_of(request(answer=ANSWER, fields=(("accept", "*/*"),), tls=True, trace="ab", tls_facts=facts))
    assert (entry.request.url, entry.request.http_version) == ("https://a.test/x?y=1&z=", "HTTP/1.1")
    assert [(each.name, each.value) for each in entry.request.query_string] == [("y", "1"), ("z", "")]
    assert (entry.started_date_time, entry.time, entry.timings.wait) == ("2001-09-09T01:46:40.000Z", 500.0, 500.0)
    response = entry.response
    assert (response.status, response.status_text, response.redirect_url, response.body_size) == (302, "Found", "/b", 7)
    assert (response.content.mime_type, response.content.size) == ("text/plain", 7)
    assert (entry.facts.by, entry.facts.pod, entry.facts.trace, entry.facts.target) == ("app", "shop/a", "ab", "")
    assert json.loads(har.encode(entry, first=True))["_sidestep"]["tls"] == {
        "version": "TLSv1.3",
        "cipher": "TLS_AES_128_GCM_SHA256",
        "ja4": "t13d",
    }


@pytest.mark.parametrize(
    ("path", "authority", "url", "target"),
    [
        ("/a b", "a", "http://a/a%20b", "/a b"),
        ("/%41", "a", "http://a/%41", ""),
        ("*", "a", "http://a/", "*"),
        ("http://b:1/c", "a", "http://b:1/c", "http://b:1/c"),
        ("/", "", "http://unknown.invalid/", ""),
        ("/", "a\r\nb", "http://unknown.invalid/", ""),
        ("/", "[::1]:80", "http://[::1]:80/", ""),
    ],
)
def test_urls(path, authority, url, target):
    entry = entry_of(request(path=path, authority=authority))
    assert entry.request.url == url
    assert entry.facts.target in (target, "/c" if target.startswith("http") else target)


def test_a_request_without_an_answer_has_no_status():
    for answer in (None, Answer(0, "")):
        assert entry_of(request(answer=answer)).response.status == 0


def test_bodies_and_trailers():
    entry = entry_of(request(fields=(("content-type", "a/b"),)), Body(b"\xff", (("x", "1"),), is_cut=True))
    data = entry.request.post_data
    assert (data.mime_type, data.text, data.encoding, data.truncated) == ("a/b", "/w==", "base64", True)
    assert [(each.name, each.value) for each in entry.request.trailers] == [("x", "1")]
    assert entry_of(request(), Body(b"abc")).request.body_size == 3


def test_the_file_is_valid_after_each_entry_and_its_owners(tmp_path):
    path = tmp_path / "x.har"
    path.write_text("old")
    file = HarFile(path)
    assert path.read_text() == "old"
    for count in (1, 2, 3):
        file.add(entry_of(request(path="/" + "x" * 10 * (4 - count))))
        assert len(entries(path)) == count
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert file.close() == f"3 requests are in {path}."


def test_a_file_that_is_full_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(har_file, "MAX_BYTES", 2000)
    file = HarFile(tmp_path / "x.har")
    for _ in range(10):
        file.add(entry_of(request()))
    assert file.kept + file.left_out == 10
    assert 0 < file.kept < 10
    assert len(entries(tmp_path / "x.har")) == file.kept
    assert (tmp_path / "x.har").stat().st_size <= 2100
    assert "the file is full" in file.close()


def test_names_that_cannot_be_written(tmp_path):
    for name in ("-", str(tmp_path), str(tmp_path / "no" / "x")):
        with pytest.raises(ConfigurationError, match="--save"):
            HarFile(type(tmp_path)(name))


def test_without_a_request_no_file_is_made(tmp_path):
    saved = SavedRequests(HarFile(tmp_path / "x.har"))
    assert saved.close().startswith("No request")
    assert not (tmp_path / "x.har").exists()


def test_flows_are_kept_once_with_their_answers(tmp_path):
    saved = SavedRequests(HarFile(tmp_path / "x.har"))
    saved.event(request(path="/1", answer=ANSWER))
    saved.event(request(path="/2", number=2))
    saved.event(request(path="/3", number=3))
    saved.event(Answered("shop/a", 80, 2, ANSWER))
    saved.event(Answered("shop/b", 80, 3, ANSWER))
    saved.event(request(path="/4"))
    saved.close()
    found = [(each["request"]["url"][-2:], each["response"]["status"]) for each in entries(tmp_path / "x.har")]
    assert found == [("/1", 302), ("/2", 302), ("/4", 0), ("/3", 0)]


def test_only_wanted_statuses_are_kept(tmp_path):
    saved = SavedRequests(HarFile(tmp_path / "x.har"), statuses=("5xx",))
    saved.event(request(answer=ANSWER))
    saved.event(request(path="/2", answer=Answer(503, "app")))
    saved.close()
    assert [each["response"]["status"] for each in entries(tmp_path / "x.har")] == [503]


GENEROUS = 20.0
"""Seconds for a timer of a millisecond, on a machine with much else to do."""


BROKE = object()
"""A step: the tunnel broke."""


def wiretapped(tmp_path, *steps, **options):
    async def run():
        saved = SavedRequests(HarFile(tmp_path / "x.har"), copied=True, **options)
        for step in steps:
            if step is None:
                async with time_limit(GENEROUS):
                    while saved._uncopied:  # noqa: ASYNC110 - nobody is told when the timer has fired
                        await asyncio.sleep(0.001)
            elif step is BROKE:
                saved.interrupted()
            elif isinstance(step, CopiedRequest):
                saved.take(step)
            elif callable(step):
                saved.take(step())
            else:
                saved.event(step)
        saved.close()
        return entries(tmp_path / "x.har")

    return asyncio.run(run())


ASKED, ANSWERED = request(number=1, copied=True), Answered("shop/a", 80, 1, ANSWER)


@pytest.mark.parametrize(
    "steps", [(COPY, ASKED, ANSWERED), (ASKED, COPY, ANSWERED), (ASKED, ANSWERED, COPY), (ASKED, COPY)]
)
def test_a_copy_is_joined_with_its_request_in_any_order(tmp_path, steps):
    [entry] = wiretapped(tmp_path, *steps)
    assert entry["request"]["postData"] == {"mimeType": "text/plain", "text": "abc"}
    assert entry["request"]["_trailers"] == [
        {"name": "x-sum", "value": "1"},
        {"name": "cookie", "value": "[redacted]"},
    ]
    assert entry["response"]["status"] == (302 if ANSWERED in steps else 0)
    assert "s3cret" not in (tmp_path / "x.har").read_text()


def test_secrets_are_kept_when_told_to(tmp_path):
    [entry] = wiretapped(tmp_path, COPY, ASKED, ANSWERED, secret=True)
    assert {"name": "authorization", "value": "s3cret"} in entry["request"]["headers"]


def test_a_copy_that_does_not_come_is_not_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_requests, "PATIENCE", 0.001)
    [entry] = wiretapped(tmp_path, ASKED, ANSWERED, None)
    assert entry["request"]["headers"] == []
    assert entry["response"]["status"] == 302


def test_copies_of_one_client_are_joined_in_order(tmp_path):
    other = CopiedRequest(COPY.opening, COPY.method, COPY.target, COPY.fields, bytearray(b"second"))
    second = request(number=2, copied=True)
    found = wiretapped(tmp_path, COPY, other, ASKED, second, ANSWERED, Answered("shop/a", 80, 2, ANSWER))
    assert [each["request"]["postData"]["text"] for each in found] == ["abc", "second"]


def test_an_answer_of_the_next_tunnel_is_of_no_request_of_the_last_one(tmp_path):
    lost, again = request(path="/lost", number=1), request(path="/again", number=1)
    saved = SavedRequests(HarFile(tmp_path / "x.har"))
    saved.event(lost)
    saved.interrupted()
    saved.event(ANSWERED)  # of nobody
    saved.event(lost)  # and lost again, without a word
    saved.event(again)
    saved.event(ANSWERED)
    saved.close()
    found = [(each["request"]["url"], each["response"]["status"]) for each in entries(tmp_path / "x.har")]
    assert found == [("http://a.test/lost", 0)] * 2 + [("http://a.test/again", 302)]


def test_a_copy_of_the_last_tunnel_is_of_no_request_of_the_next_one(tmp_path):
    old = CopiedRequest(COPY.opening, COPY.method, COPY.target, COPY.fields, bytearray(b"old"))
    stray = CopiedRequest(COPY.opening, COPY.method, COPY.target, COPY.fields, bytearray(b"stray"))

    def fresh():
        return CopiedRequest(COPY.opening, COPY.method, COPY.target, COPY.fields, bytearray(b"new"))

    found = wiretapped(tmp_path, old, stray, ASKED, BROKE, ASKED, COPY, ANSWERED, fresh)
    assert [each["request"]["postData"]["text"] for each in found] == ["old", "new"]


def test_a_request_that_has_lost_its_copy_with_the_tunnel_takes_no_other(tmp_path):
    def fresh():
        return CopiedRequest(COPY.opening, COPY.method, COPY.target, COPY.fields, bytearray(b"new"))

    first, second = wiretapped(tmp_path, ASKED, ANSWERED, BROKE, fresh, ASKED, ANSWERED)
    assert first["request"]["headers"] == []
    assert second["request"]["postData"]["text"] == "new"


def test_copies_that_nobody_asks_for_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_requests, "MAX_COPIES", 8)
    saved = SavedRequests(HarFile(tmp_path / "x.har"), copied=True)
    for number in range(10):
        saved.take(CopiedRequest(COPY.opening, b"GET", b"/%d" % number, [], bytearray(b"abc")))
    assert saved._size <= 8
    assert len(saved._copies) == 2
