"""The parts of a benchmark: one pod with nginx, haproxy and a pod proxy in it, pinned to their cores."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.cpu import LOAD_CORE, PROXY_CORE, children, pin
from tests.bench.load import Place
from tests.bench.peers import PEERS
from tests.harness.nginx import listening_ports, write_big_file
from tests.harness.processes import Process
from tests.harness.scene import HOST, PLAIN_PORT, TLS_PORT, Shop, shop
from tests.harness.waiting import until

HAPROXY_TLS, HAPROXY_PLAIN, HAPROXY_H2, HAPROXY_TCP, HAPROXY_NEW, HAPROXY_DIVERTED = 9443, 9080, 9444, 9081, 9445, 9447

DIRECT_TLS = 9449
"""The app itself, on a port that nobody steers."""

BIG = 1 << 30
"""Bytes of /files/big."""

_NGINX = """
daemon off; user root; worker_processes 1; worker_cpu_affinity 01; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 16384; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s; sendfile on; http2_max_concurrent_streams 1024;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen {ip}:{tls} ssl http2; listen {ip}:{direct} ssl http2; listen {ip}:{plain}; ssl_session_cache shared:s:4m;
    ssl_certificate {folder}/tls/tls.crt; ssl_certificate_key {folder}/tls/tls.key; ssl_protocols TLSv1.2 TLSv1.3;
    location /files/ {{ alias {folder}/; }}
    location / {{
      default_type text/plain;
      return 200 "the app's answer, a hundred bytes long or so, as an API might send to a client that asks it\\n";
    }}
  }}
}}
"""

_HAPROXY = """
global
  nbthread 1
  maxconn 9000
  tune.ssl.default-dh-param 2048
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend tls
  bind {ip}:{tls} ssl crt {folder}/tls/all.pem alpn http/1.1
  use_backend handler if {{ hdr(x-dev) -m str ada }}
  default_backend app-tls
frontend h2
  bind {ip}:{h2} ssl crt {folder}/tls/all.pem alpn h2
  use_backend handler if {{ hdr(x-dev) -m str ada }}
  default_backend app-h2
frontend diverted
  bind {ip}:{diverted} ssl crt {folder}/tls/all.pem alpn h2
  use_backend app-other if {{ path_beg /diverted/ }}
  default_backend app-h2
frontend plain
  bind {ip}:{plain}
  use_backend handler if {{ hdr(x-dev) -m str ada }}
  default_backend app-plain
frontend new
  bind {ip}:{new} ssl crt {folder}/tls/all.pem alpn http/1.1
  use_backend handler if {{ hdr(x-dev) -m str ada }}
  default_backend app-new
frontend raw
  mode tcp
  bind {ip}:{tcp}
  default_backend app-raw
backend app-tls
  server app {ip}:{app_tls} ssl verify required ca-file {folder}/ca.crt sni str({host}) verifyhost {host} alpn http/1.1
backend app-h2
  server app {ip}:{app_tls} ssl verify required ca-file {folder}/ca.crt sni str({host}) verifyhost {host} alpn h2
backend app-other
  server other {ip}:{app_tls} ssl verify required ca-file {folder}/ca.crt sni str({host}) verifyhost {host} alpn h2
backend app-plain
  server app {ip}:{app_plain}
backend app-new
  http-reuse never
  server app {ip}:{app_tls} ssl verify required ca-file {folder}/ca.crt sni str({host}) verifyhost {host} alpn http/1.1
backend app-raw
  mode tcp
  server app {ip}:{app_plain}
backend handler
  server handler 127.0.0.1:1
"""


@dataclass
class Arena:
    """The scene, the peers' pids by their names, and where load comes from."""

    scene: Shop
    peers: dict[str, int]

    @property
    def client(self) -> Place:
        """Where load comes from; it knows the app by name."""
        hosts = self.scene.folder / "hosts"
        if not hosts.exists():
            hosts.write_text(f"{self.scene.space.ip} {HOST}\n")
        return Place(self.scene.space.client, hosts)

    @functools.cached_property
    def proxy(self) -> int:
        """The pod proxy at the beginning."""
        return self.scene.proxy()

    def sidestep(self) -> int:
        """The pod proxy, pinned."""
        pid = self.scene.proxy()
        pin(pid, PROXY_CORE)
        return pid


def _write_configs(scene: Shop, folder: Path) -> None:
    scene.app_certificate.write(folder / "tls")
    pem = scene.own_certificate.chain + scene.own_certificate.key
    (folder / "tls" / "all.pem").write_bytes(pem)
    (folder / "ca.crt").write_bytes(scene.authority.pem)
    ip = scene.space.ip
    (folder / "nginx.conf").write_text(
        _NGINX.format(folder=folder, ip=ip, tls=TLS_PORT, plain=PLAIN_PORT, direct=DIRECT_TLS)
    )
    (folder / "haproxy.cfg").write_text(
        _HAPROXY.format(
            folder=folder,
            ip=ip,
            tls=HAPROXY_TLS,
            h2=HAPROXY_H2,
            plain=HAPROXY_PLAIN,
            tcp=HAPROXY_TCP,
            new=HAPROXY_NEW,
            diverted=HAPROXY_DIVERTED,
            app_tls=TLS_PORT,
            app_plain=PLAIN_PORT,
            host=HOST,
        )
    )


@contextlib.contextmanager
def arena(folder: Path, *, kind: str = "ecdsa", peers: Collection[str] = ()) -> Iterator[Arena]:
    """Everything up, an intercept that will not match on both ports. `peers`: names in `PEERS`; haproxy always."""
    with contextlib.ExitStack() as stack:
        scene = stack.enter_context(shop(folder, kind=kind, ipv6=False))
        place = folder / "bench"
        place.mkdir()
        write_big_file(place / "big", BIG)
        _write_configs(scene, place)
        pod = scene.space.pod
        nginx = stack.enter_context(
            Process(
                pod.enter(
                    ["taskset", "-c", str(LOAD_CORE), "nginx", "-e", place / "error.log", "-c", place / "nginx.conf"]
                ),
                log=place / "nginx.log",
            )
        )
        haproxy = stack.enter_context(
            Process(
                pod.enter(["taskset", "-c", str(PROXY_CORE), "haproxy", "-db", "-f", place / "haproxy.cfg"]),
                log=place / "haproxy.log",
            )
        )
        haproxies = (HAPROXY_TLS, HAPROXY_PLAIN, HAPROXY_H2, HAPROXY_TCP, HAPROXY_NEW, HAPROXY_DIVERTED)
        wanted = {str(port) for port in (TLS_PORT, PLAIN_PORT, DIRECT_TLS, *haproxies)}
        until(
            lambda: wanted <= listening_ports(pod) or not (nginx.running and haproxy.running),
            within=10,
            what=lambda: f"nginx and haproxy\n{nginx.text()}\n{haproxy.text()}",
        )
        ring = Arena(scene, {"haproxy": haproxy.pid})
        for name in peers:
            ring.peers[name] = stack.enter_context(PEERS[name](scene, place)).pid
        for port in (TLS_PORT, PLAIN_PORT):
            stack.enter_context(scene.intercept(port=port, plaintext=port == PLAIN_PORT))
        yield ring


def tree(pid: int) -> list[int]:
    """A process and its children."""
    return [pid, *children(pid)]
