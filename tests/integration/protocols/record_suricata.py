"""Records which names Suricata's EVE records have, as the expectations of tests/unit/protocols/test_eve.py.

    python -m tests.integration.protocols.record_suricata ROOT

ROOT is a root that debootstrap made of Debian 13, with its suricata in it. Suricata reads a capture that is synthesised
here: HTTP/1, HTTP/2, TLS with a client's certificate, a request that breaks its protocol. Written down are the types of
records, and for each the paths of its members with their JSON types, nothing of their values.
"""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import h2.connection
from h2.config import H2Configuration

from sidestep.protocols import pcapng
from sidestep.protocols.tcp_synthesis import Conversation, Endpoint
from tests.harness.authority import Authority
from tests.harness.tls_peers import load
from tests.unit.protocols.json_paths import paths

FILE = Path(__file__).parents[2] / "unit" / "protocols" / "suricata_names.json"

CONFIGURATION = """%YAML 1.1
---
default-log-dir: /tmp/eve
classification-file: /etc/suricata/classification.config
reference-config-file: /etc/suricata/reference.config
outputs:
  - eve-log:
      enabled: yes
      filetype: regular
      filename: eve.json
      types:
        - alert
        - anomaly: {enabled: yes, types: {decode: no, stream: no, applayer: yes}}
        - http: {extended: yes, dump-all-headers: both}
        - http2
        - tls:
            custom: [subject, issuer, session_resumed, serial, fingerprint, sni, version, not_before, not_after,
                     ja3, ja3s, ja4, client]
        - files: {force-hash: [sha256]}
        - flow
        - stats
app-layer:
  protocols:
    http: {enabled: yes}
    http2: {enabled: yes}
    tls: {enabled: yes, ja3-fingerprints: yes, ja4-fingerprints: yes, detection-ports: {dp: 443}}
stats: {enabled: yes, interval: 1}
"""
RULES = 'alert http any any -> any any (msg:"no admin"; http.uri; content:"/admin"; sid:1000001; rev:1; priority:2;)\n'

Said = list[tuple[bool, bytes]]


def http1() -> Said:
    """A redirect, an exchange that a rule tells, one with bodies."""
    request = b"GET /admin?x=1 HTTP/1.1\r\nHost: a.test:8080\r\nUser-Agent: u\r\nReferer: http://r.test/\r\n"
    answer = (
        b"HTTP/1.1 302 Found\r\nLocation: /next\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 2\r\n"
    )
    body = b"POST /body HTTP/1.1\r\nHost: a.test\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
    return [
        (True, request + b"X-Forwarded-For: 192.0.2.7\r\n\r\n"), (False, answer + b"\r\nno"),
        (True, body), (False, b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nworld"),
    ]  # fmt: skip


def http2() -> Said:
    """One exchange."""
    client = h2.connection.H2Connection()
    server = h2.connection.H2Connection(H2Configuration(client_side=False))
    client.initiate_connection()
    names = [(":method", "GET"), (":path", "/two"), (":scheme", "http"), (":authority", "a.test"), ("user-agent", "u")]
    client.send_headers(1, [*names, ("host", "a.test")], end_stream=True)
    server.initiate_connection()
    said = [(True, client.data_to_send())]
    server.receive_data(said[0][1])
    server.send_headers(1, [(":status", "200"), ("content-type", "text/plain"), ("content-length", "4")])
    server.send_data(1, b"body", end_stream=True)
    return [*said, (False, server.data_to_send())]


def tls() -> Said:
    """A handshake of TLS 1.2 in which both ends show certificates."""
    authority = Authority()
    server_context, client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (server_context, client_context):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=authority.pem.decode())
        load(context, authority.issue("app.test", client=True))
    server_context.verify_mode = ssl.CERT_REQUIRED
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname="app.test")
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    said: Said = []
    for _ in range(4):
        for end, outgoing in ((client, to_server), (server, to_client)):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            if data := outgoing.read():
                said.append((end is client, data))
                outgoing.write(data)
    return said


def broken() -> Said:
    """A request that breaks HTTP/1."""
    return [
        (True, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: x\r\n\r\n"),
        (False, b"HTTP/1.1 400 no\r\n\r\n"),
    ]


def capture() -> bytes:
    """All of it in one file."""
    blocks = [pcapng.section(application="Sidestep"), pcapng.interface("pod")]
    for number, (said, port) in enumerate(((http1(), 80), (http2(), 80), (tls(), 443), (broken(), 80))):
        conversation = Conversation(Endpoint("10.0.0.1", 40000 + number), Endpoint("10.0.0.2", port))
        packets = conversation.opening()
        for from_client, data in said:
            packets += conversation.data(data, from_client=from_client)
        packets += conversation.finish(from_client=True) + conversation.finish(from_client=False)
        blocks += [pcapng.packet(0, 10**18 + at * 10**6, packet) for at, packet in enumerate(packets)]
    return b"".join(blocks)


def main(root: str) -> None:
    """Run Suricata in the root and write the file."""
    folder = Path(root, "tmp", "eve")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "suricata.yaml").write_text(CONFIGURATION)
    (folder / "local.rules").write_text(RULES)
    (folder / "capture.pcapng").write_bytes(capture())
    command = "suricata -c /tmp/eve/suricata.yaml -S /tmp/eve/local.rules -r /tmp/eve/capture.pcapng -l /tmp/eve"
    subprocess.run(["chroot", root, *command.split()], check=True)
    names: dict[str, dict[str, str]] = {}
    for line in (folder / "eve.json").read_text().splitlines():
        record = json.loads(line)
        names.setdefault(record["event_type"], {}).update(paths(record))
    names["stats"] = {path: kind for path, kind in names["stats"].items() if path.count(".") == 0}
    FILE.write_text(json.dumps(names, indent=1, sort_keys=True) + "\n")
    print(f"{len(names)} types of records in {FILE}")


if __name__ == "__main__":
    main(sys.argv[1])
