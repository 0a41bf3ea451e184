"""Sockets that are used in odd ways, where everything that cannot be steered is refused."""

from __future__ import annotations

import ast
import sys

import msgspec
import pytest

from tests.privileged.steering.answering import app
from tests.privileged.steering.outbound import PORT, outbound, own

pytestmark = pytest.mark.privileged

QUIC = """
import errno, socket, sys
four, six = sys.argv[1:]
def told(call):
    try:
        call()
        return "sent"
    except OSError as error:
        return errno.errorcode[error.errno]
def made(family=socket.AF_INET6):
    return socket.socket(family, socket.SOCK_DGRAM)
connected4, connected6 = made(socket.AF_INET), made()
connected4.connect((four, 53))
connected6.connect((six, 53))
print([
    told(lambda: made().sendto(b"a", ("::ffff:" + four, 443))),
    told(lambda: made().connect(("::ffff:" + four, 443))),
    told(lambda: connected4.sendto(b"a", (four, 443))),
    told(lambda: connected6.sendto(b"a", (six, 443))),
    told(lambda: connected6.sendto(b"a", ("::ffff:" + four, 443))),
    told(lambda: connected4.connect((four, 443))),
    told(lambda: connected4.sendmsg([b"a"], [], 0, (four, 443))),
    told(lambda: connected4.send(b"a")),
])
"""


def test_quic_is_refused_however_it_is_sent(egress_programs, dual_stack_pod, folder):
    pod = dual_stack_pod
    config = msgspec.structs.replace(own(pod), block_quic=True)
    with outbound(egress_programs, pod, folder, config) as out:
        done = out.run(sys.executable, "-c", QUIC, pod.client_ip, pod.client_ip6)
        assert ast.literal_eval(done.stdout) == ["EPERM"] * 7 + ["sent"], done.stderr
        assert out.counted() == {"quic_blocked": 7}


AGAIN = """
import ctypes, socket, sys
host, port = sys.argv[1], int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
family = socket.AF_INET6 if ":" in host else socket.AF_INET
sock = socket.socket(family, socket.SOCK_STREAM)
found = []
for number in range(3):
    if number:  # AF_UNSPEC dissolves the connection (connect(2))
        assert libc.connect(sock.fileno(), bytes(28), 28) == 0, ctypes.get_errno()
    if number == 2:
        sock.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
    sock.connect((host, port))
    sock.send(b"x")
    found.append((sock.getpeername()[:2] == (host, port), sock.recv(64)))
print(found)
"""


def test_a_socket_that_connects_again_is_steered_again(egress_programs, dual_stack_pod, folder):
    pod = dual_stack_pod
    config = msgspec.structs.replace(own(pod), fail=True)
    with outbound(egress_programs, pod, folder, config) as out, app(pod.client, "::", PORT):
        for host in (pod.client_ip, pod.client_ip6):
            done = out.run(sys.executable, "-c", AGAIN, host, str(PORT))
            assert done.returncode == 0, done.stderr
            assert ast.literal_eval(done.stdout) == [(True, b"app")] * 3
        assert out.counted() == {"steered": 6}
        assert [str(each.address) for each in out.proxy.originals] == [pod.client_ip] * 3 + [pod.client_ip6] * 3
