"""A kubeconfig as `ClusterAccess`, read by the `kubernetes` library: contexts, client certificates, tokens, and the
exec and OIDC plugins that cloud clusters log in with. Only the command line needs this, and imports it when it does.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sidestep.kube.access import ClusterAccess
from sidestep.model.errors import ConfigurationError

DEFAULT = Path("~/.kube/config")


def exists() -> bool:
    """Whether kubectl would find a kubeconfig ($KUBECONFIG, else ~/.kube/config)."""
    paths = [path for path in os.environ.get("KUBECONFIG", "").split(os.pathsep) if path]
    return any(Path(path).expanduser().is_file() for path in paths or [str(DEFAULT)])


def load(path: Path | None = None, context: str | None = None) -> ClusterAccess:
    """Read a kubeconfig (None: where kubectl finds it) and one of its contexts (None: the current one).

    Raises ConfigurationError naming the file and what is wrong with it.
    """
    subject = f"kubeconfig {path or os.environ.get('KUBECONFIG') or DEFAULT}"
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise ConfigurationError(
            "a cluster needs the Python package kubernetes: pip install 'sidestep[cluster]'"
        ) from error
    name = None if path is None else str(path)
    library: Any = config
    settings = client.Configuration()
    try:
        library.load_kube_config(config_file=name, context=context, client_configuration=settings)
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


def _access(settings: Any, context: dict[str, Any]) -> ClusterAccess:
    url = urlsplit(settings.host)
    if not url.hostname:
        raise ConfigurationError("names no server", value=str(settings.host)[:200])
    return ClusterAccess(
        host=url.hostname,
        port=url.port or (443 if url.scheme == "https" else 80),
        tls=_tls(settings) if url.scheme == "https" else None,
        base=url.path.rstrip("/"),
        server_name=settings.tls_server_name or "",
        namespace=context.get("namespace") or "default",
        user=str(context.get("user") or ""),
        authorization=lambda: _authorization(settings),
    )


def _tls(settings: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ssl_ca_cert or None)
    if not settings.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings.cert_file:
        context.load_cert_chain(settings.cert_file, settings.key_file or None)
    return context


def _authorization(settings: Any) -> str:
    """The header's value; the library renews an expired login here."""
    key = settings.get_api_key_with_prefix("authorization", alias="BearerToken")
    if key:
        return str(key)
    if settings.username:
        return str(settings.get_basic_auth_token())
    return ""
