"""Selects the backend of a command: this machine's daemon by its unix socket, or a cluster by its API.

In this order:

    --socket                                   this machine
    --kubeconfig or --context                  the cluster
    a daemon answers on the default socket     this machine
    kubectl would find a kubeconfig            the cluster, in the current context
    this is a pod with a service account       the cluster it belongs to
    none of these                              this machine; the error then says what was looked for
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from sidestep.cli.command import Completed, FilePath
from sidestep.config.node_options import DEFAULT_SOCKET
from sidestep.kube import kubeconfig as kubeconfigs
from sidestep.kube.access import ClusterAccess, in_cluster, is_in_cluster
from sidestep.laptop.cluster_session import ClusterSession
from sidestep.laptop.handler import Handler
from sidestep.laptop.local_client import LocalClient, UnreachableError, has_local_mode
from sidestep.laptop.session import Session, SessionObserver
from sidestep.model.errors import ConfigurationError
from sidestep.tunnel.messages import SessionSpec

F = TypeVar("F", bound=Callable[..., Any])

Backend = Path | ClusterAccess
"""The socket of this machine's daemon, or an API server."""

LOCAL_NAMESPACE = "default"

NO_KUBECONFIG = f"no kubeconfig found ($KUBECONFIG or {kubeconfigs.DEFAULT}; --kubeconfig names one)"


def backend_options(command: F, *, lenient: bool = False) -> F:
    """Add `--socket`, `--kubeconfig`, `--context`; the command receives one `backend`.

    With `lenient` the command receives the ConfigurationError of an unusable kubeconfig instead.
    """

    def choosing(
        *arguments: Any, socket_path: Path | None, kubeconfig: Path | None, context: str | None, **rest: Any
    ) -> Any:
        if socket_path is not None and (kubeconfig is not None or context is not None):
            raise click.UsageError(
                "--socket selects this machine's daemon, --kubeconfig and --context a cluster; use one of them"
            )
        backend: Backend | ConfigurationError
        try:
            backend = choose_backend(socket_path, kubeconfig, context)
        except ConfigurationError as error:
            if not lenient:
                raise
            backend = error
        try:
            return command(*arguments, backend=backend, **rest)
        except UnreachableError as error:
            if socket_path is None and not kubeconfigs.exists():
                raise UnreachableError(f"{NO_KUBECONFIG}; {error}") from error
            raise

    choosing.__name__, choosing.__doc__ = command.__name__, command.__doc__
    choosing.__click_params__ = list(getattr(command, "__click_params__", ()))  # type: ignore[attr-defined]
    for option in (
        click.option(
            "--context",
            type=Completed("contexts"),
            metavar="NAME",
            help="Context of the kubeconfig. [default: the current one]",
        ),
        click.option("--kubeconfig", type=FilePath(), metavar="FILE", help="Kubeconfig of the cluster."),
        click.option(
            "--socket",
            "socket_path",
            type=FilePath(),
            metavar="PATH",
            help=f"Unix socket of this machine's daemon, not a cluster. [default: {DEFAULT_SOCKET} if one answers]",
        ),
    ):
        choosing = option(choosing)
    return choosing  # type: ignore[return-value]  # the same function but for the options it takes


def choose_backend(socket_path: Path | None, kubeconfig: Path | None, context: str | None) -> Backend:
    """Select a backend. Raises ConfigurationError when a kubeconfig cannot be used."""
    if socket_path is not None:
        return socket_path
    if kubeconfig is not None or context is not None:
        return kubeconfigs.load(kubeconfig, context)
    if _daemon_answers(DEFAULT_SOCKET):
        return DEFAULT_SOCKET
    if kubeconfigs.exists():
        return kubeconfigs.load()
    return in_cluster() if is_in_cluster() else DEFAULT_SOCKET


def namespace_for(backend: Backend, namespace: str | None) -> str:
    """Return the namespace given, otherwise that of the context, otherwise that of local mode."""
    return namespace or (backend.namespace if isinstance(backend, ClusterAccess) else LOCAL_NAMESPACE)


def session(
    backend: Backend, *, spec: SessionSpec, handler: Handler, observer: SessionObserver
) -> Session | ClusterSession:
    """Create a session for the backend; it has not begun yet."""
    if isinstance(backend, ClusterAccess):
        return ClusterSession(access=backend, spec=spec, handler=handler, observer=observer)
    return Session(client=LocalClient(backend), spec=spec, handler=handler, observer=observer)


def _daemon_answers(path: Path) -> bool:
    """Whether a daemon listens on the socket. One that hangs or denies access counts; its error is then reported."""
    if not has_local_mode():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (PermissionError, BlockingIOError):
            return True
        except OSError:
            return False
    return True
