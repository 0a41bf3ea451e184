"""The daemon's unix socket: who may speak, what is refused, and the short commands on it."""

import contextlib
import json
import os
import select
import socket
import stat

import pytest

from sidestep.model.errors import ConfigurationError
from sidestep.node.api.local_api import LocalApi
from tests.integration.session.node import FakeNode, intercepting, sidestep

UPGRADE = b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: sidestep-tunnel\r\n"


def ask(node, data, *, size=1 << 20):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(15)
        sock.connect(str(node.path))
        sock.sendall(data)
        answer = b""
        try:
            while len(answer) < size and (part := sock.recv(65536)):
                answer += part
        except ConnectionResetError:
            pass
        return answer


def status_of(answer):
    return int(answer.split()[1]) if answer else None


def test_the_socket_is_the_daemons_alone(node):
    assert stat.S_IMODE(node.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(node.path.stat().st_mode) == 0o600
    assert [each.name for each in node.path.parent.iterdir()] == ["node.sock"]


def test_a_socket_left_by_a_killed_daemon_is_replaced(tmp_path):
    (tmp_path / "run").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "run" / "node.sock"))
    fake = FakeNode(tmp_path)
    assert sidestep("status", node=fake).returncode == 0
    fake.stop()
    assert not (tmp_path / "run" / "node.sock").exists()


def test_a_second_daemon_takes_the_path_and_asks_the_first_to_drain(node):
    asked = []
    node.api.on_drain = lambda: asked.append(True)
    second = LocalApi(path=node.path, view=node.view, sessions=node.sessions)
    before = node.path.stat().st_ino
    node.run(second.start())
    assert asked == [True]
    assert node.path.stat().st_ino != before
    node.run(node.api.aclose())  # the socket is not its own any more
    assert sidestep("status", node=node).returncode == 0
    node.run(second.aclose())
    assert not node.path.exists()


def test_a_second_daemon_starts_although_the_first_hangs(node, monkeypatch):
    monkeypatch.setattr("sidestep.node.api.local_socket.HANDOVER_TIMEOUT", 0.2)
    with socket.socket(socket.AF_UNIX) as hanging:
        path = node.path.with_name("hanging.sock")
        hanging.bind(str(path))
        hanging.listen(1)
        second = LocalApi(path=path, view=node.view, sessions=node.sessions)
        node.run(second.start())
        node.run(second.aclose())


def test_a_second_daemon_starts_although_the_queue_of_the_first_is_full(node):
    with contextlib.ExitStack() as stack:
        hanging = stack.enter_context(socket.socket(socket.AF_UNIX))
        path = node.path.with_name("hanging.sock")
        hanging.bind(str(path))
        hanging.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(path))
        second = LocalApi(path=path, view=node.view, sessions=node.sessions)
        node.run(second.start())
        node.run(second.aclose())


def test_who_does_not_read_the_answer_is_left_after_a_while(node, monkeypatch):
    monkeypatch.setattr("sidestep.node.api.local_api.REQUEST_TIMEOUT", 0.3)
    monkeypatch.setattr(node.view, "workloads", lambda: ("x" * 1000,) * 10_000)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(15)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(str(node.path))
        sock.sendall(b"GET /v1/workloads HTTP/1.1\r\nHost: x\r\n\r\n")
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        assert poll.poll(10_000), "the daemon still waits for its answer to be read"


def test_a_folder_that_others_may_write_to_is_refused_on_both_sides(node, tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    api = LocalApi(path=folder / "node.sock", view=node.view, sessions=node.sessions)
    with pytest.raises(ConfigurationError, match="others may write"):
        node.run(api.start())
    node.path.parent.chmod(0o770)
    done = sidestep("status", node=node)
    node.path.parent.chmod(0o700)
    assert done.returncode == 1
    assert "others may write" in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="changing the user needs root; CI runs as root")
def test_another_user_is_turned_away(node):
    node.path.parent.chmod(0o711)
    node.path.parent.parent.chmod(0o711)
    node.path.chmod(0o666)
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(10)
                sock.connect(str(node.path))
                try:
                    sock.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
                    code = 0 if sock.recv(1) == b"" else 1
                except (ConnectionResetError, BrokenPipeError):
                    code = 0
        except PermissionError:
            code = 0  # a parent folder already keeps the stranger out
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 404),
        (b"DELETE /v1/intercepts/a/b HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 400),
        (UPGRADE + b"Content-Length: 2\r\n\r\n{}", 400),
        (b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000, 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000, 431),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v1/status HTTP/1.1\r\n\r\n", 400),
    ],
)
def test_requests_and_their_answers(node, request_, status):
    answer = ask(node, request_)
    assert status_of(answer) == status
    assert json.loads(answer.partition(b"\r\n\r\n")[2])


def test_a_client_that_says_nothing_more_is_left(node, monkeypatch):
    monkeypatch.setattr("sidestep.node.api.local_api.REQUEST_TIMEOUT", 0.1)
    assert ask(node, b"GET /v1/sta") == b""


def test_garbage_after_the_upgrade_ends_that_session_only(node):
    spec = b'{"namespace":"shop","workload":"orders","port":"9"}'
    with intercepting(node, "orders", "--port", "9"):
        answer = ask(
            node,
            UPGRADE + f"Content-Length: {len(spec)}\r\n\r\n".encode() + spec + b"\0\0\1\0\0\0\0\0\1x",
        )
        assert status_of(answer) == 101
        assert len(node.intercepts()) == 1


def test_a_bug_costs_one_connection_and_is_reported(node, monkeypatch):
    with intercepting(node, "orders", "--port", "9"):
        monkeypatch.setattr(node.view, "status", lambda: 1 / 0)
        done = sidestep("status", node=node)
        assert done.returncode == 1
        assert "internal error of the node daemon: ZeroDivisionError" in done.stderr
        assert len(node.intercepts()) == 1
        (crash,) = node.crashes
        assert isinstance(crash["exception"], ZeroDivisionError)
        node.crashes.clear()


def test_status_in_both_forms(node):
    with intercepting(node, "orders", "-n", "shop", "--port", "9", "--http-method", "GET"):
        text = sidestep("status", node=node)
        assert text.returncode == 0
        for part in ("Node n1: sidestep 0.1.0, pid 1, up 1h01m", "shop/orders-1  running 77", "method GET", "NoApp:"):
            assert part in text.stdout
        view = json.loads(sidestep("status", "--output", "json", node=node).stdout)
        assert view["intercepts"][0]["filter"] == "method GET"
        assert view["intercepts"][0]["counters"]["open"] == 0
    assert "No sessions." in sidestep("status", node=node).stdout


def test_list_in_both_forms(node):
    text = sidestep("list", node=node)
    assert text.returncode == 0
    assert "deployment/orders" in text.stdout
    assert "8443/tcp https" in text.stdout
    assert "orders.shop (until 2030-01-01, secret shop/orders-tls)" in text.stdout
    assert "AnnotationInvalid: pod shop/orders-1: bad \\x1b[31mvalue" in text.stdout
    lines = sidestep("list", "--output", "json", node=node).stdout.splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["orders", "idle"]
    assert "orders" not in sidestep("list", "-n", "other", node=node).stdout.replace("other", "")
    assert sidestep("list", "-n", "none", node=node).stdout == "No workloads in namespace none.\n"
