"""A firewall in the usual scene: its policy, the pod once an inspector judges its requests, and what is counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.harness import scene
from tests.harness.inspection import policies, policy
from tests.harness.manifests import Document
from tests.harness.nginx import nginx
from tests.harness.processes import alive
from tests.harness.scene import Shop
from tests.harness.waiting import until

ABOVE = 0x2000000
"""What the user id of an inspector has more than that of its pod's proxy."""
SERVER = """
client_body_buffer_size 2m;
server {{
    listen {ip}:8443 ssl http2; listen {ip}:8080; server_name orders.shop.test; add_header X-Served-By app always;
    ssl_certificate {folder}/tls/tls.crt; ssl_certificate_key {folder}/tls/tls.key;
    location /image {{ default_type image/png; echo -n picture; }}
    location /report {{ default_type text/html; echo_read_request_body; echo_request_body; }}
    location / {{ default_type text/plain; echo_read_request_body; echo "app $request_method"; }}
}}
"""


def waf_policy(
    mode: str = "Enforce", *, name: str = "orders", waf: dict[str, Any] | None = None, **spec: Any
) -> Document:
    """A policy with a firewall and without rules."""
    made = policy(name=name, mode=mode, waf=waf or {}, **spec)
    del made["spec"]["rules"]
    return made


@contextlib.contextmanager
def waf_shop(folder: Path, crs: Path | None = None) -> Iterator[Shop]:
    """The scene with an nginx that speaks HTTP/2, and reads bodies, as the app."""
    with scene.shop(folder, start=False) as shop:
        shop.node.crs = crs
        shop.node.start()
        where = shop.folder / "nginx"
        extra = SERVER.format(ip=shop.space.ip, folder=where)
        listen, plain = [f"{shop.space.ip}:{scene.TLS_PORT}"], [f"{shop.space.ip}:{scene.PLAIN_PORT}"]
        with nginx(
            shop.space.pod, where, listen=listen, plain=plain, certificate=shop.app_certificate, http2=True, extra=extra
        ) as shop.nginx:
            yield shop


def uid_of(pid: int) -> int:
    """The user id of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["Uid"].split()[0])


def processes() -> dict[int, int]:
    """Zygotes of inspectors and inspectors on this machine: pid and user id."""
    found = {}
    for each in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if each.name.isdigit() and b"sidestep.inspector.zygote" in (each / "cmdline").read_bytes():
                found[int(each.name)] = uid_of(int(each.name))
    return found


def ours(shop: Shop) -> dict[int, int]:
    """Those of the scene's daemon, which are its descendants."""
    family = shop.node.family()
    return {pid: uid for pid, uid in processes().items() if pid in family}


def inspector(shop: Shop, *, but: int = 0) -> int:
    """Wait for the pod's inspector, another than `but`; returns its pid."""

    def look() -> int:
        try:
            wanted = uid_of(shop.proxy()) + ABOVE
        except (FileNotFoundError, ProcessLookupError):
            return 0  # the proxy that status still named has just ended
        return max((pid for pid, uid in processes().items() if uid == wanted and pid != but and alive(pid)), default=0)

    return until(look, within=20, what=lambda: f"an inspector: {processes()} {shop.conditions()}")


@contextlib.contextmanager
def judged(shop: Shop, *documents: Document, alone: bool = True) -> Iterator[None]:
    """The pod with these policies, once an inspector judges its requests; `alone` as for `policies`."""
    with policies(shop, *(documents or (waf_policy(),)), alone=alone):
        until(lambda: verdicts(shop, 1), within=30, what=shop.conditions)
        yield


def verdicts(shop: Shop, more: int) -> bool:
    """Ask until so many verdicts have been counted."""
    for _ in range(more):
        shop.get("/probe")
    return counted(shop, "waf_verdicts") >= more


def counted(shop: Shop, prefix: str) -> int:
    """The counters of the pod's ports that begin so, added up."""
    pods = (shop.node.status() or {}).get("pods", ())
    return sum(count for pod in pods for name, count in pod["counters"].items() if name.startswith(prefix))


def alerts(shop: Shop, before: int = 0) -> list[dict[str, Any]]:
    """The alerts among the records after `before`."""
    return [each for each in shop.node.records()[before:] if each["event_type"] == "alert"]
