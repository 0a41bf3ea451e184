"""PEM as people have it: what a real nginx loads and serves from two files, and what a pod proxy serves from the same.

Each row is read by a one-shot child and loaded by a pod proxy's `Credentials`. Where nginx starts, the same chain is
served, each certificate once; where it does not, the reason names the file and, where there is one, the block.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import re
import socket
import ssl
import subprocess
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from sidestep.node.certificates.reader import Reader
from sidestep.node.certificates.requests import Folder, ReadRequest
from sidestep.protocols.pem import blocks
from sidestep.proxy.tls.credentials import Credentials
from sidestep.snapshots.ports import PortSnapshot
from tests.harness.authority import Authority
from tests.harness.processes import Process
from tests.harness.waiting import until

pytestmark = pytest.mark.privileged

AUTHORITY = Authority("Root")
LEAF = AUTHORITY.issue("orders.shop")
RSA = AUTHORITY.issue("orders.shop", kind="rsa")
OTHER = Authority("Other").issue("other.shop")
LEAF_PEM, KEY, ROOT = LEAF.chain, LEAF.key, AUTHORITY.pem
SECOND = Authority("Second").pem
ROWS = LEAF_PEM.splitlines(keepends=True)


def openssl(*words, stdin):
    return subprocess.run(["openssl", *words], input=stdin, capture_output=True, check=True, timeout=20).stdout


def made_by_openssl(kind):
    """A self-signed certificate whose key is of this kind, and the key."""
    options = ["-pkeyopt", "ec_paramgen_curve:P-256"] if kind == "EC" else []
    key = openssl("genpkey", "-algorithm", kind, *options, stdin=b"")
    with contextlib.ExitStack() as stack:
        fd = os.memfd_create("key")
        stack.callback(os.close, fd)
        os.write(fd, key)
        words = ["req", "-x509", "-subj", "/CN=orders.shop", "-days", "9", "-key", f"/proc/{os.getpid()}/fd/{fd}"]
        return openssl(*words, "-addext", "subjectAltName=DNS:orders.shop", stdin=b""), key


def indented(text, by=b"  "):
    return b"".join(by + row for row in text.splitlines(keepends=True))


TRUSTED = openssl("x509", "-trustout", "-addtrust", "serverAuth", stdin=LEAF_PEM)
DESCRIBED = openssl("x509", "-text", stdin=LEAF_PEM)
SEC1 = openssl("ec", stdin=KEY)
PARAMETERS = openssl("ecparam", "-name", "prime256v1", stdin=b"")
PKCS1 = openssl("rsa", "-traditional", stdin=RSA.key)
LOCKED = openssl("pkcs8", "-topk8", "-passout", "pass:abcd", stdin=KEY)
BLANK = openssl("pkcs8", "-topk8", "-passout", "pass:", stdin=KEY)
LOCKED_PKCS1 = openssl("rsa", "-traditional", "-aes128", "-passout", "pass:abcd", stdin=RSA.key)
JUNK = b"-----BEGIN PRIVATE KEY-----\n@@@@\n-----END PRIVATE KEY-----\n"

LOADED = {
    "plain": (LEAF_PEM, KEY),
    "a chain": (LEAF_PEM + ROOT + SECOND, KEY),
    "root in the middle": (LEAF_PEM + SECOND + ROOT, KEY),
    "key and certificates in one file": (KEY + LEAF_PEM + ROOT, KEY + LEAF_PEM + ROOT),
    "key behind the certificates": (LEAF_PEM + ROOT + KEY, LEAF_PEM + ROOT + KEY),
    "several keys": (LEAF_PEM, KEY + OTHER.key),
    "trusted certificate": (TRUSTED, KEY),
    "trusted certificate in the chain": (LEAF_PEM + openssl("x509", "-trustout", stdin=ROOT) + SECOND, KEY),
    "text between": (DESCRIBED + b"\nissuer's:\n" + ROOT, b"Bag Attributes\n    localKeyID: 01\n" + KEY),
    "CRLF": (LEAF_PEM.replace(b"\n", b"\r\n"), KEY.replace(b"\n", b"\r\n")),
    "byte order marks": (b"\xef\xbb\xbf" + LEAF_PEM, b"\xef\xbb\xbf" + KEY),
    "no line feed at the end": (LEAF_PEM.rstrip(), KEY.rstrip()),
    "rubbish at the end": (LEAF_PEM + b"rubbish", KEY + b"\xff\xfe rubbish"),
    "long lines": (ROWS[0] + b"".join(row.strip() for row in ROWS[1:-1]) + b"\n" + ROWS[-1], KEY),
    "indented data": (ROWS[0] + indented(b"".join(ROWS[1:-1])) + ROWS[-1], KEY),
    "comments with dashes": (b"----- leaf -----\n-----BEGIN of it\n" + LEAF_PEM, b"-----\n" + KEY),
    "SEC 1": (LEAF_PEM, SEC1),
    "EC parameters": (LEAF_PEM, PARAMETERS + SEC1),
    "PKCS #1": (RSA.chain, PKCS1),
    "a broken key before the good one": (LEAF_PEM, JUNK + KEY),
    "an encrypted key behind the good one": (LEAF_PEM, KEY + LOCKED),
    "leaf twice": (LEAF_PEM + LEAF_PEM + ROOT, KEY),
    "Ed25519": made_by_openssl("ED25519"),
    "Ed448": made_by_openssl("ED448"),
}
"""Content of tls.crt and tls.key."""

REFUSED = {
    "root first": (ROOT + LEAF_PEM, KEY, r"tls\.key: block 1 .*does not belong.*which is block 1.*belongs to block 2"),
    "another's key": (LEAF_PEM, OTHER.key, r"tls\.key: block 1 \(PRIVATE KEY\).*does not belong"),
    "another's key first": (LEAF_PEM, OTHER.key + KEY, r"tls\.key: block 1 \(PRIVATE KEY\).*does not belong"),
    "a key of another kind": (LEAF_PEM, RSA.key, r"tls\.key: block 1 \(PRIVATE KEY\).*does not belong"),
    "UTF-16": (LEAF_PEM.decode().encode("utf-16"), KEY, r"tls\.crt: .*UTF-16"),
    "DER": (openssl("x509", "-outform", "DER", stdin=LEAF_PEM), KEY, r"tls\.crt: .*DER"),
    "indented": (indented(LEAF_PEM), KEY, r"tls\.crt: .*indented"),
    "indented key": (LEAF_PEM, indented(KEY), r"tls\.key: .*indented"),
    "empty line within": (b"".join(ROWS[:3]) + b"\n" + b"".join(ROWS[3:]), KEY, r"tls\.crt: block 1 \(CERTIFICATE\)"),
    "a broken one in the chain": (LEAF_PEM + ROOT[:200], KEY, r"tls\.crt: block 2 \(CERTIFICATE\).*no -----END"),
    "no certificate at all in it": (LEAF_PEM + ROWS[0] + b"AAAA\n" + ROWS[-1], KEY, r"tls\.crt: block 2 .*malformed"),
    "encrypted": (LEAF_PEM, LOCKED, r"tls\.key: block 1 \(ENCRYPTED PRIVATE KEY\).*is encrypted"),
    "encrypted with a blank password": (LEAF_PEM, BLANK, r"tls\.key: block 1 \(ENCRYPTED PRIVATE KEY\).*is encrypted"),
    "encrypted the old way": (RSA.chain, LOCKED_PKCS1, r"tls\.key: block 1 \(RSA PRIVATE KEY\).*is encrypted"),
    "a broken key": (LEAF_PEM, JUNK, r"tls\.key: block 1 \(PRIVATE KEY\) cannot be read: its data is not base64"),
    "a certificate for a key": (LEAF_PEM, LEAF_PEM, r"tls\.key: holds no private key, only CERTIFICATE"),
    "a public key": (
        LEAF_PEM,
        openssl("pkey", "-pubout", stdin=KEY),
        r"tls\.key: holds no private key, only PUBLIC KEY",
    ),
    "a key for a certificate": (KEY, KEY, r"tls\.crt: holds no certificate, only PRIVATE KEY"),
    "empty": (b"", b"", r"tls\.crt: .*no block"),
}
"""Content of tls.crt and tls.key, and what the reason says."""


CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; events {{ }}
http {{ access_log off; client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {folder}/tls.crt; ssl_certificate_key {folder}/tls.key; }} }}
"""


def client():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def served(sock):
    """The chain that a server shows, DER."""
    with client().wrap_socket(sock, server_hostname="orders.shop") as secured:
        return [each.public_bytes(2) for each in secured._sslobj.get_unverified_chain()]  # no public way before 3.13


def by_nginx(folder):
    """The chain that nginx serves; None when it does not."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, port=port))
    command = ["nginx", "-c", str(configuration), "-e", str(folder / "start.log")]
    # Without a terminal nobody can be asked for a passphrase.
    if subprocess.run(
        ["setsid", *command, "-t"], capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=20
    ).returncode:
        return None
    with Process(command, log=folder / "log"):

        def connected():
            with contextlib.suppress(ConnectionRefusedError):
                return socket.create_connection(("127.0.0.1", port), timeout=10)
            return None

        try:
            return served(until(connected, within=20, what="nginx to listen"))
        except ssl.SSLError:
            return None  # it starts with a key that is not the certificate's kind, and then can serve nobody


def by_us(folder):
    """What a one-shot child says about the folder, and the chain that a pod proxy serves."""

    async def read():
        reader = Reader()
        try:
            source = Folder(((str(folder), None),), "/")
            summary, _ = await reader.read(ReadRequest(source, ca_alone=False))
            if summary.identity is None:
                return summary, None
            return await reader.read(ReadRequest(source, ca_alone=False, deliver=summary.identity.name))
        finally:
            reader.close()

    summary, fd = asyncio.run(read())
    if fd is None:
        return summary, None
    store = Credentials(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    store.add("identity", "identity", fd)
    context = store.downstream(PortSnapshot(443, "tcp", "always", "probe", (), identity="identity"), None)
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    theirs.settimeout(10)

    def serve():
        with contextlib.suppress(OSError), context.wrap_socket(ours, server_side=True) as sock:
            sock.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        return summary, served(theirs)
    finally:
        thread.join(10)
        store.keep(set())


@pytest.mark.parametrize("name", LOADED)
def test_what_nginx_serves_is_served(tmp_path, name):
    certificate, key = LOADED[name]
    (tmp_path / "tls.crt").write_bytes(certificate)
    (tmp_path / "tls.key").write_bytes(key)
    expected = by_nginx(tmp_path)
    assert expected is not None
    summary, found = by_us(tmp_path)
    assert summary.problems == ()
    assert found == list(dict.fromkeys(expected))


@pytest.mark.parametrize("name", REFUSED)
def test_what_nginx_refuses_is_refused_with_the_block(tmp_path, name):
    certificate, key, reason = REFUSED[name]
    (tmp_path / "tls.crt").write_bytes(certificate)
    (tmp_path / "tls.key").write_bytes(key)
    assert by_nginx(tmp_path) is None
    summary, found = by_us(tmp_path)
    assert found is None
    assert re.search(reason, "; ".join(summary.problems)), summary.problems


def test_one_file_with_everything_needs_no_other(tmp_path):
    (tmp_path / "tls.crt").write_bytes(KEY + LEAF_PEM + ROOT)
    summary, found = by_us(tmp_path)
    assert summary.problems == ()
    assert len(found) == 2


CRL = (
    x509.CertificateRevocationListBuilder()
    .issuer_name(AUTHORITY.name)
    .last_update(dt.datetime(2025, 1, 1, tzinfo=dt.UTC))
    .next_update(dt.datetime(2045, 1, 1, tzinfo=dt.UTC))
    .sign(AUTHORITY._key, hashes.SHA256())
    .public_bytes(serialization.Encoding.PEM)
)
BUNDLES = {
    "several": ROOT + SECOND,
    "duplicates": ROOT + SECOND + ROOT,
    "text and a key": b"# Root\n" + ROOT + KEY + b"# Second\n" + SECOND,
    "trusted": openssl("x509", "-trustout", "-addtrust", "serverAuth", stdin=ROOT) + SECOND,
    "CRLF, mark, no end": b"\xef\xbb\xbf" + (ROOT + SECOND).replace(b"\n", b"\r\n").rstrip(),
    "a CRL": ROOT + CRL + SECOND,
}


@pytest.mark.parametrize("name", BUNDLES)
def test_bundles_of_authorities_are_loaded_whole_and_once(tmp_path, name):
    LEAF.write(tmp_path)
    (tmp_path / "ca.crt").write_bytes(BUNDLES[name])

    async def read():
        reader = Reader()
        try:
            source = Folder(((str(tmp_path), None),), "/")
            summary, _ = await reader.read(ReadRequest(source, ca_alone=False))
            assert summary.problems == ()
            return await reader.read(ReadRequest(source, ca_alone=False, deliver=summary.trust.name))
        finally:
            reader.close()

    _, fd = asyncio.run(read())
    text = os.pread(fd, 1 << 20, 0)
    assert len(list(blocks(text, limit=9))) == 2
    store = Credentials(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    store.add("trust", "trust", fd)
    port = PortSnapshot(443, "tcp", "always", "probe", (), upstream_trust="trust")
    assert len(store.upstream(port)._context.get_ca_certs()) == 2
    store.keep(set())
