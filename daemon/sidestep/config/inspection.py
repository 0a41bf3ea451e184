"""Parses the documents InspectionPolicy and ClusterInspectionPolicy (sidestep.dev/v1alpha1) into policies.

The same documents are resources of a cluster and manifests in local mode. Whoever may write them is not trusted: each
list and each text has a bound, and the first fault is reported with the path of its field
(`spec.rules[3].patterns[0].regex`). What could never match is refused, as in the filters of the command line.

Regexes are only measured here. `policy.inspection` compiles and probes them, because it owns the regex engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

import msgspec
from msgspec.structs import replace

from sidestep.config import filters
from sidestep.config import inspection_fields as fields
from sidestep.config.config_map_key import config_map_key
from sidestep.config.durations import parse_duration
from sidestep.config.egress import egress, fingerprints
from sidestep.config.field_error import FieldError
from sidestep.config.names_and_networks import networks, server_names
from sidestep.config.object_fields import SelectorFields
from sidestep.config.object_values import NAME, check_name, names, selector
from sidestep.config.schema_fault import path_and_reason
from sidestep.config.waf import waf
from sidestep.model.errors import ConfigurationError
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest, PathCondition, PathTest
from sidestep.model.inspection import (
    ExistingConnections,
    FailurePolicy,
    InspectionPolicy,
    Match,
    ParameterCondition,
    Pattern,
    RateLimit,
    Redaction,
    Rule,
    Threshold,
)
from sidestep.model.intercept import WorkloadRef
from sidestep.model.workload import LabelSelector, SelectorOperator

MAX_REGEX = 1024
"""UTF-8 bytes of a regex."""
MAX_ALL_PATTERNS = 512
"""Patterns of all rules of one policy in one direction."""
MAX_NAME = 1024
"""Characters of the name of a query parameter or a client certificate."""
MAX_SELECTOR = 64
"""Labels, expressions, or values of one expression of a selector."""
MIN_PERIOD, MAX_PERIOD = 1.0, 86400.0
"""Seconds of a period: a second to a day."""

_SAID_OUTWARDS = "of those that it makes, write `egress: {{{}}}`"
_P = ParamSpec("_P")
_T = TypeVar("_T")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PORT_NAME = re.compile(r"(?=.{1,15}\Z)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
"""An IANA service name (RFC 6335, 5.1), as names of container ports are."""
_WORKLOAD = re.compile(r"(?=.{1,320}\Z)([A-Za-z.]+/)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


def inspection_policy(value: Mapping[str, object]) -> InspectionPolicy:
    """Convert an InspectionPolicy. Raises FieldError."""
    document = _document(value)
    namespace, name = names(document.metadata)
    spec = document.spec
    if spec.namespace_selector is not None:
        raise FieldError("spec.namespaceSelector", "only a ClusterInspectionPolicy has one")
    if (spec.pod_selector is None) == (spec.workload is None):
        raise FieldError("spec", "needs exactly one of podSelector and workload")
    return _policy(spec, namespace, name)


def cluster_inspection_policy(value: Mapping[str, object]) -> InspectionPolicy:
    """Convert a ClusterInspectionPolicy. Raises FieldError."""
    document = _document(value)
    check_name(document.metadata.name, "metadata.name", NAME)
    spec = document.spec
    if spec.workload is not None:
        raise FieldError("spec.workload", "only an InspectionPolicy has one: workloads belong to namespaces")
    for name, chosen in (("namespaceSelector", spec.namespace_selector), ("podSelector", spec.pod_selector)):
        if chosen is None:
            raise FieldError("spec", f"lacks {name} ({{}} selects all)")
    return _policy(spec, "", document.metadata.name)


def _checked(path: str, check: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a check that other documents share, and give its error the path of the field."""
    try:
        return check(*args, **kwargs)
    except ConfigurationError as error:
        raise FieldError(path, error.reason) from None


def _document(value: Mapping[str, object]) -> fields.PolicyDocumentFields:
    try:
        return msgspec.convert(value, fields.PolicyDocumentFields)
    except msgspec.ValidationError as error:
        path, reason = path_and_reason(error)
        raise FieldError(path[:200], reason[:200] if reason.isprintable() else repr(reason[:200])) from None


def _policy(spec: fields.SpecFields, namespace: str, name: str) -> InspectionPolicy:
    if spec.rules is None and spec.ids is None and spec.waf is None and spec.egress is None:
        raise FieldError("spec", "needs at least one of rules, ids, waf and egress")
    outwards = spec.egress
    if spec.rules is None and spec.ids is None and spec.waf is None:
        _check_outward_only(spec)
    if spec.ids is not None and outwards is not None and outwards.ids not in (None, spec.ids):
        raise FieldError("spec.egress.ids", "names another text than spec.ids: a policy has one, for both directions")
    _check_waf_rules(spec)
    return InspectionPolicy(
        name=name,
        namespace=namespace,
        pod_selector=_selector(spec.pod_selector, "spec.podSelector"),
        workload=None if spec.workload is None else _workload(spec.workload),
        namespace_selector=_selector(spec.namespace_selector, "spec.namespaceSelector"),
        ports=tuple(dict.fromkeys(_port(port, f"spec.ports[{index}]") for index, port in enumerate(spec.ports))),
        mode=spec.mode,
        failure_policy=spec.failure_policy,
        existing_connections=spec.existing_connections,
        sample_percent=spec.log.sample_percent,
        rules=_rules(spec.rules or (), "spec.rules"),
        redaction=_redaction(spec.redact),
        ids=None if spec.ids is None else config_map_key(spec.ids.rules_from, "spec.ids", namespace),
        waf=None if spec.waf is None else waf(spec.waf, namespace),
        egress=None if outwards is None else egress(outwards, _rules(outwards.rules, "spec.egress.rules"), namespace),
    )


def _check_waf_rules(spec: fields.SpecFields) -> None:
    """Refuse two texts of custom rules. Raises FieldError."""
    both = (spec.waf, None if spec.egress is None else spec.egress.waf)
    texts = [each.rules_from for each in both if each is not None and each.rules_from is not None]
    if len(texts) > 1 and texts[0] != texts[1]:
        reason = "names another text than spec.waf.rulesFrom: a policy has one, for both directions"
        raise FieldError("spec.egress.waf.rulesFrom", reason)


def _check_outward_only(spec: fields.SpecFields) -> None:
    """Refuse what is about connections that pods accept in a policy of those that they make. Raises FieldError."""
    if spec.ports:
        raise FieldError("spec.ports", "are ports of the pod, and nothing is said of connections that it accepts")
    said = (
        ("failurePolicy", spec.failure_policy is FailurePolicy.FAIL, _SAID_OUTWARDS.format("failurePolicy: Fail")),
        (
            "log",
            spec.log.sample_percent > 0,
            _SAID_OUTWARDS.format(f"log: {{samplePercent: {spec.log.sample_percent:g}}}"),
        ),
        (
            "existingConnections",
            spec.existing_connections is ExistingConnections.RESET,
            "those that pods make are not reset",
        ),
    )
    for name, is_said, why in said:
        if is_said:
            raise FieldError(
                f"spec.{name}", f"is about connections that the pod accepts, and nothing else is said of those: {why}"
            )


def _rules(read: Sequence[fields.RuleFields | fields.EgressRuleFields], path: str) -> tuple[Rule, ...]:
    patterns = sum(len(rule.patterns) for rule in read)
    if patterns > MAX_ALL_PATTERNS:
        raise FieldError(path, f"{patterns} patterns, at most {MAX_ALL_PATTERNS} are possible in one direction")
    rules = tuple(_rule(rule, f"{path}[{index}]") for index, rule in enumerate(read))
    earlier: set[str] = set()
    for index, rule in enumerate(rules):
        if rule.name in earlier:
            raise FieldError(f"{path}[{index}].name", f"{rule.name} is the name of an earlier rule")
        earlier.add(rule.name)
    return rules


def _selector(read: SelectorFields | None, path: str) -> LabelSelector | None:
    if read is None:
        return None
    if len(read.match_labels or ()) > MAX_SELECTOR:
        raise FieldError(f"{path}.matchLabels", f"more than {MAX_SELECTOR} labels")
    if len(read.match_expressions or ()) > MAX_SELECTOR:
        raise FieldError(f"{path}.matchExpressions", f"more than {MAX_SELECTOR} expressions")
    for index, each in enumerate(read.match_expressions or ()):
        at = f"{path}.matchExpressions[{index}].values"
        with_values = each.operator in {SelectorOperator.IN, SelectorOperator.NOT_IN}
        if bool(each.values) != with_values:
            raise FieldError(at, f"operator {each.operator} takes {'values' if with_values else 'no values'}")
        if len(each.values or ()) > MAX_SELECTOR:
            raise FieldError(at, f"more than {MAX_SELECTOR} values")
    return selector(read, path)


def _workload(text: str) -> WorkloadRef:
    if not _WORKLOAD.fullmatch(text):
        raise FieldError("spec.workload", "write NAME or KIND/NAME, like deployment/orders")
    kind, slash, name = text.rpartition("/")
    return WorkloadRef(name, kind.lower() if slash else None)


def _port(port: int | str, path: str) -> int | str:
    if isinstance(port, str) and not _PORT_NAME.fullmatch(port):
        raise FieldError(path, f"{port[:32]!r} is no container port: write its number, or its name in lower case")
    return port


def _rule(rule: fields.RuleFields | fields.EgressRuleFields, path: str) -> Rule:
    if not _LABEL.fullmatch(rule.name):
        raise FieldError(f"{path}.name", f"{rule.name[:64]!r} is no name (lower-case letters, digits and '-')")
    return Rule(
        name=rule.name,
        action=rule.action,
        direction=rule.direction,
        match=_match(rule.match, f"{path}.match"),
        exception=None if rule.exception is None else _exception(rule.exception, f"{path}.except"),
        patterns=tuple(
            dict.fromkeys(_pattern(each, f"{path}.patterns[{at}]") for at, each in enumerate(rule.patterns))
        ),
        threshold=_threshold(rule.threshold, f"{path}.threshold"),
        rate_limit=_rate_limit(rule.rate_limit, f"{path}.rateLimit"),
    )


def _threshold(read: fields.ThresholdFields | None, path: str) -> Threshold | None:
    return None if read is None else Threshold(read.count, _period(read.period, f"{path}.period"))


def _rate_limit(read: fields.RateLimitFields | None, path: str) -> RateLimit | None:
    return None if read is None else RateLimit(read.count, _period(read.period, f"{path}.period"))


def _exception(read: fields.MatchFields | fields.EgressMatchFields, path: str) -> Match:
    found = _match(read, path)
    if found.is_empty:
        raise FieldError(path, "is empty: the rule would never apply")
    return found


def _match(read: fields.MatchFields | fields.EgressMatchFields, path: str) -> Match:
    wanted = Filter(
        headers=tuple(_header(each, f"{path}.headers[{index}]") for index, each in enumerate(read.headers)),
        methods=tuple(
            _checked(f"{path}.methods[{index}]", filters.parse_method, each) for index, each in enumerate(read.methods)
        ),
        paths=tuple(_path(each, f"{path}.paths[{index}]") for index, each in enumerate(read.paths)),
    )
    _checked(path, filters.check_limits, wanted)
    found = Match(
        filter=wanted,
        parameters=tuple(
            _parameter(each, f"{path}.queryParameters[{index}]") for index, each in enumerate(read.query_parameters)
        ),
        server_names=server_names(read.server_names, f"{path}.serverNames"),
    )
    if isinstance(read, fields.EgressMatchFields):
        return replace(
            found,
            networks=networks(read.networks, f"{path}.networks"),
            ports=tuple(dict.fromkeys(read.ports)),
            fingerprints=fingerprints(read.fingerprints, f"{path}.fingerprints"),
        )
    return replace(
        found,
        sources=networks(read.sources, f"{path}.sources"),
        client_certificates=tuple(
            _certificate(each, f"{path}.clientCertificates[{index}]")
            for index, each in enumerate(read.client_certificates)
        ),
    )


def _header(read: fields.HeaderFields, path: str) -> HeaderCondition:
    name = read.name.lower()
    _checked(f"{path}.name", filters.check_name, name)
    return HeaderCondition(name, *_test_and_value(read, path))


def _parameter(read: fields.HeaderFields, path: str) -> ParameterCondition:
    if not 1 <= len(read.name) <= MAX_NAME:
        raise FieldError(f"{path}.name", f"must have between 1 and {MAX_NAME} characters")
    _text(read.name, f"{path}.name")
    test, value = _test_and_value(read, path)
    return ParameterCondition(read.name, test, value)


def _test_and_value(read: fields.HeaderFields, path: str) -> tuple[HeaderTest, str]:
    at = f"{path}.value"
    if read.match == "Present":
        if read.value is not None:
            raise FieldError(at, "match Present takes no value")
        return HeaderTest.PRESENT, ""
    if read.value is None:
        raise FieldError(path, f"match {read.match} needs a value; match Present takes none")
    if read.match == "Regex":
        return HeaderTest.REGEX, _regex(read.value, at)
    _checked(at, filters.check_exact_value, read.value, subject=at)
    return HeaderTest.EXACT, read.value


def _path(read: fields.PathFields, path: str) -> PathCondition:
    test = PathTest(read.match.lower())
    at = f"{path}.value"
    if test is PathTest.REGEX:
        return PathCondition(test, _regex(read.value, at))
    return _checked(at, filters.parse_path, test, read.value)


def _certificate(name: str, path: str) -> str:
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise FieldError(path, f"must be a name of a certificate of at most {MAX_NAME} printable characters")
    if "*" in name[:-1]:
        raise FieldError(path, "* stands for the rest of a name, so it comes last")
    return name


def _pattern(read: fields.PatternFields, path: str) -> Pattern:
    if (read.builtin is None) == (read.regex is None):
        raise FieldError(path, "needs exactly one of builtin and regex")
    if read.regex is None:
        return Pattern(builtin=read.builtin)
    return Pattern(regex=_regex(read.regex, f"{path}.regex"))


def _regex(text: str, path: str) -> str:
    if not text:
        raise FieldError(path, "is empty: it would be found everywhere")
    size = len(_text(text, path).encode())
    if size > MAX_REGEX:
        raise FieldError(path, f"a regex of {size} bytes, at most {MAX_REGEX} are possible")
    return text


def _text(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FieldError(path, "not valid UTF-8") from None
    return text


def _period(text: str, path: str) -> float:
    return _checked(path, parse_duration, text, minimum=MIN_PERIOD, maximum=MAX_PERIOD)


def _redaction(read: fields.RedactFields) -> Redaction:
    lowered = [name.lower() for name in read.headers]
    for index, name in enumerate(lowered):
        _checked(f"spec.redact.headers[{index}]", filters.check_name, name)
    return Redaction(read.query_values, tuple(dict.fromkeys(lowered)))
