"""`sidestep policy except`: from an alert to the change of a policy that keeps it from coming again.

The alert is looked up among the last ones of this machine's daemon, which knows the policies in force, too; of the
daemons of a cluster (`alert_search`); or in a file of EVE records, with the policies of the files that are named, or
those of the cluster.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import quote

import click
import msgspec
import yaml

from sidestep.aio.named_file import opened, read_named
from sidestep.cli.alert_search import MAX_RECORDS, search
from sidestep.cli.backend import Backend, backend_options, namespace_for
from sidestep.cli.cluster_policies import written
from sidestep.cli.command import Command, FilePath, WorkloadType
from sidestep.cli.options import namespace_option, output_option
from sidestep.cli.output import json_line
from sidestep.config.manifests import load_file
from sidestep.config.yaml_documents import MAX_TEXT
from sidestep.engine.inspection.alert_changes import changes_of, of_one_exchange
from sidestep.kube.access import ClusterAccess
from sidestep.laptop.local_client import LocalClient
from sidestep.model.errors import ConfigurationError, RefusedError, SidestepError
from sidestep.model.inspection import InspectionPolicy
from sidestep.model.text import harmless
from sidestep.policy.earlier_alerts import ID
from sidestep.policy.exceptions import By
from sidestep.protocols.eve import MAX_RECORD
from sidestep.protocols.eve_records import Record
from sidestep.tunnel.messages import decode
from sidestep.tunnel.views import AlertView, ChangeView

STANDARD_INPUT: Final = Path("-")
_TOLD: Final = re.compile(r"sidestep: policy (\S+), id (\S+)")
"""What a refused client was told."""
_DECODER: Final = msgspec.json.Decoder(Record)


class Told(msgspec.Struct, frozen=True):
    """An alert's id, and the policy that the client was told, "" if only the id is known."""

    id: str
    policy: str


class AlertId(click.ParamType[Told]):
    """An alert's id, or the line that a refused client was told."""

    name = "alert-id"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Told:
        """As click.ParamType.convert."""
        if isinstance(value, Told):
            return value
        text = str(value).strip()
        told = _TOLD.fullmatch(text)
        found = Told(told[2], told[1]) if told else Told(text, "")
        if not ID.fullmatch(found.id):
            self.fail(f"{harmless(repr(found.id), 80)} is no id of an alert: it looks like 2c6db743-1", param, ctx)
        return found


@click.command("except", cls=Command, short_help="From an alert to the exception from a policy.")
@click.argument("alert_id", metavar="ALERT-ID", type=AlertId())
@click.argument("files", metavar="[FILE]...", nargs=-1, type=FilePath())
@click.option("--eve", type=FilePath(), metavar="EVE", help="Look the alert up in this file of records (- for stdin).")
@click.option(
    "--by",
    type=click.Choice([each.value for each in By]),
    default=By.REQUEST.value,
    show_default=True,
    help="What is excepted: the request (method and path), its client (rules), or all of the port (firewalls).",
)
@namespace_option
@click.option(
    "--workload", type=WorkloadType(), default="", metavar="WORKLOAD", help="In a cluster: ask for this workload only."
)
@output_option
@backend_options
def except_(
    alert_id: Told,
    files: tuple[Path, ...],
    eve: Path | None,
    by: str,
    namespace: str | None,
    workload: str,
    backend: Backend,
    output: str,
) -> int:
    """Print the change of the policy that lets pass what the alert ALERT-ID is about.

    ALERT-ID stands in what a refused client was told (`sidestep: policy NAME, id ID`; the whole line may be given), in
    EVE records as sidestep.id, and in the lines of `sidestep inspect`. Of a rule the change is an `except`, of a
    firewall `exceptions` for the path of the request, or with `--by port` `excludeRules`. It is printed, and nothing is
    changed.

    Without --eve the alert is looked up among the last of this machine's daemon. With --eve it is looked up in
    records, and FILE... are the documents of the policies, so that the change has what they except already. Without
    FILE they are read from the cluster, if there is one.

    In a cluster the daemon of the pod's node knows the alert. Without --eve those of all workloads with policies in the
    namespace are asked; that takes ClusterRole sidestep-auditor there, as sidestep inspect does.

    The exit code is 1 if there is no such alert, or nothing can except it.

    \b
      sidestep policy except 2c6db743-1
      sidestep policy except 2c6db743-1 --eve /var/log/sidestep/eve.json policies.yaml
    """
    if workload and (eve is not None or not isinstance(backend, ClusterAccess)):
        raise click.UsageError("--workload is for a cluster, and not for --eve")
    if eve is None:
        if files:
            raise click.UsageError("FILE is for --eve: the daemon knows its policies")
        if isinstance(backend, ClusterAccess):
            records = search(backend, alert_id.id, namespace=namespace_for(backend, namespace), workload=workload)
            records = _of_one(records, alert_id, "the cluster", by_workload=not workload)
            found = _of_records(records, _known(backend, records, ()), By(by))
        else:
            found = _of_daemon(backend, alert_id, By(by))
    else:
        records = _of_one(_records(eve, alert_id.id), alert_id, str(eve))
        found = _of_records(records, _known(backend, records, files), By(by))
    if not found.changes:
        raise RefusedError(f"{alert_id.id} is the id of a request that no rule of a policy has found")
    for line in _json(alert_id.id, found) if output == "json" else _text(alert_id.id, found):
        click.echo(line)
    return 0 if any(each.spec for each in found.changes) else 1


def _of_daemon(backend: Path, alert: Told, by: By) -> AlertView:
    try:
        policy = quote(alert.policy, safe="")
        body = asyncio.run(LocalClient(backend).get(f"/v1/alerts/{alert.id}/{by}?policy={policy}"))
    except RefusedError as error:
        raise RefusedError(f"{alert.id}: {error}") from error
    return decode(body, AlertView, what="the daemon's answer")


def _of_one(records: Iterable[Record], alert: Told, where: str, *, by_workload: bool = False) -> tuple[Record, ...]:
    """The records of one exchange. Raises RefusedError where there is none, or more than one."""
    try:
        found = of_one_exchange(records, alert.policy, by_workload=by_workload)
    except RefusedError as error:
        raise RefusedError(f"{alert.id}: {error}") from error
    if not found:
        of_policy = f" of policy {alert.policy}" if alert.policy else ""
        raise RefusedError(f"{where} has no alert {alert.id}{of_policy}")
    return found


# --- files ----------------------------------------------------------------------------------------------------------


def _records(path: Path, alert_id: str) -> Iterator[Record]:
    """The records of an id in a file of records. Raises ConfigurationError."""
    if path == STANDARD_INPUT:
        yield from _found(sys.stdin.buffer, alert_id)
        return
    with opened(path, subject="--eve") as file:
        yield from _found(file, alert_id)


def _found(file: BinaryIO, alert_id: str) -> Iterator[Record]:
    """Lines that are no records are left out: a log that was rotated or cut may begin and end in the midst of one."""
    needle, count = f'"{alert_id}"'.encode(), 0
    while count < MAX_RECORDS and (line := file.readline(MAX_RECORD)):
        if needle in line:
            try:
                record = _DECODER.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            if record.sidestep is not None and record.sidestep.id == alert_id and record.fileinfo is None:
                count += 1
                yield record


def _known(backend: Backend, records: Sequence[Record], files: Sequence[Path]) -> list[InspectionPolicy]:
    """The policies of the files, or of the cluster. Whoever may not read those, or does not reach it, is told so."""
    if files or not isinstance(backend, ClusterAccess):
        return list(_policies(files))
    try:
        return asyncio.run(written(backend, records[0].kubernetes.namespace))
    except SidestepError as error:
        click.echo(f"# the policies of the cluster cannot be read: {harmless(str(error))}", err=True)
        return []


def _of_records(records: Sequence[Record], policies: Sequence[InspectionPolicy], by: By) -> AlertView:
    def policies_of(record: Record) -> tuple[list[InspectionPolicy], bool]:
        """Those of the pod's namespace and of the cluster; the selectors are not looked at."""
        namespaces = ("", record.kubernetes.namespace)
        named = record.sidestep.policy if record.sidestep is not None else None
        return [each for each in policies if each.namespace in namespaces and each.display == named], False

    made = changes_of(records, policies_of, by=by)
    return AlertView(tuple(records), tuple(ChangeView(each.policy, each.spec, each.notes) for each in made))


def _policies(files: Iterable[Path]) -> Iterator[InspectionPolicy]:
    """The policies of documents. Raises ConfigurationError for what cannot be read."""
    for path in files:
        read = load_file(str(path), read_named(path, subject="FILE", limit=MAX_TEXT))
        for fault in read.errors:
            raise ConfigurationError(str(fault))
        for each in read.declared:
            if isinstance(each.object, InspectionPolicy):
                yield each.object


# --- what is printed ------------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Quotes texts that some reader of YAML takes for something else: `1e3`, `0o7` and `y` are names and methods here.

    PyYAML leaves them plain. YAML 1.2 reads a number in the first two, and the YAML of kubectl a boolean in the third.
    """


_Dumper.add_implicit_resolver(
    "tag:sidestep.dev,2026:ambiguous", re.compile(r"(?:[-+.]*[0-9][-+.0-9a-zA-Z_]*|[yYnN])\Z"), [*"-+.0123456789yYnN"]
)


def _yaml(value: object) -> str:
    return yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=False
    ).rstrip()


def _json(alert_id: str, found: AlertView) -> Iterator[str]:
    for each in found.changes:
        yield json_line({"event": "exception", "alert": alert_id, **msgspec.to_builtins(each)})


def _text(alert_id: str, found: AlertView) -> Iterator[str]:
    """A document of YAML for each change, with comments."""
    for record in found.alerts:
        yield f"# {_alert_text(alert_id, record)}"
    for each in found.changes:
        yield "---"
        kind = "InspectionPolicy" if "/" in each.policy else "ClusterInspectionPolicy"
        yield f"# {kind} {harmless(each.policy)}" + ("" if each.spec else ": no change")
        for note in each.notes:
            yield f"# {harmless(note)}"
        if each.spec:
            yield _yaml({"spec": each.spec})


def _alert_text(alert_id: str, record: Record) -> str:
    http, decided = record.http, record.sidestep
    asked = "" if http is None else f", {http.http_method} {http.hostname or ''}{http.url}"
    signature = record.alert.signature if record.alert is not None else ""
    action = "" if decided is None or decided.action is None else decided.action
    return harmless(f"alert {alert_id}, {record.timestamp[:19]}{asked}: {action} {signature}".rstrip(": "))
