"""`sidestep env`: prints the variables that a workload's container was started with."""

from __future__ import annotations

import asyncio
import sys

import click

from sidestep.cli import variables
from sidestep.cli.backend import Backend, backend_options, namespace_for
from sidestep.cli.command import POD_NAME, Command, WorkloadType
from sidestep.cli.options import namespace_option
from sidestep.cli.pod_session import access_spec, container_option, during, glob_options, tell_left_out
from sidestep.cli.service_workloads import resolve_service
from sidestep.laptop.pod_access import PodAccess


@click.command(cls=Command, short_help="Print the variables of a workload's container.")
@click.argument("workload", type=WorkloadType())
@click.option(
    "--output",
    "-o",
    type=click.Choice(variables.SYNTAXES),
    default="dotenv",
    show_default=True,
    help="Syntax.",
)
@glob_options[0]
@glob_options[1]
@container_option
@namespace_option
@click.option("--pod", type=POD_NAME, default="", metavar="POD", help="Only this pod of the workload.")
@backend_options
def env(
    workload: str,
    output: str,
    env_include: tuple[str, ...],
    env_exclude: tuple[str, ...],
    container: str,
    namespace: str | None,
    pod: str,
    backend: Backend,
) -> None:
    """Print the variables that the main process of a container of WORKLOAD (`name` or `kind/name`) was started with.

    They are read from the process, so they are what it has, with all that Secrets and ConfigMaps gave it, and not what
    a manifest says. THEY HOLD PASSWORDS, where the container's do.

    dotenv is for python-dotenv, Node.js and Docker Compose, shell for eval in a POSIX shell, docker for docker run
    --env-file, compose for `environment:` of a Compose file. Variables that a syntax cannot hold are left out, and
    named on standard error. shell leaves out PATH, HOME, LD_* and their kin, which are about the container, unless
    --env-include has their names. A terminal is shown escapes in the place of control characters.

    In a cluster it needs ClusterRole sidestep-pod-access in the namespace, a right as strong as pods/exec.

    \b
      sidestep env deploy/orders -n shop
      sidestep env deploy/orders -n shop --env-include 'DB_*' -o shell
    """
    namespace = namespace_for(backend, namespace)
    workload = resolve_service(backend, namespace, workload)
    spec = access_spec(namespace, workload, "environment", pod=pod, container=container)
    content = asyncio.run(during(backend, spec, PodAccess.environment))
    found = variables.chosen(variables.parse(content), env_include, env_exclude)
    if output == "shell":
        found = variables.for_a_command(found, env_include)
    text, left_out = variables.written(found, output)
    click.echo(variables.on_a_terminal(text) if sys.stdout.isatty() else text, nl=False)
    tell_left_out(left_out, output)
