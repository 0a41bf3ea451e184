"""Handshakes with clients and with apps, over real sockets and a real loop."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time

import pytest

from sidestep.model.condition import ConditionType
from sidestep.proxy.io.loop import READ, Loop
from sidestep.proxy.io.task import Task
from sidestep.proxy.tls import handshake
from sidestep.proxy.tls.credentials import Credentials
from sidestep.proxy.tls.handshake import LingeringClose, UpstreamHandshake, answer_client
from sidestep.snapshots.ports import PortSnapshot
from tests.harness.authority import Authority
from tests.harness.peers import server_context
from tests.harness.tls_peers import VERSIONS, client_tls
from tests.unit.proxy.looping import PATIENCE, Running, stepped

AUTHORITY, OTHER = Authority(), Authority()
APP = AUTHORITY.issue("app.test")
ADA = AUTHORITY.issue("ada.test", client=True)


def memfd(data):
    fd = os.memfd_create("test")
    os.write(fd, data)
    return fd


@pytest.fixture
def requiring():
    """The context of a port that requires client certificates."""
    store = Credentials(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    store.add("identity", "identity", memfd(APP.key + APP.chain))
    store.add("trust", "trust", memfd(AUTHORITY.pem))
    named = {"identity": "identity", "client_trust": "trust", "client_auth": "require"}
    yield store.downstream(PortSnapshot(443, "tcp", "always", "probe", (), **named), None)
    store.keep(set())


def shake(context, tls, session=None):
    """One connection: what the client's library says of it, and whether the server's side went well."""
    loop = Loop(on_crash=lambda owner, error: pytest.fail(repr(error)))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(5)
    outcome, words = [], []

    def done(stream):
        outcome.append(stream is not None)
        if stream is not None:
            loop.remove(stream.fd)
            stream.write(b"hello")
            stream.finish(notify=True)
            words.append(stream)

    async def answer():
        try:
            done(await answer_client(loop, ours, context))
        except OSError:
            done(None)

    def talk():
        try:
            with tls.wrap_socket(theirs, server_hostname="app.test", session=session) as sock:
                outcome.append((sock.recv(5), sock.session, sock.session_reused))
        except OSError as error:
            outcome.append(error)
        finally:
            theirs.close()

    loop.add(ours.fileno(), lambda mask: None, 0)
    Task(answer()).start()
    thread = threading.Thread(target=talk)
    thread.start()
    deadline = time.monotonic() + 5
    while len(outcome) < 2 and time.monotonic() < deadline:
        loop.later(0.02, loop.stop)
        loop.run()
    thread.join(5)
    for stream in words:
        stream.close()
    with contextlib.suppress(OSError):
        loop.later(0.05, loop.stop)
        loop.run()
    loop.close()
    return next(each for each in outcome if not isinstance(each, bool)), True in outcome


class Clock:
    """Stands for the module `time`, so many seconds ahead."""

    def __init__(self, ahead):
        self.ahead = ahead

    def time(self):
        return time.time() + self.ahead


def test_a_resumed_session_does_not_outlive_its_client_s_certificate(requiring, monkeypatch):
    """TLS 1.2 resumes by session id, and then no certificate is shown or verified again."""
    lasts = 3600.0
    ada = AUTHORITY.issue("ada.test", client=True, lasts=lasts)
    tls = client_tls(AUTHORITY.pem, certificate=ada, version="TLSv1.2")
    (said, session, reused), served = shake(requiring, tls)
    assert (said, reused, served) == (b"hello", False, True)
    (said, session, reused), served = shake(requiring, tls, session)
    assert (said, reused, served) == (b"hello", True, True)
    monkeypatch.setattr(handshake, "time", Clock(lasts + 1))
    said, served = shake(requiring, tls, session)
    assert not served
    assert isinstance(said, OSError) or not said[0]


def test_a_client_that_ends_within_its_handshake_is_an_error(requiring):
    with stepped() as scene:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        scene.loop.add(ours.fileno(), lambda mask: None, READ)
        running = Running(answer_client(scene.loop, ours, requiring))
        theirs.close()
        assert scene.run(lambda: running.over)
        assert isinstance(running.error, OSError)


def test_a_cancelled_handshake_closes_its_socket(requiring):
    with stepped() as scene:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        scene.loop.add(ours.fileno(), lambda mask: None, READ)
        Running(answer_client(scene.loop, ours, requiring)).cancel()
        with theirs:
            assert theirs.recv(1) == b""


def test_a_client_that_is_refused_can_read_why(requiring):
    """Its socket is read to its end, so that no reset overtakes the alert."""
    tls = client_tls(AUTHORITY.pem, version="TLSv1.2")
    said, served = shake(requiring, tls)
    assert not served
    assert isinstance(said, ssl.SSLError)
    assert "alert" in str(said).lower()


# --- towards the app --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def app(context, script=None):
    """An app that accepts one connection; yields a socket connected to it."""
    theirs, ours = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(PATIENCE)

    def serve():
        with contextlib.suppress(OSError), context.wrap_socket(theirs, server_side=True) as sock:
            if script is not None:
                script(sock)
            sock.recv(1)
        theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join(PATIENCE)


@pytest.fixture
def store():
    store = Credentials(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    store.add("ours", "identity", memfd(ADA.key + ADA.chain))
    store.add("trust", "trust", memfd(AUTHORITY.pem))
    yield store
    store.keep(set())


def upstream(scene, store, *, name="app.test", alpn=("h2", "http/1.1"), late=print, **port):
    """A handshake with the app of a port."""
    port = PortSnapshot(8443, "tcp", "always", "probe", (), **({"upstream_trust": "trust"} | port))
    return UpstreamHandshake(
        scene.loop,
        port=port,
        credentials=store,
        server_name=name,
        alpn=alpn,
        late_auth=False,
        on_late_auth=late,
    )


@pytest.mark.parametrize("version", list(VERSIONS))
def test_an_app_that_is_verified_is_a_stream_that_nobody_watches(store, version):
    pinned = {"minimum": VERSIONS[version], "maximum": VERSIONS[version]}
    with stepped() as scene, app(server_context(APP, alpn=("h2",), **pinned)) as sock:
        stream = scene.finish(upstream(scene, store).run(sock))
        assert (stream.state.version(), stream.state.selected_alpn_protocol()) == (version, "h2")
        assert not scene.loop._callbacks
        stream.close()


NAMELESS = {"name": None, "upstream_name": ""}
OUTCOMES = [
    ({"name": "other.test"}, {}, ConditionType.UPSTREAM_UNVERIFIED),
    ({"upstream_trust": ""}, {}, ConditionType.UPSTREAM_UNVERIFIED),
    (NAMELESS, {}, ConditionType.UPSTREAM_UNVERIFIED),
    ({"name": None, "upstream_name": "other.test"}, {}, ConditionType.UPSTREAM_UNVERIFIED),
    ({"name": None, "upstream_name": "app.test"}, {}, None),
    (NAMELESS | {"skip_verify": True}, {}, None),
    ({}, {"alpn": ("spdy/3",)}, ConditionType.ALPN_UNSUPPORTED),
    ({"alpn": ()}, {"alpn": ()}, None),
    ({}, {"clients": AUTHORITY.pem}, ConditionType.CLIENT_CERTIFICATE_REQUESTED),
    ({"upstream_identity": "ours"}, {"clients": AUTHORITY.pem}, ConditionType.CLIENT_CERTIFICATE_REQUESTED),
    ({"upstream_identity": "ours", "client_auth": "request"}, {"clients": AUTHORITY.pem}, None),
    ({"upstream_trust": "gone"}, {}, ConditionType.UPSTREAM_TLS_FAILED),
]


@pytest.mark.parametrize(("ours", "theirs", "condition"), OUTCOMES)
def test_what_comes_of_a_handshake_with_an_app(store, ours, theirs, condition):
    alpn = ours.get("alpn", ("spdy/3",) if theirs.get("alpn") == ("spdy/3",) else ("http/1.1",))
    with stepped() as scene, app(server_context(APP, **({"alpn": ("http/1.1",)} | theirs))) as sock:
        made = scene.finish(upstream(scene, store, **(ours | {"alpn": alpn})).run(sock))
        if condition is None:
            made.close()
        else:
            assert made.type is condition
            assert sock.fileno() < 0


def test_an_app_with_a_certificate_that_python_cannot_decode_is_unverified(store):
    """OpenSSL takes names in any encoding; the client's connection is passed through, not reset."""
    name = b"\x82\x0a\xe9cole.test"
    odd = AUTHORITY.issue("app.test", alternatives_der=b"\x30" + bytes([len(name)]) + name)
    with stepped() as scene, app(server_context(odd, alpn=())) as sock:
        made = scene.finish(upstream(scene, store, name=None, upstream_name="app.test", alpn=()).run(sock))
        assert made.type is ConditionType.UPSTREAM_UNVERIFIED
        assert "not UTF-8" in made.text
        assert sock.fileno() < 0


def test_an_app_that_shares_no_protocol_with_the_client_is_told_apart(store):
    """OpenSSL servers that are strict about ALPN answer by an alert; here the alert itself is played."""
    with stepped() as scene:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            theirs.sendall(b"\x15\x03\x03\x00\x02\x02\x78")  # no_application_protocol (RFC 7301 section 3.2)
            made = scene.finish(upstream(scene, store).run(ours))
        assert made.type is ConditionType.ALPN_UNSUPPORTED
        assert "(h2, http/1.1)" in made.text


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_an_app_that_answers_otherwise_is_a_failure(store, answer):
    with stepped() as scene:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        with theirs:
            made = scene.finish(upstream(scene, store).run(ours))
        assert made.type is ConditionType.UPSTREAM_TLS_FAILED
        assert ("the app closed the connection" in made.text) is not answer


def test_an_app_that_says_nothing_has_until_the_deadline(store, monkeypatch):
    monkeypatch.setattr(handshake, "TIMEOUT", 0.2)
    with stepped() as scene:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            made = scene.finish(upstream(scene, store).run(ours))
        assert made.type is ConditionType.UPSTREAM_TLS_FAILED
        assert ours.fileno() < 0


SHOWN = {"upstream_identity": "ours", "client_auth": "request"}


def tls_1_3(**options):
    return server_context(APP, alpn=(), minimum=ssl.TLSVersion.TLSv1_3, **options)


def test_a_certificate_that_the_app_refuses_in_tls_1_3_is_a_failure(store):
    """The app's alert comes after our side of the handshake is over."""
    with stepped() as scene, app(tls_1_3(clients=OTHER.pem)) as sock:
        made = scene.finish(upstream(scene, store, alpn=(), **SHOWN).run(sock))
        assert made.type is ConditionType.CLIENT_CERTIFICATE_REQUESTED or made.type is ConditionType.UPSTREAM_TLS_FAILED


def test_data_confirm_a_certificate_and_are_kept(store):
    context = tls_1_3(clients=AUTHORITY.pem)
    context.num_tickets = 0
    with stepped() as scene, app(context, lambda sock: sock.sendall(b"220 ready\r\n")) as sock:
        stream = scene.finish(upstream(scene, store, alpn=(), **SHOWN).run(sock))
        assert stream.take_early() == b"220 ready\r\n"
        stream.close()


def test_an_app_that_confirms_nothing_is_waited_for_once(store, monkeypatch):
    monkeypatch.setattr(handshake, "CONFIRMATION", 0.3)
    context = tls_1_3(clients=AUTHORITY.pem)
    context.num_tickets = 0
    with stepped() as scene:
        took = []
        for _ in range(2):
            with app(context) as sock:
                began = time.monotonic()
                scene.finish(upstream(scene, store, alpn=(), **SHOWN).run(sock)).close()
                took.append(time.monotonic() - began)
        assert took[0] >= 0.3


def test_a_lingering_close_reads_its_peer_to_the_end():
    with stepped() as scene:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            scene.loop.add(ours.fileno(), lambda mask: None, READ)
            LingeringClose(scene.loop, ours)
            assert theirs.recv(1) == b""
            theirs.sendall(bytes(100_000))
            theirs.shutdown(socket.SHUT_WR)
            assert scene.run(lambda: ours.fileno() < 0)


def test_a_lingering_close_is_over_at_its_deadline(monkeypatch):
    monkeypatch.setattr(handshake, "LINGER", 0.1)
    with stepped() as scene:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            scene.loop.add(ours.fileno(), lambda mask: None, READ)
            LingeringClose(scene.loop, ours)
            assert scene.run(lambda: ours.fileno() < 0)
