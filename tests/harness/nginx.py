"""A real nginx inside a namespace, with a configuration made for the test.

Locations
    /           "app\n"; X-Served-By: app
    /echo       the request's body
    /slow/N     answers after N tenths of a second (1-9), headers held back
    /files/…    static files of `root`; `big_file` makes one
    /upload/…   PUT stores the body under `root`/upload
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.harness import cgroups
from tests.harness.authority import Certificate
from tests.harness.namespaces import Netns
from tests.harness.processes import Process
from tests.harness.waiting import until

ECHO_MODULE = "/usr/lib/nginx/modules/ngx_http_echo_module.so"
"""Debian's libnginx-mod-http-echo, a dependency of nginx-light."""

_CONFIG = """
load_module {module};
daemon off; user root; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log info;
events {{ worker_connections 4096; }}
http {{
  log_format line escape=json '{{"connection":$connection,"number":$connection_requests,"client":"$remote_addr",'
    '"method":"$request_method","uri":"$request_uri","status":$status,"tls":"$ssl_protocol",'
    '"sni":"$ssl_server_name","subject":"$ssl_client_s_dn","length":$request_length}}';
  access_log {folder}/access.log line;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  default_type application/octet-stream; keepalive_requests 1000000; client_max_body_size 0; sendfile on;
  {extra}
  server {{
    {listen}
    server_name _; add_header X-Served-By app always;
    {tls}
    location = / {{ default_type text/plain; return 200 "app\\n"; }}
    location = /echo {{ echo_read_request_body; echo_request_body; }}
    location ~ ^/slow/([1-9])$ {{ echo_sleep 0.$1; echo slow; }}
    location /files/ {{ alias {root}/; }}
    location /upload/ {{ root {root}; dav_methods PUT; create_full_put_path on; }}
    location / {{ default_type text/plain; return 200 "app\\n"; }}
  }}
}}
"""


class Nginx:
    """A running nginx; `pid` is the master process."""

    def __init__(self, process: Process, folder: Path, root: Path) -> None:
        self.process = process
        self.folder = folder
        self.root = root

    @property
    def pid(self) -> int:
        return self.process.pid

    def requests(self) -> list[dict[str, Any]]:
        """The access log so far. A client may have an answer before nginx has logged it: wait until it rests."""
        until(lambda: not any(_works(pid) for pid in self._workers()), within=10, what="nginx to rest")
        return [json.loads(line) for line in (self.folder / "access.log").read_text().splitlines()]

    def _workers(self) -> list[str]:
        """Their pids; none once it has ended."""
        try:
            return Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        except OSError:
            return []

    def big_file(self, name: str, size: int) -> str:
        """Make a file of `size` bytes that differs everywhere; returns its SHA-256 in hex."""
        return write_big_file(self.root / name, size)


def _works(pid: str) -> bool:
    """Whether a process runs, or would if it had a processor."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "RD"
    except OSError:
        return False  # it has ended


def write_big_file(path: Path, size: int) -> str:
    """Write `size` pseudo-random bytes; returns their SHA-256 in hex."""
    digest = hashlib.sha256()
    block = hashlib.shake_256(b"sidestep").digest(1 << 20)
    with open(path, "wb") as file:
        written = 0
        while written < size:
            piece = (written.to_bytes(8, "big") + block[8:])[: size - written]
            file.write(piece)
            digest.update(piece)
            written += len(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def nginx(
    netns: Netns,
    folder: Path,
    *,
    listen: Sequence[str] = (),
    plain: Sequence[str] = (),
    certificate: Certificate | None = None,
    protocols: str = "TLSv1.2 TLSv1.3",
    verify_clients: bytes | None = None,
    http2: bool = False,
    extra: str = "",
    cgroup: Path | None = None,
) -> Iterator[Nginx]:
    """Start nginx.

    `listen` are its addresses ("10.0.0.2:8443", "[::]:8443"), with TLS when there is a certificate, `plain` those
    without ("10.0.0.2:8080 http2" is HTTP/2 by prior knowledge); `verify_clients` is a CA in PEM that client
    certificates must come from; `extra` goes into the http block; `cgroup` is where it starts (sockets belong to the
    cgroup in which they were made).
    """
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / "root"
    root.mkdir(exist_ok=True)
    tls, flags = "", ""
    if certificate is not None:
        certificate.write(folder / "tls")
        flags = " ssl http2" if http2 else " ssl"
        tls = f"ssl_certificate {folder}/tls/tls.crt; ssl_certificate_key {folder}/tls/tls.key;"
        tls += f" ssl_protocols {protocols};"
    if verify_clients is not None:
        (folder / "clients.crt").write_bytes(verify_clients)
        tls += f" ssl_verify_client on; ssl_client_certificate {folder}/clients.crt;"
    lines = " ".join([*(f"listen {address}{flags};" for address in listen), *(f"listen {one};" for one in plain)])
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(module=ECHO_MODULE, folder=folder, root=root, listen=lines, tls=tls, extra=extra))
    (folder / "access.log").touch()
    command = netns.enter(["nginx", "-e", folder / "error.log", "-c", config, "-p", folder])
    if cgroup is not None:
        command = cgroups.inside(cgroup, command)
    with Process(command, log=folder / "nginx.log") as process:
        ports = {address.split()[0].rpartition(":")[2] for address in [*listen, *plain]}
        until(
            lambda: not process.running or ports <= listening_ports(netns),
            within=10,
            what=lambda: f"nginx to listen\n{process.text()}",
        )
        assert process.running, process.text()
        yield Nginx(process, folder, root)


def listening_ports(netns: Netns) -> set[str]:
    """The TCP ports on which anything listens in a namespace."""
    lines = netns.run("ss", "-Hltn").splitlines()
    return {line.split()[3].rpartition(":")[2] for line in lines}


def client_context(ca: bytes | None, *, alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """A verifying client context that trusts `ca` (PEM) only; with None, one that verifies nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=ca.decode())
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context
