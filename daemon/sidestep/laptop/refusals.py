"""What the API server refuses, as one line that says what to ask an administrator for."""

from __future__ import annotations

import re

from sidestep.kube.errors import ApiError
from sidestep.model.errors import ClusterError, RefusedError, SidestepError

DAEMON_NAMESPACE = "sidestep"

_USER = re.compile(r'User "([^"]{1,200})"')
_SERVICE_ACCOUNT = re.compile(r"system:serviceaccount:([^:]+):([^:]+)")


def explain(error: ClusterError, *, verb: str, resource: str, namespace: str) -> SidestepError:
    """The error a person should see for a request with this verb on this resource."""
    if not isinstance(error, ApiError):
        return error
    if error.status == 401:
        return RefusedError(f"the API server does not know you; log in and try again ({error})")
    if error.forbidden:
        name = "sidestep-tunnel" if resource.startswith("pods/") else "sidestep-developer"
        kind = "role" if name == "sidestep-tunnel" else "clusterrole"
        match = _USER.search(str(error))
        advice = f"kubectl create rolebinding {name} --{kind}={name} {_subject(match)} -n {namespace}"
        refused = f"you may not {verb} {resource} in namespace {namespace}"
        return RefusedError(f"{refused}; an administrator allows it with: {advice} ({error})")
    if error.status == 404 and not error.reason:
        return RefusedError("Sidestep is not installed in this cluster: kubectl apply -f deploy/daemonset.yaml")
    return RefusedError(f"the API server refuses to {verb} {resource} in namespace {namespace}: {error}")


def _subject(match: re.Match[str] | None) -> str:
    user = match.group(1) if match else "USER"
    account = _SERVICE_ACCOUNT.fullmatch(user)
    if account is not None:
        return f"--serviceaccount={account.group(1)}:{account.group(2)}"
    return f"--user={user}"
