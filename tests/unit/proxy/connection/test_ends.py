"""The ends of a connection that is set up: each is owned, and closed, once."""

from __future__ import annotations

import pytest

from sidestep.model.errors import PeerError
from sidestep.proxy.connection.ends import Ends
from sidestep.proxy.io.loop import READ
from sidestep.proxy.io.stream import PlainStream
from tests.unit.proxy.io.test_splice import tcp_pair
from tests.unit.proxy.looping import stepped


@pytest.fixture
def scene():
    with stepped() as made:
        made.client, made.near = tcp_pair()
        made.loop.add(made.near.fileno(), lambda mask: None, READ)
        made.ends = Ends(made.loop, made.near)
        with made.client, made.near:
            yield made
            made.loop.remove(made.near.fileno())


def test_what_is_here_is_reset(scene):
    app, ours = tcp_pair()
    with app:
        scene.ends.app = ours
        for _ in range(2):
            scene.ends.reset()
        for peer in (scene.client, app):
            with pytest.raises(ConnectionResetError):
                peer.recv(1)
    assert not scene.loop._callbacks


def test_what_was_handed_over_is_left_alone(scene):
    app, ours = tcp_pair()
    scene.ends.app = ours
    client, stream = scene.ends.take_streams()
    assert isinstance(client, PlainStream)
    assert (client.sock, stream.sock) == (scene.near, ours)
    scene.ends.reset()
    with app, ours:
        assert scene.near.fileno() in scene.loop._callbacks
        ours.sendall(b"x")
        assert app.recv(1) == b"x"


def test_the_client_s_socket_is_handed_over_once(scene):
    assert scene.ends.take_client_socket() is scene.near
    with pytest.raises(PeerError):
        scene.ends.take_client_socket()


def test_the_app_ends_in_order(scene):
    assert scene.ends.take_app_socket() is None
    app, ours = tcp_pair()
    with app:
        scene.ends.app = ours
        scene.ends.close_app()
        assert app.recv(1) == b""
    assert scene.ends.take_app_socket() is None
