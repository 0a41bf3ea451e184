"""Turns an alert into the change of a policy that keeps it from coming again. Pure.

    a rule of the policy    `except` of the rule gains the method and path of the request, or its client
    the firewall            `waf.exceptions` gains the rules of CRS that matched, for the path of the request, or
                            `waf.excludeRules` for all requests of the port; in every policy of the port that has `waf`,
                            because a rule is left out only where all of them say so

Of what a pod sends the same stands in `egress`, and its destinations take the place of the port.

A change has whole lists: what the policy excepts already stands in it, as far as the policy is known. The conditions of
one `except` must all hold, so a request can join an `except` about requests, and a client one about clients; where that
is not so there is no change, and a note says why.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Final

import msgspec
from msgspec.structs import replace

from sidestep.config import filters
from sidestep.config.inspection_fields import MAX_SOURCES
from sidestep.config.waf import EXCEPTED_PATH, EXCLUDABLE, MAX_EXCEPTIONS, MAX_EXCLUDED, MAX_PATH
from sidestep.model.egress import Network
from sidestep.model.errors import ConfigurationError
from sidestep.model.filter import Filter, PathCondition, PathTest
from sidestep.model.inspection import Direction, InspectionPolicy, Match, Rule
from sidestep.model.waf import MAX_EXEMPTIONS, REQUEST_LINE, REQUEST_LINE_OF_CRS, Waf, WafException
from sidestep.policy.inspection_match import CompiledMatch, RequestFacts, plain_address
from sidestep.policy.path_forms import paths_of
from sidestep.policy.seclang import place_and_number
from sidestep.policy.waf import exemptions_of
from sidestep.snapshots.waf import Exemption

MAX_FORMS: Final = 8
"""Forms of one path that an exception lists."""
_NUMBER: Final = re.compile(r"[0-9]{1,10}")
"""The number of a rule, in a record that may come from a file of anybody's."""


class By(enum.StrEnum):
    """What an exception is about."""

    REQUEST = "request"
    """Method and path; of a firewall the path."""
    SOURCE = "source"
    """The address of the client: of a rule only."""
    PORT = "port"
    """All requests of the port, or to the destinations of `egress`: of a firewall only."""


class AlertFacts(msgspec.Struct, frozen=True):
    """What a record tells of an alert. `found` is its pattern; `path` is None where the record does not show it.

    `source` and `destination` are addresses: of what was found in an answer, the client is the destination.
    `is_answered`: the record has a status, as one of an answer has, and some of a request that ended late.
    `is_outward`: it is about what the pod sends, so the change is one of `egress`.
    """

    policy: str
    rule: str
    is_of_firewall: bool
    found: str
    method: str
    path: str | None
    source: str
    destination: str
    is_answered: bool
    is_outward: bool = False


class Change(msgspec.Struct, frozen=True):
    """What `spec` of a policy has to say, as a document has it; empty where nothing can be changed. Notes are for
    people."""

    policy: str
    spec: dict[str, object] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def changes(alert: AlertFacts, policies: Sequence[InspectionPolicy], *, by: By, is_whole: bool) -> list[Change]:
    """The changes for one alert.

    `policies` are those of the port of the alert, in their order, as far as they are known; `is_whole`: there are no
    others.
    """
    if alert.is_outward:
        policies = [each.outward for each in policies if each.outward is not None]
    if alert.is_of_firewall:
        made = _of_firewall(alert, [each for each in policies if each.waf is not None], by, is_whole=is_whole)
    else:
        policy = next((each for each in policies if each.display == alert.policy), None)
        made = [_of_rule(alert, policy, by)]
    return [_outward(each) for each in made] if alert.is_outward else made


def _outward(change: Change) -> Change:
    """The same change of what a policy says about connections that pods make."""
    return replace(change, spec={"egress": change.spec}) if change.spec else change


# --- rules ----------------------------------------------------------------------------------------------------------


def _of_rule(alert: AlertFacts, policy: InspectionPolicy | None, by: By) -> Change:
    notes: list[str] = []
    rule: Rule | None = None
    if by is By.PORT:
        everywhere = "destinations" if alert.is_outward else "port"
        note = f"rule {alert.rule} of the policy applies to the {everywhere}: take it out there"
        return Change(alert.policy, notes=(note,))
    if by is By.SOURCE and alert.is_outward:
        return Change(alert.policy, notes=("the client is the pod itself: `--by request` is about what it sends",))
    if policy is not None:
        rule = next((each for each in policy.rules if each.name == alert.rule), None)
        if rule is None:
            return Change(alert.policy, notes=(f"the policy has no rule {alert.rule} any more",))
    if by is By.REQUEST:
        wanted, why_not = _request(alert)
        if wanted is None and alert.is_outward:
            return Change(alert.policy, notes=(f"{why_not}: narrow `match` of the rule {alert.rule}",))
        if wanted is None:
            notes.append(f"{why_not}: the exception is about the client instead")
    try:
        if by is By.SOURCE or wanted is None:
            wanted = Match(sources=(_client(alert, rule),))
        joined = _joined(rule.exception if rule is not None else None, wanted, notes)
    except ConfigurationError as error:
        return Change(alert.policy, notes=(*notes, f"rule {alert.rule}: {error.reason}"))
    if policy is None:
        notes.append("what `except` of the rule says already is not known: its conditions must all hold")
    spec: dict[str, object] = {"rules": [{"name": alert.rule, "except": _document(joined)}]}
    shown = _shown(wanted, is_outward=alert.is_outward)
    return Change(alert.policy, spec, (*notes, f"rule {alert.rule} no longer applies to {shown}"))


def _request(alert: AlertFacts) -> tuple[Match | None, str]:
    """The exception for a request, or why there is none."""
    if alert.path is None:
        return None, "the record does not show the path"
    forms, is_complete = paths_of(alert.path.encode())
    if not is_complete or len(forms) > MAX_FORMS:
        return None, "apps may take the path for too many others"
    try:
        method = filters.parse_method(alert.method)
        paths = tuple(filters.parse_path(PathTest.EQUAL, form.decode()) for form in forms)
    except (ConfigurationError, UnicodeDecodeError):
        return None, "no condition can name the request"
    made = Match(Filter(methods=(method,), paths=paths))
    facts = RequestFacts(method.encode(), alert.path.encode(), ())
    if not CompiledMatch(made, of_exception=True, of_response=False).request(facts):
        return None, "no condition holds for the request"
    return made, ""


def _client(alert: AlertFacts, rule: Rule | None) -> Network:
    """The client's address. Raises ConfigurationError for a record that has none."""
    of_answer = alert.is_answered if rule is None else rule.direction is Direction.RESPONSE
    try:
        address = ip_address(alert.destination if of_answer else alert.source)
    except ValueError:
        raise ConfigurationError("the record does not show the client's address") from None
    return ip_network(plain_address(address))


def _joined(before: Match | None, wanted: Match, notes: list[str]) -> Match:
    """What a rule has to except. Raises ConfigurationError where that cannot be said in one exception."""
    if before is None:
        return wanted
    about = _about(before)
    if wanted.sources:
        if about != ["sources"]:
            raise ConfigurationError(_other(about, "the client"))
        networks = tuple(dict.fromkeys((*before.sources, *wanted.sources)))
        if networks == before.sources:
            raise ConfigurationError("`except` has this client already")
        if len(networks) > MAX_SOURCES:
            raise ConfigurationError(f"`except` has {MAX_SOURCES} sources already; more are not possible")
        return replace(before, sources=networks)
    if not before.filter.paths or not set(about) <= {"methods", "paths"}:
        raise ConfigurationError(_other(about, "the request"))
    methods = before.filter.methods
    if methods and not set(wanted.filter.methods) <= set(methods):
        methods = (*methods, *wanted.filter.methods)
        notes.append("`except` is about each of its methods on each of its paths")
    elif not methods:
        notes.append("`except` is about all methods")
    paths = tuple(dict.fromkeys((*before.filter.paths, *wanted.filter.paths)))
    made = Filter(methods=methods, paths=paths)
    if made == before.filter:
        raise ConfigurationError("`except` has this request already")
    filters.check_limits(made)
    return Match(made)


def _other(about: list[str], what: str) -> str:
    said = " and ".join(f"`{each}`" for each in about)
    return f"`except` says {said} already, and all of it must hold: {what} cannot be added; narrow `match` of the rule"


def _about(match: Match) -> list[str]:
    kinds = {
        "headers": match.filter.headers,
        "methods": match.filter.methods,
        "paths": match.filter.paths,
        "queryParameters": match.parameters,
        "serverNames": match.server_names,
        "sources": match.sources,
        "clientCertificates": match.client_certificates,
        "networks": match.networks,
        "ports": match.ports,
        "fingerprints": match.fingerprints,
    }
    return [name for name, conditions in kinds.items() if conditions]


def _document(match: Match) -> dict[str, object]:
    """An exception about methods, paths and sources, as a document has it."""
    made: dict[str, object] = {}
    if match.filter.methods:
        made["methods"] = list(match.filter.methods)
    if match.filter.paths:
        made["paths"] = [_path(each) for each in match.filter.paths]
    if match.sources:
        made["sources"] = [str(each) for each in match.sources]
    return made


def _path(condition: PathCondition) -> dict[str, str]:
    return {"match": condition.test.value.capitalize(), "value": condition.value}


def _shown(wanted: Match, *, is_outward: bool) -> str:
    if wanted.sources:
        return f"requests from {wanted.sources[0]}"
    others = "to whichever host" if is_outward else "whoever sends it"
    return f"{wanted.filter.methods[0]} of {wanted.filter.paths[0].value}, {others}"


# --- the firewall ---------------------------------------------------------------------------------------------------


def _of_firewall(alert: AlertFacts, policies: Sequence[InspectionPolicy], by: By, *, is_whole: bool) -> list[Change]:
    if alert.found == "over-limit":
        note = "the request exceeds a limit and was not judged: raise limits.bodyBytes or limits.fields"
        return [Change(alert.policy, notes=(note,))]
    numbers = [int(each) for each in alert.found.split() if _NUMBER.fullmatch(each)]
    named = [REQUEST_LINE_OF_CRS if each == REQUEST_LINE else each for each in numbers]
    wanted = sorted({each for each in named if any(first <= each <= last for first, last in EXCLUDABLE)})
    notes = [note for each in numbers if (note := _why_not(each, policies))]
    if not wanted:
        return [Change(alert.policy, notes=(*notes, "no rule of the Core Rule Set that matched can be left out"))]
    path = None if by is By.PORT else alert.path
    if path is not None and not (len(path) <= MAX_PATH and EXCEPTED_PATH.fullmatch(path)):
        path = None
    if path is None and by is not By.PORT:
        notes.append("no exception can name the path of the request")
    everywhere = "any request to the destinations" if alert.is_outward else "any request of the port"
    where = everywhere if path is None else f"requests of {path}"
    others = "about what the pod sends that have `egress.waf`" if alert.is_outward else "of the port that have `waf`"
    all_of_them = f"other policies {others} must say so, too"
    notes.append(f"the firewall no longer looks for this in {where}: {_list(wanted)}")
    if path is not None:
        notes.append(
            "narrow it with `parameters: [NAME]` where one argument is meant; `--by port` is about all requests"
        )
    if not policies:
        notes.append("what the policy leaves out already is not known: add to it")
        return [_leaving_out(alert.policy, wanted, path, Waf(), (*notes, all_of_them))]
    if not is_whole:
        notes.append(all_of_them)
    elif len(policies) > 1:
        notes.append("it takes effect once all of these policies say so")
    made = [
        _leaving_out(each.display, missing, path, each.waf, tuple(notes))
        for each in policies
        if each.waf is not None and (missing := _missing(wanted, path, each.waf))
    ]
    return made or [Change(alert.policy, notes=(f"{_list(wanted)} is left out of {where} already",))]


def _missing(wanted: Sequence[int], path: str | None, waf: Waf) -> list[int]:
    """The rules that a policy has look at requests of a path, or at any request."""
    exemptions = exemptions_of(waf)
    return [
        rule
        for rule in wanted
        if rule not in waf.excluded
        and not (path is not None and any(each.includes(Exemption(rule, path)) for each in exemptions))
    ]


def _leaving_out(policy: str, rules: Sequence[int], path: str | None, waf: Waf, notes: tuple[str, ...]) -> Change:
    """The change that leaves rules out of requests of a path, or of any request."""
    if path is None:
        excluded = sorted({*waf.excluded, *rules})
        if len(excluded) > MAX_EXCLUDED:
            return Change(policy, notes=(f"excludeRules would have more than {MAX_EXCLUDED} rules",))
        return Change(policy, {"waf": {"excludeRules": excluded}}, notes)
    wanted = WafException(tuple(rules), (PathCondition(PathTest.EQUAL, path),))
    exceptions = (*waf.exceptions, wanted)
    count = len(exemptions_of(replace(waf, exceptions=exceptions)))
    if len(exceptions) > MAX_EXCEPTIONS or count > MAX_EXEMPTIONS:
        return Change(policy, notes=("the policy has no room for more exceptions: use excludeRules (`--by port`)",))
    return Change(policy, {"waf": {"exceptions": [_exception_document(each) for each in exceptions]}}, notes)


def _exception_document(exception: WafException) -> dict[str, object]:
    made: dict[str, object] = {"rules": list(exception.rules)}
    if exception.paths:
        made["paths"] = [_path(each) for each in exception.paths]
    if exception.parameters:
        made["parameters"] = list(exception.parameters)
    return made


def _why_not(number: int, policies: Sequence[InspectionPolicy]) -> str:
    """Why a rule that matched is not left out; empty for one that is, or that only adds up what others found."""
    custom = place_and_number(number)
    if custom is not None:
        place, own = custom
        whose = policies[place].display if place < len(policies) else "a policy"
        return f"rule {own} stands in the ConfigMap of {whose}: change it there"
    if number in _OF_THE_BODY:
        return f"rule {number} refuses what cannot be read, and cannot be left out"
    return ""


_OF_THE_BODY: Final = range(9_900_005, 9_900_009)
"""Our own rules about requests that the engine cannot parse (`inspector.rules`)."""


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(set(numbers))))
