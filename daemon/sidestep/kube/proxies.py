"""Which HTTP proxy leads to an API server, by the rules of client-go.

The `proxy-url` of a kubeconfig's cluster wins and knows no exceptions. Otherwise HTTPS_PROXY (HTTP_PROXY for a server
without TLS) and NO_PROXY apply as in golang.org/x/net/http/httpproxy, with upper or lower case names: NO_PROXY lists
host names, which include their subdomains, addresses, networks in CIDR notation, each with a port if wanted, and `*`.
Loopback addresses and `localhost` are never reached through a proxy of the environment. Python's own `proxy_bypass`
knows no networks, so a NO_PROXY of 10.96.0.0/12 would send the requests of a pod to the proxy.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from urllib.parse import unquote, urlsplit

from sidestep.kube.access import ClusterAccess
from sidestep.model.errors import ConfigurationError

MAX_ENTRIES = 1000
"""Entries of NO_PROXY that are examined."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy: its URL without credentials, and the value of Proxy-Authorization (RFC 9110, 11.7.2), "" for none."""

    url: str
    authorization: str = field(default="", repr=False)


def proxy_for(access: ClusterAccess, environ: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy for requests to this API server. Raises ConfigurationError with the setting at fault."""
    if access.proxy:
        return _parsed(access.proxy, subject="proxy-url of the kubeconfig")
    name = "HTTPS_PROXY" if access.tls is not None else "HTTP_PROXY"
    value = _variable(environ, name)
    if not value or _is_excepted(access.host.lower(), access.port, _variable(environ, "NO_PROXY")):
        return None
    return _parsed(value, subject=name)


def _variable(environ: Mapping[str, str], name: str) -> str:
    return (environ.get(name) or environ.get(name.lower(), "")).strip()


def _parsed(value: str, *, subject: str) -> Proxy:
    no_url = "is no URL of a proxy; in a password / ? # and @ are written as %2F %3F %23 and %40"
    try:
        url = urlsplit(value if "://" in value else f"http://{value}")
        port = url.port or (443 if url.scheme == "https" else 80)
    except ValueError:
        # The text of the error quotes what may be a part of a password.
        raise ConfigurationError(no_url, subject=subject) from None
    if "@" in f"{url.path}{url.query}{url.fragment}":
        raise ConfigurationError(no_url, subject=subject)
    host = url.hostname or ""
    if url.scheme not in {"http", "https"}:
        reason = f"names a proxy of kind {url.scheme[:20]!r}; http:// and https:// proxies are supported"
        raise ConfigurationError(reason, subject=subject)
    if not host or any(each.isspace() or not each.isprintable() for each in url.netloc):
        raise ConfigurationError(no_url, subject=subject)
    authorization = ""
    if url.username is not None:
        pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    shown = f"[{host}]" if ":" in host else host
    return Proxy(f"{url.scheme}://{shown}:{port}", authorization)


def _is_excepted(host: str, port: int, no_proxy: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    for entry in no_proxy.split(",")[:MAX_ENTRIES]:
        text = entry.strip().lower()
        if text == "*":
            return True
        try:
            if address is not None and address in ip_network(text, strict=False):
                return True
        except ValueError:
            pass  # a host name, or an address with a port
        name, wanted = _split(text)
        if not name or (wanted and wanted != str(port)):
            continue
        if name == host or (address is None and host.endswith(_suffix(name))):
            return True
    return False


def _split(text: str) -> tuple[str, str]:
    """Split `host`, `host:port`, `[address]:port` or an address into host and port, "" for any port."""
    if text.startswith("["):
        name, _, rest = text[1:].partition("]")
        return name, rest.removeprefix(":")
    if text.count(":") == 1:
        name, _, port = text.partition(":")
        return name, port
    return text, ""


def _suffix(name: str) -> str:
    name = name.removeprefix("*")
    return name if name.startswith(".") else f".{name}"
