"""TLS of an observed pod is between the pod and its server: pins, certificates of clients, early data."""

from __future__ import annotations

import asyncio
import base64
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from sidestep.model.inspection import Action, Match, Rule
from tests.harness.authority import Authority
from tests.harness.nginx import nginx
from tests.privileged.node.outward import outbound, policy, succeeded
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
