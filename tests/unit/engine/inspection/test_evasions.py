"""Ways around rules that block `/admin` and a secret in bodies, in each mode.

A row is what a client sends, and what becomes of it: BLOCKED when the rules see through it, the reason why it is not
inspected, or SEEN and the reason when they see through it although it is not inspected as a whole. In every mode the
row stands in the EVE log: as the alert of a rule, or as an anomaly with the reason. Beyond that

    Detect            the app gets what it gets without inspection
    Enforce+Ignore    what is seen through is blocked, what cannot be read passes
    Enforce+Fail      no byte of it reaches the app, either way
"""

from __future__ import annotations

import gzip
import zlib
from base64 import b64encode

import pytest

from sidestep.engine.leg import Ending
from sidestep.policy.accepted_policy import Outcome
from sidestep.protocols.http2 import CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, frame, header_frames
from tests.harness.table import each_row
from tests.unit.engine.http2.talk import Talk
from tests.unit.engine.inspection.eve_lines import assert_told
from tests.unit.engine.inspection.inspecting import (
    MODES,
    NO_ADMIN,
    NO_SECRET,
    SECRET,
    Inspected,
    chunked,
    get,
    inspection,
    post,
)
from tests.unit.engine.inspection.test_http2 import Inspected as InspectedTalk

BLOCKED = "blocked"
SEEN = "seen, "
HOST = b"Host: app.test\r\n"


def line(target: bytes, *, host: bytes = HOST, rest: bytes = b"") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\n" + host + rest + b"\r\n"


def body(framing: bytes, payload: bytes) -> bytes:
    return b"POST /p HTTP/1.1\r\n" + HOST + framing + b"\r\n" + payload


CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(SECRET)
FORM = b"Content-Type: application/x-www-form-urlencoded"
GRPC = b"Content-Type: application/grpc"
JSON = b"Content-Type: application/json"
MULTIPART = b"Content-Type: multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="a"\r\nContent-Transfer-Encoding: %b\r\n\r\n%b\r\n--b--\r\n'
LINES = b"quoted-PRINTABLE", b"attac=  \r\nk=20at dawn"
GZIP = gzip.compress(b"x")
NAMED = b"\x1f\x8b\x08\x08" + bytes(6) + SECRET + b"\0" + GZIP[10:]
"""A gzip member of `x`, whose file name (RFC 1952, 2.3) is the secret."""
MESSAGE = b"\1" + len(NAMED).to_bytes(4, "big") + NAMED
BROTLI = b"\x0f\x06\x80attack\x20at" + bytes(3)
WHOLE_CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SECRET), SECRET)

HTTP1 = [
    # targets
    ("percent", line(b"/%61dmin"), BLOCKED),
    ("percent in capitals", line(b"/%61%64%6D%69%6E"), BLOCKED),
    ("dot segments", line(b"/x/../admin"), BLOCKED),
    ("encoded dot segments", line(b"/x/%2e%2e/admin"), BLOCKED),
    ("a single dot", line(b"/./admin"), BLOCKED),
    ("double slash", line(b"//admin"), BLOCKED),
    ("backslash", line(b"/\\admin"), BLOCKED),
    ("encoded backslash", line(b"/x\\..\\admin"), BLOCKED),
    ("encoded slash", line(b"/%2fadmin"), BLOCKED),
    ("a backslash in a name", line(b"/x\\y/../admin"), BLOCKED),
    ("an encoded backslash in a name", line(b"/x%5cy/../admin"), BLOCKED),
    ("an encoded slash in a name", line(b"/x%2fy/../admin"), BLOCKED),
    ("an authority", line(b"//other.test/admin"), BLOCKED),
    ("an authority behind a backslash", line(b"/\\other.test/admin"), BLOCKED),
    ("an empty segment that is removed", line(b"/x/../admin//.."), BLOCKED),
    ("slashes and a dot segment", line(b"//admin//.."), BLOCKED),
    ("parameters of a dot segment", line(b"/x/..;a/admin"), BLOCKED),
    ("parameters of an empty segment", line(b"/;a=b/admin"), BLOCKED),
    ("more forms than are looked at", line(b"/x;%2f\\/%5c/.." * 300 + b"/y"), "request-too-many-path-forms"),
    ("behind the root", line(b"/../../admin"), BLOCKED),
    ("parameters of a segment", line(b"/admin;a=b"), BLOCKED),
    ("absolute form", line(b"http://app.test/admin"), BLOCKED),
    ("absolute form in capitals", line(b"HTTP://APP.test/admin"), BLOCKED),
    ("absolute form of another host", line(b"http://other.test/admin"), "h1-target"),
    ("a fragment", line(b"/#/../admin"), "h1-start-line"),
    ("a space in the target", line(b"/ /../admin"), "h1-start-line"),
    ("a control character", line(b"/\x01/../admin"), "h1-field"),
    ("another method", line(b"/admin").replace(b"GET", b"PROPFIND"), BLOCKED),
    ("a method in lower case", line(b"/admin").replace(b"GET", b"get"), BLOCKED),
    ("HTTP/1.0", line(b"/admin").replace(b"1.1", b"1.0"), BLOCKED),
    ("HTTP/0.9", b"GET /admin\r\n\r\n", "h1-start-line"),
    ("another version", line(b"/admin").replace(b"1.1", b"1.2"), "h1-start-line"),
    ("an empty line before", b"\r\n" + line(b"/admin"), "h1-leading-empty-line"),
    # lines
    ("bare LF", line(b"/admin").replace(b"\r\n", b"\n"), "h1-bare-lf"),
    ("bare CR", line(b"/admin", rest=b"X: a\rb\r\n"), "h1-bare-cr"),
    ("NUL", line(b"/admin", rest=b"X: a\0b\r\n"), "h1-nul"),
    ("obs-fold", line(b"/admin", rest=b"X: a\r\n b\r\n"), "h1-folded-field"),
    ("a space before the colon", line(b"/admin", rest=b"Content-Length : 3\r\n"), "h1-field"),
    ("two hosts", line(b"/admin", rest=HOST), "h1-host"),
    ("no host", line(b"/admin", host=b""), "h1-host"),
    ("a field in capitals", body(LENGTH.upper(), SECRET), BLOCKED),
    # framing
    ("length and chunked", body(LENGTH + CHUNKED, WHOLE_CHUNK), "h1-ambiguous-length"),
    ("chunked and length", body(CHUNKED + LENGTH, WHOLE_CHUNK), "h1-ambiguous-length"),
    ("two lengths", body(LENGTH + b"Content-Length: 0\r\n", SECRET), "h1-ambiguous-length"),
    ("an underscore", body(b"Content_Length: 3\r\n" + CHUNKED, WHOLE_CHUNK), "h1-ambiguous-length"),
    ("a sign", body(b"Content-Length: +14\r\n", SECRET), "h1-bad-length"),
    ("another coding", body(b"Transfer-Encoding: gzip, chunked\r\n", WHOLE_CHUNK), "h1-transfer-coding"),
    ("a coding in capitals", body(b"Transfer-Encoding: Chunked\r\n", WHOLE_CHUNK), "h1-transfer-coding"),
    ("a tab before the coding", body(b"Transfer-Encoding:\tchunked\r\n", WHOLE_CHUNK), "h1-stray-space"),
    ("chunked in HTTP/1.0", body(CHUNKED, WHOLE_CHUNK).replace(b"1.1", b"1.0"), "h1-transfer-coding"),
    ("a chunk size with 0x", body(CHUNKED, b"0x0e\r\n" + SECRET + b"\r\n0\r\n\r\n"), "h1-chunk"),
    ("a chunk size with a space", body(CHUNKED, b"e \r\n" + SECRET + b"\r\n0\r\n\r\n"), "h1-chunk"),
    ("framing in a trailer", body(CHUNKED, b"1\r\na\r\n0\r\nContent-Length: 3\r\n\r\n"), "h1-chunk"),
    ("a connection option that takes the host", line(b"/admin", rest=b"Connection: host\r\n"), "h1-connection"),
    ("another expectation", line(b"/admin", rest=b"Expect: something\r\n"), "h1-expect"),
    # bodies
    ("chunks of a byte", post(SECRET, chunk=1), BLOCKED),
    ("chunk extensions", body(CHUNKED, b'e;a="x\\"y"\r\n' + SECRET + b"\r\n0\r\n\r\n"), BLOCKED),
    ("a trailer", body(CHUNKED, chunked(b"x", 1, b"X: " + SECRET + b"\r\n")), BLOCKED),
    ("gzip", post(gzip.compress(SECRET), b"Content-Encoding: gzip"), BLOCKED),
    ("gzip in chunks", post(gzip.compress(SECRET), b"Content-Encoding: gzip", chunk=2), BLOCKED),
    ("x-gzip", post(gzip.compress(SECRET), b"Content-Encoding: X-GZIP"), BLOCKED),
    ("deflate", post(zlib.compress(SECRET), b"Content-Encoding: deflate"), BLOCKED),
    ("deflate without a header", post(zlib.compress(SECRET)[2:-4], b"Content-Encoding: deflate"), BLOCKED),
    ("gzip twice", post(gzip.compress(gzip.compress(SECRET)), b"Content-Encoding: gzip, gzip"), BLOCKED),
    ("two fields", post(gzip.compress(SECRET), b"Content-Encoding: identity", b"Content-Encoding: gzip"), BLOCKED),
    ("two members", post(gzip.compress(SECRET[:7]) + gzip.compress(SECRET[7:]), b"Content-Encoding: gzip"), BLOCKED),
    ("brotli", post(BROTLI, b"Content-Encoding: br"), "request-encoding"),
    ("brotli that is none", post(SECRET, b"Content-Encoding: br"), SEEN + "request-encoding"),
    ("three encodings", post(b"x", b"Content-Encoding: gzip, gzip, gzip"), "request-encoding"),
    ("data behind gzip", post(GZIP + b"!" + SECRET, b"Content-Encoding: gzip"), SEEN + "request-trailing"),
    ("other data behind gzip", post(GZIP + b"!", b"Content-Encoding: gzip"), "request-trailing"),
    ("broken gzip", post(b"\x1f\x8b not at noon", b"Content-Encoding: gzip"), "request-malformed"),
    ("broken gzip with text", post(b"\x1f\x8b" + SECRET, b"Content-Encoding: gzip"), SEEN + "request-malformed"),
    ("a bomb", post(gzip.compress(bytes(500_000)), b"Content-Encoding: gzip"), "request-ratio"),
    ("padding before it", post(b"x" * 66_000 + SECRET), "request-window"),
    ("text beside gzip", post(NAMED, b"Content-Encoding: gzip"), BLOCKED),
    ("gzip by an underscore", post(gzip.compress(SECRET), b"Content_Encoding: gzip"), BLOCKED),
    ("a form", post(b"a=%61ttack%20at%20dawn", FORM), BLOCKED),
    ("a form with +", post(b"a=attack+at+dawn", FORM), BLOCKED),
    ("a form without a type", post(b"a=attack+%61t+dawn", chunk=1), BLOCKED),
    ("a form in gzip", post(gzip.compress(b"a=attack+at+dawn"), FORM, b"Content-Encoding: gzip"), BLOCKED),
    ("JSON", post(b'"\\u0061ttack at dawn"', JSON), BLOCKED),
    ("JSON, all of it", post(b"".join(b"\\u%04X" % each for each in SECRET), JSON, chunk=5), BLOCKED),
    ("hexadecimal escapes", post(b'"\\x61ttack at dawn"', b"Content-Type: application/yaml"), BLOCKED),
    ("an escape behind a backslash", post(b'"\\\\\\u0061ttack at dawn"', JSON), BLOCKED),
    ("UTF-16", post(SECRET.decode().encode("utf-16"), JSON), BLOCKED),
    ("UTF-16 named", post(SECRET.decode().encode("utf-16-be"), JSON + b"; charset=utf-16be"), BLOCKED),
    ("UTF-32", post(SECRET.decode().encode("utf-32"), JSON), BLOCKED),
    ("UTF-16 and escapes", post('"\\u0061ttack at dawn"'.encode("utf-16-le"), JSON), BLOCKED),
    ("UTF-7", post(b"+AGEAdA-tack at dawn", JSON + b"; charset=UTF-7"), "request-charset"),
    ("no gRPC", post(SECRET, GRPC), BLOCKED),
    ("gRPC that ends in the middle", post(b"\0\0\0\0\x05" + SECRET, GRPC, chunk=1), BLOCKED),
    ("text beside gzip in gRPC", post(MESSAGE, GRPC, b"grpc-encoding: gzip"), BLOCKED),
    ("EBCDIC", post(SECRET.decode().encode("cp037"), FORM + b'; Charset="ibm037"'), "request-charset"),
    ("quoted-printable", post(PART % (b"Quoted-Printable", b"=61ttack at dawn"), MULTIPART), BLOCKED),
    ("quoted-printable in lines", post(PART % LINES, MULTIPART, chunk=1), BLOCKED),
    ("base64", post(PART % (b"base64", b64encode(SECRET)), MULTIPART), "request-part-encoding"),
    ("base64 in a folded field", post(PART % (b"\r\n base64", b64encode(SECRET)), MULTIPART), "request-part-encoding"),
    ("UTF-7 in a part", post(PART % (b"8bit\r\nX: charset=utf-7", b"+AGE-"), MULTIPART), "request-charset"),
    # others
    ("pipelined", get(b"/admin") + get(b"/admin"), BLOCKED),
    ("an upgrade", line(b"/admin", rest=b"Upgrade: h2c\r\nConnection: upgrade\r\n"), BLOCKED),
    ("HTTP/2 without TLS", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "h1-start-line"),
    ("something else", b"\x16\x03\x01\x02\x00\x01\x00", "h1-start-line"),
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cut", [1 << 20, pytest.param(1, marks=pytest.mark.unmeasured)])
@each_row("said, expected", [row[1:] for row in HTTP1], ids=[row[0] for row in HTTP1])
def test_http1(mode, cut, said, expected):
    if cut == 1 and len(said) > 1000:
        cut = 1000
    inspected = inspection(NO_ADMIN, NO_SECRET, **MODES[mode])
    shell = Inspected(inspected=inspected)
    for at in range(0, len(said), cut):
        if shell.relay.done or shell.relay.client.ending:
            break
        shell.client(said[at : at + cut])
    assert_told(shell.seen, inspected)
    told = {record.action for record in shell.seen.records}
    reasons = {reason for reason, _ in shell.seen.reasons}
    enforced = mode != "Detect"
    if expected == BLOCKED:
        assert told == {Outcome.BLOCK if enforced else Outcome.ALERT}
        assert not reasons
        assert shell.to_app == (b"" if enforced else said)
        assert shell.to_client.startswith(b"HTTP/1.1 403 Forbidden\r\n") is enforced
    elif expected.startswith(SEEN):
        assert told == {Outcome.BLOCK if enforced else Outcome.ALERT} or (mode == "Enforce+Fail" and not told)
        assert shell.to_app == (b"" if enforced else said)
        assert shell.to_client.startswith(b"HTTP/1.1 403 Forbidden\r\n") is enforced
        assert expected.removeprefix(SEEN) in reasons
    elif mode == "Enforce+Fail":
        assert reasons or (expected == "request-window" and told == {Outcome.BLOCK})  # it came whole
        assert all(closed for _, closed in shell.seen.reasons)
        assert shell.to_app == b""
        assert shell.relay.client.ending >= Ending.FINISH or b" 403 " in shell.to_client
    elif expected == "request-window" and mode == "Detect":
        assert shell.to_app == said
        assert told == {Outcome.ALERT}  # it is read to its end
    elif expected == "request-window":
        assert not shell.to_app.endswith(SECRET)
        assert told == {Outcome.BLOCK}
    else:
        assert reasons
        assert shell.to_app == said
    if expected.startswith("request-") and expected != "request-window":
        assert expected in reasons


def test_there_are_sixty_of_them():
    assert len(HTTP1) + len(HTTP2) >= 60


# --- HTTP/2 -----------------------------------------------------------------------------------------------------------

PSEUDO = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"app.test"), (b":path", b"/admin")]


def headers(*fields: tuple[bytes, bytes], path: bytes = b"/admin", ends: bool = True):
    """A request's head, in one block."""

    def send(talk: Talk) -> bytes:
        head = [*PSEUDO[:3], (b":path", path), *fields]
        return header_frames(1, talk.encoder.encode(head), end_stream=ends)

    return send


def raw(head: list[tuple[bytes, bytes]]):
    return lambda talk: header_frames(1, talk.encoder.encode(head), end_stream=True)


def with_body(data: bytes, *fields: tuple[bytes, bytes], size: int = 7):
    def send(talk: Talk) -> bytes:
        head = headers(*fields, path=b"/p", ends=False)(talk)
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        return head + b"".join(frame(DATA, 0, 1, piece) for piece in pieces) + frame(DATA, END_STREAM, 1)

    return send


def continued(talk: Talk) -> bytes:
    block = talk.encoder.encode(PSEUDO)
    pieces = [block[at : at + 1] for at in range(1, len(block))]
    rest = b"".join(frame(CONTINUATION, 0, 1, piece) for piece in pieces)
    return frame(HEADERS, END_STREAM, 1, block[:1]) + rest + frame(CONTINUATION, END_HEADERS, 1)


def indexed(talk: Talk) -> bytes:
    """The second request of a connection: all of its fields come from the table."""
    first = header_frames(1, talk.encoder.encode(PSEUDO), end_stream=True)
    return first + header_frames(3, talk.encoder.encode(PSEUDO), end_stream=True)


def padded(talk: Talk) -> bytes:
    block = talk.encoder.encode(PSEUDO)
    return frame(HEADERS, END_STREAM | END_HEADERS | 8 | 0x20, 1, b"\x05" + bytes(4) + b"\x10" + block + bytes(5))


GRPC = (b"content-type", b"application/grpc")
GZIP, DEFLATE, SNAPPY = ((b"grpc-encoding", name) for name in (b"gzip", b"deflate", b"snappy"))


def message(data: bytes, *, flag: int = 0) -> bytes:
    return bytes([flag]) + len(data).to_bytes(4) + data


HTTP2 = [
    ("plain", headers(), BLOCKED),
    ("percent", headers(path=b"/%61dmin"), BLOCKED),
    ("dot segments", headers(path=b"/x/%2e%2e/admin"), BLOCKED),
    ("CONTINUATION of a byte each", continued, BLOCKED),
    ("from the table", indexed, BLOCKED),
    ("padded and prioritised", padded, BLOCKED),
    ("frames of DATA", with_body(SECRET), BLOCKED),
    ("frames of a byte", with_body(SECRET, size=1), BLOCKED),
    ("gzip", with_body(gzip.compress(SECRET), (b"content-encoding", b"gzip")), BLOCKED),
    ("brotli", with_body(BROTLI, (b"content-encoding", b"br")), "request-encoding"),
    ("padding before it", with_body(b"x" * 66_000 + SECRET, size=9000), "request-window"),
    ("a gRPC message", with_body(message(SECRET), GRPC, size=1), BLOCKED),
    ("a later gRPC message", with_body(message(b"x") + message(b"") + message(b"y" + SECRET), GRPC), BLOCKED),
    ("a gRPC message in gzip", with_body(message(gzip.compress(SECRET), flag=1), GRPC, GZIP), BLOCKED),
    (
        "a gRPC message in gzip behind one that is not",
        with_body(message(b"x") + message(gzip.compress(SECRET), flag=1), GRPC, GZIP, size=1),
        BLOCKED,
    ),
    ("a gRPC message in deflate", with_body(message(zlib.compress(SECRET), flag=1), GRPC, DEFLATE), BLOCKED),
    ("a gRPC message that says it is compressed", with_body(message(SECRET, flag=1), GRPC), BLOCKED),
    ("a gRPC message in snappy", with_body(message(b"x", flag=1), GRPC, SNAPPY), "request-encoding"),
    ("a gRPC message in broken gzip", with_body(message(SECRET, flag=1), GRPC, GZIP), "request-malformed"),
    ("a gRPC bomb", with_body(message(gzip.compress(bytes(500_000)), flag=1), GRPC, GZIP, size=99), "request-ratio"),
    ("something else that says it is gRPC", with_body(b"a=b&" + SECRET, GRPC, GZIP, size=1), BLOCKED),
    ("something else behind a gRPC message", with_body(message(b"x") + SECRET, GRPC, GZIP), BLOCKED),
    ("gRPC-Web", with_body(message(SECRET), (b"content-type", b"application/grpc-web+proto")), BLOCKED),
    ("trailers of gRPC-Web", with_body(message(SECRET, flag=128), (b"content-type", b"Application/grpc-web")), BLOCKED),
    ("absolute form", headers(path=b"https://app.test/admin"), "h2-head"),
    ("no slash", headers(path=b"admin"), "h2-head"),
    ("a fragment", headers(path=b"/x/../admin#/../.."), "h2-head"),
    ("a tab in the path", headers(path=b"/ad\tmin"), "h2-head"),
    ("a backslash in a name", headers(path=b"/x\\y/../admin"), BLOCKED),
    ("two paths", raw([*PSEUDO[:3], (b":path", b"/"), (b":path", b"/admin")]), "h2-head"),
    ("pseudo field behind", raw([*PSEUDO[:3], (b"x", b"1"), (b":path", b"/admin")]), "h2-head"),
    ("unknown pseudo field", headers((b":x", b"1"), path=b"/"), "h2-head"),
    ("host contradicts authority", headers((b"host", b"other"), path=b"/"), "h2-head"),
    ("upper case", headers((b"X-Up", b"1"), path=b"/"), "h2-head"),
    ("line break in a value", headers((b"x", b"a\r\nb"), path=b"/"), "h2-head"),
    ("transfer-encoding", headers((b"transfer-encoding", b"chunked"), path=b"/"), "h2-head"),
    ("two lengths", headers((b"content-length", b"1"), (b"content-length", b"2"), path=b"/"), "h2-head"),
    ("no path", raw(PSEUDO[:3]), "h2-head"),
    ("space in the path", headers(path=b"/ /../admin"), "h2-head"),
    ("tunnel", raw([(b":method", b"CONNECT"), (b":authority", b"db:1")]), "h2-connect"),
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cut", [1 << 20, pytest.param(1, marks=pytest.mark.unmeasured)])
@each_row("send, expected", [row[1:] for row in HTTP2], ids=[row[0] for row in HTTP2])
def test_http2(mode, cut, send, expected):
    talk = InspectedTalk(NO_ADMIN, NO_SECRET, **MODES[mode])
    said = send(talk)
    if cut == 1 and len(said) > 1000:
        cut = 1000
    for at in range(0, len(said), cut):
        talk.send(said[at : at + cut])
    for second in talk.seconds:
        second.out += b"\0\0\0\x04\0\0\0\0\0"
    talk.peers.run()
    assert_told(talk.seen, inspection(NO_ADMIN, NO_SECRET, **MODES[mode]))
    told = {record.action for record in talk.seen.records}
    reasons = {reason for reason, _ in talk.seen.reasons}
    reached = talk.app.of(HEADERS) or [each for second in talk.seconds for each in second.of(HEADERS, 1, skip=24)]
    if mode == "Detect":
        assert bytes(talk.app.data) == said
        assert told or reasons
    elif expected == BLOCKED:
        assert told == {Outcome.BLOCK}
        assert not reached
        [fields] = talk.heads(talk.client, 1)
        assert fields[0] == (b":status", b"403") or (b"grpc-status", b"7") in fields
    elif mode == "Enforce+Fail":
        assert (expected, True) in talk.seen.reasons or (expected == "request-window" and told == {Outcome.BLOCK})
        assert not reached
    elif expected == "request-window":
        assert told == {Outcome.BLOCK}
    else:
        assert (expected, False) in talk.seen.reasons
        assert bool(reached) is (not told)  # what can be seen of it in spite of that blocks
