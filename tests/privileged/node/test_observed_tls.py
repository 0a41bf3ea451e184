"""TLS of an observed pod is between the pod and its server: pins, certificates of clients, early data."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from ipaddress import ip_network

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from sidestep.model.inspection import Action, Match, Rule
from tests.harness.authority import Authority
from tests.harness.nginx import nginx
from tests.privileged.node.outward import TLS, Records, outbound, policy, succeeded
from tests.privileged.node.test_decryption import GET, said

pytestmark = pytest.mark.privileged

PORT = 8445
NO_PASTE = Rule("no-paste", Action.BLOCK, match=Match(server_names=("paste.test",)))


def test_a_client_that_pins_and_one_with_a_certificate_of_its_own_meet_their_server(program, tmp_path):
    async def go():
        async with outbound(program, tmp_path, policy(NO_PASTE, fail=True)) as pod:
            own = Authority("Clients").issue("robot", client=True)
            files = own.write(tmp_path / "robot")
            served = Authority("Servers").issue("api.test")
            pod.authority.write_bytes(served.ca)
            address = f"{pod.space.client_ip}:{PORT}"
            with nginx(
                pod.space.client, tmp_path / "mutual", listen=[address], certificate=served, verify_clients=own.ca
            ) as web:
                options = ("--cert", str(files / "tls.crt"), "--key", str(files / "tls.key"), "--pinnedpubkey")
                done = await pod.asked("api.test", *options, pin(served), port=PORT)
                assert succeeded(done, pod.space.client_ip)
                assert [each["subject"] for each in web.requests()] == ["CN=robot"]
                other = await pod.asked("api.test", *options, pin(own), port=PORT)
                assert other.returncode == 90, "curl: the public key does not match the pinned one"
            await pod.counted(outbound=2, outbound_closed=None)

    asyncio.run(go())


def pin(certificate):
    """The public key of a certificate as curl wants it."""
    key = x509.load_pem_x509_certificate(certificate.chain).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    digest = hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).digest()
    return f"sha256//{base64.b64encode(digest).decode()}"


NO_NET = Rule("no-net", Action.BLOCK, match=Match(networks=(ip_network("192.0.2.0/24"),)))
UNNAMED = {
    "no-server-name": ("-noservername",),
    "encrypted-client-hello": ("-servername", "api.test", "-serverinfo", "65037"),
}
"""Options of a client whose name is not known: with an empty extension of the number of an encrypted ClientHello
(RFC 9849), as servers see it that do not know of it."""


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("rule", [NO_PASTE, NO_NET], ids=["by name", "by address"])
def test_tls_without_a_name_and_with_an_encrypted_hello(program, tmp_path, rule, fail):
    """Where a rule depends on names, it is told, or closed under Fail; else it passes. All that is seen is recorded."""

    async def go():
        records = Records()
        async with outbound(program, tmp_path, policy(rule, fail=fail), records=records) as pod:
            for why, options in UNNAMED.items():
                command = ("openssl", "s_client", "-connect", f"{pod.space.client_ip}:{TLS}", "-ign_eof", *options)
                answer = await asyncio.to_thread(said, pod, *command)
                is_closed = fail and rule is NO_PASTE
                assert ("HTTP/1.1 200" in answer) is not is_closed, answer
                told = "closed" if is_closed else "bypassed"
                expected = 1 if rule is NO_PASTE else None
                await pod.counted(**{f"inspection_{told}_{why.replace('-', '_')}": expected})

            def found(kind):
                return [each for each in records.made if each.event_type == kind]

            await pod.some.until(lambda: len(found("flow")) == 2)
            unnamed, encrypted = found("tls")
            assert (unnamed.tls.sni, encrypted.tls.sni) == (None, "api.test")
            assert (unnamed.sidestep.host, encrypted.sidestep.host) == (None, "api.test")
            assert unnamed.sidestep.tls is None
            assert encrypted.sidestep.tls.ech
            assert {(each.dest_ip, each.dest_port) for each in records.made} == {(pod.space.client_ip, TLS)}
            assert [each.anomaly.event for each in found("anomaly")] == ([*UNNAMED] if rule is NO_PASTE else [])

    asyncio.run(go())


def test_early_data_reaches_its_server_as_such(program, tmp_path):
    async def go():
        async with outbound(program, tmp_path, policy(NO_PASTE, fail=True)) as pod:
            session, early = tmp_path / "session", tmp_path / "early"
            early.write_text(GET.replace("GET / ", "GET /early "))
            served = Authority("Servers").issue("api.test")
            (tmp_path / "served.pem").write_bytes(served.ca)
            address = f"{pod.space.client_ip}:{PORT}"
            command = (
                "openssl", "s_client", "-connect", address, "-servername", "api.test",
                "-CAfile", str(tmp_path / "served.pem"), "-verify_return_error", "-ign_eof",
            )  # fmt: skip
            with nginx(
                pod.space.client, tmp_path / "early-server", listen=[address], certificate=served,
                extra="ssl_early_data on;",
            ) as web:  # fmt: skip
                first = await asyncio.to_thread(said, pod, *command, "-sess_out", str(session))
                assert "Max Early Data: 16384" in first, first
                second = await asyncio.to_thread(
                    said, pod, *command, "-sess_in", str(session), "-early_data", str(early)
                )
                assert "Early data was accepted" in second, second
                assert "/early" in [each["uri"] for each in web.requests()]
            await pod.counted(outbound=2, outbound_closed=None)

    asyncio.run(go())
