"""A handler with the pod's world: its database host from the pod's variables, its data from a database of the cluster.

The database is Debian's PostgreSQL in another network namespace; the handler reaches it by its service's name, through
`sidestep intercept --outbound`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.harness.curl import curl
from tests.harness.peers import Server, http_app
from tests.harness.pod_world import orders
from tests.harness.processes import Process
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

NOBODY = 65534
HANDLER = '''
import http.server, os, socket, struct
from urllib.parse import urlsplit

def exactly(sock, size):
    data = b""
    while len(data) < size:
        data += sock.recv(size - len(data)) or exit("closed")
    return data

def connected(host, port):
    """SOCKS5 with a password (RFC 1928, 1929), the name looked up on the far side."""
    proxy = urlsplit(os.environ["ALL_PROXY"])
    assert proxy.scheme == "socks5h"
    sock = socket.create_connection((proxy.hostname, proxy.port), timeout=30)
    user, password = proxy.username.encode(), proxy.password.encode()
    sock.sendall(b"\\x05\\x01\\x02")
    assert exactly(sock, 2) == b"\\x05\\x02"
    sock.sendall(b"\\x01" + bytes([len(user)]) + user + bytes([len(password)]) + password)
    assert exactly(sock, 2) == b"\\x01\\x00"
    sock.sendall(b"\\x05\\x01\\x00\\x03" + bytes([len(host)]) + host.encode() + struct.pack("!H", port))
    assert exactly(sock, 10)[1] == 0
    return sock

def query(text):
    """The rows of a query, in PostgreSQL's protocol version 3."""
    with connected(os.environ["DB_HOST"], int(os.environ["DB_PORT"])) as sock:
        start = struct.pack("!I", 196608) + b"user\\0shop\\0database\\0postgres\\0\\0"
        sock.sendall(struct.pack("!I", len(start) + 4) + start)
        rows, asked = [], False
        while True:
            kind, size = struct.unpack("!cI", exactly(sock, 5))
            body = exactly(sock, size - 4)
            if kind == b"E":
                raise RuntimeError(body)
            if kind == b"D":
                rows.append(body[6:].decode())
            if kind == b"Z" and asked:
                return rows
            if kind == b"Z":
                asked = True
                sock.sendall(b"Q" + struct.pack("!I", len(text) + 5) + text + b"\\0")

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = "\\n".join(query(b"select name || ' for ' || host(inet_client_addr()) from goods")).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

print("ready", flush=True)
at = (os.environ["SIDESTEP_ADDRESS"], int(os.environ["SIDESTEP_PORT"]))
http.server.ThreadingHTTPServer(at, Handler).serve_forever()
'''


def programs() -> Path:
    """Where Debian's PostgreSQL has its programs; the newest."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda each: int(each.parts[-3]))
    assert found, "Debian's postgresql is not installed (make setup)"
    return found[-1].parent


@contextlib.contextmanager
def database(space):
    """A PostgreSQL in the client's namespace, with goods in it; its port."""
    home = Path(tempfile.mkdtemp(prefix="sidestep-postgres-"))
    try:
        os.chown(home, NOBODY, NOBODY)
        nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
        words = ["-D", f"{home}/data", "-U", "shop", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"]
        subprocess.run([*nobody, programs() / "initdb", *words], check=True, capture_output=True, timeout=120, cwd=home)
        with (home / "data/pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {space.ip}/32 trust\n")
        port = 5432
        options = [
            "-c",
            f"listen_addresses={space.client_ip}",
            "-c",
            f"unix_socket_directories={home}",
            "-c",
            "fsync=off",
        ]
        command = [*nobody, programs() / "postgres", "-D", f"{home}/data", "-p", str(port), *options]
        with Process(space.client.enter(command), log=home / "log", patience=20) as server:
            sql = "create table goods (name text); insert into goods values ('lamp'), ('chair');"
            psql = [programs() / "psql", "-h", home, "-U", "shop", "-p", str(port), "-d", "postgres", "-c", sql]

            def made():
                return (
                    not server.running
                    or subprocess.run(psql, capture_output=True, timeout=30, check=False).returncode == 0
                )

            until(made, within=60, what=lambda: f"PostgreSQL\n{server.text()}")
            assert server.running, server.text()
            yield port
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize("allowed", [True, False])
def test_a_handler_answers_with_what_only_the_cluster_has(tmp_path, allowed):
    program = tmp_path / "handler.py"
    program.write_text(HANDLER)
    variables = {"DB_HOST": "db", "DB_PORT": "5432"}
    with (
        orders(tmp_path, variables=variables) as (space, daemon),
        database(space),
        Server(http_app, name="app", netns=space.pod, address="0.0.0.0", port=8080),
    ):
        if not allowed:
            rule = "type filter hook output priority 0; policy accept; tcp dport 5432 reject with tcp reset;"
            space.pod.run("nft", f"table inet of_the_test {{\nchain out {{ {rule} }}\n}}")
        words: list[str | Path] = ["intercept", "orders", "-n", "shop", "--port", "9999:http", "--plaintext"]
        words += ["--http-header", "x-dev=ada"]
        words += ["--env-file", tmp_path / "pod.env", "--outbound", "--socket", daemon.socket]
        command = [SIDESTEP, *words, "--", sys.executable, "-u", program]
        with Process(command, log=tmp_path / "intercept.log") as intercept:
            until(lambda: not intercept.running or "ready" in intercept.text(), within=40, what=intercept.text)

            def answered():
                return curl(space.client, f"http://{space.ip}:8080/", headers=["x-dev: ada"])

            if allowed:
                until(lambda: "lamp" in answered().text, within=30, what=intercept.text)
                assert answered().text.split("\n") == [f"lamp for {space.ip}", f"chair for {space.ip}"]
            else:
                until(
                    lambda: "refused the connection" in (answered(), intercept.text())[1], within=30, what="a refusal"
                )
            assert curl(space.client, f"http://{space.ip}:8080/").text == "app\n"
        assert "Traceback" not in intercept.text() or not allowed
    assert "DB_HOST=db\n" in (tmp_path / "pod.env").read_text()
