"""A port is listened on again at once, and by nobody else meanwhile."""

from __future__ import annotations

import socket
import sys

import pytest

from sidestep.laptop.loopback_listener import listen_on_loopback


def test_a_port_is_had_again_after_its_server_has_closed_first():
    with listen_on_loopback(0, backlog=1) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = listener.accept()
            accepted.close()
            assert client.recv(1) == b""
    with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
        other.bind(("127.0.0.1", port))  # the connection is in TIME_WAIT
    with listen_on_loopback(port, backlog=1):
        pass


def test_a_port_that_is_listened_on_is_not_had():
    with listen_on_loopback(0, backlog=1) as listener, pytest.raises(OSError, match="Address already in use"):
        listen_on_loopback(listener.getsockname()[1], backlog=1)


def test_windows_has_an_option_of_its_own(monkeypatch):
    """SO_KEEPALIVE stands for it, which Linux has."""
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_KEEPALIVE, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    with listen_on_loopback(0, backlog=1) as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert not listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
