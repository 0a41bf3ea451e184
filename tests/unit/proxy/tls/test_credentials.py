"""Contexts, sessions and the private callback they rest on, with handshakes between two peers on a socket pair."""

from __future__ import annotations

import os
import socket
import ssl
import sys
import threading

import pytest

from sidestep.proxy.tls.credentials import Credentials, watch_certificate_requests
from sidestep.snapshots.ports import PortSnapshot
from tests.harness.authority import Authority
from tests.harness.peers import server_context
from tests.harness.tls_peers import VERSIONS, client_tls

AUTHORITY = Authority()
APP = AUTHORITY.issue("app.test", "second.test")
CLIENT = AUTHORITY.issue("ada.test", client=True)
BOTH = pytest.mark.parametrize("version", list(VERSIONS))


def memfd(data):
    fd = os.memfd_create("test")
    os.write(fd, data)
    return fd


def identity(certificate):
    return memfd(certificate.key + certificate.chain)


@pytest.fixture
def store():
    store = Credentials(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    store.add("identity:1", "identity", identity(APP))
    store.add("identity:client", "identity", identity(CLIENT))
    store.add("trust:1", "trust", memfd(AUTHORITY.pem))
    yield store
    store.keep(set())


def port(**fields):
    return PortSnapshot(443, "tcp", "always", "probe", (), **{"upstream_trust": "trust:1", **fields})


class Talk:
    """A server on a real socket pair, in a thread: shakes hands, echoes one byte, ends."""

    def __init__(self, context):
        ours, self.theirs = socket.socketpair()
        self.sock = None
        self.error = None

        def serve():
            try:
                ours.settimeout(5)
                self.sock = context.wrap_socket(ours, server_side=True)
                self.sock.sendall(self.sock.recv(1))
            except OSError as error:
                self.error = error

        self.thread = threading.Thread(target=serve)
        self.thread.start()

    def end(self):
        self.theirs.close()
        self.thread.join(10)
        if self.sock is not None:
            self.sock.close()


def pinned(version, **options):
    return server_context(APP, alpn=(), minimum=VERSIONS[version], maximum=VERSIONS[version], **options)


def shake(upstream, talk, name="app.test"):
    """A client handshake by `UpstreamContexts`; the stream after one byte there and back."""
    talk.theirs.settimeout(5)
    stream = upstream.wrap(talk.theirs, alpn=(), server_name=name, verified_name=name)
    try:
        while stream.handshake():
            pass
    except OSError:
        stream.close()
        raise
    return stream


def exchange(stream):
    stream.write(b"x")
    while (data := stream.read()) is None:
        pass
    return data


# --- the private callback -------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("asks", [False, True])
def test_this_python_shows_certificate_requests_to_the_message_callback(version, asks):
    """Pins private behaviour of `ssl` for each Python version this runs on; it is all there is to see them by."""
    where = ssl.SSLContext.__mro__[1]
    assert isinstance(where.__dict__["_msg_callback"], type(where.__dict__["verify_flags"])), sys.version
    talk = Talk(pinned(version, clients=AUTHORITY.pem if asks else None))
    asked = set()
    context = client_tls(AUTHORITY.pem, certificate=CLIENT if asks else None)
    watch_certificate_requests(context, lambda sock: asked.add(sock.fileno()))
    context.check_hostname = False
    with context.wrap_socket(talk.theirs) as sock:
        assert sock.version() == version
        assert asked == ({sock.fileno()} if asks else set())
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        assert asked == ({sock.fileno()} if asks else set())
    talk.end()


def test_the_message_callback_is_not_inherited_by_another_context():
    watched, other = (client_tls(AUTHORITY.pem) for _ in range(2))
    watch_certificate_requests(watched, print)
    assert other._msg_callback is None  # type: ignore[attr-defined] # not in typeshed


@BOTH
def test_upstream_sees_that_the_app_asks(store, version):
    talk = Talk(pinned(version, clients=AUTHORITY.pem))
    upstream = store.upstream(port())
    talk.theirs.settimeout(5)
    stream = upstream.wrap(talk.theirs, alpn=(), server_name="app.test", verified_name="app.test")
    try:
        while stream.handshake():
            pass
    except ssl.SSLError:
        assert version == "TLSv1.2"  # there the app refuses in the handshake already
    assert stream.asked
    stream.close()
    talk.end()


def test_an_app_that_asks_after_the_handshake_gets_no_answer(store):
    asked = []
    server = pinned("TLSv1.3")
    server.post_handshake_auth = True
    server.load_verify_locations(cadata=AUTHORITY.pem.decode())
    server.verify_mode = ssl.CERT_OPTIONAL
    ours, theirs = socket.socketpair()
    answers = []

    def app():
        with server.wrap_socket(theirs, server_side=True) as sock:
            sock.settimeout(5)
            sock.recv(1)
            sock.verify_client_post_handshake()
            sock.sendall(b"y")
            try:
                answers.append(sock.recv(1))
            except OSError as error:
                answers.append(type(error))

    thread = threading.Thread(target=app)
    thread.start()
    upstream = store.upstream(port())
    ours.settimeout(5)
    stream = upstream.wrap(ours, alpn=(), server_name="app.test", verified_name="app.test", late_auth=True)
    while stream.handshake():
        pass
    upstream.handshake_done(stream, late_auth=True, on_late_auth=lambda: asked.append(True))
    stream.write(b"x")
    with pytest.raises(OSError, match=r"Broken pipe|SSL|EOF"):  # OpenSSL 3.5 says EPIPE of the shut down socket
        while stream.read() is None:
            pass
    assert asked == [True]
    stream.close()
    thread.join(10)
    # A unix socket that is closed before what has come is read resets its peer.
    assert answers in ([b""], [ssl.SSLEOFError], [ConnectionResetError])


@pytest.mark.parametrize(("auth", "shows"), [("auto", False), ("none", False), ("request", True), ("require", True)])
def test_our_certificate_is_shown_only_to_those_who_opted_in(store, auth, shows):
    talk = Talk(pinned("TLSv1.3", clients=AUTHORITY.pem))
    upstream = store.upstream(port(upstream_identity="identity:client", client_auth=auth))
    assert upstream.confirms is shows
    stream = shake(upstream, talk)
    if shows:
        assert exchange(stream) == b"x"
        assert talk.sock.getpeercert()["subject"] == ((("commonName", "ada.test"),),)
    stream.close()
    talk.end()
    assert shows or talk.error is not None


# --- sessions -------------------------------------------------------------------------------------------------------


def visit(upstream, context, name):
    """One connection; whether it was resumed."""
    talk = Talk(context)
    stream = shake(upstream, talk, name)
    upstream.handshake_done(stream)
    assert exchange(stream) == b"x"
    reused = stream.state.session_reused
    upstream.remember(stream, alpn=(), server_name=name, verified_name=name)
    stream.close()
    talk.end()
    return reused


@BOTH
def test_sessions_are_resumed_for_the_name_they_were_verified_for(store, version):
    context = pinned(version)
    upstream = store.upstream(port())
    assert [visit(upstream, context, "app.test") for _ in range(3)] == [False, True, True]
    assert [visit(upstream, context, "second.test") for _ in range(2)] == [False, True]
    # ... so a name that the app does not have is checked, whatever sessions there are
    talk = Talk(context)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"evil\.test"):
        shake(upstream, talk, "evil.test")
    talk.end()


@BOTH
def test_why_sessions_must_be_kept_by_name(version):
    """What OpenSSL does: a resumed session skips the check of the name."""
    context = client_tls(AUTHORITY.pem)
    server = pinned(version)
    talk = Talk(server)
    with context.wrap_socket(talk.theirs, server_hostname="app.test") as sock:
        sock.sendall(b"x")
        sock.recv(1)
        session = sock.session
    talk.end()
    talk = Talk(server)
    with context.wrap_socket(talk.theirs, server_hostname="evil.test", session=session) as sock:
        assert sock.session_reused
        sock.sendall(b"x")
        sock.recv(1)
    talk.end()


def test_new_credentials_begin_without_sessions(store):
    context = pinned("TLSv1.3")
    assert [visit(store.upstream(port()), context, "app.test") for _ in range(2)] == [False, True]
    store.add("trust:2", "trust", memfd(AUTHORITY.pem))
    assert not visit(store.upstream(port(upstream_trust="trust:2")), context, "app.test")


# --- downstream -----------------------------------------------------------------------------------------------------


def downstream(**fields):
    return port(identity="identity:1", client_trust="trust:1", **fields)


@BOTH
@pytest.mark.parametrize(
    ("auth", "certificate", "served"),
    [
        ("auto", None, True),
        ("none", None, True),
        ("request", None, True),
        ("request", CLIENT, True),
        ("request", Authority("X").issue("ada.test", client=True), False),
        ("require", CLIENT, True),
        ("require", None, False),
        ("require", Authority("X").issue("ada.test", client=True), False),
        ("require", AUTHORITY.issue("ada.test", client=True, expired=True), False),
    ],
)
def test_the_server_s_handshake_tells_whether_the_client_is_verified(store, version, auth, certificate, served):
    talk = Talk(store.downstream(downstream(client_auth=auth), None))
    context = client_tls(AUTHORITY.pem, certificate=certificate, version=version)
    try:
        with context.wrap_socket(talk.theirs, server_hostname="app.test") as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == (b"x" if served else b"")
    except (ssl.SSLError, ConnectionError):
        assert not served
    talk.end()
    assert (talk.error is None) is served, talk.error


def test_verified_clients_are_verified_every_time(store):
    """No session of a client can be resumed in TLS 1.3: its certificate might have expired since."""
    context = client_tls(AUTHORITY.pem, certificate=CLIENT, version="TLSv1.3")
    talk = Talk(store.downstream(downstream(client_auth="require"), None))
    with context.wrap_socket(talk.theirs, server_hostname="app.test") as sock:
        sock.sendall(b"x")
        sock.recv(1)
        assert not sock.session.has_ticket
    talk.end()


def test_a_context_per_protocol_and_setting(store):
    one = store.downstream(downstream(), "h2")
    assert store.downstream(downstream(), "h2") is one
    assert store.downstream(downstream(), "http/1.1") is not one
    assert store.downstream(downstream(client_auth="require"), "h2") is not one
    store.add("identity:2", "identity", identity(AUTHORITY.issue("app.test")))
    assert store.downstream(port(identity="identity:2", client_trust="trust:1"), "h2") is not one
    store.keep({"identity:2", "trust:1"})
    assert "identity:1" not in store
    with pytest.raises(KeyError):
        store.downstream(downstream(), "h2")


@pytest.mark.parametrize(
    ("kind", "pem"),
    [("identity", APP.chain), ("identity", CLIENT.key + APP.chain), ("trust", b"nonsense"), ("other", APP.chain)],
)
def test_what_does_not_load_leaves_everything_as_it_was(store, kind, pem):
    fd = memfd(pem)
    with pytest.raises((ssl.SSLError, ValueError)):
        store.add("identity:1", kind, fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert store.downstream(downstream(), None) is not None
