"""TLS of a pod that is opened with certificates of a policy's CA, to real servers: HTTP/1, HTTP/2, gRPC, WebSocket; and
clients and servers whose TLS cannot be opened."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import ssl
import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from sidestep.model.egress import EgressMode
from sidestep.model.filter import Filter, PathCondition, PathTest
from sidestep.model.inspection import Action, Builtin, Direction, Match, Pattern, Rule
from tests.harness import grpc_peer
from tests.harness.apache import apache
from tests.harness.authority import Authority
from tests.harness.cgroups import inside
from tests.harness.nginx import nginx
from tests.harness.processes import Process
from tests.harness.tls_peers import load
from tests.harness.waiting import until
from tests.harness.websocket_peers import websocket_server
from tests.privileged.node.outward import TLS, outbound, policy, was_reset

pytestmark = pytest.mark.privileged

ADMIN = Rule("no-admin", Action.BLOCK, match=Match(Filter(paths=(PathCondition(PathTest.PREFIX, "/admin"),))))
CARDS = Rule("cards", Action.BLOCK, patterns=(Pattern(builtin=Builtin.CARD_NUMBER),))
CARD = "4111 1111 1111 1111"
ISSUER = Authority("Egress CA")


def decrypting(*rules, **fields):
    return policy(*rules, opens=EgressMode.DECRYPT, **{"trust": "authority", "issuer": "issuer", **fields})


@contextlib.asynccontextmanager
async def opened(program, tmp_path, *rules, secrets=None, **fields):
    """A pod that trusts the policy's CA as well as the servers' (`pod.both`), that alone (`pod.issuer`), or theirs
    alone (`pod.authority`)."""
    found = {"issuer": ISSUER.pair, **(secrets or {})}
    async with outbound(program, tmp_path, decrypting(*rules, **fields), secrets=found) as pod:
        pod.issuer, pod.both = tmp_path / "issuer.pem", tmp_path / "both.pem"
        pod.issuer.write_bytes(ISSUER.pem)
        pod.both.write_bytes(ISSUER.pem + pod.authority.read_bytes())
        yield pod


async def ask(pod, name="api.test", *options, ca=None, path="", port=TLS):
    """What curl says that trusts these authorities, by default the policy's CA and no other."""
    return await pod.asked(name, "--cacert", str(ca or pod.issuer), *options, port=port, path=path)


def answered(done):
    """The status and the version of HTTP."""
    assert done.returncode == 0, done.stderr
    words = done.stdout.rsplit("\n", 1)[1].split()
    return int(words[0][-3:]), words[-1]


@pytest.mark.parametrize(("option", "version"), [("--http2", "2"), ("--http1.1", "1.1")])
def test_requests_are_judged_and_the_server_is_spoken_to_as_the_client_wants(program, tmp_path, option, version):
    async def go():
        async with opened(program, tmp_path, ADMIN, CARDS) as pod:
            assert answered(await ask(pod, "api.test", option)) == (200, version)
            assert answered(await ask(pod, "api.test", option, path="admin/users")) == (403, version)
            assert answered(await ask(pod, "api.test", option, "-d", f"card={CARD}")) == (403, version)
            assert answered(await ask(pod, "api.test", option, "--tls-max", "1.2")) == (200, version)
            seen = pod.web.requests()
            assert [(each["sni"], each["tls"]) for each in seen] == [("api.test", "TLSv1.3")] * 2
            await pod.counted(outbound=4, outbound_opened=4, inspection_blocked=2)
            assert pod.some.conditions.all() == ()

    asyncio.run(go())


def test_answers_are_judged(program, tmp_path):
    async def go():
        rule = Rule("app", Action.BLOCK, Direction.RESPONSE, patterns=(Pattern(regex="app"),))
        async with opened(program, tmp_path, rule) as pod:
            assert answered(await ask(pod))[0] == 403
            assert answered(await ask(pod, "api.test", "--http1.1"))[0] == 403
            assert len(pod.web.requests()) == 2

    asyncio.run(go())


def test_the_certificate_is_for_the_name_and_of_the_policys_ca(program, tmp_path):
    async def go():
        async with opened(program, tmp_path) as pod:
            command = (
                "openssl", "s_client", "-connect", f"{pod.space.client_ip}:{TLS}", "-servername", "paste.test",
                "-CAfile", str(pod.issuer), "-verify_return_error", "-verify_hostname", "paste.test", "-alpn", "h2",
            )  # fmt: skip
            done = await asyncio.to_thread(pod.run, *command)
            assert "Verify return code: 0 (ok)" in done.stdout, done.stdout + done.stderr
            assert "issuer=CN = Egress CA" in done.stdout.replace("CN=", "CN = ")
            assert "ALPN protocol: h2" in done.stdout

    asyncio.run(go())


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("name", ["other.test", "api.test"])
def test_a_server_that_does_not_verify_is_left_to_the_client(program, tmp_path, name, fail):
    """For another name, or of another authority. The client sees the server's own certificate, and what is wrong."""

    async def go():
        secrets = {"another": Authority("Another CA").pem}
        trust = "authority" if name == "other.test" else "another"
        async with opened(program, tmp_path, ADMIN, trust=trust, fail=fail, secrets=secrets) as pod:
            done = await ask(pod, name, ca=pod.issuer)
            if fail:
                assert was_reset(done)
                assert was_reset(await ask(pod, name, "-k", path="admin"))
                assert pod.web.requests() == []
                await pod.counted(inspection_closed_server_unverified=2, outbound_opened=None)
            else:
                assert done.returncode == 60, done.stderr
                assert answered(await ask(pod, name, "-k", path="admin"))[0] == 200
                await pod.counted(inspection_bypassed_server_unverified=2, outbound_opened=None)

    asyncio.run(go())


@pytest.mark.parametrize("fail", [False, True])
def test_a_client_that_does_not_trust_the_ca_is_left_alone_from_its_second_connection_on(program, tmp_path, fail):
    async def go():
        async with opened(program, tmp_path, ADMIN, fail=fail) as pod:
            assert (await ask(pod, ca=pod.authority)).returncode == 60
            await pod.counted(inspection_closed_client_refuses_certificate=1)
            done = await ask(pod, ca=pod.authority, path="admin")
            if fail:
                assert was_reset(done)
                assert pod.web.requests() == []
                await pod.counted(inspection_closed_client_refuses_certificate=2)
            else:
                assert answered(done)[0] == 200
                await pod.counted(inspection_bypassed_client_refuses_certificate=1)
            assert (await ask(pod, "paste.test", ca=pod.authority)).returncode == 60, (
                "of another server it is not known"
            )

    asyncio.run(go())


def test_a_client_that_compares_the_key_after_the_handshake_is_left_alone_after_two_connections(program, tmp_path):
    """A busy machine may give curl its turn later than `refusal.AT_ONCE`: then it counts as spare, and the client
    is left alone from a later connection on."""

    async def go():
        async with opened(program, tmp_path, ADMIN) as pod:
            pin = pinned(tmp_path / "web" / "tls" / "tls.crt")
            assert answered(await ask(pod, ca=pod.both))[0] == 200
            for _ in range(2):
                done = await ask(pod, "api.test", "--pinnedpubkey", pin, ca=pod.both, path="admin")
                assert done.returncode == 90, done.stderr
            for _ in range(LATE):
                done = await ask(pod, "api.test", "--pinnedpubkey", pin, ca=pod.both, path="admin")
                if done.returncode != 90:
                    break
            assert answered(done)[0] == 200
            await pod.counted(inspection_bypassed_client_refuses_certificate=1)
            assert pod.counters["inspection_closed_client_refuses_certificate"] >= 2

    asyncio.run(go())


LATE = 5
"""Connections that may end too late on a busy machine."""


def pinned(certificate):
    """The pin of a certificate's key, as curl takes it."""
    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return "sha256//" + base64.b64encode(hashlib.sha256(der).digest()).decode()


@pytest.mark.parametrize("fail", [False, True])
def test_a_request_for_another_host_is_told_and_refused_where_a_policy_fails_closed(program, tmp_path, fail):
    """Its server is not the one under whose name the connection was verified. It is judged by its own name, too."""
    paste = Rule("no-paste", Action.BLOCK, match=Match(server_names=("paste.test",)))

    async def go():
        async with opened(program, tmp_path, ADMIN, paste, fail=fail) as pod:
            for option in ("--http1.1", "--http2"):
                status = answered(await ask(pod, "api.test", option, "-H", "Host: other.test"))[0]
                assert (status == 200) is not fail
                for host in ("paste.test", "paste.test:"):
                    assert answered(await ask(pod, "api.test", option, "-H", f"Host: {host}"))[0] == 403
                assert answered(await ask(pod, "api.test", option, "-H", "Host: API.test:443"))[0] == 200
            outcome = "closed" if fail else "bypassed"
            await pod.counted(**{f"inspection_{outcome}_request_another_host": 6, "inspection_blocked": 4})
            assert len(pod.web.requests()) == (2 if fail else 4)

    asyncio.run(go())


@pytest.mark.parametrize("fail", [False, True])
def test_a_server_that_wants_the_clients_certificate(program, tmp_path, fail):
    async def go():
        async with opened(program, tmp_path, ADMIN, fail=fail) as pod:
            clients = Authority("Clients")
            own = clients.issue("robot", client=True).write(tmp_path / "robot")
            served = Authority("Servers")
            (tmp_path / "ca.pem").write_bytes(pod.authority.read_bytes() + served.pem)
            pod.some.secrets.texts["authority"] = served.pem
            await pod.program(decrypting(ADMIN, fail=fail, name="next"))
            address = f"{pod.space.client_ip}:8444"
            certificate = served.issue("api.test")
            with nginx(
                pod.space.client, tmp_path / "mutual", listen=[address], certificate=certificate,
                verify_clients=clients.pem, http2=True,
            ) as web:  # fmt: skip
                pair = ("--cert", str(own / "tls.crt"), "--key", str(own / "tls.key"))
                done = await ask(pod, "api.test", *pair, ca=pod.authority, path="admin", port=8444)
                if fail:
                    assert was_reset(done)
                    assert web.requests() == []
                    await pod.counted(inspection_closed_client_certificate_requested=1)
                else:
                    assert answered(done)[0] == 200
                    assert [each["subject"] for each in web.requests()] == ["CN=robot"]
                    await pod.counted(inspection_bypassed_client_certificate_requested=1)

    asyncio.run(go())


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_server_that_asks_for_a_certificate_once_it_has_read_the_request(program, tmp_path, version):
    """Its first connection is ended unanswered; from the next one on the client answers for itself."""

    async def go():
        async with opened(program, tmp_path, ADMIN) as pod:
            clients, served = Authority("Clients"), Authority("Servers")
            own = clients.issue("robot", client=True).write(tmp_path / "robot")
            (tmp_path / "all.pem").write_bytes(ISSUER.pem + served.pem)
            pod.some.secrets.texts["authority"] = served.pem
            await pod.program(decrypting(ADMIN, name="next"))
            with apache(
                pod.space.client, tmp_path / "apache", listen=[f"{pod.space.client_ip}:8448"],
                certificate=served.issue("api.test"), clients=clients.pem, name="api.test",
            ):  # fmt: skip
                pair = ("--cert", str(own / "tls.crt"), "--key", str(own / "tls.key"), "--tls-max", version)
                assert answered(await ask(pod, "api.test", *pair, ca=tmp_path / "all.pem", port=8448))[0] in (200, 403)
                done = await ask(pod, "api.test", *pair, ca=tmp_path / "all.pem", path="required/", port=8448)
                assert done.returncode or answered(done)[0] in (403, 502), done.stdout
                done = await ask(pod, "api.test", *pair, "-i", ca=tmp_path / "all.pem", path="required/", port=8448)
                assert "CN=robot" in done.stdout, done.stdout + done.stderr
                await pod.counted(inspection_bypassed_client_certificate_requested=1)

    asyncio.run(go())


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_client_that_resumes_its_sessions(program, tmp_path, version):
    async def go():
        async with opened(program, tmp_path) as pod:
            session = tmp_path / "session"
            base = (
                "openssl", "s_client", "-connect", f"{pod.space.client_ip}:{TLS}", "-servername", "api.test",
                "-CAfile", str(pod.issuer), "-verify_return_error", version, "-ign_eof",
            )  # fmt: skip
            first = await asyncio.to_thread(said, pod, *base, "-sess_out", str(session))
            assert "HTTP/1.1 200" in first
            second = await asyncio.to_thread(said, pod, *base, "-sess_in", str(session))
            assert "HTTP/1.1 200" in second
            assert "Reused, TLSv1" in second, second
            await pod.counted(outbound_opened=2, outbound_closed=None)

    asyncio.run(go())


GET = "GET / HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n"


def said(pod, *command):
    """What a command of the pod's prints that is given a request."""
    words = inside(pod.folder, pod.space.pod.enter(command))
    done = subprocess.run(words, input=GET, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    return done.stdout + done.stderr


def test_early_data_is_refused_and_the_request_is_sent_again(program, tmp_path):
    """A session of the server's own, from before the policy: its early data is not read, and nothing of it is lost."""

    async def go():
        async with opened(program, tmp_path, ADMIN) as pod:
            session, early = tmp_path / "session", tmp_path / "early"
            early.write_text(GET.replace("GET / ", "GET /admin "))
            issued = Authority("Early")
            (tmp_path / "early-ca.pem").write_bytes(issued.pem + ISSUER.pem)
            pod.some.secrets.texts["authority"] = issued.pem
            address = f"{pod.space.client_ip}:8445"
            base = (
                "openssl", "s_client", "-connect", address, "-servername", "api.test",
                "-CAfile", str(tmp_path / "early-ca.pem"), "-verify_return_error", "-ign_eof",
            )  # fmt: skip
            with nginx(
                pod.space.client, tmp_path / "early-server", listen=[address], certificate=issued.issue("api.test"),
                extra="ssl_early_data on;",
            ) as web:  # fmt: skip
                await pod.program(policy())
                first = await asyncio.to_thread(said, pod, *base, "-sess_out", str(session))
                assert "Max Early Data: 16384" in first, first
                await pod.program(decrypting(ADMIN, name="next"))
                second = await asyncio.to_thread(said, pod, *base, "-sess_in", str(session), "-early_data", str(early))
                assert "Early data was rejected" in second, second
                assert "HTTP/1.1 200" in second, second
                assert [each["uri"] for each in web.requests()] == ["/", "/"]
                await pod.counted(outbound_opened=1, inspection_blocked=None)

    asyncio.run(go())


def test_a_ca_that_may_not_sign_for_the_name_opens_nothing(program, tmp_path):
    async def go():
        some = Authority("Constrained", permitted=["api.test"])
        async with opened(program, tmp_path, secrets={"issuer": some.pair}) as pod:
            (tmp_path / "some.pem").write_bytes(some.pem)
            assert answered(await ask(pod, ca=tmp_path / "some.pem"))[0] == 200
            assert answered(await ask(pod, "paste.test", ca=pod.authority))[0] == 200
            await pod.counted(outbound_opened=1, inspection_bypassed_issuer_constrained=1)

    asyncio.run(go())


@pytest.mark.parametrize("fail", [False, True])
def test_without_a_ca_nothing_is_opened(program, tmp_path, fail):
    async def go():
        async with opened(program, tmp_path, issuer="none", fail=fail) as pod:
            done = await ask(pod, ca=pod.authority)
            if fail:
                assert was_reset(done)
                await pod.counted(inspection_closed_no_issuer=1)
            else:
                assert answered(done)[0] == 200
                await pod.counted(inspection_bypassed_no_issuer=1)

    asyncio.run(go())


def test_a_certificate_that_is_no_ca_is_told_of(program, tmp_path):
    async def go():
        leaf = Authority("Some").issue("leaf.test")
        async with opened(program, tmp_path, secrets={"issuer": leaf.key + leaf.chain}) as pod:
            assert answered(await ask(pod, ca=pod.authority))[0] == 200
            await pod.counted(inspection_bypassed_no_trust=1)
            assert "is not that of a CA" in pod.some.texts()

    asyncio.run(go())


def test_grpc(program, tmp_path):
    async def go():
        rule = Rule("cards", Action.BLOCK, patterns=(Pattern(builtin=Builtin.CARD_NUMBER),))
        async with opened(program, tmp_path, rule) as pod:
            served = Authority("Servers")
            pod.some.secrets.texts["authority"] = served.pem
            await pod.program(decrypting(rule, name="next"))
            tls = served.issue(grpc_peer.HOST).write(tmp_path / "grpc")
            address = f"{pod.space.client_ip}:8446"
            serve = [sys.executable, "-m", "tests.harness.grpc_peer", "serve", "far", address, "--tls", tls]
            with Process(pod.space.client.enter(serve), log=tmp_path / "grpc.log") as process:
                until(lambda: "8446" in process.text(), within=20, what=process.text)
                wishes = [
                    {"method": "Get"},
                    {"method": "Chat", "messages": ["a", "b"]},
                    {"method": "Get", "messages": [CARD]},
                ]
                call = [sys.executable, "-m", "tests.harness.grpc_peer", "call", address, "--ca", str(pod.issuer)]
                words = inside(pod.folder, pod.space.pod.enter(call))
                done = await asyncio.to_thread(
                    subprocess.run,
                    words,
                    input=json.dumps(wishes),
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=60,
                    check=False,
                )
                assert done.returncode == 0, done.stderr
                get, chat, card = json.loads(done.stdout)
                assert get["answers"] == ["far 1"]
                assert chat["answers"] == ["far a", "far b"]
                assert card["code"] == "PERMISSION_DENIED", card
                await pod.counted(outbound_opened=1, inspection_blocked=1)

    asyncio.run(go())


def test_a_websocket(program, tmp_path):
    async def go():
        rule = Rule("cards", Action.BLOCK, patterns=(Pattern(builtin=Builtin.CARD_NUMBER),))
        async with opened(program, tmp_path, rule) as pod:
            served = Authority("Servers")
            pod.some.secrets.texts["authority"] = served.pem
            await pod.program(decrypting(rule, name="next"))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            load(context, served.issue("api.test"))
            received: list[object] = []
            with websocket_server(
                "far", netns=pod.space.client, address=pod.space.client_ip, port=8447, tls=context, received=received
            ):
                script = tmp_path / "client.py"
                script.write_text(CLIENT)
                command = (sys.executable, str(script), pod.space.client_ip, "8447", str(pod.issuer), CARD)
                done = await asyncio.to_thread(pod.run, *command)
                assert done.returncode == 0, done.stderr
                assert done.stdout.split("\n")[:2] == ["far", "hello"]
                assert "closed" in done.stdout
                assert received == ["hello"]
                await pod.counted(outbound_opened=1, inspection_blocked=1)

    asyncio.run(go())


CLIENT = """
import asyncio, ssl, sys
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

async def main(host, port, ca, card):
    context = ssl.create_default_context(cafile=ca)
    async with connect("wss://api.test/", host=host, port=int(port), ssl=context, server_hostname="api.test") as there:
        print(await there.recv())
        await there.send("hello")
        print(await there.recv())
        await there.send(card)
        try:
            print(await there.recv())
        except ConnectionClosed:
            print("closed")

asyncio.run(main(*sys.argv[1:]))
"""


def test_the_next_connection_of_a_policy_that_is_gone_is_not_opened(program, tmp_path):
    async def go():
        async with opened(program, tmp_path, ADMIN) as pod:
            assert answered(await ask(pod, path="admin"))[0] == 403
            await pod.program(policy())
            assert answered(await ask(pod, ca=pod.authority, path="admin"))[0] == 200

    asyncio.run(go())
