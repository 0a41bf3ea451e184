"""The commands that permit a node daemon to read a Secret: only this one, or all of its namespace. Pure.

RBAC can restrict a permission to a named object only for verbs that address one object. The narrow permission is
therefore `get` (the daemon then polls while the Secret is in use), and the wide one the ClusterRole `sidestep-secrets`
with `list` and `watch`. The name comes from an annotation, which any author of a pod can write; it is quoted for the
shell.
"""

from __future__ import annotations

import re
import shlex

_NOT_IN_A_NAME = re.compile(r"[^a-z0-9.-]+")


def secret_advice(name: tuple[str, str], service_account: str) -> str:
    """Return both commands in one line; `name` is (namespace, name), `service_account` is `namespace:name`."""
    namespace, secret = shlex.quote(name[0]), shlex.quote(name[1])
    role = "sidestep-secret-" + _NOT_IN_A_NAME.sub("-", name[1].lower()).strip("-.")[:200]
    account = f"--serviceaccount={service_account} -n {namespace}"
    return (
        f"allow this one with: kubectl create role {role} --verb=get --resource=secrets --resource-name={secret} "
        f"-n {namespace} && kubectl create rolebinding {role} --role={role} {account}"
        f" - or all of namespace {namespace} with: kubectl create rolebinding sidestep-secrets "
        f"--clusterrole=sidestep-secrets {account}"
    )
