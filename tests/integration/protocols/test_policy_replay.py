"""`sidestep policy check --replay` on what dumpcap captured of curl: HTTP/1 and HTTP/2, gzip, a server with TLS."""

import gzip
import json
import subprocess

from tests.harness.authority import Authority
from tests.harness.cli import sidestep
from tests.harness.http2 import any_app
from tests.harness.peers import Server, server_context
from tests.harness.waiting import until
from tests.integration.protocols.test_replay import captured

POLICY = """
apiVersion: sidestep.dev/v1alpha1
kind: InspectionPolicy
metadata: {name: orders, namespace: shop}
spec:
  podSelector: {matchLabels: {app: orders}}
  mode: Enforce
  failurePolicy: Fail
  rules:
  - {name: no-admin, action: Block, match: {paths: [{match: Prefix, value: /admin}]}}
  - {name: cards, action: Block, patterns: [{builtin: CardNumber}]}
  - {name: leaks, action: Alert, direction: Response, patterns: [{builtin: CardNumber}]}
"""
CARD = "card=4111 1111 1111 1111"


def curl(port, target, *options, scheme="http"):
    url = f"{scheme}://127.0.0.1:{port}{target}"
    subprocess.run(["curl", "-s", "-k", "-o", "/dev/null", *options, url], timeout=60, check=True)


def test_what_curl_asked_for(tmp_path):
    file, policy = tmp_path / "curl.pcapng", tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    zipped = tmp_path / "body.gz"
    zipped.write_bytes(gzip.compress(CARD.encode()))
    context = server_context(Authority().issue("localhost"))
    with Server(any_app) as server, captured("lo", server.port, file):
        curl(server.port, "/")
        curl(server.port, "/a/../%61dmin?key=hunter2", "--path-as-is")
        curl(server.port, "/echo", "--data", CARD)
        curl(server.port, "/bytes/10", "-H", "Content-Encoding: gzip", "--data-binary", f"@{zipped}")
        for target in ("/", "/admin"):
            curl(server.port, target, "--http2-prior-knowledge")
        curl(server.port, "/echo", "--http2-prior-knowledge", "--data", CARD)

        def last_seen():
            # The kernel hands packets over in blocks: later ones push out those that are waited for.
            curl(server.port, "/later")
            return file.exists() and file.read_bytes().count(b"GET /later") > 1

        until(last_seen, within=30, every=0.2, what="the capture to hold what was said")
    result = sidestep("policy", "check", policy, "--replay", file, "--output", "json", within=60)
    assert result.code == 0, result
    said = [json.loads(line) for line in result.stdout.splitlines()]
    requests = [each for each in said if each["event"] == "request" and each["target"] != "/later"]
    assert [(each["protocol"], each["target"], each["verdict"], hits(each)) for each in requests] == [
        ("http/1", "/", "Pass", []),
        ("http/1", "/a/../%61dmin?key=[redacted]", "Block", ["no-admin"]),
        ("http/1", "/echo", "Block", ["cards", "leaks"]),
        ("http/1", "/bytes/10", "Block", ["cards"]),
        ("h2", "/", "Pass", []),
        ("h2", "/admin", "Block", ["no-admin"]),
        ("h2", "/echo", "Block", ["cards", "leaks"]),
    ]
    assert "hunter2" not in result.stdout
    assert "4111" not in result.stdout
    assert not [each for each in said if each["event"] == "not-inspected"]

    file = tmp_path / "tls.pcapng"
    with Server(any_app, tls=context) as server, captured("lo", server.port, file):
        curl(server.port, "/admin", scheme="https")

        def tls_seen():
            curl(server.port, "/later", scheme="https")
            return file.exists() and file.stat().st_size > 8000

        until(tls_seen, within=30, every=0.2, what="the capture to hold a handshake")
    result = sidestep("policy", "check", policy, "--replay", file, within=60)
    assert result.code == 0, result
    assert "not inspected: tls" in result.stdout
    assert "0 requests" in result.stdout


def hits(request):
    return [each["rule"] for each in request["hits"]]
