"""Reads a kubeconfig into a `ClusterAccess` with the `kubernetes` library: contexts, client certificates, tokens, and
the exec and OIDC plugins of cloud clusters. Only the command line imports this module, on demand.

A server with an http:// address is reached in clear text: anybody on the path can read a token and answer in place of
the server, including the certificates of node daemons that are pinned. It is refused unless INSECURE is set. Exception:
without credentials on this machine, as `kubectl proxy` offers it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from sidestep.aio.client_tls import default_client_context
from sidestep.aio.named_file import mode_of, read_named
from sidestep.config import yaml_documents
from sidestep.kube import client_library
from sidestep.kube.access import ClusterAccess
from sidestep.model.errors import ConfigurationError

DEFAULT = Path("~/.kube/config")
MAX_KUBECONFIG = 8 * 1024 * 1024
"""Bytes of one kubeconfig. One with a hundred clusters has a few hundred KiB."""
_FILES = (
    ("clusters", "cluster", ("certificate-authority",)),
    ("users", "user", ("client-certificate", "client-key", "tokenFile")),
)
"""Fields of a kubeconfig that name other files (kubernetes.io/docs/reference/config-api/kubeconfig.v1)."""
INSECURE = "SIDESTEP_INSECURE_HTTP"
"""Environment variable that permits API servers in clear text when it is 1."""


def exists() -> bool:
    """Whether kubectl would find a kubeconfig ($KUBECONFIG, otherwise ~/.kube/config)."""
    return any(mode_of(path) for path in _paths(None))


def load(path: Path | None = None, context: str | None = None) -> ClusterAccess:
    """Read a kubeconfig (None: where kubectl finds it) and one of its contexts (None: the current one).

    Raises ConfigurationError with the file and the fault.
    """
    subject = f"kubeconfig {path or os.environ.get('KUBECONFIG') or DEFAULT}"
    client_library.narrow()
    from kubernetes import client, config

    for each in _paths(path):
        if mode_of(each):
            _check_files(each)
    name = None if path is None else str(path)
    library: Any = config
    settings = client.Configuration(proxy="")  # the environment's proxies are for `proxies`
    try:
        with _complaints() as said:
            library.load_kube_config(config_file=name, context=context, client_configuration=settings)
        if said:
            raise ConfigurationError(f"cannot log in: {said[0]}", subject=subject)
        contexts, current = library.list_kube_config_contexts(config_file=name)
        chosen = next(each for each in contexts if each["name"] == context) if context else current
        return _access(settings, chosen["context"])
    except ConfigurationError:
        raise
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        raise ConfigurationError("is no kubeconfig, or lacks parts of one", subject=subject) from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigurationError(reason[:500], subject=subject) from error


def contexts(path: Path | None = None) -> dict[str, str]:
    """Return the names of the contexts of a kubeconfig (None: where kubectl finds it), with their clusters, without
    the library. Raises ConfigurationError for a file that cannot be read.
    """
    found: dict[str, str] = {}
    for file in _paths(path):
        if mode_of(file):
            content = read_named(file, subject="kubeconfig", limit=MAX_KUBECONFIG)
            document = next(map(yaml_documents.load, yaml_documents.split(content.decode())), None)
            listed = document.get("contexts") if isinstance(document, dict) else None
            for each in listed if isinstance(listed, list) else ():
                if isinstance(each, dict) and isinstance(each.get("name"), str):
                    fields = each.get("context")
                    cluster = fields.get("cluster") if isinstance(fields, dict) else None
                    found.setdefault(each["name"], cluster if isinstance(cluster, str) else "")
    return found


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collect what the library logs as errors, such as a failed login plugin. The library then continues without a
    login.
    """
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(" ".join(record.getMessage().split())[:500])

    handler, root = Handler(logging.ERROR), logging.getLogger()
    root.addHandler(handler)
    try:
        yield said
    finally:
        root.removeHandler(handler)


def _paths(path: Path | None) -> list[Path]:
    """Return the files of a kubeconfig: the one given, otherwise those of $KUBECONFIG, otherwise kubectl's default."""
    if path is not None:
        return [path.expanduser()]
    named = [each for each in os.environ.get("KUBECONFIG", "").split(os.pathsep) if each]
    return [Path(each).expanduser() for each in named] or [DEFAULT.expanduser()]


def _check_files(path: Path) -> None:
    """Check that the library can read this kubeconfig and the files it names in bounded time.

    Raises ConfigurationError. YAML that is not a kubeconfig is left for the library to reject.
    """
    content = read_named(path, subject="kubeconfig", limit=MAX_KUBECONFIG)
    try:
        found = next(map(yaml_documents.load, yaml_documents.split(content.decode())), None)
    except (ConfigurationError, ValueError) as error:
        # The library's YAML parser has no limits: nested brackets keep it busy for hours or crash the process.
        raise ConfigurationError(" ".join(str(error).split())[:500], subject=f"kubeconfig {path}") from error
    for part, entry, keys in _FILES:
        listed = found.get(part) if isinstance(found, dict) else None
        for each in listed if isinstance(listed, list) else ():
            fields = each.get(entry) if isinstance(each, dict) else None
            for key in keys:
                named = fields.get(key) if isinstance(fields, dict) else None
                if isinstance(named, str) and named and mode_of(file := path.parent / named):
                    read_named(file, subject=f"{key} of kubeconfig {path}")


def _access(settings: Any, context: dict[str, Any]) -> ClusterAccess:
    url = urlsplit(settings.host)
    if not url.hostname:
        raise ConfigurationError("names no server", value=str(settings.host)[:200])
    if url.scheme != "https":
        _allow_clear(url, settings)
    return ClusterAccess(
        host=url.hostname,
        port=url.port or (443 if url.scheme == "https" else 80),
        tls=_tls(settings) if url.scheme == "https" else None,
        base=url.path.rstrip("/"),
        server_name=settings.tls_server_name or "",
        namespace=context.get("namespace") or "default",
        user=str(context.get("user") or ""),
        proxy=str(settings.proxy or ""),
        authorization=lambda: _authorization(settings),
    )


def _allow_clear(url: SplitResult, settings: Any) -> None:
    """Raise ConfigurationError unless this server may be reached without TLS."""
    shown = f"{url.scheme}://{url.netloc}"[:200]
    if url.scheme != "http":
        raise ConfigurationError("is no https:// address of an API server", value=shown)
    if os.environ.get(INSECURE) == "1":
        return
    host = url.hostname or ""
    if _authorization(settings):
        what = "your token or password would be sent in clear"
    elif host == "localhost" or _is_loopback(host):
        return
    else:
        what = "whoever is on the way could answer in its place"
    raise ConfigurationError(f"has no TLS: {what}; use https://, or allow it with {INSECURE}=1", value=shown)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _tls(settings: Any) -> ssl.SSLContext:
    context = default_client_context(cafile=settings.ssl_ca_cert or None)
    if not settings.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings.cert_file:
        context.load_cert_chain(settings.cert_file, settings.key_file or None)
    return context


def _authorization(settings: Any) -> str:
    """Return the header's value. The library renews an expired login here."""
    key = settings.get_api_key_with_prefix("authorization", alias="BearerToken")
    if key:
        return str(key)
    if settings.username:
        return str(settings.get_basic_auth_token())
    return ""
