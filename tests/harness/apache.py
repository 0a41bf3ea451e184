"""A real Apache httpd inside a namespace, which asks for client certificates by location.

Locations
    /            no certificate is asked for
    /required/   `SSLVerifyClient require`
    /optional/   `SSLVerifyClient optional`

It asks once it has read the request: by post-handshake authentication in TLS 1.3, by a renegotiation in TLS 1.2. Every
answer has `X-Served-By: app` and, in `X-Subject`, the subject of the client's certificate as Apache saw it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.harness.authority import Certificate
from tests.harness.namespaces import Netns
from tests.harness.nginx import listening_ports
from tests.harness.processes import Process
from tests.harness.waiting import until

_CONFIG = """
ServerRoot /usr/lib/apache2
LoadModule mpm_event_module modules/mod_mpm_event.so
LoadModule authz_core_module modules/mod_authz_core.so
LoadModule dir_module modules/mod_dir.so
LoadModule headers_module modules/mod_headers.so
LoadModule ssl_module modules/mod_ssl.so
ServerName {name}
User nobody
Group nogroup
StartServers 1
PidFile {folder}/apache.pid
ErrorLog {folder}/error.log
LogLevel info
DefaultRuntimeDir {folder}
Mutex file:{folder} default
{listen}
DocumentRoot {root}
<Directory {root}>
  Require all granted
</Directory>
SSLEngine on
SSLProtocol {protocols}
SSLCertificateFile {folder}/tls/tls.crt
SSLCertificateKeyFile {folder}/tls/tls.key
SSLCACertificateFile {folder}/clients.crt
Header always set X-Served-By app
Header always set X-Subject "%{{SSL_CLIENT_S_DN}}s"
<Location /required/>
  SSLVerifyClient require
</Location>
<Location /optional/>
  SSLVerifyClient optional
</Location>
"""


@contextlib.contextmanager
def apache(
    netns: Netns,
    folder: Path,
    *,
    listen: Sequence[str],
    certificate: Certificate,
    clients: bytes,
    name: str,
    protocols: str = "-all +TLSv1.2 +TLSv1.3",
) -> Iterator[Process]:
    """Start Apache on `listen` ("10.0.0.2:8443"); `clients` is the CA (PEM) that client certificates come from."""
    certificate.write(folder / "tls")
    (folder / "clients.crt").write_bytes(clients)
    lines = "\n".join(f"Listen {address}" for address in listen)
    config = folder / "apache.conf"
    with tempfile.TemporaryDirectory(prefix="sidestep-apache-") as root:
        _fill(Path(root))
        config.write_text(_CONFIG.format(folder=folder, root=root, listen=lines, name=name, protocols=protocols))
        with _running(netns, config, {address.rpartition(":")[2] for address in listen}) as process:
            yield process


def _fill(root: Path) -> None:
    """Pages that Apache's own user can read."""
    root.chmod(0o755)
    for location in ("", "required", "optional"):
        (root / location).mkdir(exist_ok=True)
        (root / location / "index.html").write_text("app\n")


@contextlib.contextmanager
def _running(netns: Netns, config: Path, ports: set[str]) -> Iterator[Process]:
    folder = config.parent
    command = netns.enter(["/usr/sbin/apache2", "-f", config, "-DFOREGROUND"])
    with Process(command, log=folder / "apache.log") as process:
        until(
            lambda: not process.running or ports <= listening_ports(netns),
            within=10,
            what=lambda: f"Apache to listen\n{process.text()}",
        )
        assert process.running, process.text() + (folder / "error.log").read_text()
        yield process
