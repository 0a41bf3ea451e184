"""The path of an accepted connection: what each verdict does to the client and to the app, with a real worker."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct

import pytest

from sidestep.engine import classification
from sidestep.model.condition import ConditionType
from sidestep.proxy.control import messages
from tests.unit.proxy.runtime.test_worker import APP, DEV, Scene, dialled, hello

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SSH = b"SSH-2.0-x\r\n"
RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        scene = Scene(stack)
        fd = os.memfd_create("test")
        os.write(fd, APP.key + APP.chain)
        scene.worker.credentials.add("identity", "identity", fd)
        stack.callback(scene.worker.credentials.keep, set())
        yield scene


def app_of(scene):
    """The app's end of the connection that was dialled."""
    assert dialled(scene)
    sock = scene.stack.enter_context(scene.app.accept()[0])
    sock.settimeout(5)
    return sock


def said(scene, sock):
    """What a peer is told next."""
    scene.run(lambda: select.select([sock], [], [], 0)[0], within=5)
    return sock.recv(4096)


def relayed(scene):
    """The one connection that is relayed, once its setup is over."""
    scene.run(lambda: scene.worker._connections.relayed, within=5)
    (connection,) = scene.worker._connections.relayed
    assert not scene.worker._connections.setups
    return connection


def is_reset(scene, client):
    """Whether the client's connection was reset, and nothing of it is left."""
    scene.run(lambda: select.select([client], [], [], 0)[0], within=5)
    assert not scene.worker._connections.setups
    assert not scene.worker._connections.relayed
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def closing(scene, **port):
    """A port on which nothing may reach the app unread."""
    return scene.port(forward_client_cert=True, **port)


CASES = [
    (GET, {"rules": (DEV,)}, None, "http/1.1"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {"rules": (DEV,)}, None, "h2"),
    (SSH, {"rules": (DEV,)}, "not-http", "tcp"),
    (GET, {"tls": "always"}, "clear-on-tls-port", "tcp"),
    (hello(), {}, "tls-on-clear-port", "tcp"),
    (hello(), {"tls": "always"}, "tls-without-certificate", "tcp"),
]


@pytest.mark.parametrize(("first", "port", "anomaly", "protocol"), CASES)
def test_how_a_connection_is_relayed(scene, first, port, anomaly, protocol):
    client = scene.client(scene.port(**port), first)
    scene.accept()
    connection = relayed(scene)
    assert (connection.relay.anomaly, connection.protocol) == (anomaly, protocol)
    assert said(scene, app_of(scene)) == first
    client.close()


@pytest.mark.parametrize(("first", "port", "anomaly", "protocol"), [each for each in CASES if each[2]])
def test_what_would_be_passed_is_closed_where_nothing_may_be_bypassed(scene, first, port, anomaly, protocol):
    port = closing(scene, **port)
    client = scene.client(port, first)
    scene.accept()
    assert is_reset(scene, client)
    assert port.counters["closed_unread"] == 1
    assert not select.select([scene.app], [], [], 0)[0]


def test_tls_that_cannot_be_opened_is_passed_through_untouched_with_a_condition(scene):
    port = scene.port(tls="always", identity="identity")
    first = hello()
    client = scene.client(port, first)
    scene.accept()
    with app_of(scene) as app:
        assert said(scene, app)
        app.sendall(b"\x15\x03\x03\x00\x02\x02\x28")  # handshake_failure
    assert said(scene, app_of(scene)) == first
    assert relayed(scene).relay.anomaly is None
    assert list(port.conditions) == [ConditionType.UPSTREAM_TLS_FAILED]
    assert port.counters["tls_passed"] == 1
    client.close()


def test_tls_that_cannot_be_opened_is_closed_where_nothing_may_be_bypassed(scene):
    port = closing(scene, tls="always", identity="identity")
    client = scene.client(port, hello())
    scene.accept()
    app_of(scene).close()
    assert is_reset(scene, client)
    assert "the connection is closed" in port.conditions[ConditionType.UPSTREAM_TLS_FAILED]
    assert port.counters["closed_unread"] == 1
    assert not select.select([scene.app], [], [], 0)[0]


def test_a_server_name_that_cannot_be_sent_on_is_passed_through_with_a_condition(scene):
    port = scene.port(tls="always", identity="identity")
    first = hello().replace(b"app.test", b"10.0.0.1")
    scene.client(port, first)
    scene.accept()
    assert said(scene, app_of(scene)) == first
    assert "'10.0.0.1'" in port.conditions[ConditionType.SNI_UNSUPPORTED]


@pytest.mark.parametrize("closes", [False, True])
def test_a_client_and_an_app_that_are_silent_are_waited_for_until_the_deadline(scene, monkeypatch, closes):
    monkeypatch.setattr(classification, "IDLE_SECONDS", 0.3)
    scene.worker.detection_timeout = 0.05
    port = closing(scene, rules=(DEV,)) if closes else scene.port(rules=(DEV,))
    client = scene.client(port)
    scene.accept()
    app = app_of(scene)
    if closes:
        assert is_reset(scene, client)
        return
    assert relayed(scene).relay.anomaly == "silent-client"
    client.sendall(SSH)
    assert said(scene, app) == SSH


@pytest.mark.parametrize("first", [b"GE", hello()[:50]])
def test_a_first_message_that_does_not_go_on_is_passed_through_at_the_deadline(scene, monkeypatch, first):
    monkeypatch.setattr(classification, "REST_SECONDS", 0.2)
    scene.client(scene.port(tls="always", identity="identity"), first)
    scene.accept()
    assert relayed(scene).relay.anomaly == "incomplete-first-message"
    assert said(scene, app_of(scene)) == first


def test_a_global_intercept_takes_a_silent_client_to_its_handler(scene):
    scene.worker.detection_timeout = 0.05
    scene.client(scene.port(global_uid="u", rules=(DEV,)))
    scene.accept()
    relayed(scene)
    asked = scene.daemon.receive()[0]
    assert isinstance(asked, messages.Open)
    assert (asked.uid, asked.protocol) == ("u", "tcp")


def test_a_source_that_a_global_intercept_leaves_to_the_app_is_not_asked_for(scene):
    client = scene.client(scene.port(global_uid="u", pass_sources=("127.0.0.1",)), GET)
    scene.accept()
    assert said(scene, app_of(scene)) == GET
    assert scene.daemon.receive() is None
    client.close()


@pytest.mark.parametrize("moment", ["waiting", "dialling the app", "shaking hands"])
def test_abandoning_resets_both_ends_and_is_told_once(scene, moment):
    scene.worker.detection_timeout = 0.05
    tls = moment == "shaking hands"
    port = scene.port(tls="always", identity="identity") if tls else scene.port(rules=(DEV,))
    client = scene.client(port, hello() if tls else b"")
    if moment == "waiting":
        scene.worker.detection_timeout = 60.0
    scene.accept()
    app = app_of(scene) if moment != "waiting" else None
    (setup,) = scene.worker._connections.setups
    for _ in range(2):
        setup.abandon()
    assert is_reset(scene, client)
    if app is not None:
        with contextlib.suppress(ConnectionResetError):
            while app.recv(4096):
                pass
    assert len(scene.worker._loop) == 1  # the control channel


def test_a_client_that_breaks_while_the_app_shakes_hands_ends_the_setup(scene):
    client = scene.client(scene.port(tls="always", identity="identity"), hello())
    scene.accept()
    app = app_of(scene)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
    scene.run(lambda: not scene.worker._connections.setups, within=5)
    assert not scene.worker._connections.setups
    with contextlib.suppress(ConnectionResetError):
        while app.recv(4096):
            pass


def test_a_crash_of_the_relay_s_begin_ends_that_connection_only(scene, monkeypatch, capfd):
    """An exception in the path reaches the loop's fence with nothing left behind."""
    client = scene.client(scene.port(rules=(DEV,)))

    def broken(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("sidestep.proxy.connection.setup.relay_for", broken)
    scene.accept()
    client.sendall(GET)
    assert is_reset(scene, client)
    assert "RuntimeError: a bug" in capfd.readouterr().err


def test_want_of_memory_in_a_callback_ends_that_connection(scene, capfd):
    """The loop hands a crash to the callback's owner, which has to end what waits for it."""
    client = scene.client(scene.port(rules=(DEV,)))
    scene.accept()
    callback = scene.worker._loop._callbacks[next(iter(scene.worker._connections.setups))._ends.client.fileno()]
    scene.worker._crashed(callback.__self__, MemoryError())
    assert is_reset(scene, client)
    assert "MemoryError" in capfd.readouterr().err
