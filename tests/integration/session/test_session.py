"""A session from its beginning to each of its ends, with the real command line."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import time

import pytest

from sidestep.model.errors import PeerError, RefusedError
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest
from sidestep.model.pod import PodKey
from sidestep.node.sessions.stream_shares import StreamShares
from sidestep.tunnel.messages import ConditionText, PodState, State
from tests.harness.authority import Authority
from tests.harness.processes import child
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP
from tests.integration.session.node import Cli, intercepting, sidestep
from tests.unit.laptop.peers import server_context, serving


def drain(sock):
    parts = []
    while data := sock.recv(65536):
        parts.append(data)
    return b"".join(parts)


def echo(connection):
    while data := connection.recv(65536):
        connection.sendall(data)


def gone(node):
    until(lambda: not node.intercepts(), within=5, what="the intercept to be gone")


def test_the_spec_arrives_as_it_was_written(node):
    words = ["deploy/orders", "-n", "shop", "--port", "9443:https", "--http-header", "X-Dev=ada", "--pod", "orders-1"]
    with intercepting(node, *words, "--name", "mine", "--plaintext"):
        found = node.only()
        assert (found.display, str(found.workload), found.port) == ("shop/mine", "deployment/orders", "https")
        assert found.filter == Filter(headers=(HeaderCondition("x-dev", HeaderTest.EXACT, "ada"),))
        assert (found.pod, found.plaintext, found.kind.value) == ("orders-1", True, "intercept")
        assert found.owner
        assert abs(found.created - time.time()) < 30
        assert node.changes >= 1


def test_bytes_reach_a_handler_in_clear_and_come_back(node):
    payload = os.urandom(3_000_000)
    with serving(echo) as handler, intercepting(node, "orders", "--port", f"{handler.port}:http"):
        for _ in range(3):
            with node.open() as sock:
                sock.setblocking(False)
                received = _exchange(sock, payload)
            assert received == payload


def test_a_pod_that_wants_every_stream_leaves_some_to_the_others(node):
    with socket.create_server(("127.0.0.1", 0), backlog=64) as handler, contextlib.ExitStack() as stack:
        stack.enter_context(intercepting(node, "orders", "--port", f"{handler.getsockname()[1]}:http"))
        session = node.sessions._sessions[node.only().uid]
        node.call(lambda: setattr(session, "_shares", StreamShares(16)))
        greedy = [stack.enter_context(node.open()) for _ in range(12)]
        one_more = node.begin_to_open()
        node.open(pod=PodKey("shop", "orders-2")).close()
        assert not one_more.done()
        greedy[0].close()
        stack.enter_context(one_more.result(20))
        assert session._shares._used >= 12
    until(lambda: session._shares._used == 0, within=10, what="the streams to be given back")


def test_bytes_reach_a_handler_over_tls_and_come_back(node, tmp_path):
    context = server_context(Authority().issue("orders.shop"), tmp_path / "tls", alpn=("http/1.1",))
    payload = os.urandom(1_000_000)

    def reverse(connection):
        data = drain(connection)
        connection.sendall(data[::-1])

    with serving(reverse, context) as handler, intercepting(node, "orders", "--port", f"{handler.port}:8443"):
        with node.open(tls=True) as sock:
            sock.sendall(payload)
            sock.shutdown(socket.SHUT_WR)
            assert drain(sock) == payload[::-1]
        assert handler.names == ["orders.shop"]
        assert handler.protocols == ["http/1.1"]


def test_half_close_in_both_orders(node):
    def last_word(connection):
        connection.sendall(b"first")
        connection.shutdown(socket.SHUT_WR)
        assert drain(connection) == b"second"
        finished.append(True)

    finished = []
    with serving(last_word) as handler, intercepting(node, "orders", "--port", str(handler.port)), node.open() as sock:
        assert drain(sock) == b"first"
        sock.sendall(b"second")
        sock.shutdown(socket.SHUT_WR)
        until(lambda: finished, within=5, what="the handler to see the end")


def test_a_handler_that_resets_breaks_the_proxys_end(node):
    def reset(connection):
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with serving(reset) as handler, intercepting(node, "orders", "--port", str(handler.port)), node.open() as sock:
        sock.sendall(b"x")
        assert sock.recv(10) == b""
        with pytest.raises(BrokenPipeError):
            sock.sendall(b"y")


def test_a_reset_breaks_the_connection_of_the_proxy_that_said_so(node):
    """A pod that was replaced has two proxies for a while, and both count their connections from 1."""

    def at_once(connection):
        while data := connection.recv(10):
            connection.sendall(data)

    with (
        serving(at_once) as handler,
        intercepting(node, "orders", "--port", str(handler.port)),
        node.open(proxy=7) as draining,
        node.open(proxy=8) as fresh,
    ):
        draining.sendall(b"x")
        assert draining.recv(10) == b"x"
        node.call(lambda: node.sessions.reset_stream(1, proxy=7))
        assert draining.recv(10) == b""
        fresh.sendall(b"y")
        assert fresh.recv(10) == b"y"


def test_a_proxy_that_goes_away_ends_the_handlers_connection(node):
    ended = []
    with (
        serving(lambda connection: ended.append(drain(connection))) as handler,
        intercepting(node, "orders", "--port", str(handler.port)),
    ):
        sock = node.open()
        sock.sendall(b"half a request")
        sock.close()
        until(lambda: ended == [b"half a request"], within=5, what="the handler to see the end")
        until(lambda: node.call(node.sessions.views)[0].counters["open"] == 0, within=5, what="the pump to end")


@pytest.mark.parametrize("name", ["a\r\nb: c", "x" * 60_000, "\u20ac", "\x00"])
def test_nonsense_of_one_proxy_does_not_cost_the_session_its_tunnel(node, name):
    with serving(echo) as handler, intercepting(node, "orders", "--port", str(handler.port), "--plaintext") as cli:
        with pytest.raises(PeerError, match="sidestep-server-name"):
            node.open(tls=True, server_name=name)
        with node.open() as sock:
            sock.sendall(b"still here")
            assert sock.recv(100) == b"still here"
        assert not cli.events("interrupted")


@pytest.mark.alone
def test_no_handler_is_refused_at_once_and_told_once(node):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with intercepting(node, "orders", "--port", str(port)) as cli:
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(RefusedError, match=f"no handler answers at 127.0.0.1:{port}: connection refused"):
                node.open()
            assert time.monotonic() - began < 1
        until(lambda: len(cli.events("refused")) == 3, within=5, what="it to be told")
        assert node.call(node.sessions.views)[0].counters["refused"] == 3
    with intercepting(node, "orders", "--port", str(port), output="text") as cli:
        for _ in range(3):
            with pytest.raises(RefusedError):
                node.open()
        node.record("/after")
        cli.wait_for("/after")
        assert cli.out.count("no handler answers") == 1


def test_an_unknown_uid_is_refused(node):
    with pytest.raises(RefusedError, match="gone"):
        node.open(uid="nothing")


def test_requests_are_told_line_by_line_and_cannot_touch_the_terminal(node):
    with intercepting(node, "orders", "-n", "shop", "--port", "1234", output="text") as cli:
        node.record("/one?q=1", "/two\x1b[2J\n")
        cli.wait_for("/two")
        assert "GET /one?q=1  from 10.0.0.7:53012  pod shop/orders-1" in cli.out
        assert "\x1b" not in cli.out
        assert "/two\\x1b[2J\\n" in cli.out
        assert (
            "Intercept shop/orders is active on 1 pod: everything of orders port 1234 goes to 127.0.0.1:1234" in cli.out
        )
    with intercepting(node, "orders", "--port", "1234") as cli:
        node.record("/three")
        until(lambda: cli.events("request"), within=5, what="the request")
        (event,) = cli.events("request")
        assert (event["method"], event["path"], event["client"], event["pod"]) == (
            "GET",
            "/three",
            "10.0.0.7",
            "shop/orders-1",
        )


def test_pods_and_conditions_are_told_as_they_change(node):
    with intercepting(node, "orders", "--port", "1234", output="text") as cli:
        node.view.states = State(
            (
                PodState("shop/orders-1", "active"),
                PodState("shop/orders-2", "attached"),
                PodState("shop/x", "pending", "why"),
            ),
            (ConditionText("NoApp", "pod shop/orders-2 port 1", "nothing listens"),),
        )
        node.call(node.sessions.refresh)
        node.call(node.sessions.refresh)
        cli.wait_for("NoApp: pod shop/orders-2 port 1: nothing listens")
        assert "Pod shop/orders-2 joined: active on 2 pods." in cli.out
        assert cli.out.count("Pod shop/x is pending: why") == 1
        node.view.states = State((PodState("shop/orders-2", "active"),))
        node.call(node.sessions.refresh)
        cli.wait_for("Pod shop/orders-1 left: active on 1 pod.")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_session_in_order(node, number):
    with serving(echo) as handler, intercepting(node, "orders", "--port", str(handler.port)) as cli:
        with node.open() as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            assert cli.stop(number) == 0
            assert cli.err == ""
            assert sock.recv(1) == b""
        gone(node)


def test_a_killed_session_is_gone_at_once(node):
    with serving(echo) as handler, intercepting(node, "orders", "--port", str(handler.port)) as cli:
        with node.open() as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            cli.process.kill()
            assert sock.recv(1) == b""
        gone(node)
        with pytest.raises(RefusedError):
            node.open(uid="whatever")


def test_a_stopped_session_is_given_up(node):
    """SIGSTOP: the connection stays, nothing answers. After five seconds of silence the intercept is gone."""
    with intercepting(node, "orders", "--port", "1234") as cli:
        cli.process.send_signal(signal.SIGSTOP)
        until(lambda: not node.intercepts(), within=9, what="the intercept to be gone")
        cli.process.send_signal(signal.SIGCONT)
        until(lambda: len(cli.events("registered")) == 2, within=10, what="the session to come back")
        assert node.only().display == "default/orders"
        assert cli.stop() == 0


def test_leave_tells_who_and_exits_in_order(node):
    with intercepting(node, "orders", "-n", "shop", "--port", "1234", output="text") as cli:
        done = sidestep("leave", "orders", "-n", "shop", node=node)
        assert (done.returncode, done.stdout) == (0, "Ended intercept shop/orders.\n")
        assert cli.process.wait(10) == 0
        assert "Intercept shop/orders ended by " in cli.out
        assert cli.err == ""
        assert not node.intercepts()
    again = sidestep("leave", "shop/orders", node=node)
    assert again.returncode == 1
    assert again.stderr.startswith("sidestep: there is no session shop/orders; sidestep status shows those there are")


def test_the_end_of_the_daemon_is_told_and_outlived(node):
    with intercepting(node, "orders", "--port", "1234", output="text") as cli:
        first = node.only()
        node.restart()
        cli.wait_for("Intercept default/orders is active again on 1 pod.")
        again = node.only()
        assert (again.uid, again.name, again.created) == (first.uid, first.name, first.created)
        assert cli.out.count("is interrupted") == 1
        assert cli.stop() == 0
        assert cli.err == ""
    gone(node)


def test_a_tunnel_that_breaks_is_made_anew(node):
    with serving(echo) as handler, intercepting(node, "orders", "--port", str(handler.port)) as cli:
        first = node.only()
        node.cut()
        until(lambda: len(cli.events("registered")) == 2, within=2, what="the session to come back")
        assert [event["event"] for event in cli.events("interrupted")] == ["interrupted"]
        assert node.only() == first
        with node.open() as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        assert cli.stop() == 0


def test_a_draining_daemon_keeps_the_connections_of_a_session_that_moves(node):
    with serving(echo) as handler, intercepting(node, "orders", "--port", str(handler.port)) as cli:
        with node.open() as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            drained = node.hand_over()
            until(lambda: len(cli.events("registered")) == 2, within=2, what="the session to move")
            sock.sendall(b"y")
            assert sock.recv(1) == b"y"
            node.run(drained())
            assert sock.recv(1) == b""
        with node.open() as sock:
            sock.sendall(b"z")
            assert sock.recv(1) == b"z"
        assert len(cli.events("interrupted")) == 1
        assert cli.stop() == 0


def test_a_refusal_on_the_way_back_ends_the_session(node):
    with intercepting(node, "orders", "--port", "1234") as cli:
        node.restart(refuse="intercept shop/first of ada takes the whole port already")
        assert cli.process.wait(10) == 1
        assert cli.err == "sidestep: intercept shop/first of ada takes the whole port already\n"


def test_a_session_that_is_interrupted_can_be_ended(node):
    with intercepting(node, "orders", "--port", "1234") as cli:
        node.restart(back=False)
        until(lambda: cli.events("interrupted"), within=5, what="the interruption to be told")
        assert cli.stop() == 0
        assert cli.err == ""
        node.restart()


NO_NAMESPACE = "sidestep intercept: Invalid value for '--namespace' / '-n': 'Shop' is no namespace"
NO_NAME = "sidestep intercept: Invalid value for '--name': 'a/b' is no name of a session"


@pytest.mark.parametrize(
    ("words", "status", "error"),
    [
        (["--port", "9:1"], 1, "sidestep: intercept shop/first of ada takes the whole port already\n"),
        (["--port", "9:2"], 1, "sidestep: --port '2': no such port\n"),
        (["--port", "9", "-n", "Shop"], 2, NO_NAMESPACE),
        (["--port", "9", "--name", "a/b"], 2, NO_NAME),
    ],
)
def test_a_refusal_is_one_line(node, words, status, error):
    done = sidestep("intercept", "orders", *words, node=node)
    assert done.returncode == status
    assert done.stderr.startswith(error)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not node.intercepts()


def test_names_are_unique(node):
    with intercepting(node, "orders", "--port", "9", "--name", "mine"):
        done = sidestep("intercept", "orders", "--port", "9", "--name", "mine", node=node)
        assert done.returncode == 1
        assert "default/mine exists already" in done.stderr
    gone(node)
    with intercepting(node, "orders", "--port", "9"), intercepting(node, "orders", "--port", "9"):
        assert [each.name for each in node.intercepts()] == ["orders", "orders-2"]


def test_a_command_runs_with_the_session_and_gives_its_exit_code(node, tmp_path):
    script = f"echo started > {tmp_path}/mark; exit 7"
    done = sidestep("intercept", "orders", "--port", "9", "--", "sh", "-c", script, node=node)
    assert done.returncode == 7
    assert (tmp_path / "mark").exists()
    gone(node)


def test_a_command_ends_with_the_session(node):
    with intercepting(node, "orders", "--port", "9", "--", "sleep", "1000") as cli:
        until(lambda: _children(cli.process.pid), within=5, what="the command")
        (child,) = _children(cli.process.pid)
        assert sidestep("leave", "default/orders", node=node).returncode == 0
        assert cli.process.wait(10) == 0
        assert not os.path.exists(f"/proc/{child}")


def test_a_command_that_is_none(node):
    done = sidestep("intercept", "orders", "--port", "9", "--", "/no/such/command", node=node)
    assert done.returncode == 1
    assert done.stderr == "sidestep: command '/no/such/command': cannot be started: no such file or directory\n"
    gone(node)


def test_a_reader_that_goes_away_ends_the_session_quietly(node):
    command = [SIDESTEP, "intercept", "orders", "--port", "9", "--socket", str(node.path)]
    with child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline()
        process.stdout.close()
        # One call: the session may have ended before a second one.
        node.record("/a", "/b")
        until(lambda: process.poll() is not None, within=10, what="the end")
        assert process.returncode == 0
        assert process.stderr.read() == b""


def test_output_that_nobody_reads_stalls_nothing(node):
    """A pipe that is full: lines are dropped, diverted connections go on."""
    read, write = os.pipe()
    with serving(echo) as handler:
        cli = Cli(node, "orders", "--port", str(handler.port), stdout=write)
        os.close(write)
        try:
            until(node.intercepts, within=10, what="the intercept")
            for _ in range(40):
                node.record(*(["/" + "x" * 1000] * 256))
            for _ in range(5):
                with node.open() as sock:
                    sock.sendall(b"x")
                    assert sock.recv(1) == b"x"
            assert node.intercepts()
            assert cli.stop() == 0
        finally:
            os.close(read)
            cli.process.kill()
            cli.process.wait()


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


def _exchange(sock, payload):
    """Write and read at once, then half-close; returns what came back."""
    import selectors

    received, sent = bytearray(), 0
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while True:
            ((_key, mask),) = selector.select(20)
            if mask & selectors.EVENT_WRITE:
                sent += sock.send(payload[sent : sent + 65536])
                if sent == len(payload):
                    sock.shutdown(socket.SHUT_WR)
                    selector.modify(sock, selectors.EVENT_READ)
            if mask & selectors.EVENT_READ:
                try:
                    data = sock.recv(65536)
                except BlockingIOError:
                    continue
                if not data:
                    return bytes(received)
                received += data
