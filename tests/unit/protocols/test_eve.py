"""Records have the names that Suricata 7.0.10 used (recorded by tests/integration/protocols/record_suricata.py)."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.protocols import eve
from sidestep.protocols.client_hello import parse
from sidestep.protocols.eve_records import (
    Alert,
    Anomaly,
    Certificate,
    FileInfo,
    Flow,
    Kubernetes,
    Origin,
    Sidestep,
    TlsDetails,
)
from sidestep.protocols.eve_redaction import Redaction
from tests.effort import examples
from tests.unit.protocols import made_hellos
from tests.unit.protocols.json_paths import paths

NAMES = json.loads(Path(__file__).with_name("suricata_names.json").read_text())
AT = 1_764_408_677_715_381_999
KUBERNETES = Kubernetes("shop", "orders-1", "deployment/orders", "node-1")
ORIGIN = Origin(
    flow_id=77, client=("192.0.2.1", 40000), server=("10.0.0.7", 8443), protocol="http", kubernetes=KUBERNETES
)
FIELDS = [
    (b"host", b"shop.test:8443"), (b"user-agent", b"curl/8"), (b"referer", b"https://a.test/?q=S3CRET"),
    (b"x-forwarded-for", b"198.51.100.9"), (b"cookie", b"S3CRET"), (b"authorization", b"Bearer S3CRET"),
]  # fmt: skip
ANSWER = [
    (b"content-type", b"text/html; charset=utf-8"), (b"location", b"/next?token=S3CRET"), (b"set-cookie", b"S3CRET"),
]  # fmt: skip


def exchange(**changes):
    given = {
        "method": b"GET", "target": b"/orders?token=S3CRET", "authority": b"shop.test:8443", "fields": FIELDS,
        "status": 302, "answer": ANSWER, "length": 12, "redaction": Redaction(), "with_heads": True,
    }  # fmt: skip
    return eve.http(**(given | changes))


def tls():
    hello = parse(made_hellos.MADE["made: a browser"])
    certificate = Certificate(
        "CN=app.test", "CN=Private CA", "99:c0", "55:07", "2026-11-28T09:36:30", "2026-12-06T09:36:30"
    )
    return eve.tls(hello, version=0x0303, server=certificate, client=certificate)


DECIDED = Sidestep(policy="shop/orders", rule="no-admin", action="Block", id="a1", inspected=True)
RECORDS = {
    "http": eve.record(AT, ORIGIN, exchange(), transaction=0, sidestep=Sidestep(inspected=True)),
    "http, HTTP/2": eve.record(AT, ORIGIN, exchange(stream=5), transaction=1),
    "tls": eve.record(
        AT, ORIGIN, tls(), sidestep=Sidestep(inspected=True, tls=TlsDetails(alpn="h2", cipher="x", weak=("rc4",)))
    ),
    "alert": eve.record(
        AT, ORIGIN, transaction=0, http=exchange(with_heads=False), sidestep=DECIDED,
        detail=Alert(action="blocked", signature_id=1, signature="shop/orders: no-admin", severity=1),
    ),
    "anomaly": eve.record(
        AT, ORIGIN, Anomaly(type="applayer", event="ambiguous-framing", layer="proto_parser", app_proto="http"),
        sidestep=Sidestep(inspected=False, reason="ambiguous-framing"),
    ),
    "flow": eve.record(
        AT, ORIGIN,
        Flow(bytes_toserver=1, bytes_toclient=2, start=eve.timestamp(AT), end=eve.timestamp(AT), age=0, state="closed",
             reason="shutdown", alerted=False, pkts_toserver=0, pkts_toclient=0),
    ),
    "fileinfo": eve.record(
        AT, ORIGIN, http=exchange(), to_client=True,
        detail=FileInfo(filename="/orders", gaps=False, state="CLOSED", sha256="00", stored=False, size=0, tx_id=0),
    ),
    "stats": eve.stats(AT, KUBERNETES, {"uptime": 5}),
}  # fmt: skip


def decoded(made):
    line = eve.encode(made)
    assert line.endswith(b"\n")
    assert line.decode()[:-1].isprintable()
    assert len(line) <= eve.MAX_RECORD
    return json.loads(line)


@pytest.mark.parametrize("kind", RECORDS)
def test_names_and_types_are_those_of_suricata(kind):
    shown = decoded(RECORDS[kind])
    kind = kind.partition(",")[0]
    assert shown["event_type"] == kind
    assert {"kubernetes"} <= set(shown)
    known = dict(NAMES[kind])
    if "http" in known:
        known |= {path: what for path, what in NAMES["http"].items() if path.startswith("http.")}
    foreign = {
        path: what
        for path, what in paths(shown).items()
        if known.get(path) != what and path.split(".")[0] not in ("kubernetes", "sidestep") and path != "stats.uptime"
    }
    assert foreign == {}


MANDATORY = {
    "http": {"http.hostname", "http.url", "http.http_method", "http.protocol", "http.status", "http.length", "tx_id"},
    "tls": {"tls.sni", "tls.version", "tls.ja3.hash", "tls.ja3.string", "tls.ja4", "tls.notafter", "tls.issuerdn"},
    "alert": {"alert.action", "alert.signature", "alert.signature_id", "alert.severity", "http.url", "app_proto"},
    "anomaly": {"anomaly.type", "anomaly.event", "anomaly.layer"},
    "flow": {"flow.bytes_toserver", "flow.start", "flow.end", "flow.age", "flow.state", "flow.alerted", "app_proto"},
    "fileinfo": {"fileinfo.filename", "fileinfo.gaps", "fileinfo.state", "fileinfo.size", "fileinfo.sha256"},
}


@pytest.mark.parametrize("kind", MANDATORY)
def test_what_readers_rely_on_is_there(kind):
    common = {"timestamp", "flow_id", "event_type", "src_ip", "src_port", "dest_ip", "dest_port", "proto"}
    assert MANDATORY[kind] | common <= set(paths(decoded(RECORDS[kind])))


@pytest.mark.parametrize("kind", RECORDS)
def test_planted_secrets_are_nowhere(kind):
    assert b"S3CRET" not in eve.encode(RECORDS[kind])


def test_an_http_record_whole():
    shown = decoded(eve.record(AT, ORIGIN, exchange(with_heads=False), transaction=3, sidestep=DECIDED))
    assert shown == {
        "timestamp": "2025-11-29T09:31:17.715381+0000", "flow_id": 77, "event_type": "http", "src_ip": "192.0.2.1",
        "src_port": 40000, "dest_ip": "10.0.0.7", "dest_port": 8443, "proto": "TCP", "tx_id": 3,
        "http": {
            "hostname": "shop.test", "http_port": 8443, "url": "/orders?token=[redacted]", "http_user_agent": "curl/8",
            "xff": "198.51.100.9", "http_content_type": "text/html", "http_refer": "https://a.test/?q=[redacted]",
            "http_method": "GET", "protocol": "HTTP/1.1", "status": 302, "redirect": "/next?token=[redacted]",
            "length": 12,
        },
        "kubernetes": {"namespace": "shop", "pod": "orders-1", "workload": "deployment/orders", "node": "node-1"},
        "sidestep": {"policy": "shop/orders", "rule": "no-admin", "action": "Block", "id": "a1", "inspected": True},
    }  # fmt: skip


def test_a_body_of_the_server_is_told_from_there():
    shown = decoded(RECORDS["fileinfo"])
    assert (shown["src_ip"], shown["src_port"], shown["dest_ip"]) == ("10.0.0.7", 8443, "192.0.2.1")


@pytest.mark.parametrize(
    ("authority", "host", "port"),
    [(b"a.test", "a.test", None), (b"a.test:80", "a.test", 80), (b"[::1]:8443", "[::1]", 8443),
     (b"[::1]", "[::1]", None), (b"a:x", "a:x", None), (b"a:999999", "a:999999", None),
     (b"", None, None), (b"user:pw@a.test:1", "a.test", 1)],
)  # fmt: skip
def test_host_and_port(authority, host, port):
    made = exchange(authority=authority)
    assert (made.hostname, made.http_port) == (host, port)


def test_heads_are_told_on_request_only():
    assert exchange(with_heads=False).request_headers is None
    made = exchange(redaction=Redaction(headers=frozenset((b"user-agent",))))
    assert made.http_user_agent == "[redacted]"
    assert {field.name: field.value for field in made.request_headers}["cookie"] == "[redacted]"
    assert exchange(answer=()).response_headers is None


def test_times_and_versions():
    assert eve.timestamp(0) == "1970-01-01T00:00:00.000000+0000"
    assert eve.timestamp(1_999_999_999) == "1970-01-01T00:00:01.999999+0000"
    assert eve.certificate_time(1_764_408_677) == "2025-11-29T09:31:17"
    assert [eve.tls_version(number) for number in (0x0304, 0x0303, 0x0301, 0x7F12)] == [
        "TLS 1.3", "TLS 1.2", "TLSv1", "UNDETERMINED",
    ]  # fmt: skip


def test_numbers_of_rules_are_stable_and_their_own():
    assert eve.signature_id("shop/orders", "no-admin") == eve.signature_id("shop/orders", "no-admin")
    numbers = {eve.signature_id("shop/orders", f"rule-{number}") for number in range(1000)}
    assert len(numbers) == 1000
    assert all(1_000_000_000 <= number < 2_000_000_000 for number in numbers)


def test_a_client_without_name_and_certificates():
    made = eve.tls(parse(made_hellos.hello()), version=0x0304, resumed=True)
    shown = decoded(eve.record(AT, ORIGIN, made))["tls"]
    assert set(shown) == {"session_resumed", "version", "ja3", "ja4"}


def test_certificates_with_endless_names_are_cut():
    made = eve.tls(parse(made_hellos.hello()), version=0x0304, server=Certificate("CN=" + "a" * 10**6, "CN=b"))
    assert len(made.subject) == 1024


def test_statistics_are_bounded():
    shown = decoded(eve.stats(AT, KUBERNETES, {f"counter{number}": number for number in range(9999)}))
    assert len(shown["stats"]) == eve.MAX_COUNTERS


HOSTILE = [b"\x7f\x1b[2J", "\u202e\u200b".encode() * 700, b"\xff" * 9000, b"\0" * 9000]
ANY = st.binary(max_size=300) | st.sampled_from(HOSTILE)
ASKED = st.sampled_from([b"user-agent", b"referer", b"x-forwarded-for"]) | ANY
TOLD = st.sampled_from([b"content-type", b"location"]) | ANY


@given(
    method=ANY, target=ANY, authority=ANY, stream=st.none() | st.integers(0, 2**31 - 1),
    fields=st.lists(st.tuples(ASKED, ANY), max_size=30), answer=st.lists(st.tuples(TOLD, ANY), max_size=30),
)  # fmt: skip
@settings(deadline=None, max_examples=examples())
def test_arbitrary_traffic_is_told_in_one_printable_line_of_bounded_size(**given):
    made = exchange(**given)
    shown = decoded(eve.record(AT, ORIGIN, made, transaction=1))
    assert shown["http"]["http_method"] == made.http_method
    assert shown["http"]["url"] == made.url
    assert [field["value"] for field in shown["http"]["request_headers"]] == [
        field.value for field in made.request_headers
    ]
