"""Names of the annotations that Sidestep reads. docs/tls.md and docs/install.md describe them for users."""

from __future__ import annotations

DOWNSTREAM_PATH = "telepresence.io/downstream-tls-path"
DOWNSTREAM_SECRET = "telepresence.io/downstream-tls-secret"  # noqa: S105 - the name of an annotation
UPSTREAM_PATH = "telepresence.io/upstream-tls-path"
UPSTREAM_SECRET = "telepresence.io/upstream-tls-secret"  # noqa: S105 - the name of an annotation
SKIP_VERIFY = "telepresence.io/upstream-insecure-skip-verify"
PROBE_TIMEOUT = "telepresence.io/upstream-probe-timeout"
CLIENT_AUTH = "sidestep.dev/downstream-client-auth"
FORWARD_CLIENT_CERT = "sidestep.dev/forward-client-cert"
LATE_CLIENT_AUTH = "sidestep.dev/late-client-auth"
RECENT_REQUESTS = "sidestep.dev/recent-requests"

PER_PORT = (
    DOWNSTREAM_PATH,
    DOWNSTREAM_SECRET,
    UPSTREAM_PATH,
    UPSTREAM_SECRET,
    SKIP_VERIFY,
    PROBE_TIMEOUT,
    CLIENT_AUTH,
    FORWARD_CLIENT_CERT,
    LATE_CLIENT_AUTH,
    RECENT_REQUESTS,
)
"""Annotations whose name ends with `.<port>`."""

LOOKALIKES = (
    "telepresence.io/downstream-tls",
    "telepresence.io/upstream-tls",
    "telepresence.io/upstream-insecure",
    "telepresence.io/upstream-probe",
    "sidestep.dev/downstream",
    "sidestep.dev/upstream",
    "sidestep.dev/forward",
    "sidestep.dev/late",
    "sidestep.dev/recent",
)
"""Prefixes of misspelt names: an annotation that starts with one of them and is not in PER_PORT is reported as a
problem."""

NETNS = "sidestep.dev/netns"
PID = "sidestep.dev/pid"
ROOT = "sidestep.dev/root"
CGROUP = "sidestep.dev/cgroup"

ENABLED = "sidestep.dev/enabled"
NAMESPACES = "sidestep.dev/namespaces"
MAX_PODS = "sidestep.dev/max-pods"
INSPECTION = "sidestep.dev/inspection"
EVE = "sidestep.dev/eve"
OUTBOUND_DENY = "sidestep.dev/outbound-deny"
DRAIN_TIMEOUT = "sidestep.dev/drain-timeout"
PROXY_WORKERS = "sidestep.dev/proxy-workers"
"""On a pod, its owners or its namespace, too."""
