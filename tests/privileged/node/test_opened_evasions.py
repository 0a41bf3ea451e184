"""The ways around rules of `tests.unit.engine.inspection.test_evasions`, sent by a pod to a real server, in clear HTTP
that leaves as it came, in clear HTTP that is originated and in TLS that is opened: nothing reaches the server where a
policy fails closed, and each is told. In clear there are those around destinations as well (`HOSTS`).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from hpack import Encoder

from sidestep.model.egress import EgressMode
from sidestep.model.inspection import Mode
from sidestep.protocols.detection import HTTP2_PREFACE
from sidestep.protocols.http2 import frame
from tests.harness.authority import Authority
from tests.harness.cgroups import inside
from tests.harness.nginx import nginx
from tests.privileged.node.outward import Records, outbound, policy
from tests.unit.engine.inspection.inspecting import NO_ADMIN, NO_SECRET
from tests.unit.engine.inspection.test_evasions import HTTP1, HTTP2, headers, line

pytestmark = pytest.mark.privileged

ISSUER, SERVERS = Authority("Egress CA"), Authority("Servers")
SETTINGS = frame(4, 0, 0, b"")
CLEAR, TLS, READ, READ_H2 = 8081, 8444, 8083, 8084
CLIENT = """
import base64, json, socket, ssl, sys
from concurrent.futures import ThreadPoolExecutor

host, port, name, ca, alpn = sys.argv[1:]
context = None
if ca:
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols([alpn])

def send(text):
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        try:
            sock = context.wrap_socket(raw, server_hostname=name) if context else raw
            sock.sendall(base64.b64decode(text))
            if not context:
                sock.shutdown(socket.SHUT_WR)
            sock.settimeout(1)
            while sock.recv(65536):
                pass
        except (OSError, ValueError):
            pass

with ThreadPoolExecutor(8) as pool:
    list(pool.map(send, json.load(sys.stdin)))
"""


@dataclass
class Talk:
    """As much of a conversation as rows of HTTP/2 need."""

    encoder: Encoder = field(default_factory=Encoder)


GOOD = b"GET /good HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n"


HOSTS = [
    line(b"/admin", host=b"Host: APP.test.:8083\r\n"),
    line(b"/admin", host=b"Host: other.test\r\n"),
    line(b"/admin", host=b"Host: app.test:\r\n"),
    line(b"/admin", host=b"Host: app.test, other.test\r\n"),
    line(b"/admin", host=b"Host: user@app.test\r\n"),
    line(b"http://app.test/admin"),
    line(b"http://app.test/admin", host=b"Host: other.test\r\n"),
    line(b"/admin", rest=b"X-Forwarded-Host: other.test\r\n"),
    line(b"/admin", rest=b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n"),
]
"""Around the name of the destination: each asks for `/admin`, by another host or in another form."""
PIPELINED = [GOOD.replace(b"Connection: close\r\n", b"") + each for each in (HOSTS[0], HOSTS[1], HOSTS[5])]
"""Behind a request that passes."""


LINES = [
    GOOD.replace(b"GET /good", target)
    for target in (b"GET  /admin", b"GET \t/admin", b"\tGET /admin", b" GET  /admin", b"GET abc://app.test/admin")
]
"""Request lines that are none (RFC 9112 section 3), and that servers take for one."""


def http1():
    return GOOD, [said for _, said, _ in HTTP1]


def in_clear():
    return GOOD, [*http1()[1], *HOSTS, *LINES, *PIPELINED]


def http2():
    made = [HTTP2_PREFACE + SETTINGS + send(Talk()) for send in (headers(path=b"/good"), *(row[1] for row in HTTP2))]
    return made[0], made[1:]


@contextlib.asynccontextmanager
async def scene(program, tmp_path, opens, records, *, fail):
    """The pod, and a server for the name in the rows."""
    mode = Mode.ENFORCE if fail else Mode.DETECT
    fields = {} if opens is EgressMode.OBSERVE else {"trust": "servers"}
    fields |= {"issuer": "issuer"} if opens is EgressMode.DECRYPT else {}
    made = policy(NO_ADMIN, NO_SECRET, opens=opens, mode=mode, fail=fail, **fields)
    secrets = {"issuer": ISSUER.pair, "servers": SERVERS.pem}
    async with outbound(program, tmp_path, made, secrets=secrets, records=records) as pod:
        (tmp_path / "issuer.pem").write_bytes(ISSUER.pem)
        (tmp_path / "client.py").write_text(CLIENT)
        with nginx(
            pod.space.client, tmp_path / "far", listen=[f"{pod.space.client_ip}:{port}" for port in (CLEAR, TLS)],
            plain=[f"{pod.space.client_ip}:{READ}", f"{pod.space.client_ip}:{READ_H2} http2"],
            certificate=SERVERS.issue("app.test"), http2=True,
        ) as web:  # fmt: skip
            yield pod, web


def run(pod, folder, rows, *words):
    command = [sys.executable, folder / "client.py", pod.space.client_ip, *words]
    return subprocess.run(
        inside(pod.folder, pod.space.pod.enter(command)),
        input=json.dumps([base64.b64encode(each).decode() for each in rows]),
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


WAYS = {
    "clear": (EgressMode.ORIGINATE, http1, (str(CLEAR), "app.test", "", "")),
    "TLS": (EgressMode.DECRYPT, http1, (str(TLS), "app.test", "CA", "http/1.1")),
    "clear as it came": (EgressMode.OBSERVE, in_clear, (str(READ), "app.test", "", "")),
    "HTTP/2 in clear": (EgressMode.OBSERVE, http2, (str(READ_H2), "app.test", "", "")),
    "HTTP/2": (EgressMode.DECRYPT, http2, (str(TLS), "app.test", "CA", "h2")),
}


@pytest.mark.parametrize("fail", [True, False], ids=["Enforce+Fail", "Detect"])
@pytest.mark.parametrize("way", WAYS)
def test_the_table(program, tmp_path, way, fail):
    opens, made, words = WAYS[way]
    words = tuple(str(tmp_path / "issuer.pem") if word == "CA" else word for word in words)
    (good, rows), records = made(), Records()

    def told():
        """The connections of which an alert or an anomaly tells."""
        return {each.flow_id for each in records.made if each.event_type in ("alert", "anomaly")}

    async def go():
        async with scene(program, tmp_path, opens, records, fail=fail) as (pod, web):
            for each in ([good], rows):
                done = await asyncio.to_thread(run, pod, tmp_path, each, *words)
                assert done.returncode == 0, done.stderr
            await pod.counted(outbound=1 + len(rows))
            await pod.some.until(lambda: len(told()) >= len(rows), within=20)
            assert all(each.sidestep.direction == "egress" for each in records.made)
            if fail:
                passed = [each for each in rows if each.startswith(b"GET /good ")]
                asked = [
                    each["uri"] for each in web.requests() if each["method"]
                ]  # one row is a preface of HTTP/2 alone
                assert asked == ["/good"] * (1 + len(passed))

    asyncio.run(go())
