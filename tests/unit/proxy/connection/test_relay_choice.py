"""Which engine relays a connection, by which policies, and who stands where the app would."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
from ipaddress import ip_network

import msgspec
import pytest
from msgspec.structs import replace

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.leg import Role
from sidestep.engine.mirror.capture_writer import CaptureFacts
from sidestep.engine.mirror.whole_connection import WholeConnectionCopies
from sidestep.engine.relay import OnUnreadable
from sidestep.model.filter import Filter, PathCondition, PathTest
from sidestep.model.inspection import Action, FailurePolicy, InspectionPolicy, Match, Mode
from sidestep.model.inspection import Rule as InspectionRule
from sidestep.policy.inspection_rows import to_snapshot
from sidestep.protocols.capture_frames import FrameKind, FrameReader
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.connection.relay_choice import gate_of, global_rule, mirror_whole, relay_for, verified_certificate
from sidestep.proxy.io.stream import TlsStream
from sidestep.proxy.tls.credentials import Credentials
from sidestep.snapshots.ports import PortSnapshot
from tests.harness.authority import Authority
from tests.harness.tls_peers import client_tls
from tests.unit.proxy.runtime.test_worker import Scene

AUTHORITY = Authority()
APP = AUTHORITY.issue("app.test")
ADA = AUTHORITY.issue("ada.test", client=True)


@pytest.fixture
def ledger():
    with contextlib.ExitStack() as stack:
        yield Scene(stack).worker.ledger


def port(**fields):
    return LivePort(PortSnapshot(8443, "tcp", "probe", "probe", (), **fields))


@pytest.mark.parametrize(
    ("protocol", "engine"), [("h2", Http2Relay), ("http/1.1", Http1Relay), ("http/1.0", Http1Relay)]
)
def test_the_protocol_chooses_the_engine(ledger, protocol, engine):
    assert type(relay_for(protocol, port(), ledger)) is engine


def sent_to_app(relay, *received):
    """What the app gets of what a client sends."""
    for data in received:
        relay.receive(relay.client, data, 0.0)
        if relay.app in relay.opening:
            relay.opening.remove(relay.app)
            relay.app.open = True
            relay.opened(relay.app, 0.0)
    return b"".join(relay.app.out)


SPOOF = b"X-Forwarded-Client-Cert: Hash=spoof\r\n"


@pytest.mark.parametrize("forwards", [True, False])
def test_a_port_that_tells_who_its_clients_are_closes_the_unreadable_and_rewrites_heads(ledger, forwards):
    live = port(forward_client_cert=forwards)
    head = b"GET / HTTP/1.1\r\nHost: a\r\n" + SPOOF + b"\r\n"
    assert (SPOOF in sent_to_app(relay_for("http/1.1", live, ledger), head)) is not forwards
    unreadable = head.replace(b"Host:", b"Host :")
    assert (SPOOF in sent_to_app(relay_for("http/1.1", live, ledger), unreadable)) is not forwards
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04" + bytes(5)
    headers = b"\0\0\x01\x01\x05\0\0\0\x01\x80"  # index 0, which HPACK does not have
    assert (headers in sent_to_app(relay_for("h2", live, ledger), preface, headers)) is not forwards


def test_the_handler_of_a_global_intercept_stands_where_the_app_would(ledger):
    live = port(global_uid="u", global_display="shop/whole", pass_sources=("10.0.0.9",))
    rule = global_rule(live, "10.0.0.1")
    assert rule.uid == "u"
    relay = relay_for("http/1.1", live, ledger, global_rule=rule)
    assert (relay.app.role, relay.app.rule) == (Role.HANDLER, rule)
    assert relay_for("http/1.1", live, ledger).app.role is Role.APP


def test_a_global_intercept_leaves_the_sources_that_pass_to_the_app():
    live = port(global_uid="u", pass_sources=("10.0.0.9",))
    assert global_rule(live, "10.0.0.9") is None
    assert global_rule(port(), "10.0.0.1") is None


def test_global_wiretaps_get_whole_connections(ledger):
    relay = relay_for("http/1.1", port(), ledger)
    mirror_whole(relay, port(), ledger)
    assert not relay.mirror._sinks
    mirror_whole(relay, port(global_taps=("t",)), ledger)
    assert isinstance(relay.mirror._sinks[-1], WholeConnectionCopies)


def memfd(data):
    fd = os.memfd_create("test")
    os.write(fd, data)
    return fd


@pytest.mark.parametrize("certificate", [ADA, None])
def test_what_a_client_has_proved_is_told_and_nothing_else(certificate):
    store = Credentials(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    store.add("identity", "identity", memfd(APP.key + APP.chain))
    store.add("trust", "trust", memfd(AUTHORITY.pem))
    named = {"identity": "identity", "client_trust": "trust", "client_auth": "request"}
    context = store.downstream(PortSnapshot(443, "tcp", "always", "probe", (), **named), None)
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    near = TlsStream(ours, context, server_side=True)
    tls = client_tls(AUTHORITY.pem, certificate=certificate)
    tls.check_hostname = False
    far = TlsStream(theirs, tls, server_side=False)
    while any([near.handshake(), far.handshake()]):
        pass
    told = verified_certificate(near)
    assert (told is None) if certificate is None else (b'Subject="CN=ada.test"' in told)
    near.close()
    far.close()
    store.keep(set())


NO_ADMIN = InspectionPolicy(
    "p",
    "shop",
    mode=Mode.ENFORCE,
    failure_policy=FailurePolicy.FAIL,
    rules=(
        InspectionRule(
            "no-admin",
            Action.BLOCK,
            match=Match(Filter(paths=(PathCondition(PathTest.PREFIX, "/admin"),))),
            exception=Match(sources=(ip_network("10.0.0.0/8"),)),
        ),
    ),
)


def test_a_port_with_policies_judges_requests_and_counts(ledger):
    live = port(policies=(to_snapshot(NO_ADMIN),))
    head = b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n"
    inside = relay_for("http/1.1", live, ledger, address="10.0.0.1")
    outside = relay_for("http/1.1", live, ledger, address="192.0.2.1")
    assert sent_to_app(inside, head) == head
    assert sent_to_app(outside, head) == b""
    assert b"sidestep: policy shop/p, id " in outside.client.out[0]
    assert live.counters == {"inspection_blocked": 1}
    assert live.on_unreadable is OnUnreadable.CLOSE
    assert sent_to_app(relay_for("http/1.1", live, ledger, address="10.0.0.1"), head.replace(b"Host", b"Host ")) == b""
    assert live.counters["inspection_closed_h1_field"] == 1


def test_captures_have_what_policies_find_as_comments(ledger):
    live = port(policies=(to_snapshot(NO_ADMIN),), captures=("c",))
    facts = CaptureFacts("10.0.0.2", 8443, epoch=0.0, now=lambda: 2.0)
    relay = relay_for("http/1.1", live, ledger, address="192.0.2.1", captured=facts)
    mirror_whole(relay, live, ledger, facts)
    sent_to_app(relay, b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n")
    relay.mirror.run()
    frames = FrameReader().feed(b"".join(relay.mirror.opening[0].out))
    [told] = [each.text for each in frames if each.kind is FrameKind.COMMENT]
    assert re.fullmatch(r"policy shop/p, rule no-admin: block, id [0-9a-f]+-\d+", told)
    assert live.counters == {"inspection_blocked": 1}, "and are counted as ever"


def test_policies_that_change_go_on_counting(ledger):
    live = port(policies=(to_snapshot(NO_ADMIN),))
    before = live.inspection
    live.replace(msgspec.structs.replace(live.snapshot, late_client_auth=True))
    assert live.inspection is before
    detects = replace(NO_ADMIN, mode=Mode.DETECT)
    live.replace(msgspec.structs.replace(live.snapshot, policies=(to_snapshot(detects),)))
    assert live.inspection.thresholds is before.thresholds
    assert live.on_unreadable is OnUnreadable.PASS
    live.replace(msgspec.structs.replace(live.snapshot, policies=()))
    assert live.inspection is None
    assert gate_of(live, None, "", "") is None


def test_a_policy_that_blocks_wins_over_a_global_intercept():
    live = port(global_uid="u", global_display="shop/whole", policies=(to_snapshot(NO_ADMIN),))
    assert global_rule(live, "10.0.0.1") is None
    detects = to_snapshot(replace(NO_ADMIN, mode=Mode.DETECT))
    assert global_rule(port(global_uid="u", global_display="shop/whole", policies=(detects,)), "10.0.0.1").uid == "u"


def test_probes_of_the_node_are_exempt_and_nobody_else():
    probes = {"probe_sources": ("10.9.0.1",), "probes": (("GET", "/admin"),)}
    everything = InspectionPolicy("all", mode=Mode.ENFORCE, rules=(InspectionRule("all", Action.BLOCK),))
    live = port(policies=(to_snapshot(everything),), **probes)
    probe = (b"user-agent", b"kube-probe/1.30")
    for address, exempt in (("10.9.0.1", True), ("10.9.0.2", False), ("", False)):
        gate = gate_of(live, None, address, "")
        assert (gate.judge("http/1", b"GET", b"/admin", (probe,), ends=True) is None) is exempt
        assert gate.judge("http/1", b"GET", b"/admin", (probe,)).refusal  # it has a body
        assert gate.judge("http/1", b"GET", b"/admin/x", (probe,)).refusal
