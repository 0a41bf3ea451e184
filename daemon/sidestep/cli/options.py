"""Options shared by several commands, and the syntax of `--port`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

from sidestep.cli.command import NAMESPACE, FilePath, fault
from sidestep.config.node_options import DEFAULT_SOCKET

F = TypeVar("F", bound=Callable[..., Any])

_PORT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""Name or number of a port. Container port names have at most 15 characters (IANA_SVC_NAME), those of Services more."""


class PortMapping(msgspec.Struct, frozen=True):
    """`LOCAL[:PORT[/UDP]]`: the handler's port, and the workload's port as written."""

    local: int
    remote: str
    transport: str


class PortType(click.ParamType[PortMapping]):
    """Parses `--port`."""

    name = "LOCAL[:PORT[/UDP]]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> PortMapping:
        """As click.ParamType.convert."""
        if isinstance(value, PortMapping):
            return value
        text, slash, transport = str(value).partition("/")
        local, colon, remote = text.partition(":")
        if slash and transport.lower() not in {"udp", "tcp"}:
            self.fail(f"{value!r}: after / comes UDP (or TCP)", param, ctx)
        if not (local.isascii() and local.isdigit() and len(local) <= 5 and 0 < int(local) <= 65535):
            self.fail(f"{value!r}: LOCAL is the handler's port on this machine, a number from 1 to 65535", param, ctx)
        if colon and not _PORT_NAME.fullmatch(remote):
            self.fail(f"{value!r}: PORT is a service or container port, its name or number", param, ctx)
        return PortMapping(int(local), remote or local, transport.lower() or "tcp")


class PortNameType(click.ParamType[str]):
    """A service or container port, by name or number."""

    name = "PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As click.ParamType.convert."""
        text = str(value)
        if text and not fault(text) and not _PORT_NAME.fullmatch(text):
            self.fail(f"{text!r}: PORT is a service or container port, its name or number", param, ctx)
        return text


def socket_option(command: F) -> F:
    """`--socket PATH`."""
    return click.option(
        "--socket",
        "socket_path",
        type=FilePath(),
        default=DEFAULT_SOCKET,
        show_default=True,
        metavar="PATH",
        help="Unix socket of the node daemon.",
    )(command)


def output_option(command: F) -> F:
    """`--output text|json`."""
    return click.option(
        "--output",
        "-o",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="text for people, json for programs.",
    )(command)


def egress_option(command: F) -> F:
    """`--egress`."""
    text = "Connections that the pods make, to whatever port, in the place of those that they accept."
    return click.option("--egress", is_flag=True, help=text)(command)


def namespace_option(command: F) -> F:
    """`-n NAMESPACE`. The command receives None without it; the default depends on the backend."""
    return click.option(
        "--namespace",
        "-n",
        type=NAMESPACE,
        metavar="NS",
        help="Namespace of the workload. [default: the context's, else default]",
    )(command)
