"""A condition: what a person should know about a port of a pod, an intercept or the node."""

from __future__ import annotations

import enum

import msgspec


class ConditionType(enum.StrEnum):
    """Stable names; `status`, Events and metrics use them. One per thing a user can act upon."""

    CERTIFICATE_INVALID = "CertificateInvalid"
    ANNOTATION_INVALID = "AnnotationInvalid"
    PROTOCOL_CONTRADICTION = "ProtocolContradiction"
    UPSTREAM_UNVERIFIED = "UpstreamUnverified"
    UPSTREAM_TLS_FAILED = "UpstreamTlsFailed"
    CLIENT_CERTIFICATE_REQUESTED = "ClientCertificateRequested"
    CLIENT_CERTIFICATE_REQUESTED_LATER = "ClientCertificateRequestedLater"
    ALPN_UNSUPPORTED = "AlpnUnsupported"
    SNI_UNSUPPORTED = "SniUnsupported"
    CLIENT_TLS_UNSUPPORTED = "ClientTlsUnsupported"
    NO_CERTIFICATE = "NoCertificate"
    NO_APP = "NoApp"
    OVERLOADED = "Overloaded"
    PROBES_PASSED = "ProbesPassed"
    EXISTING_KEPT = "ExistingConnectionsKept"
    PORT_CLOSED = "PortClosed"
    PROXY_CRASH_LOOP = "ProxyCrashLoop"
    PROXY_NOT_READY = "ProxyNotReady"
    STEERING_FAILED = "SteeringFailed"
    NETNS_UNAVAILABLE = "NetnsUnavailable"
    POD_REFUSED = "PodRefused"
    PORT_UNKNOWN = "PortUnknown"
    DRIFT_REPAIRED = "DriftRepaired"
    POLICY_INVALID = "PolicyInvalid"
    POLICY_ENFORCED = "PolicyEnforced"
    NOT_INSPECTED = "NotInspected"
    IDS_RULES_INVALID = "IdsRulesInvalid"
    IDS_RULES_LEFT_OUT = "IdsRulesLeftOut"
    IDS_NOT_RUNNING = "IdsNotRunning"
    WAF_RULES_INVALID = "WafRulesInvalid"
    WAF_NOT_RUNNING = "WafNotRunning"
    READINESS_FORBIDDEN = "ReadinessForbidden"
    MANIFEST_INVALID = "ManifestInvalid"
    CLUSTER_UNREADABLE = "ClusterUnreadable"
    SWAP_ENABLED = "SwapEnabled"
    RECORDS_NOT_WRITTEN = "RecordsNotWritten"
    """Records of inspection are lost: a full disk, or nobody reads them."""


class Condition(msgspec.Struct, frozen=True):
    """`subject` is what it is about ("pod shop/orders-1 port 8443", "node n1"); `text` is one line for a person."""

    type: ConditionType
    subject: str
    text: str
