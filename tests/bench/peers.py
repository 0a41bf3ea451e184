"""Other programs that do the same job as the pod proxy, in the pod's network namespace, each on the proxy's core.

haproxy, with which most rows are compared, has its configuration in `tests.bench.arena`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from tests.bench.cpu import PROXY_CORE
from tests.harness.nginx import listening_ports
from tests.harness.processes import Process
from tests.harness.scene import HOST, TLS_PORT, Shop
from tests.harness.waiting import until

GO_TLS, MITMPROXY_TLS, NGINX_TLS = 9446, 9448, 9450

_NGINX = """
daemon off; user root; worker_processes 1; pid {folder}/peer.pid; error_log {folder}/peer-error.log;
events {{ worker_connections 16384; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s; http2_max_concurrent_streams 1024;
  client_body_temp_path {folder}/peer-body; proxy_temp_path {folder}/peer-proxy;
  fastcgi_temp_path {folder}/peer-fastcgi; uwsgi_temp_path {folder}/peer-uwsgi; scgi_temp_path {folder}/peer-scgi;
  map $http_x_dev $to {{ default app; ada handler; }}
  upstream app {{ server {ip}:{app}; keepalive 256; keepalive_requests 100000000; }}
  upstream handler {{ server 127.0.0.1:1; }}
  server {{
    listen {ip}:{port} ssl http2; ssl_session_cache shared:s:4m;
    ssl_certificate {folder}/tls/all.pem; ssl_certificate_key {folder}/tls/all.pem; ssl_protocols TLSv1.2 TLSv1.3;
    location / {{
      proxy_pass https://$to; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_ssl_verify on; proxy_ssl_trusted_certificate {folder}/ca.crt; proxy_ssl_name {host};
      proxy_ssl_server_name on;
    }}
  }}
}}
"""


@contextlib.contextmanager
def go(scene: Shop, place: Path) -> Iterator[Process]:
    """The reverse proxy of Go's standard library, on one processor like everybody."""
    binary = place / "go-proxy"
    source = Path(__file__).parent / "go_proxy" / "main.go"
    environment = {**os.environ, "GOCACHE": str(place / "go-cache"), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    subprocess.run(["go", "build", "-o", str(binary), str(source)], env=environment, check=True, timeout=300)
    files = [place / "tls" / "tls.crt", place / "tls" / "tls.key", place / "ca.crt"]
    ip = scene.space.ip
    command: list[str | Path] = [binary, f"{ip}:{GO_TLS}", *files, f"{ip}:{TLS_PORT}", HOST]
    words = scene.space.pod.enter(["taskset", "-c", str(PROXY_CORE), *command])
    with Process(words, log=place / "go.log", environment={"GOMAXPROCS": "1"}) as process:
        until(
            lambda: str(GO_TLS) in listening_ports(scene.space.pod) or not process.running,
            within=10,
            what=lambda: f"the Go proxy\n{process.text()}",
        )
        yield process


@contextlib.contextmanager
def mitmproxy(scene: Shop, place: Path) -> Iterator[Process]:
    """mitmproxy as a reverse proxy, without any addon; where its own environment is, `MITMPROXY` says."""
    ip = scene.space.ip
    command = [Path(os.environ["MITMPROXY"]).absolute(), "-q", "--mode", f"reverse:https://{HOST}:{TLS_PORT}"]
    command += ["--listen-host", ip, "--listen-port", str(MITMPROXY_TLS), "--certs", str(place / "tls" / "all.pem")]
    command += [
        "--set",
        f"ssl_verify_upstream_trusted_ca={place / 'ca.crt'}",
        "--set",
        f"confdir={place / 'mitmproxy'}",
    ]
    hosts = place / "hosts"
    hosts.write_text(f"{ip} {HOST}\n")
    mount = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts)]
    words = scene.space.pod.enter([*mount, "taskset", "-c", str(PROXY_CORE), *map(str, command)])
    with Process(words, log=place / "mitmproxy.log") as process:
        until(
            lambda: str(MITMPROXY_TLS) in listening_ports(scene.space.pod) or not process.running,
            within=30,
            what=lambda: f"mitmproxy\n{process.text()}",
        )
        yield process


@contextlib.contextmanager
def nginx(scene: Shop, place: Path) -> Iterator[Process]:
    """nginx as a reverse proxy; it speaks HTTP/1.1 to the app in every row, because it knows no other version there."""
    configuration = place / "peer.conf"
    ip = scene.space.ip
    configuration.write_text(_NGINX.format(folder=place, ip=ip, port=NGINX_TLS, app=TLS_PORT, host=HOST))
    command = ["taskset", "-c", str(PROXY_CORE), "nginx", "-e", place / "peer-error.log", "-c", configuration]
    with Process(scene.space.pod.enter(command), log=place / "peer.log") as process:
        until(
            lambda: str(NGINX_TLS) in listening_ports(scene.space.pod) or not process.running,
            within=10,
            what=lambda: f"nginx as a proxy\n{process.text()}",
        )
        yield process


PEERS: Mapping[str, Callable[[Shop, Path], AbstractContextManager[Process]]] = {
    "go": go,
    "mitmproxy": mitmproxy,
    "nginx": nginx,
}
"""What makes each peer, by the name that rows give it."""
