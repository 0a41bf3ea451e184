"""Records as lines for people: every kind, and nothing in them that a terminal obeys."""

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.cli.inspect import has_colour
from sidestep.cli.record_text import MAX_TEXT, RecordText
from sidestep.protocols import eve
from sidestep.protocols.eve_records import Anomaly, Flow, Kubernetes, Origin, Sidestep, Tls, TlsDetails
from sidestep.protocols.eve_redaction import Redaction

WHOSE = Kubernetes("shop", "orders-1", "deployment/orders", "n1")
ORIGIN = Origin(flow_id=7, client=("192.0.2.1", 40000), server=("2001:db8::7", 8443), protocol="http", kubernetes=WHOSE)
PLAIN, COLOURED = RecordText(colour=False), RecordText(colour=True)
ENDS = "192.0.2.1:40000 -> [2001:db8::7]:8443  pod shop/orders-1"
SGR = re.compile(r"\x1b\[[0-9]+m")


def http(target=b"/a", status=None, host=b"shop.test"):
    return eve.http(method=b"GET", target=target, authority=host, fields=[], status=status, redaction=Redaction())


def made(detail, **more):
    return eve.record(1_000_000_000, ORIGIN, detail, **more)


def decided(action, **more):
    return Sidestep(policy="shop/orders", rule="no-admin", action=action, inspected=True, **more)


FLOW = Flow(
    bytes_toserver=1, bytes_toclient=1, start="", end="", age=0, state="closed", reason="shutdown", alerted=False
)
TLS = Tls(version="TLS 1.3", sni="shop.test", ja4="t13d")
LINES = {
    "request": (made(http(status=200), sidestep=Sidestep(inspected=False)), "GET shop.test/a  200"),
    "no answer": (made(http(), sidestep=Sidestep(inspected=False)), "GET shop.test/a"),
    "logged": (made(http(), sidestep=decided("Log")), "LOGGED  shop/orders: no-admin  GET shop.test/a"),
    "blocked": (
        made(eve.alert("shop/orders", "no-admin", blocked=True), http=http(), sidestep=decided("Block", id="a-1")),
        "BLOCKED  shop/orders: no-admin  id a-1  GET shop.test/a",
    ),
    "found": (
        made(
            eve.alert("shop/orders", "no-admin", blocked=False),
            http=http(),
            sidestep=decided("WouldBlock", pattern="CardNumber"),
        ),
        "WOULD BLOCK  shop/orders: no-admin  (CardNumber)  GET shop.test/a",
    ),
    "anomaly": (
        made(
            Anomaly(type="applayer", event="not-http", layer="proto_detect"),
            sidestep=Sidestep(action="Pass", inspected=False, reason="not-http"),
        ),
        "NOT INSPECTED  not-http",
    ),
    "tls": (
        made(TLS, sidestep=Sidestep(inspected=True, tls=TlsDetails(alpn="h2", weak=("rc4", "md5")))),
        "TLS  1.3  shop.test  h2  JA4 t13d  weak: rc4, md5",
    ),
}


@pytest.mark.parametrize("what", LINES)
def test_what_is_shown(what):
    record, shown = LINES[what]
    assert PLAIN.line(record) == f"00:00:01  {shown}  {ENDS}"
    assert SGR.sub("", COLOURED.line(record)) == PLAIN.line(record)
    assert COLOURED.line(record) != PLAIN.line(record)


def test_the_end_of_a_connection_is_not_shown():
    assert PLAIN.line(made(FLOW)) == ""


@given(st.text(), st.text(), st.text())
def test_a_terminal_obeys_nothing_of_it(one, two, three):
    record = made(
        msgspec.structs.replace(http(), url=one, http_method=two, hostname=three),
        sidestep=Sidestep(policy=one, rule=two, action="Alert", id=three, pattern=one, inspected=True),
    )
    for each in (
        record,
        made(msgspec.structs.replace(TLS, sni=one, ja4=two), sidestep=Sidestep(inspected=True)),
        msgspec.structs.replace(record, kubernetes=Kubernetes(one, two), src_ip=three, timestamp="x" * 30),
    ):
        assert PLAIN.line(each).isprintable()
        assert SGR.sub("", COLOURED.line(each)).isprintable()


def test_a_long_text_is_cut():
    assert len(PLAIN.line(made(http(b"/" * 5000)))) < MAX_TEXT + 200


@pytest.mark.parametrize(
    ("terminal", "variables", "expected"),
    [
        (True, {"TERM": "xterm"}, True),
        (False, {"TERM": "xterm"}, False),
        (True, {"TERM": "dumb"}, False),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "xterm", "NO_COLOR": ""}, True),
    ],
)
def test_colours_are_for_terminals_where_they_are_wanted(monkeypatch, terminal, variables, expected):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert has_colour() is expected
