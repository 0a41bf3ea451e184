"""`sidestep intercept` and `sidestep wiretap`: a session in the foreground, with a handler on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from msgspec.structs import replace

from sidestep.cli.backend import Backend, backend_options, namespace_for
from sidestep.cli.command import POD_NAME, SESSION_NAME, FilePath, WorkloadType
from sidestep.cli.earlier import earlier_options
from sidestep.cli.filtering import filter_of, filter_options, filter_spec
from sidestep.cli.flows import show_earlier
from sidestep.cli.foreground import STDOUT, DashedCommand, claimed_owner, run
from sidestep.cli.har_file import HarFile
from sidestep.cli.live_page import PageSettings, live_page, page_options
from sidestep.cli.options import PortMapping, PortType, namespace_option, output_option
from sidestep.cli.pod_session import Wanted, World, access_spec, world_options
from sidestep.cli.report import JsonReport, Report
from sidestep.cli.request_text import answer_options, uses_colour
from sidestep.cli.saved_requests import SavedRequests, save_option
from sidestep.cli.service_workloads import resolve_service
from sidestep.config.filters import describe_filter
from sidestep.laptop.handler import Handler, HandlerSettings
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.intercept import Kind
from sidestep.tunnel.messages import SessionSpec
from sidestep.tunnel.session_names import base_name

if TYPE_CHECKING:
    from sidestep.laptop.copied_requests import CopiedRequest

F = TypeVar("F", bound=Callable[..., Any])


def _session_options(command: F) -> F:
    """Add the arguments and options that both commands share."""
    for option in reversed(
        (
            click.argument("workload", type=WorkloadType()),
            click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD ...]"),
            click.option(
                "--port", "-p", type=PortType(), required=True, help="Handler's port here, and the workload's port."
            ),
            filter_options,
            answer_options,
            earlier_options,
            page_options,
            click.option(
                "--plaintext", is_flag=True, help="Reach the handler in clear text, even when the client used TLS."
            ),
            namespace_option,
            click.option(
                "--name",
                type=SESSION_NAME,
                default="",
                metavar="NAME",
                help="Name of the session. [default: the workload's]",
            ),
            click.option("--pod", type=POD_NAME, default="", metavar="POD", help="Only this pod of the workload."),
            click.option(
                "--address", default="127.0.0.1", show_default=True, metavar="HOST", help="Where the handler listens."
            ),
            click.option(
                "--handler-ca",
                type=FilePath(),
                metavar="FILE",
                help="Verify the handler's certificate against this CA (PEM). [default: not verified]",
            ),
            output_option,
            backend_options,
        )
    ):
        command = option(command)
    return command


@click.command(cls=DashedCommand, short_help="Divert matching requests to a handler on this machine.")
@click.option(
    "--reset-existing",
    is_flag=True,
    help="Close existing connections, so that their clients connect again.",
)
@click.option("--divert-probes", is_flag=True, help="Divert probes of the kubelet too; by default they never match.")
@world_options
@_session_options
def intercept(**words: Any) -> int:
    """Divert matching requests of WORKLOAD (`name` or `kind/name`) to a handler on this machine, until Ctrl-C.

    WORKLOAD may be svc/NAME, too: the workload behind that Service, if there is one.

    A request is diverted when all headers match, the method is one of those given, and the path matches one of those
    given. Without a filter the whole port is diverted. The workload answers all other requests. PORT is a service or
    container port, name or number; it defaults to LOCAL. The handler is reached as the client connected: over TLS with
    the client's server name, or in clear text.

    With `-- CMD …` the command starts once the intercept is active. The intercept ends with the command, and the exit
    code is that of the command. It finds the session in its environment: SIDESTEP_INTERCEPT (namespace/name),
    SIDESTEP_KIND, SIDESTEP_NAMESPACE, SIDESTEP_WORKLOAD, SIDESTEP_WORKLOAD_PORT, and where the handler is to listen,
    SIDESTEP_ADDRESS and SIDESTEP_PORT.

    With --env, CMD gets the variables that the pod's container was started with, too; --env-file and --env-json write
    them to a file, as well, which only you may read. Of a name that you have, too, the pod's variable wins, except
    where it says where things are in the container (PATH, HOME, LD_* and the like): include those by name. With
    --outbound CMD finds a proxy in ALL_PROXY, HTTP_PROXY and HTTPS_PROXY whose connections the pod makes, as those of
    `sidestep connect`; with --transparent (Linux), all its TCP connections go that way, by proxychains4. In a cluster
    all of this needs ClusterRole sidestep-pod-access, a right as strong as pods/exec.

    With --files, CMD finds a copy of what is mounted in the pod's container (--files-path: of what you name) in the
    folder SIDESTEP_ROOT, which is removed in the end; --files-to keeps it. It takes the same right.

    \b
    Your own requests, marked by a header, to a TLS server on port 9443:
      sidestep intercept orders -n shop --port 9443:https --http-header x-dev=ada
    The same to a server without TLS:
      sidestep intercept orders -n shop --port 8080:https --http-header x-dev=ada --plaintext
    Two methods on one part of the API:
      sidestep intercept deploy/orders --port 9443:8443 --http-method POST --http-method PUT \\
          --http-path-prefix /api/v2/
    Everything, for as long as the tests run:
      sidestep intercept orders --port 8080:http -- pytest tests/contract
    """
    return _run_session(Kind.INTERCEPT, **words)


@click.command(cls=DashedCommand, short_help="Copy matching requests to a handler on this machine.")
@_session_options
@click.option("--save-secrets", is_flag=True, help="With --save: keep the values of credentials, too.")
@save_option
def wiretap(**words: Any) -> int:
    """Copy matching requests of WORKLOAD (`name` or `kind/name`) to a handler on this machine, until Ctrl-C.

    The workload (or an intercept's handler) still answers every request; answers of this handler are read and
    discarded. Each copy has a connection (HTTP/2: a stream) of its own, with head and body as received. Without a
    filter the whole port is copied: the bytes of each client, with TLS not decrypted. The filters, PORT and the
    handler's options are those of `sidestep intercept`. Any number of wiretaps can run beside an intercept and beside
    each other.

    Copies never delay the workload. When there is no room for them (a slow handler) they are dropped or cut off,
    reported here, and counted in `sidestep status`. A copy that was cut off ends with a reset.

    --save keeps the copied requests in a file, with bodies (1 MiB of each), and how they were answered (without the
    body). The values of authorization, cookie, set-cookie and proxy-authorization are redacted; --save-secrets keeps
    those of requests. It needs a filter.

    \b
    What clients write, to a recorder in clear text on port 9000:
      sidestep wiretap orders -n shop --port 9000:https --http-method POST --plaintext
      sidestep wiretap orders -n shop --port 9000:https --http-path-prefix /api/ --plaintext --save orders.har
    """
    return _run_session(Kind.WIRETAP, divert_probes=False, reset_existing=False, **words)


def _run_session(
    kind: Kind,
    *,
    workload: str,
    command: tuple[str, ...],
    port: PortMapping,
    namespace: str | None,
    backend: Backend,
    output: str,
    address: str,
    handler_ca: Path | None,
    plaintext: bool,
    statuses: tuple[str, ...],
    page: PageSettings | None,
    no_color: bool,
    since: float,
    last: int,
    save: Path | None = None,
    save_secrets: bool = False,
    world: Wanted | None = None,
    **rest: Any,
) -> int:
    saved = None
    shown = live_page(workload, page, backend=backend, namespace=namespace_for(backend, namespace))
    takers: list[Callable[[CopiedRequest], None]] = []
    try:
        wanted = filter_of(rest)
        settings = HandlerSettings(port=port.local, address=address, plaintext=plaintext, ca=handler_ca)
        if save is not None:
            if wanted.is_global:
                raise RefusedError("--save needs a filter: without one, connections are copied unread")
            saved = SavedRequests(HarFile(save), statuses=statuses, copied=True, secret=save_secrets)
            takers.append(saved.take)
        if shown is not None and kind is Kind.WIRETAP and not wanted.is_global:
            takers.append(shown.take)
        if (since or last) and (wanted.is_global or port.transport == "udp"):
            raise RefusedError("--since and --last need a filter: without one, requests are not read")
        handler = _handler(settings, takers)
    except (ConfigurationError, RefusedError) as error:
        raise click.UsageError(str(error)) from error
    namespace = namespace_for(backend, namespace)
    workload = resolve_service(backend, namespace, workload)
    spec = SessionSpec(
        namespace=namespace,
        workload=workload,
        port=port.remote,
        kind=kind.value,
        transport="udp" if port.transport == "udp" else "tcp",
        name=rest["name"],
        pod=rest["pod"],
        claimed_owner=claimed_owner(),
        plaintext=plaintext,
        divert_probes=rest["divert_probes"],
        reset_existing=rest["reset_existing"],
        # Copies are joined with the lines of all requests.
        statuses=() if takers else statuses,
        since=since if kind is Kind.WIRETAP else 0.0,
        last=last if kind is Kind.WIRETAP else 0,
        **filter_spec(wanted),
    )
    coloured = output == "text" and uses_colour(no_color=no_color, descriptor=STDOUT)
    if (since or last) and kind is Kind.INTERCEPT:
        earlier = replace(
            spec, kind="wiretap", heads_only=True, statuses=statuses, since=since, last=last, name="",
            divert_probes=False, reset_existing=False, plaintext=False,
        )  # fmt: skip
        if not show_earlier(earlier, backend=backend, output=output, coloured=coloured):
            return 0
    verb = "goes" if kind is Kind.INTERCEPT else "is copied"
    description = f"{describe_filter(wanted)} of {workload} port {port.remote} {verb} to {settings}"
    description += " in clear" if plaintext else ""
    return run(
        [spec],
        backend=backend,
        handler=handler,
        report=lambda writer: (
            JsonReport(writer, statuses=statuses, saved=saved)
            if output == "json"
            else Report(
                writer,
                description=description,
                noun=kind.value.capitalize(),
                statuses=statuses,
                coloured=coloured,
                saved=saved,
                expected=rest["name"] or base_name(spec),
            )
        ),
        command=command,
        page=shown,
        world=_world(world, backend, namespace, workload, rest["pod"]),
    )


def _world(wanted: Wanted | None, backend: Backend, namespace: str, workload: str, pod: str) -> World | None:
    """Return what fetches the pod's world; None where nothing of it is wanted."""
    if wanted is None or not wanted.allow:
        return None
    spec = access_spec(
        namespace,
        workload,
        *wanted.allow,
        pod=pod,
        container=wanted.container,
        allow_loopback=wanted.allow_loopback,
    )
    return World(backend, spec, wanted)


def _handler(settings: HandlerSettings, takers: Sequence[Callable[[CopiedRequest], None]]) -> Handler:
    """Return the handler's side; copied requests are told to `takers`, if there are any."""
    if not takers:
        return Handler(settings)
    from sidestep.laptop.copied_requests import RecordingHandler

    def take(copy: CopiedRequest) -> None:
        for each in takers:
            each(copy)

    return RecordingHandler(settings, take)
