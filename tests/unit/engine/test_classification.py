"""The table of verdicts: first bytes and what is known of the port in, a verdict out."""

import itertools
import ssl

import pytest
from msgspec.structs import replace

from sidestep.engine.classification import (
    IDLE_SECONDS,
    PEEK,
    REST_SECONDS,
    SILENCE_SECONDS,
    AskApp,
    Close,
    Event,
    Http,
    Offer,
    OpenTls,
    Pass,
    PortFacts,
    Unparsed,
    Wait,
    classify,
    classify_decrypted,
    unreadable,
)
from sidestep.engine.relay import OnUnreadable
from sidestep.model.condition import ConditionType

PORT = PortFacts(
    tls="probe",
    has_certificate=True,
    reads_requests=True,
    global_intercept=False,
    global_wiretap=False,
    on_unreadable=OnUnreadable.PASS,
    late_client_auth=False,
    server_first=False,
    detection_seconds=1.0,
)
CLOSING = replace(PORT, on_unreadable=OnUnreadable.CLOSE)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SSH = b"SSH-2.0-x\r\n"
SNI = ConditionType.SNI_UNSUPPORTED
LATER = ConditionType.CLIENT_CERTIFICATE_REQUESTED_LATER


def hello(name="app.test", *, alpn=("h2", "http/1.1"), minimum=None, askable=False):
    """A ClientHello as OpenSSL writes it."""
    out = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.post_handshake_auth = askable
    if alpn:
        context.set_alpn_protocols(list(alpn))
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


HELLO, ASKABLE = hello(), hello(askable=True)
UNNAMED = hello(None, alpn=())
ADDRESS = HELLO.replace(b"app.test", b"10.0.0.1")  # which no server name may be
OLD_HELLO = HELLO.replace(b"\x03\x04\x03\x03", b"\x03\x02\x03\x01")  # supported_versions: TLS 1.1, 1.0
NON_ASCII = HELLO.replace(b"http/1.1", b"http/1.\xff")


def port(**known):
    return replace(PORT, **known)


BEFORE_A_BYTE = [
    (port(), Event.ACCEPTED, Wait(1, 1.0)),
    (port(server_first=True), Event.ACCEPTED, Wait(1, 0.0)),
    (port(server_first=True, global_intercept=True), Event.ACCEPTED, Wait(1, 1.0)),
    (
        port(reads_requests=False),
        Event.ACCEPTED,
        Wait(1, 1.0),
    ),  # a probe's source, which the global intercept leaves to the app
    (port(reads_requests=False, global_intercept=True), Event.ACCEPTED, Unparsed()),
    (port(reads_requests=False, global_wiretap=True), Event.ACCEPTED, Unparsed()),
    (port(global_intercept=True, global_wiretap=True), Event.ACCEPTED, Wait(1, 1.0)),  # somebody reads requests
    (port(), Event.SILENT, AskApp(IDLE_SECONDS)),
    (port(global_intercept=True), Event.SILENT, Unparsed()),
    (port(), Event.EOF, Pass("silent-client")),
    (port(), Event.STILL_SILENT, Pass("silent-client")),
    (port(), Event.INCOMPLETE, Pass("incomplete-first-message")),
    (port(), Event.SERVER_FIRST, Pass("server-first")),
]


@pytest.mark.parametrize(("known", "event", "verdict"), BEFORE_A_BYTE)
def test_before_the_first_byte(known, event, verdict):
    assert classify(known, event) == verdict


FIRST_BYTES = [
    (port(), GET, Http("http/1.1", tls=False)),
    (port(tls="never"), PREFACE, Http("h2", tls=False)),
    (port(global_intercept=True), GET, Http("http/1.1", tls=False)),
    (port(tls="always"), GET, Pass("clear-on-tls-port", tls=False)),
    (port(tls="always"), PREFACE, Pass("clear-on-tls-port", tls=False)),
    (port(), SSH, Pass("not-http")),
    (port(), b"GE", Wait(1, REST_SECONDS)),
    (port(), PREFACE[:10], Wait(1, REST_SECONDS)),
    (port(), b"\x16\x03\x01", Wait(1, REST_SECONDS)),
    (port(), HELLO[:50], Wait(len(HELLO) - 50, REST_SECONDS, tls=True)),
    (port(tls="never"), HELLO, Pass("tls-on-clear-port", tls=True)),
    (port(has_certificate=False), HELLO, Pass("tls-without-certificate", tls=True)),
    (port(has_certificate=False), HELLO[:50], Pass("tls-without-certificate", tls=True)),
    (port(), HELLO[:5] + b"\x01" + bytes(len(HELLO) - 6), Pass("not-a-client-hello", tls=True)),
    (port(), ADDRESS, Pass("server-name", SNI, b"10.0.0.1", tls=True)),
    (port(late_client_auth=True), ASKABLE, Pass("asks-later", LATER, tls=True)),
    (port(), OLD_HELLO, Pass("tls-version", tls=True)),
    (port(), NON_ASCII, Pass("alpn-not-ascii", tls=True)),
]


@pytest.mark.parametrize(("known", "data", "verdict"), FIRST_BYTES)
def test_first_bytes(known, data, verdict):
    assert classify(known, Event.DATA, data) == verdict


@pytest.mark.parametrize(
    ("data", "name", "alpn", "askable"),
    [
        (HELLO, "app.test", ("h2", "http/1.1"), False),
        (ASKABLE, "app.test", ("h2", "http/1.1"), True),
        (UNNAMED, None, (), False),
    ],
)
def test_tls_that_is_opened(data, name, alpn, askable):
    for behind in (b"", b"more"):
        verdict = classify(PORT, Event.DATA, data + behind)
        assert isinstance(verdict, OpenTls)
        assert verdict == OpenTls(Offer(data, verdict.offer.shape, name, alpn, askable), tls=True)
    if not askable:
        assert isinstance(classify(port(late_client_auth=True), Event.DATA, data), OpenTls)


@pytest.mark.parametrize(("known", "data", "verdict"), FIRST_BYTES)
def test_how_the_bytes_arrive_does_not_matter(known, data, verdict):
    for end in range(1, len(data)):
        early = classify(known, Event.DATA, data[:end])
        assert isinstance(early, Wait) or early == verdict


def test_what_is_waited_for_is_bounded():
    record = b"\x16\x03\x01\x40\x00\x01\xff\xff\xff"
    verdict = classify(PORT, Event.DATA, record + bytes(PEEK - len(record)))
    assert not isinstance(verdict, Wait)


@pytest.mark.parametrize(("known", "data", "verdict"), FIRST_BYTES)
def test_what_would_be_passed_is_closed_where_nothing_may_be_bypassed(known, data, verdict):
    closing = classify(replace(known, on_unreadable=OnUnreadable.CLOSE), Event.DATA, data)
    if isinstance(verdict, Pass):
        assert closing == Close(verdict.reason, verdict.condition, verdict.server_name, tls=verdict.tls)
    else:
        assert closing == verdict


def test_nothing_is_carried_unread_where_nothing_may_be_bypassed():
    """Whoever steers the port."""
    switches = itertools.product([False, True], repeat=6)
    for tls, (certificate, reads, whole, copied, asks_later, greets) in itertools.product(
        ("never", "always", "probe"), switches
    ):
        known = PortFacts(tls, certificate, reads, whole, copied, OnUnreadable.CLOSE, asks_later, greets, 1.0)
        for event in set(Event) - {Event.DATA}:
            assert isinstance(classify(known, event), Wait | AskApp | Close)
        for _, data, _ in FIRST_BYTES:
            assert isinstance(classify(known, Event.DATA, data), Wait | Http | OpenTls | Close)


def test_a_silent_client_is_waited_for_where_its_words_have_to_be_read():
    assert classify(replace(CLOSING, global_intercept=True), Event.SILENT) == Wait(1, SILENCE_SECONDS)
    assert classify(replace(CLOSING, global_intercept=True), Event.STILL_SILENT) == Close("silent-client")
    assert classify(CLOSING, Event.SILENT) == AskApp(IDLE_SECONDS)


@pytest.mark.parametrize("policy", list(OnUnreadable))
def test_inside_tls(policy):
    assert classify_decrypted(policy, Event.DATA, GET) == Http("http/1.1", tls=True)
    assert classify_decrypted(policy, Event.EOF, PREFACE) == Http("h2", tls=True)
    assert isinstance(classify_decrypted(policy, Event.DATA, b"GE"), Wait)
    for words in (b"", b"GE", SSH):
        left = classify_decrypted(policy, Event.EOF, words)
        assert left == unreadable(policy, "tls-not-http", tls=True)
        assert isinstance(left, Close if policy is OnUnreadable.CLOSE else Pass)


@pytest.mark.parametrize("policy", list(OnUnreadable))
@pytest.mark.parametrize(
    ("event", "data", "reason"),
    [
        (Event.SILENT, b"", "tls-silent-client"),
        (Event.INCOMPLETE, b"GE", "tls-not-http"),
        (Event.SERVER_FIRST, b"", "tls-server-first"),
        (Event.SERVER_FIRST, b"GE", "tls-server-first"),
    ],
)
def test_inside_tls_each_wait_ends_in_a_verdict(policy, event, data, reason):
    assert classify_decrypted(policy, Event.ACCEPTED) == Wait(1, IDLE_SECONDS, tls=True)
    assert classify_decrypted(policy, Event.DATA, b"GE") == Wait(1, REST_SECONDS, tls=True)
    assert classify_decrypted(policy, event, data) == unreadable(policy, reason, tls=True)
