"""What a taken-over proxy says is bounded before anything keeps, shows or sends it."""

from sidestep.node.proxies import sanitising
from sidestep.proxy.control.messages import (
    MAX_LINES,
    MAX_TEXT,
    MAX_TLS_TEXT,
    Heartbeat,
    Hindered,
    LoggedAnswer,
    LoggedRequest,
    LoggedTls,
    LostCopies,
    Probed,
    Requests,
)
from sidestep.snapshots.hindrance import Hindrance

HONEST = LoggedRequest("uid-1", 8443, "10.0.0.1", 999, "GET", "/cart", "a.test", False, "", (("accept", "*/*"),))


def test_what_is_honest_stays_as_it_is():
    beat = Heartbeat(1, 2, {8443: {"wired": 1, "accepted": 3}, 0: {"flows": 1}}, {"h1-bare-cr": 1})
    assert sanitising.heartbeat(beat, ports=(8443,)) == beat
    assert list(sanitising.heartbeat(beat, ports=(8443,)).ports[8443]) == ["wired", "accepted"]
    message = Requests(1, (HONEST,), 3)
    assert sanitising.requests(message, uids={"uid-1"}) == message
    found = Probed(1, 8443, "yes", "no", "h2", False, b"der")
    assert sanitising.probed(found) == found


def test_counters_are_words_and_few():
    hostile = {f"word{number}": 1 for number in range(500)} | {'"} evil 1\n': 7, "other": 2, "x" * 100: 1}
    found = sanitising.counters(hostile)
    assert len(found) == sanitising.MAX_WORDS + 1
    assert found["other"] == 500 - sanitising.MAX_WORDS + 10
    assert sum(found.values()) == sum(hostile.values())


def test_a_heartbeat_counts_ports_of_the_pod_only():
    beat = Heartbeat(1, 2, {number: {"accepted": 1} for number in range(60_000)}, {"x" * 1000: 1})
    found = sanitising.heartbeat(beat, ports=(80, 443))
    assert set(found.ports) == {0, 80, 443}
    assert found.anomalies == {"other": 1}


def test_request_lines_are_those_of_the_pods_rules_short_and_few():
    long = "x" * 1_000_000
    line = LoggedRequest("uid-1", 1, long, 1, long, long, long, True, long, tuple((long, long) for _ in range(20)))
    found = sanitising.requests(Requests(1, (line, HONEST) * 400, 0), uids={"uid-1"})
    assert len(found.requests) == MAX_LINES
    size = sum(len(text) for name, value in found.requests[0].fields for text in (name, value))
    assert size <= sanitising.MAX_FIELDS
    texts = (found.requests[0].method, found.requests[0].path, found.requests[0].authority)
    assert {len(text) for text in texts} == {MAX_TEXT}
    assert found.requests[0].lost == ""
    assert sanitising.requests(Requests(1, (line,), 0), uids={"of another pod"}).requests == ()


def test_numbers_of_lost_copies_are_those_of_the_pods_rules_few_and_possible():
    good = LostCopies("uid-1", 80, "handler", 7)
    evil = [LostCopies("uid-1", 80, "budget", count) for count in (0, -5, 1 << 60)]
    evil.append(LostCopies("of another pod", 80, "budget", 1))
    found = sanitising.requests(Requests(1, (), 0, (good, *evil)), uids={"uid-1"}).losses
    assert found == (good,)
    odd = LostCopies("uid-1", 80, "x" * 1_000_000, 1)
    found = sanitising.requests(Requests(1, (), 0, (odd,) * 1000), uids={"uid-1"}).losses
    assert len(found) == MAX_LINES
    assert found[0].reason == "room"


def test_a_certificate_is_one_or_none():
    found = sanitising.probed(Probed(1, 8443, "yes", "no", "h" * 1000, False, bytes(1_000_000)))
    assert (found.certificate, len(found.alpn)) == (b"", sanitising.MAX_ADDRESS)


def test_hindrances_are_of_a_kind_about_the_pods_ports_and_few():
    honest = (Hindrance("no-room"), Hindrance("cannot-dial", 80, 10, 110))
    hostile = (
        Hindrance("evil", 80),
        Hindrance("no-room", 81),
        Hindrance("no-room", 80, 3),
        *(Hindrance("no-room", 80) for _ in range(100_000)),
    )
    assert sanitising.hindrances(Hindered(1, honest), ports={80}) == honest
    assert sanitising.hindrances(Hindered(1, hostile), ports={80}) == (Hindrance("no-room", 80),)
    assert sanitising.hindrances(Hindered(1, (Hindrance("no-room", error=1 << 40),)), ports={80}) == (
        Hindrance("no-room"),
    )


def test_the_fields_of_a_line_are_few():
    """An empty one costs its message three bytes, and a line of the session's events eight."""
    line = LoggedRequest("u", 80, "10.0.0.1", 1, "GET", "/", "a", copied=False, fields=(("", ""),) * 20_000)
    [kept] = sanitising.requests(Requests(1, (line,), 0), uids={"u"}).requests
    assert kept.fields == (("", ""),) * sanitising.MAX_LINE_FIELDS


def test_an_answer_is_bounded_and_has_known_words():
    nan = float("nan")
    answer = LoggedAnswer(-1, "root", "x" * 9999, nan, -5, (1 << 63) - 1, True, "h" * 99_999)
    line = LoggedRequest(
        "u",
        80,
        "10.0.0.1",
        1,
        "GET",
        "/",
        "a",
        copied=True,
        age=nan,
        protocol="gopher",
        trace="\x1b[31m",
        number=-1,
        answer=answer,
        tls_facts=LoggedTls(*["t" * 9999] * 7),
    )
    [kept] = sanitising.requests(Requests(1, (line,), 0), uids={"u"}).requests
    assert (kept.age, kept.protocol, kept.trace, kept.number) == (0.0, "", "", 0)
    found = kept.answer
    assert (found.status, found.by, found.seconds, found.sent) == (0, "", 0.0, 0)
    assert (len(found.handler), len(found.head)) == (MAX_TEXT, sanitising.MAX_FIELDS)
    assert found.received == sanitising.MAX_BYTES
    assert kept.tls_facts == LoggedTls(*["t" * MAX_TLS_TEXT] * 7)


def test_an_honest_answer_is_kept_as_it_is():
    answer = LoggedAnswer(200, "handler", "shop/dev", 0.25, 1, 2, True, "a: b")
    line = LoggedRequest(
        "u",
        80,
        "10.0.0.1",
        1,
        "GET",
        "/",
        "a",
        copied=True,
        age=0.5,
        protocol="h2",
        tls=True,
        trace="0af7651916cd43dd",
        number=3,
        answer=answer,
        is_answer=True,
        tls_facts=LoggedTls("TLSv1.3", "TLS_AES_256_GCM_SHA384", "h2", "a.test", "CN=ada"),
    )
    assert sanitising.requests(Requests(1, (line,), 0), uids={"u"}).requests == (line,)
