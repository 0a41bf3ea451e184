"""The harness itself against un-steered reality: what it says without Sidestep, Sidestep is compared with."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest

from sidestep.model.errors import SidestepError
from sidestep.steering import compile_program
from sidestep.steering.compiler import CHILD
from tests.e2e import cgroups, machine
from tests.harness import kernel
from tests.harness.authority import Authority
from tests.harness.compiled_once.bcc import VARIABLE
from tests.harness.curl import curl
from tests.harness.namespaces import pod_namespace
from tests.harness.nginx import client_context, nginx
from tests.harness.node import COMPILED_ONCE, Node
from tests.harness.peers import Client, Server, digest_of, http_app, server_context
from tests.harness.processes import child
from tests.harness.waiting import until

pytestmark = pytest.mark.privileged


@pytest.mark.parametrize(("kind", "protocol"), [("rsa", "TLSv1.2"), ("ecdsa", "TLSv1.3")])
def test_nginx_answers_curl_over_both_families(tmp_path, kind, protocol):
    authority = Authority()
    ca = authority.issue("orders.shop.test", kind=kind).write(tmp_path / "client") / "ca.crt"
    with pod_namespace() as space:
        listen = [f"{space.ip}:8443", f"[{space.ip6}]:8443"]
        certificate = authority.issue("orders.shop.test", kind=kind)
        with nginx(space.pod, tmp_path / "n", listen=listen, certificate=certificate, protocols=protocol) as app:
            for address in space.ips:
                answer = curl(space.client, "https://orders.shop.test:8443/", address=address, ca=ca)
                assert (answer.code, answer.status, answer.text, answer.served_by) == (0, 200, "app\n", "app")
            digest = app.big_file("some", 3_000_000)
            answer = curl(space.client, "https://orders.shop.test:8443/files/some", address=space.ip, ca=ca)
            assert hashlib.sha256(answer.body).hexdigest() == digest
            url = "https://orders.shop.test:8443/upload/some"
            answer = curl(space.client, url, "-T", app.root / "some", address=space.ip, ca=ca)
            assert answer.status == 201
            assert (app.root / "upload/some").read_bytes() == (app.root / "some").read_bytes()
            logged = until(lambda: len(app.requests()) == 4 and app.requests(), within=5, what="four log lines")
            assert {line["tls"] for line in logged} == {protocol}
            slow = curl(space.client, "https://orders.shop.test:8443/slow/1", address=space.ip, ca=ca)
            assert slow.text == "slow\n"
        assert kernel.steering(space.pod).links == frozenset()
        assert not kernel.listeners(space.pod)


def test_our_peers_speak_http_and_record():
    authority = Authority()
    server_tls, client_tls = server_context(authority.issue("orders.shop.test")), client_context(authority.pem)
    with (
        pod_namespace(ipv6=False) as space,
        Server(http_app, netns=space.pod, address=space.ip, port=8443, tls=server_tls) as app,
        Client(space.ip, 8443, netns=space.client, tls=client_tls, server_name="orders.shop.test") as client,
    ):
        assert client.get("/").body == b"app\n"
        assert client.get("/chunked").trailers == b"X-Trailer: app\r\n"
        assert client.get("/bytes/1000000").digest == digest_of(1_000_000)
        echoed = client.request(b"POST /echo HTTP/1.1\r\ntransfer-ENCODING: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        assert echoed.body == b"abc"
        assert b"transfer-ENCODING" in app.connections[0].received
        assert app.connections[0].server_name == "orders.shop.test"
        assert app.connections[0].tls == "TLSv1.3"


def test_a_deleted_pod_takes_its_veth_pair_along():
    with pod_namespace() as space:
        assert space.peer_exists()
        space.delete_pod()
        until(lambda: not space.peer_exists(), within=2, what="the veth pair to go")


def test_daemons_compile_a_source_once_per_run_unless_they_are_measured(tmp_path, monkeypatch):
    real = asyncio.run(compile_program())
    for name, value in (("PYTHONPATH", COMPILED_ONCE), (VARIABLE, tmp_path)):
        monkeypatch.setenv(name, str(value))
    assert asyncio.run(compile_program()) == real
    # Without clang's library only what was compiled before can be had.
    hidden = 'for l in $(ls /usr/lib/*/libbcc.so.0); do mount --bind /dev/null $l; done; exec "$0" "$@"'
    command = ("unshare", "--mount", "sh", "-c", hidden, *CHILD)
    assert asyncio.run(compile_program(command=command)) == real
    monkeypatch.setenv(VARIABLE, str(tmp_path / "other"))
    with pytest.raises(SidestepError, match="libbcc"):
        asyncio.run(compile_program(command=command))


@pytest.mark.parametrize("measured", [False, True])
def test_which_daemons_share_it(tmp_path, monkeypatch, measured):
    monkeypatch.setattr(Node, "compiles", measured)
    assert (VARIABLE in Node(tmp_path).variables()) is not measured


def test_what_a_killed_end_to_end_run_left_is_swept_but_not_what_a_run_in_a_room_uses():
    """A run in a room has a number of the room's in its names, which here may be nobody's."""
    with child(["true"]) as ended:
        ended.wait(20)
    name = f"sdk-{ended.pid}"
    try:
        cgroups.make(name)
        held = cgroups.hold(name)
        machine.sweep()
        assert (cgroups.roots()[0] / name).exists()
        os.close(held)
        machine.sweep()
        assert not [root for root in cgroups.roots() if (root / name).exists()]
    finally:
        cgroups.remove(name)
