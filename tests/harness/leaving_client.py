"""A TLS client that says nothing and leaves, in one of the ways in which clients do: `python -m` this module.

    silent     FIN, or a reset where something of the server is unread: what close(2) makes of it
    reset      a reset
    notify     close_notify, then as `silent`
    alert      bad_certificate after the handshake: a pin that is compared later
    handshake  as `silent`, once the server has shown its certificate
    late       as `silent`, but SPARE seconds later: a connection that was made ahead
    waits      once the server has ended the connection
    asks       a request, then as `silent` once it is answered
    stays      a request, and another one for each line of its input; says of each that it is answered

It trusts the authorities of a file, offers HTTP/1.1 by ALPN if it is told to, and prints the issuer of the certificate
that it was shown.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import sys
import tempfile
import time
from http.client import HTTPConnection
from itertools import chain
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

PATIENCE = 20.0
SPARE = 3.0
"""Seconds; more than `refusal.AT_ONCE`."""
BAD_CERTIFICATE = 42
"""RFC 8446 section 6."""
REQUEST = b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n"


def alert_record(secret: bytes, description: int) -> bytes:
    """The fatal alert that a client sends as its first record, in TLS 1.3 with AES-256-GCM (RFC 8446, 5.2 and 7.3)."""

    def expanded(label: bytes, length: int) -> bytes:
        info = struct.pack("!HB", length, 6 + len(label)) + b"tls13 " + label + b"\0"
        return HKDFExpand(SHA384(), length, info).derive(secret)

    inner = bytes((2, description, 21))
    head = struct.pack("!BHH", 23, 0x0303, len(inner) + 16)
    return head + AESGCM(expanded(b"key", 32)).encrypt(expanded(b"iv", 12), inner, head)


def client_secret(path: Path) -> bytes:
    """The client's traffic secret from a file of keys (SSLKEYLOGFILE)."""
    lines = (line.split() for line in path.read_text().splitlines())
    return next(bytes.fromhex(line[2]) for line in lines if line[0] == "CLIENT_TRAFFIC_SECRET_0")


def leave_in_handshake(raw: socket.socket, context: ssl.SSLContext, name: str) -> None:
    """Say hello and read on until the server's part of the handshake is there."""
    said, saying = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(said, saying, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        raw.sendall(saying.read())
    while not saying.pending:
        said.write(raw.recv(65536))
        try:
            tls.do_handshake()  # what it would answer is never sent
        except ssl.SSLWantReadError:
            pass


def main(host: str, port: str, name: str, ca: str, alpn: str, way: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if alpn:
        context.set_alpn_protocols([alpn])
    with (
        tempfile.NamedTemporaryFile() as keys,
        socket.create_connection((host, int(port)), timeout=PATIENCE) as raw,
    ):
        if way == "handshake":
            leave_in_handshake(raw, context, name)
            return
        context.keylog_filename = keys.name
        with context.wrap_socket(raw, server_hostname=name, do_handshake_on_connect=False) as tls:
            tls.do_handshake()
            issuer = dict(one for each in (tls.getpeercert() or {})["issuer"] for one in each)
            print(issuer["commonName"], flush=True)
            if way == "asks":
                tls.sendall(REQUEST)
                tls.recv(65536)
            elif way == "stays":
                kept = HTTPConnection(name)
                kept.sock = tls
                for _ in chain(("",), sys.stdin):
                    kept.request("GET", "/")
                    kept.getresponse().read()
                    print("answered", flush=True)
            elif way == "late":
                time.sleep(SPARE)
            elif way == "alert":
                os.write(tls.fileno(), alert_record(client_secret(Path(keys.name)), BAD_CERTIFICATE))
            elif way == "reset":
                tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif way == "notify":
                tls.settimeout(0.0)
                try:
                    tls.unwrap()
                except (ssl.SSLError, OSError):
                    pass  # the server's own is not waited for
            elif way == "waits":
                try:
                    while tls.recv(65536):
                        pass
                except OSError:
                    pass


if __name__ == "__main__":
    main(*sys.argv[1:])
