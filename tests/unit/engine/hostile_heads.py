"""Malformed and hostile HTTP/1 messages, for unit tests and for tests against real servers.

Every request here carries the header that a test's filter matches (`MATCH`), so that a reader which accepts what it
should not accept shows itself: the request reaches the handler. None may. `HOSTILE` is everything a client could send
as its first bytes; `HOSTILE_HEADS` must become a wire whatever the pieces in which they arrive, `HOSTILE_BODIES` begin
with a blameless head and must at least do so when they arrive whole. `HOSTILE_RESPONSES` are what an app or a handler
could answer to a GET.
"""

from __future__ import annotations

Case = tuple[str, bytes]

MATCH_NAME = "x-dev"
MATCH_VALUE = "me"
MATCH = b"X-Dev: me\r\n"
HOST = b"Host: app.test\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\n" + HOST + MATCH + b"\r\n"

CONTROLS = [*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F]
SEPARATORS = b'"(),/;<=>?@[\\]{} \t'


def request(
    *fields: bytes, line: bytes = b"POST /orders HTTP/1.1", host: bytes = HOST, end: bytes = b"\r\n", body: bytes = b""
) -> bytes:
    """A request with the matching header first; `fields` without their CRLF."""
    return line + b"\r\n" + host + MATCH + b"".join(field + b"\r\n" for field in fields) + end + body


def _controls() -> list[Case]:
    cases = []
    for code in CONTROLS:
        byte = bytes([code])
        cases += [
            (f"control {code:#04x} in a target", request(line=b"GET /a" + byte + b"b HTTP/1.1")),
            (f"control {code:#04x} in a field name", request(b"X-A" + byte + b"b: 1")),
            (f"control {code:#04x} in a field value", request(b"X-A: 1" + byte + b"2")),
            (f"control {code:#04x} before a transfer coding", request(b"Transfer-Encoding:" + byte + b"chunked")),
            (f"control {code:#04x} after a length", request(b"Content-Length: 5" + byte, body=b"hello")),
        ]
    return cases


def _names() -> list[Case]:
    cases = [(f"separator {chr(code)!r} in a field name", request(b"X-A%cB: 1" % code)) for code in SEPARATORS]
    cases += [(f"byte {code:#04x} in a field name", request(b"X-A%cB: 1" % code)) for code in (0x80, 0xA0, 0xC3, 0xFF)]
    cases += [
        (f"{what} with {gap!r} before its colon", request(field.replace(b":", gap + b":"), body=b"0\r\n\r\n"))
        for what, field in (
            ("a plain field", b"X-A: 1"),
            ("a length", b"Content-Length: 5"),
            ("a coding", b"Transfer-Encoding: chunked"),
        )
        for gap in (b" ", b"\t", b"  ", b" \t", b"\x0b", b"\xa0", b"\x00")
    ]
    cases += [
        ("a field without a colon", request(b"X-A")),
        ("a field without a name", request(b": 1")),
        ("a field that is a colon", request(b":")),
        ("a field that is a blank", request(b" ")),
        ("a first field after a blank", b"GET / HTTP/1.1\r\n " + HOST + MATCH + b"\r\n"),
        ("a first field after a tab", b"GET / HTTP/1.1\r\n\t" + HOST + MATCH + b"\r\n"),
        ("a name in UTF-8", request("Ünit: 1".encode())),
    ]
    return cases


def _line_ends() -> list[Case]:
    good = request(b"X-A: 1", line=b"GET /orders HTTP/1.1")
    lines = good.split(b"\r\n")
    cases = []
    for index in range(len(lines) - 2):
        before, after = b"\r\n".join(lines[: index + 1]), b"\r\n".join(lines[index + 1 :])
        for name, end in (
            ("LF", b"\n"),
            ("CR", b"\r"),
            ("CR CR LF", b"\r\r\n"),
            ("LF CR", b"\n\r"),
            ("LF LF", b"\n\n"),
            ("CR NUL LF", b"\r\0\n"),
            ("CR blank LF", b"\r \n"),
            ("vertical tab", b"\x0b"),
        ):
            cases.append((f"{name} after line {index}", before + end + after + SMUGGLED))
    cases += [
        ("LF everywhere", good.replace(b"\r\n", b"\n")),
        ("CR everywhere, then the next request", good.replace(b"\r\n", b"\r") + SMUGGLED),
        ("LF at the end of the head", good[:-2] + b"\n"),
        ("CR LF LF at the end of the head", good[:-2] + b"\n" + SMUGGLED),
        ("bare CR in a value", request(b"X-A: 1\r2")),
        ("bare CR in a name", request(b"X\r-A: 12")),
        ("bare CR before a coding", request(b"X-A: 1\rTransfer-Encoding: chunked", body=b"0\r\n\r\n")),
        ("bare LF before a coding", request(b"X-A: 1\nTransfer-Encoding: chunked", body=b"0\r\n\r\n")),
        ("bare LF before a length", request(b"X-A: 1\nContent-Length: 100", body=SMUGGLED)),
        ("bare CR in the target", request(line=b"GET /a\rb HTTP/1.1")),
        ("bare CR in the version", request(line=b"GET / HTTP/1.1\rX")),
        ("bare LF in the target", request(line=b"GET /a\nb HTTP/1.1")),
    ]
    return cases


def _folds() -> list[Case]:
    cases = []
    for name, fold in (
        ("blank", b"\r\n "),
        ("tab", b"\r\n\t"),
        ("blanks", b"\r\n   "),
        ("blank CR LF", b" \r\n \r\n "),
    ):
        cases += [
            (f"value folded with {name}", request(b"X-A: 1" + fold + b"2")),
            (f"length folded with {name}", request(b"Content-Length:" + fold + b"5", body=b"hello")),
            (f"coding folded with {name}", request(b"Transfer-Encoding:" + fold + b"chunked", body=b"0\r\n\r\n")),
            (f"coding split by {name}", request(b"Transfer-Encoding: chun" + fold + b"ked", body=b"0\r\n\r\n")),
            (f"host folded with {name}", request(host=b"Host: app" + fold + b".test\r\n")),
            (f"coding hidden in a fold with {name}", request(b"X-A: 1" + fold + b"Transfer-Encoding: chunked")),
        ]
    return cases


BAD_LENGTHS = [
    b"+5", b"-5", b"5 5", b"5,5", b"5, 5", b"5,6", b"0x5", b"0X5", b"5;", b"5.0", b"1_0", b"", b" ", b'"5"', b"'5'",
    b"five", b"5e0", b"1e3", b"--5", b"+-5", b"5+", b"5-", b"05h", b"h5", b"\xef\xbc\x95", b"\xc2\xb2", b"5\xa0",
    b"\xa05", b"5\tb", b"5 chunked", b"chunked", b"0b101", b"0o5", b"5,", b",5", b"[5]", b"5/1", b"5:5", b"NaN",
    b"inf", b"9" * 19, b"9" * 40, b"1" + b"0" * 300, b"-0", b"+0", b"0 0", b"5 HTTP/1.1",
]  # fmt: skip

BAD_CODINGS = [
    b"Chunked", b"CHUNKED", b"chunkeD", b"identity", b"identity, chunked", b"chunked, identity", b"gzip",
    b"gzip, chunked", b"chunked, gzip", b"chunked, chunked", b"chunked,chunked", b"xchunked", b"chunkedx", b"chunk",
    b"chunked;q=1", b"chunked; q=1", b'"chunked"', b"'chunked'", b"", b" ", b",", b",chunked", b"chunked,",
    b"chunked, ", b" , chunked", b"chunked chunked", b"x chunked", b"chunked x", b"deflate", b"compress", b"cow",
    b"chunked=1", b"(chunked)", b"chunked (comment)", b"trailers", b"chunked\xa0", b"\xa0chunked", b"ch\xc3\xbcnked",
    b"null", b"chunked, cow", b"cow, chunked", b"identity,identity",
]  # fmt: skip


SPACED = [
    ("a tab before", b":\t%b"), ("blank and tab before", b": \t%b"), ("tab and blank before", b":\t %b"),
    ("two blanks before", b":  %b"), ("a tab after", b": %b\t"), ("a blank after", b": %b "),
    ("blank and tab after", b": %b \t"), ("tabs around", b":\t%b\t"), ("only a tab after", b":%b\t"),
]  # fmt: skip
"""Optional white space (RFC 9110 section 5.5) that some servers strip and others take for a part of the value."""

FRAMING_FIELDS = [
    (b"Transfer-Encoding", b"chunked", b"0\r\n\r\n" + SMUGGLED), (b"Content-Length", b"5", b"hello" + SMUGGLED),
    (b"content-length", b"0", SMUGGLED), (b"Connection", b"keep-alive", SMUGGLED), (b"Connection", b"close", SMUGGLED),
    (b"Upgrade", b"websocket", SMUGGLED), (b"Expect", b"100-continue", SMUGGLED), (b"TE", b"trailers", SMUGGLED),
    (b"Trailer", b"X-A", SMUGGLED),
]  # fmt: skip


def _spaces() -> list[Case]:
    cases = [
        (f"{name.decode()}: {value.decode()} with {what} it", request(name + form % value, body=rest))
        for name, value, rest in FRAMING_FIELDS
        for what, form in SPACED
    ]
    cases += [(f"a host with {what} it", request(host=b"Host" + form % b"app.test" + b"\r\n")) for what, form in SPACED]
    cases += [
        ("a tab in a list of connection options", request(b"Connection: keep-alive,\tUpgrade", b"Upgrade: x")),
        ("a tab in a list of upgrades", request(b"Connection: Upgrade", b"Upgrade: h2c,\twebsocket")),
        ("a connection option that names the length", request(b"Connection: content-length", b"Content-Length: 0")),
        ("a connection option that names the coding", request(b"Connection: close, Transfer-Encoding")),
        ("a connection option that names the host", request(b"Connection: Host")),
        ("an expectation nobody knows", request(b"Expect: y 100-continue", b"Content-Length: 5", body=b"hello")),
        ("an empty expectation", request(b"Expect:", b"Content-Length: 5", body=b"hello")),
        ("two expectations", request(b"Expect: 100-continue", b"Expect: 100-continue")),
    ]
    return cases


def _framing() -> list[Case]:
    chunked = b"0\r\n\r\n" + SMUGGLED
    cases = [(f"length {text[:40]!r}", request(b"Content-Length: " + text, body=b"hello")) for text in BAD_LENGTHS]
    cases += [(f"coding {text!r}", request(b"Transfer-Encoding: " + text, body=chunked)) for text in BAD_CODINGS]
    both = (b"Content-Length: 5", b"Transfer-Encoding: chunked")
    cases += [
        ("length, then coding", request(*both, body=chunked)),
        ("coding, then length", request(*reversed(both), body=chunked)),
        ("length 0, then coding", request(b"Content-Length: 0", both[1], body=chunked)),
        ("bad length, then coding", request(b"Content-Length: x", both[1], body=chunked)),
        ("length, then unknown coding", request(both[0], b"Transfer-Encoding: cow", body=chunked)),
        ("length, then empty coding", request(both[0], b"Transfer-Encoding:", body=chunked)),
        ("the same length twice", request(both[0], both[0], body=b"hello")),
        ("two lengths", request(both[0], b"Content-Length: 6", body=b"hello!")),
        ("two lengths in two cases", request(both[0], b"content-length: 6", body=b"hello!")),
        ("length 0 twice", request(b"Content-Length: 0", b"Content-Length: 0")),
        ("three lengths", request(both[0], both[0], both[0], body=b"hello")),
        ("coding twice", request(both[1], both[1], body=chunked)),
        ("chunked, then identity", request(both[1], b"Transfer-Encoding: identity", body=chunked)),
        ("identity, then chunked", request(b"Transfer-Encoding: identity", both[1], body=chunked)),
        ("chunked, then cow", request(both[1], b"Transfer-encoding: cow", body=chunked)),
        ("Content_Length", request(b"Content_Length: 5", body=b"hello")),
        ("Content_Length beside a length", request(b"Content_Length: 5", b"Content-Length: 0", body=b"hello")),
        ("Transfer_Encoding", request(b"Transfer_Encoding: chunked", body=chunked)),
        ("Transfer_Encoding beside a length", request(b"Transfer_Encoding: chunked", both[0], body=chunked)),
        ("chunked on HTTP/1.0", request(both[1], line=b"POST / HTTP/1.0", body=chunked)),
        ("length and coding on HTTP/1.0", request(*both, line=b"POST / HTTP/1.0", body=chunked)),
        ("CONNECT with a length", request(both[0], line=b"CONNECT app.test:443 HTTP/1.1", body=b"hello")),
        ("CONNECT with a coding", request(both[1], line=b"CONNECT app.test:443 HTTP/1.1", body=chunked)),
        ("two upgrades", request(b"Upgrade: websocket", b"Upgrade: h2c", b"Connection: upgrade")),
    ]
    return cases


BAD_LINES = [
    b"", b" ", b"GET", b"GET ", b"GET /", b"GET / ", b"GET / HTTP", b"GET / HTTP/", b"GET / HTTP/1", b"GET / HTTP/1.",
    b"GET / HTTP/0.9", b"GET / HTTP/1.2", b"GET / HTTP/1.10", b"GET / HTTP/1.01", b"GET / HTTP/01.1", b"GET / HTTP/2",
    b"GET / HTTP/2.0", b"GET / HTTP/3.0", b"GET / HTTP/9.9", b"GET / HTTP/-1.1", b"GET / HTTP/1,1", b"GET / HTTP/1.1.1",
    b"GET / HTTP /1.1", b"GET / HTTP/ 1.1", b"GET / http/1.1", b"GET / Http/1.1", b"GET / HTTPS/1.1",
    b"GET / HTCPCP/1.0", b"GET / XHTTP/1.1", b"GET / HTTP/1.1 ", b"GET / HTTP/1.1\t", b"GET / HTTP/1.1 x",
    b"GET / HTTP/1.1 HTTP/1.1",
    b"GET  / HTTP/1.1", b"GET /  HTTP/1.1", b"GET\t/ HTTP/1.1", b"GET /\tHTTP/1.1", b" GET / HTTP/1.1",
    b"\tGET / HTTP/1.1", b"GET /a b HTTP/1.1", b"GET /HTTP/1.1", b"/ HTTP/1.1", b" / HTTP/1.1", b"G(T / HTTP/1.1",
    b"G:T / HTTP/1.1", b"G[]T / HTTP/1.1", b"G\xc3\x89T / HTTP/1.1", b"GET\xa0/ HTTP/1.1", b'"GET" / HTTP/1.1',
    b"GET, / HTTP/1.1", b"G" * 33 + b" / HTTP/1.1", b"G" * 5000 + b" / HTTP/1.1", b"GET orders HTTP/1.1",
    b"GET ?a=b HTTP/1.1", b"GET a/b HTTP/1.1", b"GET . HTTP/1.1", b"GET \\orders HTTP/1.1", b"GET %2forders HTTP/1.1",
    b"GET /a#b HTTP/1.1", b"GET # HTTP/1.1", b"GET * HTTP/1.1", b"POST * HTTP/1.1", b"OPTIONS ** HTTP/1.1",
    b"OPTIONS */ HTTP/1.1", b"CONNECT / HTTP/1.1", b"CONNECT app.test HTTP/1.1", b"CONNECT app.test: HTTP/1.1",
    b"CONNECT :443 HTTP/1.1", b"CONNECT app.test:443443 HTTP/1.1", b"CONNECT app.test:443/x HTTP/1.1",
    b"CONNECT http://app.test:443 HTTP/1.1", b"CONNECT a@app.test:443 HTTP/1.1", b"CONNECT * HTTP/1.1",
    b"GET app.test:443 HTTP/1.1", b"GET http://other.test/ HTTP/1.1", b"GET http://app.test:80/ HTTP/1.1",
    b"GET http://me@app.test/ HTTP/1.1", b"GET http:// HTTP/1.1", b"GET http:/// HTTP/1.1",
    b"GET http:/app.test/ HTTP/1.1", b"GET http:app.test/ HTTP/1.1", b"GET //app.test\x7f/ HTTP/1.1",
    b"GET ftp://app.test/ HTTP/1.1",
    b"GET ws://app.test/ HTTP/1.1", b"GET file:///etc/passwd HTTP/1.1", b"GET http://app.test#/ HTTP/1.1",
    b"\xef\xbb\xbfGET / HTTP/1.1", b"HTTP/1.1 200 OK", b"GET / HTTP/1.1;", b"GET /;HTTP/1.1", b"PRI * HTTP/2.0",
]  # fmt: skip

BAD_HOSTS = [
    b"Host:\r\n", b"Host: \r\n", b"Host: app test\r\n", b"Host: app.test/\r\n", b"Host: a@app.test\r\n",
    b"Host: app.test#\r\n", b"Host: app.test?x\r\n", b"Host: http://app.test\r\n", b"Host: app.test\\x\r\n",
    b'Host: "app.test"\r\n', b"Host: <app.test>\r\n", b"Host: app.t\xc3\xa4st\r\n", b"Host: app.test\tx\r\n",
    b"Host: {app}\r\n", b"Host: app|test\r\n", b"Host: app^test\r\n", b"Host: app`test\r\n",
    b"Host: app.test\r\nHost: app.test\r\n", b"Host: app.test\r\nHost: other.test\r\n",
    b"Host: app.test\r\nhost: other.test\r\n", b"Host: app.test\r\nHOST:\r\n", b"",
]  # fmt: skip


def _lines_and_hosts() -> list[Case]:
    cases = [(f"request line {line[:40]!r}", request(line=line)) for line in BAD_LINES]
    cases += [(f"host {host!r}", request(host=host)) for host in BAD_HOSTS]
    absolute = b"GET http://app.test/ HTTP/1.1"
    cases += [
        ("absolute-form without a host", request(line=absolute, host=b"")),
        ("absolute-form against a host", request(line=absolute, host=b"Host: other.test\r\n")),
        ("absolute-form against a port", request(line=absolute, host=b"Host: app.test:8080\r\n")),
        ("absolute-form on HTTP/1.0 without a host", request(line=b"GET http://app.test/ HTTP/1.0", host=b"")),
        ("an empty line first", b"\r\n" + SMUGGLED),
        ("two empty lines first", b"\r\n\r\n" + SMUGGLED),
        ("an LF first", b"\n" + SMUGGLED),
        ("a CR first", b"\r" + SMUGGLED),
        ("a NUL first", b"\0" + SMUGGLED),
        ("a blank line first", b" \r\n" + SMUGGLED),
        ("only empty lines", b"\r\n" * 20),
        ("HTTP/0.9", b"GET /orders\r\n"),
        ("HTTP/0.9 with LF", b"GET /orders\n"),
    ]
    return cases


def _sizes() -> list[Case]:
    return [
        ("a head of 64 KiB and one field more", request(b"X-A: " + b"a" * 65536)),
        ("a target of 64 KiB", request(line=b"GET /" + b"a" * 65536 + b" HTTP/1.1")),
        ("a name of 64 KiB", request(b"a" * 65536 + b": 1")),
        ("a value that never ends", request(end=b"X-A: " + b"a" * 66000)),
        ("a request line that never ends", b"GET /" + b"a" * 66000),
        ("fields that never end", request(end=b"X-A: 1\r\n" * 9000)),
        ("257 fields", request(*(b"X-%d: 1" % number for number in range(255)))),
        ("a thousand fields", request(*[b"X-A: 1"] * 1000)),
    ]


def _other_protocols() -> list[Case]:
    return [
        ("a TLS ClientHello", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"),
        ("an HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n"),
        ("SMTP", b"EHLO client.test\r\n"),
        ("Redis", b"*1\r\n$4\r\nPING\r\n"),
        ("Redis inline", b"GET /key\r\n"),
        ("PROXY protocol", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + SMUGGLED),
        ("PROXY protocol 2", b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + SMUGGLED),
        ("a response", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("zeros", bytes(64)),
        ("text", b"hello world, how are you?\r\n"),
        ("RTSP", b"OPTIONS rtsp://app.test/ RTSP/1.0\r\nCSeq: 1\r\n\r\n"),
        ("SIP", b"INVITE sip:me@app.test SIP/2.0\r\n\r\n"),
    ]


BAD_SIZES = [
    b"", b"g", b"x", b"0x5", b"0X5", b"5h", b"h5", b"+5", b"-5", b" 5", b"5 ", b"5\t", b"\t5", b"1_0", b"5_", b"5,5",
    b"5.0", b'"5"', b"5\x00", b"\x005", b"5\x0b", b"5\xa0", b"\xef\xbc\x95", b"\xc2\xb2", b"f" * 16, b"0" * 15 + b"5",
    b"1" + b"0" * 40, b"-1", b"ffffffffffffffffffff", b"five", b"=5", b":5", b"5:", b"5 ;a=b", b"5; a=b", b"5;a =b",
    b"5;a= b", b"5;", b"5;;a", b"5;=b", b"5;a=", b'5;a="b', b'5;a="b"c', b"5;a=b;", b"5;a=b c", b"5;a\x00", b"5;a=\x01",
    b'5;a="\x00"', b"5;a\r", b"5;a(b)", b"5;" + b"a" * 300, b"5\r", b"5\r\r", b"5 HTTP/1.1", b"0 ", b" 0", b"0x0",
    b"-0", b"00000000000000000", b"0;", b"0;a=\x7f",
]  # fmt: skip

BAD_CHUNKS: list[Case] = [
    ("LF after the size", b"5\nhello\r\n0\r\n\r\n"),
    ("LF after an extension", b"5;a\nhello\r\n0\r\n\r\n"),
    ("LF hidden in an extension", b"5;a\n;b\r\nhello\r\n0\r\n\r\n"),
    ("CR after the size", b"5\rhello\r\n0\r\n\r\n"),
    ("data longer than the size", b"5\r\nhello!\r\n0\r\n\r\n"),
    ("data shorter than the size", b"5\r\nhell\r\n0\r\n\r\n"),
    ("LF after the data", b"5\r\nhello\n0\r\n\r\n"),
    ("CR after the data", b"5\r\nhello\r0\r\n\r\n"),
    ("nothing after the data", b"5\r\nhello0\r\n\r\n"),
    ("blank after the data", b"5\r\nhello \r\n0\r\n\r\n"),
    ("NUL after the data", b"5\r\nhello\0\n0\r\n\r\n"),
    ("LF after the last chunk", b"0\n\n"),
    ("LF at the end", b"5\r\nhello\r\n0\r\n\n"),
    ("CR at the end", b"0\r\n\rG"),
    ("an empty line before the size", b"\r\n5\r\nhello\r\n0\r\n\r\n"),
    ("a trailer without a colon", b"0\r\nX-A\r\n\r\n"),
    ("a trailer without a name", b"0\r\n: 1\r\n\r\n"),
    ("a trailer with a blank before its colon", b"0\r\nX-A : 1\r\n\r\n"),
    ("a folded trailer", b"0\r\nX-A: 1\r\n 2\r\n\r\n"),
    ("a trailer with a NUL", b"0\r\nX-A: \0\r\n\r\n"),
    ("a trailer with a bare CR", b"0\r\nX-A: 1\r2\r\n\r\n"),
    ("a trailer ended by LF", b"0\r\nX-A: 1\n\r\n"),
    ("a length in the trailer", b"0\r\nContent-Length: 5\r\n\r\n"),
    ("a coding in the trailer", b"0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ("an underscored length in the trailer", b"0\r\nContent_Length: 5\r\n\r\n"),
    ("a host in the trailer", b"0\r\nHost: other.test\r\n\r\n"),
    ("a length after a tab in the trailer", b"0\r\nContent-Length:\t5\r\n\r\n"),
    ("a connection option in the trailer", b"0\r\nConnection: close\r\n\r\n"),
    ("an upgrade in the trailer", b"0\r\nUpgrade: h2c\r\n\r\n"),
    ("an expectation in the trailer", b"0\r\nExpect: 100-continue\r\n\r\n"),
    ("a trailer of 17 KiB", b"0\r\n" + b"X-A: 1\r\n" * 2200 + b"\r\n"),
    ("a trailer line of 17 KiB", b"0\r\nX-A: " + b"a" * 17000 + b"\r\n\r\n"),
    ("a request instead of a trailer", b"0\r\n" + SMUGGLED),
]


def _bodies() -> list[Case]:
    cases = [(f"chunk size {size[:24]!r}", size + b"\r\nhello\r\n0\r\n\r\n") for size in BAD_SIZES]
    cases += [(f"second chunk size {size[:24]!r}", b"1\r\na\r\n" + size + b"\r\nhello\r\n") for size in BAD_SIZES[:12]]
    cases += BAD_CHUNKS
    return [(name, request(b"Transfer-Encoding: chunked", body=body + SMUGGLED)) for name, body in cases]


HOSTILE_HEADS: list[Case] = [
    *_controls(),
    *_names(),
    *_line_ends(),
    *_folds(),
    *_spaces(),
    *_framing(),
    *_lines_and_hosts(),
    *_sizes(),
    *_other_protocols(),
]
"""First bytes of a client that nobody but the app may judge."""

HOSTILE_BODIES: list[Case] = _bodies()
"""Requests with a good head and a body whose end is not certain."""

HOSTILE: list[Case] = HOSTILE_HEADS + HOSTILE_BODIES


def _response(*fields: bytes, line: bytes = b"HTTP/1.1 200 OK", body: bytes = b"hello") -> bytes:
    return line + b"\r\n" + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


def _responses() -> list[Case]:
    length, chunked = b"Content-Length: 5", b"Transfer-Encoding: chunked"
    cases = [(f"length {text[:40]!r}", _response(b"Content-Length: " + text)) for text in BAD_LENGTHS]
    codings = [text for text in BAD_CODINGS if text.lower() != b"chunked"]
    cases += [(f"coding {text!r}", _response(b"Transfer-Encoding: " + text)) for text in codings]
    cases += [
        (f"status line {line!r}", _response(length, line=line))
        for line in (
            b"", b"HTTP/1.1", b"HTTP/1.1 ", b"HTTP/1.1 20", b"HTTP/1.1 2000", b"HTTP/1.1 000 X", b"HTTP/1.1 099 X",
            b"HTTP/1.1 600 X", b"HTTP/1.1 abc X", b"HTTP/1.1 +20 X", b"HTTP/1.1  200 OK", b"HTTP/1.1\t200 OK",
            b"HTTP/1.2 200 OK", b"HTTP/2.0 200 OK", b"HTTP/0.9 200 OK", b"http/1.1 200 OK", b" HTTP/1.1 200 OK",
            b"ICY 200 OK", b"HTTP/1.1 200OK", b"HTTP/1.1 200 O\0K", b"HTTP/1.1 200 O\rK", b"GET / HTTP/1.1",
        )
    ]  # fmt: skip
    cases += [
        (f"{field.decode()} {form!r}", _response(field + form))
        for field, forms in (
            (b"Content-Length", (b":\t5", b": \t5", b": 5\t")),
            (b"Transfer-Encoding", (b":\tchunked", b": chunked\t", b": chunked \t")),
        )
        for form in forms
    ]
    cases.append(("a tab before close", _response(length, b"Connection:\tclose")))
    cases += [(f"control {code:#04x} in a value", _response(length, b"X-A: %c" % code)) for code in CONTROLS]
    cases += [
        ("length, then coding", _response(length, chunked)),
        ("coding, then length", _response(chunked, length)),
        ("the same length twice", _response(length, length)),
        ("two lengths", _response(length, b"Content-Length: 6")),
        ("coding twice", _response(chunked, chunked)),
        ("chunked on HTTP/1.0", _response(chunked, line=b"HTTP/1.0 200 OK")),
        ("a blank before a colon", _response(length, b"X-A : 1")),
        ("a folded value", _response(length, b"X-A: 1\r\n 2")),
        ("a field without a colon", _response(length, b"X-A")),
        ("a bare LF", b"HTTP/1.1 200 OK\nContent-Length: 5\r\n\r\nhello"),
        ("LF everywhere", _response(length).replace(b"\r\n", b"\n")),
        ("a bare CR in a value", _response(length, b"X-A: 1\r2")),
        ("an empty line first", b"\r\n" + _response(length)),
        ("a head of 64 KiB", _response(length, b"X-A: " + b"a" * 65536)),
        ("a head that never ends", b"HTTP/1.1 200 OK\r\n" + b"X-A: 1\r\n" * 9000),
        ("HTTP/0.9", b"<html>hello</html>\n"),
    ]
    return cases


HOSTILE_RESPONSES: list[Case] = _responses()
"""Answers whose end is not certain, wrong in their head."""

HOSTILE_RESPONSE_BODIES: list[Case] = [
    (name, _response(b"Transfer-Encoding: chunked", body=body))
    for name, body in [*((f"chunk size {size[:24]!r}", size + b"\r\nhello\r\n") for size in BAD_SIZES), *BAD_CHUNKS]
]
"""Answers with a good head and a body whose end is not certain."""
