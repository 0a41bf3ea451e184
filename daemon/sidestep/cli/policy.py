"""`sidestep policy check`: whether inspection policies would be accepted, and what they say of captured requests.

It does what the node daemons do when a policy is applied: the documents are parsed, their regexes compiled and probed
with hostile text. With a capture it judges each request in it as a pod proxy would (`engine.replay`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import click
from msgspec.structs import replace

from sidestep.aio.named_file import read_named
from sidestep.cli.command import Command, FilePath
from sidestep.cli.firewall_child import FirewallChild
from sidestep.cli.options import output_option
from sidestep.cli.policy_except import except_
from sidestep.cli.replaying import Progress, Say, replay_capture, say_json, say_text
from sidestep.config.field_error import FieldError
from sidestep.config.manifests import Declared, ManifestError, load_file
from sidestep.config.yaml_documents import MAX_TEXT
from sidestep.model.errors import ConfigurationError
from sidestep.model.inspection import InspectionPolicy, Mode
from sidestep.model.inventory import ConfigMap
from sidestep.policy.accepted_policy import AcceptedPolicy, accept
from sidestep.policy.seclang import CustomRules, custom_rules
from sidestep.policy.waf import PolicyWaf, join

STANDARD_INPUT = Path("-")
_NO_RULES = CustomRules()


@click.group(short_help="Check inspection policies, and except alerts from them.")
def policy() -> None:
    """Check inspection policies before they are applied, and except from them what they need not find."""


policy.add_command(except_)


@policy.command(cls=Command, short_help="Check policies, and try them on a capture.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=FilePath())
@click.option(
    "--replay",
    "capture",
    type=FilePath(),
    metavar="CAPTURE",
    help="Say what each request of this capture (pcapng, clear text) would get.",
)
@click.option("--crs", type=FilePath(), metavar="DIR", help="A Core Rule Set as it is released. [default: Debian's]")
@output_option
def check(files: tuple[Path, ...], capture: Path | None, crs: Path | None, output: str) -> int:
    """Check the InspectionPolicy and ClusterInspectionPolicy documents in FILE... (- for standard input).

    Each document is read and probed as a node daemon does before it accepts a policy: unknown fields, conditions that
    can never match, regexes that do not compile or are too slow on hostile text. An error names file, line and field.

    With --replay, every request of the capture is judged by all policies of the files, whatever their selectors and
    ports say: HTTP/1 and HTTP/2 in clear text, bodies and answers included. Nothing is sent anywhere. The values of
    queries are shown only if each policy has redact.queryValues: false. A rule that blocks does not end a replayed
    connection: what was captured behind it is judged, too. Policies with waf have a firewall judge each request, in a
    process that can do nothing else; that needs libmodsecurity3 and modsecurity-crs. Requests of the capture are taken
    for ones to the pods: what egress would say of requests that pods send is not said, nor what ids would find.

    Rules that a policy has in a ConfigMap are read if the ConfigMap is in the files.

    The exit code is 0 if every policy would be accepted (and the capture could be read), 1 if not.

    \b
      sidestep policy check policies.yaml
      kubectl get ipol -A -o yaml | sidestep policy check -
      dumpcap -i any -f "tcp port 8080" -w today.pcapng
      sidestep policy check policies.yaml --replay today.pcapng
    """
    say = say_json if output == "json" else say_text
    progress = Progress()
    accepted, config_maps, bad = _check_files(files, say, progress)
    custom, faults = _custom_rules(accepted, config_maps, say)
    bad = bad or faults
    if capture is not None and not bad:
        _replay(accepted, custom, capture, crs, say, progress)
    return int(bad)


def _replay(
    policies: list[InspectionPolicy],
    custom: Mapping[str, CustomRules],
    capture: Path,
    crs: Path | None,
    say: Say,
    progress: Progress,
) -> None:
    """Judge the requests of a capture, by a firewall, too, where a policy has one."""
    for each in policies:
        if each.egress is not None:
            _say_note(f"{each.display}: egress is not replayed: requests are judged as ones that pods receive", say)
    firewalls = [
        PolicyWaf(
            each.display,
            each.mode is Mode.ENFORCE,
            each.closes,
            each.waf,
            _NO_RULES if each.waf.rules_from is None else custom.get(each.display, _NO_RULES),
        )
        for each in sorted(policies, key=lambda each: each.order)
        if each.waf is not None
    ]
    if not firewalls:
        replay_capture(policies, capture, say, progress)
        return
    with FirewallChild(join(firewalls), crs) as firewall:
        replay_capture(policies, capture, say, progress, firewall)


def _custom_rules(
    policies: Iterable[InspectionPolicy], config_maps: Mapping[tuple[str, str], ConfigMap], say: Say
) -> tuple[dict[str, CustomRules], bool]:
    """The rules that firewalls have in ConfigMaps, by policy, and whether any are wrong."""
    found: dict[str, CustomRules] = {}
    bad = False
    for each in policies:
        place = each.waf_rules
        if place is None:
            continue
        where = f"ConfigMap {place.namespace}/{place.name}, key {place.key}"
        written = config_maps.get((place.namespace, place.name))
        text = written.data.get(place.key) if written is not None else None
        if text is None:
            _say_note(f"{each.display}: {where} is not in the files: its rules are not looked at", say)
            continue
        try:
            found[each.display] = custom_rules(text)
        except ConfigurationError as error:
            bad = True
            _say_note(f"{each.display}: {where}: {error.reason}", say, event="fault")
    return found, bad


def _say_note(text: str, say: Say, event: str = "note") -> None:
    say({"event": event, "reason": text}, text)


# --- policies -------------------------------------------------------------------------------------------------------


def _check_files(
    files: tuple[Path, ...], say: Say, progress: Progress
) -> tuple[list[InspectionPolicy], dict[tuple[str, str], ConfigMap], bool]:
    """The policies that would be accepted, the ConfigMaps beside them, and whether anything is wrong."""
    accepted: list[InspectionPolicy] = []
    config_maps: dict[tuple[str, str], ConfigMap] = {}
    places: dict[str, str] = {}
    bad = False
    for path in files:
        read = load_file(str(path), _content(path))
        found = [each for each in read.declared if isinstance(each.object, InspectionPolicy)]
        faults = list(read.errors)
        for each in read.declared:
            if isinstance(each.object, ConfigMap):
                config_maps[each.object.namespace, each.object.name] = each.object
        for count, each in enumerate(found, 1):
            earlier = places.setdefault(each.subject, each.place)
            if earlier != each.place:
                faults.append(replace(each.at, reason=f"the same policy stands in {earlier}"))
                continue
            checked = _checked(each)
            if isinstance(checked, ManifestError):
                faults.append(checked)
            else:
                accepted.append(checked.policy)
                _say_accepted(each.subject, checked, say)
            progress.tell(f"{path}: {count} of {len(found)} policies are checked")
        for fault in sorted(faults, key=lambda each: each.document):
            _say_fault(fault, say)
        bad = bad or bool(faults)
        if not found and not faults:
            raise ConfigurationError("has no InspectionPolicy and no ClusterInspectionPolicy", subject=str(path))
    return accepted, config_maps, bad


def _content(path: Path) -> bytes:
    """The content of a file, or of standard input. Raises ConfigurationError."""
    if path != STANDARD_INPUT:
        return read_named(path, subject="FILE", limit=MAX_TEXT)
    return sys.stdin.buffer.read(MAX_TEXT + 1)  # the parser refuses what is larger


def _checked(declared: Declared) -> AcceptedPolicy | ManifestError:
    """Accept a policy as a node daemon does; or say why it would not be."""
    assert isinstance(declared.object, InspectionPolicy)  # noqa: S101 - only those are given
    try:
        return accept(declared.object, time.thread_time)
    except FieldError as error:
        return replace(declared.at, field=error.path, reason=error.reason)
    except ConfigurationError as error:
        return replace(declared.at, reason=str(error))


def _say_accepted(subject: str, accepted: AcceptedPolicy, say: Say) -> None:
    found = accepted.policy
    count = len(found.rules)
    cost = f"; {accepted.cost:.1f} microseconds per KiB of hostile text" if accepted.cost else ""
    value = {
        "event": "accepted",
        "policy": subject,
        "mode": found.mode,
        "failurePolicy": found.failure_policy,
        "rules": count,
        "cost": round(accepted.cost, 1),
    }
    outwards = ""
    if found.egress is not None:
        value["egress"] = {
            "destinations": len(found.egress.destinations),
            "rules": len(found.egress.rules),
            "failurePolicy": found.egress.failure_policy,
        }
        outwards = f"; egress: {_rules(len(found.egress.rules))}, failurePolicy {found.egress.failure_policy}"
    modes = f"mode {found.mode}, failurePolicy {found.failure_policy}"
    say(value, f"{subject}: accepted, {_rules(count)}, {modes}{cost}{outwards}")


def _rules(count: int) -> str:
    return f"{count} {'rule' if count == 1 else 'rules'}"


def _say_fault(fault: ManifestError, say: Say) -> None:
    value = {
        "event": "fault",
        "file": fault.file,
        "document": fault.document,
        "line": fault.line,
        "policy": fault.subject,
        "field": fault.field,
        "reason": fault.reason,
    }
    say(value, str(fault))
