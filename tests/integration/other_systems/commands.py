"""What each command must do on other systems: the rows of the table in docs/install.md.

A row is a coroutine that runs the command on a `stage` and asserts what it did. A command that cannot work there must
say so in one line.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from sidestep.proxy.control.messages import Open
from tests.integration.kube.cluster import GROUP, until
from tests.integration.other_systems.stage import Stage

POLICY = """
apiVersion: sidestep.dev/v1alpha1
kind: InspectionPolicy
metadata: {name: admin, namespace: shop}
spec:
  podSelector: {}
  mode: Enforce
  rules: [{name: no-admin, action: Block, match: {paths: [{match: Prefix, value: /admin}]}}]
"""


@dataclass(frozen=True)
class Row:
    """A command: whether it works on other systems, and how that is seen."""

    works: bool
    check: Callable[[Stage], Awaitable[None]]


@contextlib.asynccontextmanager
async def handler() -> AsyncIterator[int]:
    """A server that answers every request with its path in capitals."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = head.split()[1].upper()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def diverted(stage: Stage, uid: str, path: str) -> bytes:
    """Send a request as a pod proxy does that diverts it; the answer."""
    opening = Open(
        seq=1, stream=1, uid=uid, port=8443, client="10.0.0.9", client_port=5000, protocol="http/1.1", tls=False,
        server_name="",
    )  # fmt: skip
    [pod] = stage.node.controller.inventory.pods
    sock = await stage.node.sessions.open_stream(opening, pod=pod, proxy=1)
    with sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, f"GET {path} HTTP/1.1\r\nHost: orders\r\nX-Dev: ada\r\n\r\n".encode())
        got = b""
        while not got.endswith(path.upper().encode()):
            data = await loop.sock_recv(sock, 65536)
            assert data, got
            got += data
        return got


async def intercept(stage: Stage) -> None:
    async with handler() as port:
        words = ("intercept", "pod/orders-1", "-p", f"{port}:8443", "--http-header", "x-dev=ada", "--plaintext")
        async with stage.starting(*words) as running:
            await running.until("is active on 1 pod")
            [(uid, _)] = _served(stage)
            for number in range(3):
                answer = await diverted(stage, uid, f"/orders/{number}")
                assert answer.startswith(b"HTTP/1.1 200 OK")
            done = await running.interrupt()
        assert done.code == 0, done
        assert stage.api.get(GROUP, "intercepts", "shop", "orders-1") is None
        code = "import os; print({name: text for name, text in os.environ.items() if name[:9] == 'SIDESTEP_'}); exit(7)"
        done = await stage.run(*words, "--", sys.executable, "-c", code)
        assert done.code == 7, done
        told = {
            "SIDESTEP_KIND": "intercept",
            "SIDESTEP_INTERCEPT": "shop/orders-1",
            "SIDESTEP_NAMESPACE": "shop",
            "SIDESTEP_WORKLOAD": "pod/orders-1",
            "SIDESTEP_WORKLOAD_PORT": "8443",
            "SIDESTEP_ADDRESS": "127.0.0.1",
            "SIDESTEP_PORT": str(port),
        }
        assert str(told) in done.stdout, done
        batch = stage.folder / "orders.cmd"
        batch.write_text('#!/bin/sh\necho "batch file $*"\n')
        batch.chmod(0o755)
        path = {"PATH": f"{stage.folder}:{os.environ['PATH']}", "PATHEXT": ".cmd"}
        done = await stage.run(*words, "--", "orders", "run", "dev", **path)
        if stage.system == "win32":
            assert "batch file run dev" in done.stdout, done
            done = await stage.run(*words, "--", "orders", "run", "%PATH%", **path)
            assert done.code == 1, done
            assert "cannot be given to orders.cmd, a batch file" in done.error, done
        else:
            assert done.code == 1, done
            assert "cannot be started: no such file or directory" in done.error, done
        async with stage.starting(*words, "--", sys.executable, "-c", "import time; time.sleep(600)") as running:
            await running.until("is active on 1 pod")
            assert (done := await running.interrupt()).code == 0, done


async def wiretap(stage: Stage) -> None:
    async with handler() as port, stage.starting("wiretap", "pod/orders-1", "-p", f"{port}:8443", "--plaintext") as tap:
        await tap.until("is active on 1 pod")
        [(uid, _)] = _served(stage)
        assert (await diverted(stage, uid, "/copy")).endswith(b"/COPY")
        assert (done := await tap.interrupt()).code == 0, done


async def flows(stage: Stage) -> None:
    async with stage.starting("flows", "pod/orders-1", "-p", "8443") as running:
        await running.until("Ctrl-C ends it")
        assert [heads_only for _, heads_only in _served(stage)] == [True]
        assert (done := await running.interrupt()).code == 0, done


async def inspect(stage: Stage) -> None:
    async with stage.starting("inspect", "pod/orders-1", "-p", "8443") as running:
        await running.until("Ctrl-C ends it")
        done = await running.interrupt()
    assert done.code == 0, done
    assert "0 records." in done.stdout


async def capture(stage: Stage) -> None:
    file = stage.folder / "heads.pcapng"
    file.write_bytes(b"older")
    for target in (file, "-"):
        words = ("capture", "pod/orders-1", "-p", "8443", "-w", target, "--for", "1s")
        done = await stage.run(*words)
        assert done.code == 0, done
        assert "0 packets of 0 connections" in done.stderr
    assert file.read_bytes()[:4] == b"\n\r\r\n"
    assert sorted(each.name for each in stage.folder.glob("*heads*")) == ["heads.pcapng"]


async def env(stage: Stage) -> None:
    """Up to the daemon, which is one of a machine without containers here."""
    done = await stage.run("env", "pod/orders-1")
    assert (done.code, done.stdout) == (1, ""), done
    assert "gives no access to pods" in done.error


async def connect(stage: Stage) -> None:
    """Up to the daemon, which is one of a machine without containers here. Who has no password is nobody's client."""
    async with stage.starting("connect", "pod/orders-1") as running:
        printed = await running.until("export HTTP_PROXY=")
        url = re.search(r"http://(.*)@127.0.0.1:([0-9]+)", printed)
        assert url is not None, printed
        password = b"Proxy-Authorization: Basic " + base64.b64encode(url[1].encode()) + b"\r\n"
        for field, told in ((b"", b" 407 "), (password, b"this node daemon gives no access to pods")):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url[2]))
            with contextlib.closing(writer):
                writer.write(b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n" + field + b"\r\n")
                assert told in await reader.read()
        assert (done := await running.interrupt()).code == 0, done


async def files(stage: Stage) -> None:
    """Up to the daemon, as `env`."""
    target = stage.folder / "files"
    done = await stage.run("files", "pod/orders-1", "/etc/tls", "--to", target)
    assert (done.code, done.stdout) == (1, ""), done
    assert "gives no access to pods" in done.error
    assert not target.exists()


async def list_(stage: Stage) -> None:
    done = await stage.run("list")
    assert done.code == 0, done
    assert "pod/orders-1" in done.stdout


async def status(stage: Stage) -> None:
    done = await stage.run("status", "--output", "json")
    assert done.code == 0, done
    assert json.loads(done.stdout)["namespace"] == "shop"


async def leave(stage: Stage) -> None:
    async with handler() as port:
        words = ("intercept", "pod/orders-1", "-p", f"{port}:8443", "--name", "mine", "--plaintext")
        async with stage.starting(*words) as running:
            await running.until("is active on 1 pod")
            done = await stage.run("leave", "mine")
            assert (done.code, done.stdout) == (0, "Ended intercept shop/mine.\n"), done
            assert (await running.ended()).code == 0


async def doctor(stage: Stage) -> None:
    await stage.api.put(GROUP, "intercepts", {"metadata": {"name": "none", "namespace": "elsewhere"}})
    done = await stage.run("doctor", "--output", "json")
    found = {each["check"]: each for each in map(json.loads, done.stdout.splitlines())}
    assert list(found) == ["machine", "Kubernetes API"], done
    assert found["machine"]["text"].startswith("a laptop: ")
    done = await stage.run("doctor", KUBECONFIG=str(stage.folder / "none"))
    assert done.code == 1, done
    assert "no kubeconfig found" in done.stdout


async def policy(stage: Stage) -> None:
    (stage.folder / "policies.yaml").write_text(POLICY)
    done = await stage.run("policy", "check", "policies.yaml")
    assert done.code == 0, done
    assert "shop/admin" in done.stdout
    (stage.folder / "empty.json").write_text("")
    done = await stage.run("policy", "except", "2c6db743-1", "--eve", "empty.json", "policies.yaml")
    assert (done.code, done.error) == (1, "sidestep: empty.json has no alert 2c6db743-1")


async def replay(stage: Stage) -> None:
    entry = {
        "startedDateTime": "2026-01-01T00:00:00.000Z",
        "time": 1,
        "request": {
            "method": "GET", "url": "http://orders/again", "httpVersion": "HTTP/1.1", "cookies": [], "headers": [],
            "queryString": [], "headersSize": -1, "bodySize": 0,
        },
        "response": {
            "status": 200, "statusText": "OK", "httpVersion": "HTTP/1.1", "cookies": [], "headers": [],
            "content": {"size": 0, "mimeType": ""}, "redirectURL": "", "headersSize": -1, "bodySize": 0,
        },
        "cache": {},
        "timings": {"send": 0, "wait": 1, "receive": 0},
    }  # fmt: skip
    creator = {"name": "test", "version": "1"}
    (stage.folder / "one.har").write_text(
        json.dumps({"log": {"version": "1.2", "creator": creator, "entries": [entry]}})
    )
    async with handler() as port:
        done = await stage.run("replay", "one.har", "--to", f"http://127.0.0.1:{port}")
    assert done.code == 0, done
    assert "/again" in done.stdout


SERVER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = self.path.upper().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["SIDESTEP_PORT"])), Handler).serve_forever()
"""


async def up(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    project = stage.folder / "project"
    project.mkdir()
    (project / "server.py").write_text(SERVER)
    entry = {"workload": "pod/orders-1", "port": f"{port}:8443", "headers": ["x-dev=ada"], "plaintext": True}
    handlers = {"web": {"command": [sys.executable, "server.py"]}}
    (project / "sidestep.yaml").write_text(json.dumps({"intercepts": [entry], "handlers": handlers}))
    async with stage.starting("up", "-f", "project/sidestep.yaml") as running:
        assert (await running.until("is active on 1 pod")).startswith("orders-1: Intercept shop/orders-1 is active")
        [(uid, _)] = _served(stage)
        await until(lambda: is_open(port), what="the handler to listen")
        assert (await diverted(stage, uid, "/up")).endswith(b"/UP")
        assert (done := await running.interrupt()).code == 0, done
    assert not is_open(port), "the handler has ended, too"
    async with stage.starting("up", "-f", "project/sidestep.yaml", "-o", "json") as running:
        line = await running.until('"state":"active"')
        assert (state := json.loads(line))["session"] == "intercept/orders-1", line
        assert (state["event"], [each["pod"] for each in state["pods"]]) == ("state", ["shop/orders-1"]), line
        [(uid, _)] = _served(stage)
        await until(lambda: is_open(port), what="the handler to listen")
        assert (await diverted(stage, uid, "/json")).endswith(b"/JSON")
        done = await running.interrupt()
        assert done.code == 0, done
    first, *_ = [json.loads(each) for each in done.stdout.splitlines()]
    assert (first["session"], first["event"], first["name"]) == ("intercept/orders-1", "registered", "orders-1"), done
    (project / "alone.yaml").write_text(json.dumps({"intercepts": [entry]}))
    async with stage.starting("up", "-f", "project/alone.yaml") as running:
        await running.until(
            f"orders-1: Warning: nothing listens on 127.0.0.1:{port}; nothing is diverted until one does."
        )
        done = await running.interrupt()
        assert done.code == 0, done
    handlers["web"]["command"] = [sys.executable, "-c", "print('from the handler'); exit(9)"]
    (project / "sidestep.yaml").write_text(json.dumps({"intercepts": [entry], "handlers": handlers}))
    done = await stage.run("up", "-f", "project/sidestep.yaml")
    assert done.code == 9, done
    assert "Handler web has ended with 9." in done.stdout.splitlines(), done
    assert "from the handler" in done.stdout.splitlines(), done
    done = await stage.run("up", "-f", "project/sidestep.yaml", "--output", "json")
    *events, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.code, last) == (9, {"event": "handler_ended", "handler": "web", "code": 9}), done
    assert {each["session"] for each in events} <= {"intercept/orders-1"}, done
    assert "from the handler" in done.stderr.splitlines(), done


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


async def ui(stage: Stage) -> None:
    async with stage.starting("ui", "pod/orders-1", "-p", "8443") as running:
        await running.until("Ctrl-C ends it")
        assert running.process.stderr is not None
        address = urlsplit((await running.process.stderr.readline()).decode().removeprefix("Page: ").strip())
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        target = f"{address.path or '/'}?{address.query}"
        writer.write(f"GET {target} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n".encode())
        assert b"200" in await reader.readline()
        writer.close()
        assert (done := await running.interrupt()).code == 0, done


async def completion(stage: Stage) -> None:
    for shell in ("zsh", "fish"):
        done = await stage.run("completion", shell)
        assert done.code == 0, done
        assert "_SIDESTEP_COMPLETE" in done.stdout


async def node(stage: Stage) -> None:
    done = await stage.run("node", "--manifests", stage.folder)
    assert done.code == 1, done
    assert done.error.startswith("sidestep: the node daemon runs on Linux only, and this is ")


ROWS = {
    "capture": Row(works=True, check=capture),
    "completion": Row(works=True, check=completion),
    "connect": Row(works=True, check=connect),
    "doctor": Row(works=True, check=doctor),
    "env": Row(works=True, check=env),
    "files": Row(works=True, check=files),
    "flows": Row(works=True, check=flows),
    "inspect": Row(works=True, check=inspect),
    "intercept": Row(works=True, check=intercept),
    "leave": Row(works=True, check=leave),
    "list": Row(works=True, check=list_),
    "node": Row(works=False, check=node),
    "policy": Row(works=True, check=policy),
    "replay": Row(works=True, check=replay),
    "status": Row(works=True, check=status),
    "ui": Row(works=True, check=ui),
    "up": Row(works=True, check=up),
    "wiretap": Row(works=True, check=wiretap),
}


async def nothing_chosen(stage: Stage) -> None:
    """Without a cluster every command says what was looked for."""
    done = await stage.run("list", KUBECONFIG=str(stage.folder / "none"))
    assert done.code == 1, done
    assert done.error.startswith("sidestep: no kubeconfig found (")
    assert "Linux only" in done.error


def _served(stage: Stage) -> list[tuple[str, bool]]:
    """The sessions that the daemon serves."""
    return [(each.uid, each.heads_only) for each in stage.node.cluster.intercepts()]


async def gone(stage: Stage) -> None:
    """Wait until the daemon serves nothing any more."""
    await until(lambda: not _served(stage), what="the session to be gone")
