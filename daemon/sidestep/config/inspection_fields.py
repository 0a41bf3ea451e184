"""Strict structs for the documents of inspection policies (sidestep.dev/v1alpha1).

Unlike in objects of Kubernetes, an unknown field of a spec is an error: a rule whose misspelt condition is ignored
would do something else than its author meant.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from sidestep.config.config_map_key import RulesFromFields
from sidestep.config.object_fields import MetadataFields, PortNumber, SelectorFields, Text
from sidestep.config.policy_fields import PolicyFields
from sidestep.config.waf import WafFields
from sidestep.model.egress import EgressMode, Quic
from sidestep.model.inspection import Action, Builtin, Direction, ExistingConnections, FailurePolicy, Mode

MAX_RULES = 256
"""Rules of one policy."""
MAX_PORTS = 64
"""Ports of one policy, one destination or one match."""
MAX_PATTERNS = 32
"""Patterns of one rule."""
MAX_SOURCES = 256
"""Networks of one match or one destination."""
MAX_DESTINATIONS = 32
"""Destinations of one policy."""
MAX_NAMES = 64
"""Server names, certificates, fingerprints or query parameters of one match; names of a destination; headers of a
redaction."""
MAX_COUNT = 1000
"""The count of a threshold or a rate limit."""

Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_COUNT)]


class HeaderFields(PolicyFields, frozen=True):
    """`match.headers[]` and `match.queryParameters[]`."""

    name: str
    match: Literal["Exact", "Regex", "Present"] = "Exact"
    value: str | None = None


class PathFields(PolicyFields, frozen=True):
    """`match.paths[]`."""

    match: Literal["Equal", "Prefix", "Regex"]
    value: str


class HttpMatchFields(PolicyFields, frozen=True):
    """What `match` and `except` have in both directions."""

    headers: list[HeaderFields] = msgspec.field(default_factory=list)
    methods: list[str] = msgspec.field(default_factory=list)
    paths: list[PathFields] = msgspec.field(default_factory=list)
    query_parameters: Annotated[list[HeaderFields], msgspec.Meta(max_length=MAX_NAMES)] = msgspec.field(
        default_factory=list
    )
    server_names: Annotated[list[Text], msgspec.Meta(max_length=MAX_NAMES)] = msgspec.field(default_factory=list)


class MatchFields(HttpMatchFields, frozen=True):
    """`match` and `except` of rules about connections that pods accept."""

    sources: Annotated[list[Text], msgspec.Meta(max_length=MAX_SOURCES)] = msgspec.field(default_factory=list)
    client_certificates: Annotated[list[str], msgspec.Meta(max_length=MAX_NAMES)] = msgspec.field(default_factory=list)


class EgressMatchFields(HttpMatchFields, frozen=True):
    """The same of rules about connections that pods make."""

    networks: Annotated[list[Text], msgspec.Meta(max_length=MAX_SOURCES)] = msgspec.field(default_factory=list)
    ports: Annotated[list[PortNumber], msgspec.Meta(max_length=MAX_PORTS)] = msgspec.field(default_factory=list)
    fingerprints: Annotated[list[Text], msgspec.Meta(max_length=MAX_NAMES)] = msgspec.field(default_factory=list)


class PatternFields(PolicyFields, frozen=True):
    """`patterns[]`: exactly one of the two."""

    builtin: Builtin | None = None
    regex: str | None = None


class ThresholdFields(PolicyFields, frozen=True):
    """`threshold`."""

    count: Count
    period: str
    by: Literal["Client"] = "Client"


class RateLimitFields(PolicyFields, frozen=True):
    """`rateLimit`."""

    count: Count
    period: str


class CommonRuleFields(PolicyFields, frozen=True):
    """What rules have in both directions."""

    name: str
    action: Action
    direction: Direction = Direction.REQUEST
    patterns: Annotated[list[PatternFields], msgspec.Meta(max_length=MAX_PATTERNS)] = msgspec.field(
        default_factory=list
    )
    threshold: ThresholdFields | None = None
    rate_limit: RateLimitFields | None = None


class RuleFields(CommonRuleFields, frozen=True):
    """`rules[]`."""

    match: MatchFields = msgspec.field(default_factory=MatchFields)
    exception: MatchFields | None = msgspec.field(default=None, name="except")


class EgressRuleFields(CommonRuleFields, frozen=True):
    """`egress.rules[]`."""

    match: EgressMatchFields = msgspec.field(default_factory=EgressMatchFields)
    exception: EgressMatchFields | None = msgspec.field(default=None, name="except")


class DestinationFields(PolicyFields, frozen=True):
    """`egress.destinations[]`."""

    name: str
    mode: EgressMode = EgressMode.OBSERVE
    names: Annotated[list[Text], msgspec.Meta(max_length=MAX_NAMES)] = msgspec.field(default_factory=list)
    networks: Annotated[list[Text], msgspec.Meta(max_length=MAX_SOURCES)] = msgspec.field(default_factory=list)
    ports: Annotated[list[PortNumber], msgspec.Meta(max_length=MAX_PORTS)] = msgspec.field(default_factory=list)


class SecretRefFields(PolicyFields, frozen=True):
    """`egress.issuer.secretRef`, `egress.trust.secretRef`."""

    name: str
    namespace: str | None = None


class SecretFields(PolicyFields, frozen=True):
    """`egress.issuer`, `egress.trust`."""

    secret_ref: SecretRefFields


class LogFields(PolicyFields, frozen=True):
    """`log`, `egress.log`."""

    sample_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0


class IdsFields(PolicyFields, frozen=True):
    """`ids`, `egress.ids`."""

    rules_from: RulesFromFields


class EgressFields(PolicyFields, frozen=True):
    """`egress`."""

    destinations: Annotated[list[DestinationFields], msgspec.Meta(min_length=1, max_length=MAX_DESTINATIONS)] | None = (
        None
    )
    rules: Annotated[list[EgressRuleFields], msgspec.Meta(max_length=MAX_RULES)] = msgspec.field(default_factory=list)
    failure_policy: FailurePolicy = FailurePolicy.IGNORE
    quic: Quic = Quic.ALLOW
    issuer: SecretFields | None = None
    trust: SecretFields | None = None
    log: LogFields = msgspec.field(default_factory=LogFields)
    ids: IdsFields | None = None
    waf: WafFields | None = None


class RedactFields(PolicyFields, frozen=True):
    """`redact`."""

    query_values: bool = True
    headers: Annotated[list[str], msgspec.Meta(max_length=MAX_NAMES)] = msgspec.field(default_factory=list)


class SpecFields(PolicyFields, frozen=True):
    """`spec`. It has at least one of `rules`, `ids`, `waf` and `egress`."""

    rules: Annotated[list[RuleFields], msgspec.Meta(min_length=1, max_length=MAX_RULES)] | None = None
    ids: IdsFields | None = None
    waf: WafFields | None = None
    egress: EgressFields | None = None
    pod_selector: SelectorFields | None = None
    workload: str | None = None
    namespace_selector: SelectorFields | None = None
    ports: Annotated[list[PortNumber | str], msgspec.Meta(max_length=MAX_PORTS)] = msgspec.field(default_factory=list)
    mode: Mode = Mode.DETECT
    failure_policy: FailurePolicy = FailurePolicy.IGNORE
    existing_connections: ExistingConnections = ExistingConnections.KEEP
    log: LogFields = msgspec.field(default_factory=LogFields)
    redact: RedactFields = msgspec.field(default_factory=RedactFields)


class PolicyDocumentFields(msgspec.Struct, frozen=True):
    """The document; `status` and what else an API server adds are not read."""

    metadata: MetadataFields
    spec: SpecFields
