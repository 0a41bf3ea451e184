"""The client against servers that are no daemon."""

import contextlib
import os
import socket
import threading

import pytest

from sidestep.laptop import local_client
from sidestep.laptop.local_client import LocalClient, UnreachableError
from sidestep.model.errors import PeerError, RefusedError
from sidestep.tunnel.connection import Connection
from tests.unit.tunnel.ends import asynchronous, echo


@pytest.fixture
def serve(tmp_path):
    """Start a server that answers one connection with fixed bytes (None: says nothing) and closes."""
    started = []

    def start(answer):
        path = tmp_path / "node.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()

        def one():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    if answer is None:
                        connection.recv(1)
                    else:
                        connection.sendall(answer)

        thread = threading.Thread(target=one, daemon=True)
        thread.start()
        started.append((listener, thread))
        return path

    yield start
    for listener, thread in started:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def get(path):
    @asynchronous
    async def run():
        results.append(await LocalClient(path).get("/v1/status"))

    results = []
    run()
    return results[0]


def answer(status, body, *, length=None):
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n{body}".encode()


def test_an_answer(serve):
    assert get(serve(answer(200, '{"a":1}'))) == b'{"a":1}'


def test_a_refusal_is_the_daemons_own_words(serve):
    with pytest.raises(RefusedError, match=r"^no, because$"):
        get(serve(answer(409, '{"error":"no, because"}')))


def test_a_refusal_without_words(serve):
    with pytest.raises(RefusedError, match="status 500"):
        get(serve(answer(500, "<html>")))


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        answer(200, "short", length=100),
        b"HTTP/1.1 101 X\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
    ],
)
def test_what_is_no_answer_is_an_error(serve, bad):
    with pytest.raises(PeerError):
        get(serve(bad))


def test_a_daemon_that_ends_before_it_answers_is_named_as_such(serve):
    with pytest.raises(PeerError, match="closed the connection without an answer"):
        get(serve(b""))


def test_an_answer_without_end_is_bounded(serve, monkeypatch):
    monkeypatch.setattr(local_client, "MAX_BODY", 1000)
    with pytest.raises(PeerError, match="too long"):
        get(serve(answer(200, "x" * 5000)))


def test_silence_ends(serve, monkeypatch):
    monkeypatch.setattr(local_client, "TIMEOUT", 0.1)
    with pytest.raises(PeerError, match="did not answer"):
        get(serve(None))


def test_a_daemon_that_does_not_upgrade_is_refused(serve):
    path = serve(answer(200, "{}"))

    @asynchronous
    async def run():
        connection = Connection(serve=echo)
        with pytest.raises(PeerError, match="upgrade"):
            await LocalClient(path).upgrade("/v1/sessions", b"{}", connection)
        connection.close()

    run()


@pytest.mark.skipif(os.getuid() != 0, reason="changing an owner needs root; CI runs as root")
def test_a_folder_that_others_may_write_to_is_not_trusted(serve, tmp_path):
    path = serve(answer(200, "{}"))
    tmp_path.chmod(0o777)
    with pytest.raises(UnreachableError, match="others may write"):
        get(path)


def test_a_daemon_that_hangs_with_a_full_queue_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(local_client, "TIMEOUT", 0.3)
    path = tmp_path / "node.sock"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(path))
        with pytest.raises(UnreachableError, match="timed out"):
            get(path)
