"""Whose a client on this machine is: by real sockets of this process, and by rows as the kernel writes them."""

from __future__ import annotations

import contextlib
import os
import socket
import sys

import pytest

from sidestep.laptop.outbound import local_user
from sidestep.laptop.outbound.local_user import is_ours, sends_for, tcp_user, udp_users

CLIENT, SERVER = ("127.0.0.1", 38486), ("127.0.0.1", 50319)
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
THEIRS = "  38: 0100007F:C48F 0100007F:9656 08 00000000:00000024 00:00000000 00000000     7        0 31148 1 0 20 4\n"
OPEN = "  55: 0100007F:9656 0100007F:C48F 01 00000000:00000000 00:00000000 00000000  1000        0 31149 1 0 20 4\n"
CLOSED = "  55: 0100007F:9656 0100007F:C48F 05 00000000:00000000 03:0000173F 00000000     0        0 0 3 0\n"
MAPPED = "   1: 0000000000000000FFFF00000100007F:9656 0000000000000000FFFF00000100007F:C48F 01 " + OPEN.split(" 01 ")[1]

little = pytest.mark.skipif(sys.byteorder != "little", reason="the rows are those of a little-endian machine")


@contextlib.contextmanager
def connected(family, host):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(family) as client:
        client.connect((host, server.getsockname()[1]))
        accepted, _ = server.accept()
        with accepted:
            yield client, accepted


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::ffff:127.0.0.1")], ids=["v4", "mapped"]
)
def test_our_own_clients(family, host, monkeypatch):
    with connected(family, host) as (client, accepted):
        assert is_ours(accepted)
        client.shutdown(socket.SHUT_WR)
        assert is_ours(accepted)
        with monkeypatch.context() as patched:
            patched.setattr(local_user, "_users", lambda: frozenset({"4711"}))
            assert not is_ours(accepted)
        client.close()
        assert not is_ours(accepted)


@pytest.mark.parametrize(
    ("family", "bound"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")],
    ids=["v4", "any", "dual"],
)
def test_who_sends_datagrams(family, bound):
    with connected(socket.AF_INET, "127.0.0.1") as (_, accepted), socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.bind((bound, 0))
        port = sender.getsockname()[1]
        assert sends_for(accepted, ("127.0.0.1", port))
        assert udp_users([(local_user._NET / each).read_text() for each in local_user._UDP], ("127.0.0.1", port)) == {
            str(os.geteuid())
        }
        sender.close()
        assert not sends_for(accepted, ("127.0.0.1", port))


@little
def test_a_closed_socket_is_nobodys():
    assert tcp_user([HEAD + THEIRS + OPEN], CLIENT, SERVER) == "1000"
    assert tcp_user([HEAD + THEIRS, HEAD + MAPPED], CLIENT, SERVER) == "1000"
    assert tcp_user([HEAD + THEIRS + CLOSED], CLIENT, SERVER) is None
    assert tcp_user([HEAD, ""], CLIENT, SERVER) is None


@little
def test_all_who_may_have_sent_count():
    rows = "".join(f" {at}: 0{at}00007F:9656 00000000:0000 07 0:0 0:0 0 {uid} 0 9 2\n" for at, uid in ((1, 5), (2, 6)))
    anywhere = " 3: 00000000:9656 00000000:0000 07 0:0 0:0 0 8 0 9 2\n"
    assert udp_users([HEAD + rows], CLIENT) == {"5"}
    assert udp_users([HEAD + rows + anywhere], CLIENT) == {"5", "8"}


def test_where_one_question_cannot_be_asked_the_tables_tell(monkeypatch):
    with connected(socket.AF_INET, "127.0.0.1") as (client, accepted):
        ends = client.getsockname(), accepted.getsockname()
        assert local_user._asked(*ends) == str(os.geteuid())

        def refused(*_ends):
            raise PermissionError

        monkeypatch.setattr(local_user, "_asked", refused)
        assert is_ours(accepted)
    with pytest.raises(OSError, match="does not tell"):
        local_user_asked(*ends)


local_user_asked = local_user._asked
