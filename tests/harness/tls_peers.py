"""Apps and clients for TLS tests: recording apps, client certificates, a mirror of nginx, openssl's own tools."""

from __future__ import annotations

import contextlib
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.harness.authority import Certificate
from tests.harness.namespaces import Netns
from tests.harness.nginx import listening_ports
from tests.harness.peers import Connection, Server
from tests.harness.processes import Process
from tests.harness.waiting import until

VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}


def load(context: ssl.SSLContext, certificate: Certificate) -> None:
    """Give a context a certificate with its key, by way of a memfd."""
    fd = os.memfd_create("certificate")
    try:
        os.write(fd, certificate.key + certificate.chain)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def client_tls(
    ca: bytes, *, certificate: Certificate | None = None, alpn: Sequence[str] = (), version: str | None = None
) -> ssl.SSLContext:
    """A verifying client context; `version` pins "TLSv1.2" or "TLSv1.3"."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.decode())
    if version is not None:
        context.minimum_version = context.maximum_version = VERSIONS[version]
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if certificate is not None:
        load(context, certificate)
    return context


def serial_of(sock: ssl.SSLSocket) -> int:
    """The serial number of the peer's certificate."""
    return int((sock.getpeercert() or {})["serialNumber"], 16)  # type: ignore[arg-type]


class ClientRecords:
    """What an app's TLS handshakes showed: the subject of each client's certificate, and whether it resumed."""

    def __init__(self) -> None:
        self.server: Server | None = None
        """The app whose clients these are."""
        self.subjects: list[str] = []
        self.resumed: list[bool] = []
        self.heads: list[bytes] = []
        self._lock = threading.Lock()

    def app(self, server: Server, connection: Connection) -> None:
        """The script of an HTTP/1.1 app that writes down its clients."""
        sock = connection.sock
        if isinstance(sock, ssl.SSLSocket):
            subject: Any = (sock.getpeercert() or {}).get("subject", ())
            with self._lock:
                self.subjects.append(",".join(str(value) for one in subject for _, value in one))
                self.resumed.append(bool(sock.session_reused))
        while True:
            head = connection.reader.until(b"\r\n\r\n")
            with self._lock:
                self.heads.append(bytes(head))
            body = server.name.encode() + b"\n"
            connection.send(
                b"HTTP/1.1 200 OK\r\nX-Served-By: %b\r\nContent-Length: %d\r\n\r\n%b"
                % (server.name.encode(), len(body), body)
            )


@contextlib.contextmanager
def s_server(netns: Netns, folder: Path, port: int, certificate: Certificate, *options: str) -> Iterator[Process]:
    """`openssl s_server -www`, which answers each GET with a page about the connection."""
    tls = certificate.write(folder / "s_server")
    command: list[str | Path] = [
        "openssl",
        "s_server",
        "-accept",
        str(port),
        "-www",
        "-cert",
        tls / "tls.crt",
        "-key",
        tls / "tls.key",
    ]
    with Process(netns.enter([*command, *options]), log=folder / "s_server.log") as process:
        until(lambda: str(port) in listening_ports(netns), within=10, what=process.text)
        yield process


def s_client(netns: Netns, address: str, port: int, *options: str | Path, text: str, within: float = 10.0) -> str:
    """`openssl s_client` that sends one text; everything it printed."""
    command = ["openssl", "s_client", "-connect", f"{address}:{port}", "-ign_eof", "-servername", "orders.shop.test"]
    done = subprocess.run(
        netns.enter([*command, *options]), input=text.encode(), capture_output=True, timeout=within, check=False
    )
    return (done.stdout + done.stderr).decode(errors="replace")


MIRROR = "$server_protocol|$ssl_protocol|$ssl_client_s_dn|$ssl_session_reused|$http_x_forwarded_client_cert"
"""What `mirror` answers with, for nginx."""


def mirror(hosts: Sequence[str], port: int, folder: Path, *, protocols: str, clients: bytes | None = None) -> str:
    """An nginx server block (for `extra`) over HTTP/1.1 and HTTP/2 that says in its answer what it saw of the client.

    The certificate is expected in `folder`/tls, where `nginx` writes it; `clients` is the CA of the clients it wants.
    """
    verify = ""
    if clients is not None:
        (folder / "wanted.crt").write_bytes(clients)
        verify = f"ssl_verify_client on; ssl_client_certificate {folder}/wanted.crt;"
    listen = " ".join(f"listen {host}:{port} ssl http2;" for host in hosts)
    return (
        f"server {{ {listen} ssl_certificate {folder}/tls/tls.crt; ssl_certificate_key {folder}/tls/tls.key; "
        f"ssl_protocols {protocols}; {verify} add_header X-Served-By app always; underscores_in_headers on; "
        f'location / {{ default_type text/plain; return 200 "{MIRROR}"; }} }}'
    )
