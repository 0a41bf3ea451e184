"""TLS on both sides of a connection, between a real client, a real app and the proxy's own loop and process."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading

import pytest

from sidestep.engine import classification
from sidestep.engine.classification import Close, Event, Http, OpenTls, Pass, PortFacts, classify
from sidestep.engine.relay import OnUnreadable
from sidestep.model.condition import ConditionType
from sidestep.model.errors import PeerError
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.ends import Ends
from sidestep.proxy.connection.establishment import Established, TlsEstablishment
from sidestep.proxy.io.loop import READ
from sidestep.proxy.io.stream import TlsStream
from sidestep.proxy.tls import handshake
from sidestep.proxy.tls.failures import TlsFailure
from tests.harness.authority import Authority
from tests.harness.peers import server_context
from tests.harness.tls_peers import client_tls
from tests.unit.proxy.looping import PATIENCE, Running
from tests.unit.proxy.runtime.test_worker import Scene, hello

AUTHORITY, OTHER = Authority(), Authority()
APP = AUTHORITY.issue("app.test")
RSA = AUTHORITY.issue("app.test", kind="rsa")
ADA = AUTHORITY.issue("ada.test", client=True)
OPEN = PortFacts("always", True, True, False, False, OnUnreadable.PASS, False, False, 1.0)


class Stage:
    """A client that has sent its ClientHello, and an app; both in threads."""

    def __init__(self, stack):
        self.stack = stack
        self.scene = Scene(stack)
        self.worker = self.scene.worker
        for name, kind, pem in (
            ("identity", "identity", APP.key + APP.chain),
            ("rsa", "identity", RSA.key + RSA.chain),
            ("trust", "trust", AUTHORITY.pem),
            ("other", "trust", OTHER.pem),
        ):
            fd = os.memfd_create("test")
            os.write(fd, pem)
            self.worker.credentials.add(name, kind, fd)
        stack.callback(self.worker.credentials.keep, set())
        self.app_saw, self.client_saw = [], []
        self.answered = []

    def begin(self, script=None, tls=None, name="app.test", stops=False, **port):
        """Let a client begin, and go on unless it `stops` there; its ClientHello has arrived when this returns."""
        port = {"tls": "always", "identity": "identity", "upstream_trust": "trust"} | port
        self.port = self.scene.port(**port)
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname())
            near, address = server.accept()
        near.setblocking(False)
        client.settimeout(PATIENCE)
        self.near = near
        tls = tls or client_tls(AUTHORITY.pem, alpn=("h2", "http/1.1"))

        def talk():
            try:
                with tls.wrap_socket(client, server_hostname=name) as sock:
                    self.client_saw.append(sock.selected_alpn_protocol())
                    if script is not None:
                        script(sock)
            except OSError as error:
                self.client_saw.append(error)

        if stops:
            self.stack.enter_context(client)
            client.sendall(hello())
        else:
            self.spawn(talk)
        select.select([near], [], [], PATIENCE)
        self.first = near.recv(65536, socket.MSG_PEEK)
        verdict = classify(OPEN, Event.DATA, self.first)
        assert isinstance(verdict, OpenTls)
        loop = self.worker._loop
        loop.add(near.fileno(), lambda mask: None, READ)
        self.ends = Ends(loop, near)
        self.stack.callback(self.ends.reset)
        self.establishment = TlsEstablishment(
            loop,
            verdict.offer,
            port=self.port,
            endpoints=Endpoints(address[0], address[1], "127.0.0.1", self.scene.number),
            host=self.worker,
            global_rule=None,
            answers=self.answered.append,
        )
        self.running = Running(self.establishment.run(self.ends))
        self.stack.callback(self.running.cancel)

    def spawn(self, function):
        thread = threading.Thread(target=function)
        thread.start()
        self.stack.callback(thread.join, PATIENCE)

    def serve(self, context, script=None):
        """Let the app accept one connection."""

        def serve():
            try:
                sock, _ = self.scene.app.accept()
                with context.wrap_socket(sock, server_side=True) as app:
                    app.settimeout(PATIENCE)
                    self.app_saw.append(app.selected_alpn_protocol())
                    if script is not None:
                        script(app)
                    self.app_saw.append(app.recv(100))
            except OSError as error:
                self.app_saw.append(error)

        self.spawn(serve)

    def outcome(self):
        self.scene.run(lambda: self.running.over, within=PATIENCE)
        assert self.running.over
        if self.running.error is not None:
            raise self.running.error
        return self.running.result

    def untouched(self):
        """Whether the client's bytes can still be passed through."""
        return self.ends.client is self.near and self.near.recv(65536, socket.MSG_PEEK) == self.first


@pytest.fixture
def stage():
    with contextlib.ExitStack() as stack:
        yield Stage(stack)


def app_context(*alpn, **options):
    return server_context(APP, alpn=alpn, **options)


@pytest.mark.parametrize(("alpn", "protocol"), [("h2", "h2"), ("http/1.1", "http/1.1")])
def test_the_client_is_answered_with_what_the_app_chose(stage, alpn, protocol):
    stage.serve(app_context(alpn))
    stage.begin()
    assert stage.outcome() == Established(Http(protocol, tls=True), alpn)
    assert stage.answered == [stage.near]
    assert stage.app_saw == [alpn]
    stage.scene.run(lambda: stage.client_saw, within=PATIENCE)
    assert stage.client_saw == [alpn]
    assert isinstance(stage.ends.client, TlsStream)
    assert isinstance(stage.ends.app, TlsStream)
    assert not stage.port.conditions


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", Http("http/1.1", tls=True)),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Http("h2", tls=True)),
        (b"*1\r\n$4\r\nPING\r\n", Pass("tls-not-http", tls=True)),
    ],
)
def test_without_a_choice_the_first_decrypted_bytes_tell(stage, words, verdict):
    stage.serve(app_context())
    stage.begin(lambda sock: sock.sendall(words))
    assert stage.outcome() == Established(verdict, None, words)


def test_without_a_choice_an_app_may_speak_first(stage):
    stage.serve(app_context(), lambda app: app.sendall(b"220 ready\r\n"))
    stage.begin(lambda sock: sock.recv(1))
    assert stage.outcome() == Established(Pass("tls-server-first", tls=True), None)
    assert stage.ends.app.early == b"220 ready\r\n"


@pytest.mark.parametrize(
    ("closes", "verdict"),
    [(False, Pass("tls-silent-client", tls=True)), (True, Close("tls-silent-client", tls=True))],
)
def test_a_silent_client_inside_tls_is_waited_for_until_the_deadline(stage, monkeypatch, closes, verdict):
    monkeypatch.setattr(classification, "IDLE_SECONDS", 0.3)
    stage.serve(app_context())
    stage.begin(lambda sock: sock.recv(1), forward_client_cert=closes)
    assert stage.outcome() == Established(verdict, None)


def test_a_client_that_drips_inside_tls_is_waited_for_until_the_deadline(stage, monkeypatch):
    monkeypatch.setattr(classification, "REST_SECONDS", 0.3)
    stage.serve(app_context())
    stage.begin(lambda sock: (sock.sendall(b"G"), sock.recv(1)))
    assert stage.outcome() == Established(Pass("tls-not-http", tls=True), None, b"G")


@pytest.mark.parametrize(
    ("context", "port", "condition"),
    [
        (app_context("h2"), {"upstream_trust": "other"}, ConditionType.UPSTREAM_UNVERIFIED),
        (app_context("h2", clients=AUTHORITY.pem), {}, ConditionType.CLIENT_CERTIFICATE_REQUESTED),
        (app_context("h2"), {"identity": "gone"}, ConditionType.CERTIFICATE_INVALID),
    ],
)
def test_what_cannot_be_opened_is_given_back_untouched(stage, context, port, condition):
    stage.serve(context)
    stage.begin(**port)
    failure = stage.outcome()
    assert isinstance(failure, TlsFailure)
    assert failure.type is condition
    assert "TLS is carried end to end" in failure.text or condition is ConditionType.CERTIFICATE_INVALID
    assert stage.untouched()
    assert stage.answered == []
    assert stage.ends.app is None


def test_a_client_that_the_port_s_certificate_does_not_suit_is_given_back_untouched(stage):
    tls = client_tls(AUTHORITY.pem, version="TLSv1.2")
    tls.set_ciphers("ECDHE+AESGCM+aECDSA")
    stage.serve(app_context())
    stage.begin(tls=tls, identity="rsa")
    assert stage.outcome().type is ConditionType.CLIENT_TLS_UNSUPPORTED
    assert stage.untouched()


def test_an_app_that_asks_later_by_renegotiation_is_given_back_untouched(stage):
    stage.serve(app_context("http/1.1", maximum=ssl.TLSVersion.TLSv1_2))
    stage.begin(late_client_auth=True)
    assert stage.outcome().type is ConditionType.CLIENT_CERTIFICATE_REQUESTED_LATER
    assert stage.untouched()


def test_an_app_that_says_nothing_is_given_up_at_the_deadline(stage, monkeypatch):
    monkeypatch.setattr(handshake, "TIMEOUT", 0.3)
    stage.begin()
    failure = stage.outcome()
    assert failure.type is ConditionType.UPSTREAM_TLS_FAILED
    assert "too long" in failure.text
    assert stage.untouched()


def test_a_client_that_stops_within_its_handshake_is_given_up_at_the_deadline(stage, monkeypatch):
    monkeypatch.setattr(handshake, "TIMEOUT", 2.0)
    stage.serve(app_context("h2"))
    stage.begin(stops=True)
    with pytest.raises(PeerError):
        stage.outcome()
    assert stage.port.counters["downstream_handshake_failed"] == 1
    assert stage.ends.app is None


def test_a_client_that_refuses_our_certificate_ends_the_connection(stage):
    stage.serve(app_context("h2"))
    stage.begin(tls=client_tls(OTHER.pem, alpn=("h2",)), skip_verify=True)
    with pytest.raises(PeerError):
        stage.outcome()
    assert stage.port.counters["downstream_handshake_failed"] == 1
    stage.scene.run(lambda: len(stage.app_saw) == 2, within=PATIENCE)
    assert stage.app_saw[1] == b"" or isinstance(stage.app_saw[1], OSError)


def test_an_app_that_refuses_the_dial_ends_the_connection_and_the_daemon_is_told(stage):
    stage.scene.app.close()
    stage.begin()
    with pytest.raises(PeerError):
        stage.outcome()
    assert stage.port.counters["no_app"] == 1


@pytest.mark.parametrize("moment", ["dialling", "shaking hands"])
def test_cancelling_closes_what_is_under_way_and_leaves_the_client_to_its_owner(stage, moment):
    stage.begin()
    app = None
    if moment == "shaking hands":
        stage.scene.run(lambda: select.select([stage.scene.app], [], [], 0)[0], within=PATIENCE)
        app, _ = stage.scene.app.accept()
        stage.scene.run(lambda: select.select([app], [], [], 0)[0], within=PATIENCE)
    stage.running.cancel()
    assert stage.untouched()
    if app is not None:
        with app:
            app.settimeout(PATIENCE)
            with contextlib.suppress(ConnectionResetError):
                while app.recv(4096):
                    pass


def test_a_connection_made_again_speaks_the_same_protocol(stage):
    stage.serve(app_context("h2"))
    stage.begin()
    stage.outcome()
    for alpn in ("h2", "http/1.1"):
        stage.serve(app_context(alpn))
        made = []
        sock = socket.create_connection(stage.scene.app.getsockname())
        sock.setblocking(False)
        stage.establishment.connect_again(sock, made.append)
        assert not made
        stage.scene.run(lambda made=made: made, within=PATIENCE)
        assert (made[0] is not None) is (alpn == "h2")
        if made[0] is not None:
            made[0].close()


def test_a_connection_made_again_can_be_cancelled_before_it_begins(stage):
    stage.serve(app_context("h2"))
    stage.begin()
    stage.outcome()
    made = []
    sock = socket.create_connection(stage.scene.app.getsockname())
    sock.setblocking(False)
    stage.establishment.connect_again(sock, made.append)()
    stage.scene.run(within=0.1)
    assert not made
    assert sock.fileno() < 0
