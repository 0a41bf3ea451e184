"""Inspection policies: what is logged, reported or blocked among the requests and responses of a pod's ports, and among
the connections that a pod makes (`Egress`).

A namespace's `InspectionPolicy` and a `ClusterInspectionPolicy` have the same form here; the latter has no namespace of
its own and chooses namespaces by their labels. All policies that select a pod apply side by side: their rules add up,
and the strictest outcome wins, so that no policy can weaken another.

Values only. `config.inspection` parses documents into them, `policy.inspection` judges exchanges by them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from sidestep.model.config_map_key import ConfigMapKey
from sidestep.model.egress import EVERYTHING, Destination, Network, Quic, SecretRef
from sidestep.model.filter import Filter, HeaderTest
from sidestep.model.intercept import WorkloadRef
from sidestep.model.waf import Waf
from sidestep.model.workload import LabelSelector


class Mode(enum.StrEnum):
    """Whether a policy's `Block` blocks, or is only reported as what would have been blocked."""

    DETECT = "Detect"
    ENFORCE = "Enforce"


class FailurePolicy(enum.StrEnum):
    """Whether an enforcing policy lets pass what cannot be inspected, or has it closed."""

    IGNORE = "Ignore"
    FAIL = "Fail"


class ExistingConnections(enum.StrEnum):
    """What becomes of connections that are older than the policy: they go on uninspected, or are reset."""

    KEEP = "Keep"
    RESET = "Reset"


class Direction(enum.StrEnum):
    """Which half of an exchange a rule looks at."""

    REQUEST = "Request"
    RESPONSE = "Response"


class Action(enum.StrEnum):
    """What happens when a rule applies; each includes the ones before it."""

    LOG = "Log"
    ALERT = "Alert"
    BLOCK = "Block"


class Builtin(enum.StrEnum):
    """Patterns that come with Sidestep; `policy.data_loss` has their definitions."""

    CARD_NUMBER = "CardNumber"
    IBAN = "Iban"
    PRIVATE_KEY = "PrivateKey"
    JWT = "Jwt"
    AWS_CREDENTIAL = "AwsCredential"
    AZURE_CREDENTIAL = "AzureCredential"
    GCP_CREDENTIAL = "GcpCredential"
    GITHUB_TOKEN = "GitHubToken"  # noqa: S105 - the name of a pattern
    GITLAB_TOKEN = "GitLabToken"  # noqa: S105 - the same
    NPM_TOKEN = "NpmToken"  # noqa: S105 - the same
    PYPI_TOKEN = "PyPiToken"  # noqa: S105 - the same
    SLACK_TOKEN = "SlackToken"  # noqa: S105 - the same
    STRIPE_KEY = "StripeKey"


class Pattern(msgspec.Struct, frozen=True):
    """One thing to search for: a built-in pattern, or an RE2 regex. `builtin` is None for a regex."""

    builtin: Builtin | None = None
    regex: str = ""

    def __str__(self) -> str:
        return self.builtin.value if self.builtin else f"regex {self.regex}"


class ParameterCondition(msgspec.Struct, frozen=True):
    """One condition on a query parameter; `name` and `value` are compared with the decoded text."""

    name: str
    test: HeaderTest
    value: str = ""


class Match(msgspec.Struct, frozen=True):
    """Conditions on an exchange, AND-ed between kinds.

    `filter` is what an intercept can say: all headers, one of the methods, one of the paths. All `parameters` must
    hold; of `server_names`, `sources` and `client_certificates` one each, where there are any. Server names are in
    lower case, `*.example.com` stands for every name below it. A certificate's name ends in `*` to mean every name
    that begins so. In a rule for responses the headers are those of the response, and everything else is the request's.

    `networks`, `ports` and `fingerprints` are for connections that a pod makes: the address and port that it connects
    to, and the JA3 or JA4 of its ClientHello, one each. `sources` and `client_certificates` are for the others.
    """

    filter: Filter = msgspec.field(default_factory=Filter)
    parameters: tuple[ParameterCondition, ...] = ()
    server_names: tuple[str, ...] = ()
    sources: tuple[Network, ...] = ()
    client_certificates: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    ports: tuple[int, ...] = ()
    fingerprints: tuple[str, ...] = ()

    @property
    def of_connection(self) -> bool:
        """Whether there are conditions on the connection."""
        downstream = self.server_names or self.sources or self.client_certificates
        return bool(downstream or self.networks or self.ports or self.fingerprints)

    @property
    def of_exchange(self) -> bool:
        """Whether there are conditions on the request or the response."""
        return bool(self.parameters) or not self.filter.is_global

    @property
    def is_empty(self) -> bool:
        """Whether there is no condition, so that every exchange matches."""
        return not (self.of_connection or self.of_exchange)


class Threshold(msgspec.Struct, frozen=True):
    """A rule applies from the `count`-th match of one client within `period` seconds on."""

    count: int
    period: float


class RateLimit(msgspec.Struct, frozen=True):
    """At most `count` hits of a rule are told within `period` seconds. Enforcement is not limited."""

    count: int
    period: float


class Rule(msgspec.Struct, frozen=True):
    """One rule: it applies where `match` holds, `exception` does not, and one of `patterns` (if any) is found.

    Patterns are searched for in the head and in the body. `name` is unique within its policy.
    """

    name: str
    action: Action
    direction: Direction = Direction.REQUEST
    match: Match = msgspec.field(default_factory=Match)
    exception: Match | None = None
    patterns: tuple[Pattern, ...] = ()
    threshold: Threshold | None = None
    rate_limit: RateLimit | None = None

    @property
    def of_connection(self) -> bool:
        """Whether the connection alone decides if it applies: it looks at no request and at no response."""
        looks = [each.of_exchange for each in (self.match, self.exception) if each is not None]
        return self.direction is Direction.REQUEST and not (self.patterns or any(looks))


class Egress(msgspec.Struct, frozen=True):
    """What a policy says of the connections that its pods make.

    `rules` are about those to its `destinations`; one that looks at requests applies where they are read. Whether
    `Block` blocks is the policy's `mode`. `failure_policy` is about connections that cannot be judged as a destination
    wants. `issuer` has the CA whose certificates apps are shown, and is there if a destination is decrypted. `trust`
    has the authorities that servers are verified by, in the place of the system's. `sample_percent` of the
    requests without a hit are logged, with `ids` the pod's Suricata is fed the connections, and with `waf` the pod's
    inspector judges each request as a whole: of those that are read.
    """

    destinations: tuple[Destination, ...] = EVERYTHING
    rules: tuple[Rule, ...] = ()
    failure_policy: FailurePolicy = FailurePolicy.IGNORE
    quic: Quic = Quic.ALLOW
    issuer: SecretRef | None = None
    trust: SecretRef | None = None
    sample_percent: float = 0.0
    ids: ConfigMapKey | None = None
    waf: Waf | None = None


class Redaction(msgspec.Struct, frozen=True):
    """What is left out of records besides credentials: the values of queries, and of these headers (lower case)."""

    query_values: bool = True
    headers: tuple[str, ...] = ()


class InspectionPolicy(msgspec.Struct, frozen=True):
    """A policy as it was written.

    `namespace` is empty for a ClusterInspectionPolicy, which has a `namespace_selector` instead. Exactly one of
    `pod_selector` and `workload` is set; a cluster policy has no workload. Empty selectors select everything. `ports`
    are container ports, by number or by name; empty for every port that may speak HTTP. `sample_percent` of the
    requests without a hit are logged, 0 to 100. With `ids` the pod's Suricata is fed the connections; it reports, and
    neither `mode` nor `failure_policy` is about it. With `waf` each request is judged as a whole by the pod's
    inspector. `egress` is about the connections that pods make; all else but `mode`, `redaction` and the selectors is
    about those that they accept. A policy has at least one of `rules`, `ids`, `waf` and `egress`.
    """

    name: str
    namespace: str = ""
    pod_selector: LabelSelector | None = None
    workload: WorkloadRef | None = None
    namespace_selector: LabelSelector | None = None
    ports: tuple[int | str, ...] = ()
    mode: Mode = Mode.DETECT
    failure_policy: FailurePolicy = FailurePolicy.IGNORE
    existing_connections: ExistingConnections = ExistingConnections.KEEP
    sample_percent: float = 0.0
    rules: tuple[Rule, ...] = ()
    redaction: Redaction = msgspec.field(default_factory=Redaction)
    ids: ConfigMapKey | None = None
    waf: Waf | None = None
    egress: Egress | None = None

    @property
    def is_inward(self) -> bool:
        """Whether it says anything of connections that pods accept."""
        return self.egress is None or bool(self.rules) or self.ids is not None or self.waf is not None

    @property
    def outward(self) -> InspectionPolicy | None:
        """What it says of connections that pods make, as a policy of those; None if it says nothing of them."""
        if self.egress is None:
            return None
        return replace(
            self,
            ports=(),
            failure_policy=self.egress.failure_policy,
            existing_connections=ExistingConnections.KEEP,
            sample_percent=self.egress.sample_percent,
            rules=self.egress.rules,
            ids=self.egress.ids,
            waf=self.egress.waf,
            egress=None,
        )

    @property
    def shown_failure_policy(self) -> str:
        """How it fails, for people: as `egress` does if it says nothing of what pods accept; both where they differ."""
        inward = self.failure_policy.value
        if self.egress is None or self.egress.failure_policy is self.failure_policy:
            return inward
        outward = self.egress.failure_policy.value
        return f"{inward}, egress {outward}" if self.is_inward else outward

    @property
    def texts(self) -> tuple[ConfigMapKey, ...]:
        """Where it has texts of its own."""
        found = (self.ids_rules, self.waf_rules)
        return tuple(each for each in found if each is not None)

    @property
    def ids_rules(self) -> ConfigMapKey | None:
        """Where the rules of its IDS are, in whichever direction that looks."""
        return self.egress.ids if self.ids is None and self.egress is not None else self.ids

    @property
    def waf_rules(self) -> ConfigMapKey | None:
        """Where the custom rules of its firewall are, in whichever direction they apply."""
        both = (self.waf, None if self.egress is None else self.egress.waf)
        return next((each.rules_from for each in both if each is not None and each.rules_from is not None), None)

    @property
    def of_cluster(self) -> bool:
        """Whether it is a ClusterInspectionPolicy."""
        return not self.namespace

    @property
    def display(self) -> str:
        """`namespace/name`, or `name` of a cluster's policy, the way records and errors name it."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @property
    def order(self) -> tuple[str, str]:
        """Sort key: policies of the cluster first, then by namespace and name."""
        return (self.namespace, self.name)

    @property
    def closes(self) -> bool:
        """Whether it closes what cannot be inspected."""
        return self.mode is Mode.ENFORCE and self.failure_policy is FailurePolicy.FAIL


def selects(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether a policy's selector selects an object with these labels. An empty one selects everything."""
    return not (selector.labels or selector.expressions) or selector.matches(labels)
