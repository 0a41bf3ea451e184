"""Explains a refusal of the API server in one line, with the permission to request from an administrator."""

from __future__ import annotations

import re
import shlex

from sidestep.kube.errors import ApiError
from sidestep.kube.session_specs import DEFINITIONS, Definition
from sidestep.model.errors import ClusterError, RefusedError, SidestepError
from sidestep.model.intercept import SessionKind

DAEMON_NAMESPACE = "sidestep"
DAEMON_LABELS = "app.kubernetes.io/name=sidestep,app.kubernetes.io/component=node"
"""Selects the pods of the node daemons."""

_USER = re.compile(r'User "([^"]{1,200})"')
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9.:@_-]")
_SERVICE_ACCOUNT = re.compile(r"system:serviceaccount:([^:]+):([^:]+)")


def explain(error: ClusterError, *, verb: str, resource: str, namespace: str) -> SidestepError:
    """Return the error to show for a request with this verb on this resource."""
    if not isinstance(error, ApiError):
        return error
    definition = _definition(resource)
    if error.status == 401:
        return RefusedError(f"the API server does not know you; log in and try again ({error})")
    if error.forbidden:
        role = "--role=sidestep-tunnel" if resource.startswith("pods/") else f"--clusterrole={definition.role}"
        of_developers = definition.role == DEFINITIONS[SessionKind.INTERCEPT].role or resource.startswith("pods/")
        prefix = "sidestep" if of_developers else definition.role
        name, subject = _subject(prefix, _USER.search(str(error)))
        advice = f"kubectl create rolebinding {name} {role} {subject} -n {namespace}"
        refused = f"you may not {verb} {resource} in namespace {namespace}"
        return RefusedError(f"{refused}; an administrator allows it with: {advice} ({error})")
    if error.status == 404 and not error.reason:
        missing = resource if definition.optional else "Sidestep"
        return RefusedError(
            f"{missing} is not installed in this cluster: kubectl apply -f deploy/{definition.manifest}"
        )
    return RefusedError(f"the API server refuses to {verb} {resource} in namespace {namespace}: {error}")


def _definition(resource: str) -> Definition:
    """Return the kind that `resource` (PLURAL.GROUP) names; that of intercepts for anything else."""
    plural = resource.partition(".")[0]
    found = (each for each in DEFINITIONS.values() if each.plural == plural)
    return next(found, DEFINITIONS[SessionKind.INTERCEPT])


def _subject(prefix: str, match: re.Match[str] | None) -> tuple[str, str]:
    """Return a name for the role binding that no other user's has, and its subject; both quoted for a shell.

    `prefix` differs from role to role: a user may have several.
    """
    user = match.group(1) if match else "USER"
    account = _SERVICE_ACCOUNT.fullmatch(user)
    subject = f"--user={user}" if account is None else f"--serviceaccount={account.group(1)}:{account.group(2)}"
    short = user if account is None else f"{account.group(1)}-{account.group(2)}"
    return f"{prefix}-{_NOT_IN_A_NAME.sub('-', short)}", shlex.quote(subject)
