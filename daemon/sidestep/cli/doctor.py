"""`sidestep doctor`: checks this machine and its access to a cluster, and prints one line per finding.

What is essential depends on what the machine is for, and the first finding says what it is taken for.

    laptop   not Linux; or not root, and a cluster is chosen (`cli.backend`)
             access to the cluster is essential, nothing of the node daemon is looked at
    node     any other; what the daemon needs is essential, and a cluster that was asked for
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from functools import partial
from pathlib import Path

import click

from sidestep.aio.time_limit import time_limit
from sidestep.cli.backend import NO_KUBECONFIG, Backend, backend_options
from sidestep.cli.command import Command
from sidestep.cli.options import output_option
from sidestep.cli.output import json_line
from sidestep.config.node_options import DEFAULT_SOCKET
from sidestep.kube import kubeconfig as kubeconfigs
from sidestep.kube.access import ClusterAccess, in_cluster, is_in_cluster
from sidestep.kube.api import Api
from sidestep.laptop.local_client import LocalClient
from sidestep.model.errors import ConfigurationError, SidestepError
from sidestep.model.finding import Finding
from sidestep.model.text import harmless

DEADLINE = 10.0
"""Seconds for the API server to answer."""


@click.command(cls=Command, short_help="Check this machine and its access to a cluster.")
@output_option
@partial(backend_options, lenient=True)
def doctor(backend: Backend | ConfigurationError, output: str) -> int:
    """Check this machine: on a node what the daemon needs, on a laptop the access to the cluster.

    A machine is taken for a laptop if it does not run Linux, or if you are not root and a cluster is chosen. It reports
    what is missing, and its consequences. The exit code is 0 only if everything essential is there.

    \b
      sidestep doctor
      sudo sidestep doctor --output json
    """
    findings = asyncio.run(_everything(backend))
    for finding in findings:
        click.echo(json_line(finding) if output == "json" else _line(finding))
    return int(any(finding.bad for finding in findings))


async def _everything(backend: Backend | ConfigurationError) -> list[Finding]:
    if not is_node(backend):
        found = f"a laptop: {platform.system()} {platform.machine()}, Python {platform.python_version()}"
        return [Finding("machine", "ok", False, f"{found}; the node daemon is not looked at"), await _cluster(backend)]
    from sidestep.node.doctor import examine  # imports the eBPF loader, which no other command needs

    return [*await examine(), await _daemon(backend), await _cluster(backend)]


def is_node(backend: Backend | ConfigurationError) -> bool:
    """Whether this machine is taken for a node; see the module."""
    return sys.platform == "linux" and (isinstance(backend, Path) or os.geteuid() == 0)


async def _daemon(backend: Backend | ConfigurationError) -> Finding:
    check = "node daemon"
    if isinstance(backend, ClusterAccess):
        return Finding(check, "skipped", False, "a cluster has its own; sidestep status shows them")
    path = backend if isinstance(backend, Path) else DEFAULT_SOCKET
    try:
        await LocalClient(path).get("/v1/workloads")
    except SidestepError as error:
        return Finding(check, "missing", False, str(error), "nothing can be intercepted on this machine now")
    return Finding(check, "ok", False, f"answers on {path}")


async def _cluster(backend: Backend | ConfigurationError) -> Finding:
    check, cost = "Kubernetes API", "workloads of that cluster cannot be intercepted"
    if isinstance(backend, ConfigurationError):
        return Finding(check, "missing", True, str(backend), cost)
    try:
        access = backend if isinstance(backend, ClusterAccess) else _access()
    except SidestepError as error:
        return Finding(check, "missing", False, str(error), cost)
    if access is None and not is_node(backend):
        return Finding(check, "missing", True, NO_KUBECONFIG, "there is no cluster to intercept in")
    if access is None:
        return Finding(check, "skipped", False, "no kubeconfig and no service account: local mode only")
    api = Api(access)
    # A cluster that was asked for explicitly is essential.
    essential = isinstance(backend, ClusterAccess)
    try:
        async with time_limit(DEADLINE):
            await api.get("/version")
            await api.get("/apis/sidestep.dev/v1alpha1")
    except TimeoutError:
        return Finding(check, "missing", essential, f"{access} did not answer within {DEADLINE:g} s", cost)
    except SidestepError as error:
        return Finding(check, "missing", essential, f"{access}: {error}", cost)
    finally:
        await api.aclose()
    return Finding(check, "ok", essential, f"{access} answers and knows Sidestep's resources")


def _access() -> ClusterAccess | None:
    if kubeconfigs.exists():
        return kubeconfigs.load()
    return in_cluster() if is_in_cluster() else None


def _line(finding: Finding) -> str:
    state = finding.state if finding.state != "missing" or finding.essential else "missing (optional)"
    cost = f" - {finding.cost}" if finding.cost else ""
    return harmless(f"{finding.check:<17} {state:<19} {finding.text}{cost}")
