"""What the API server refuses, in words that tell an administrator what to do."""

from __future__ import annotations

import pytest

from sidestep.kube.errors import ApiError, UnreachableClusterError
from sidestep.laptop.api_refusals import explain
from sidestep.model.errors import RefusedError


def forbidden(user):
    return ApiError(403, "Forbidden", f'intercepts.sidestep.dev is forbidden: User "{user}" cannot create resource')


@pytest.mark.parametrize(
    ("user", "name", "subject"),
    [
        ("ada", "sidestep-ada", "--user=ada"),
        ("ada@example.com", "sidestep-ada@example.com", "--user=ada@example.com"),
        ("https://login/ada#1", "sidestep-https:--login-ada-1", "'--user=https://login/ada#1'"),
        ("a; reboot", "sidestep-a--reboot", "'--user=a; reboot'"),
        ("system:serviceaccount:ci:robot", "sidestep-ci-robot", "--serviceaccount=ci:robot"),
    ],
)
def test_the_command_that_gives_a_right(user, name, subject):
    """It can be pasted into a shell, whoever the user is, and does not collide with another user's."""
    error = explain(forbidden(user), verb="create", resource="intercepts.sidestep.dev", namespace="shop")
    command = f"kubectl create rolebinding {name} --clusterrole=sidestep-developer {subject} -n shop"
    assert "you may not create intercepts.sidestep.dev in namespace shop" in str(error)
    assert f"with: {command} (" in str(error)


@pytest.mark.parametrize(
    ("resource", "role"),
    [("podaccesses.sidestep.dev", "sidestep-pod-access"), ("captures.sidestep.dev", "sidestep-capturer")],
)
def test_another_role_has_a_binding_beside_that_of_developers(resource, role):
    error = explain(forbidden("ada"), verb="create", resource=resource, namespace="shop")
    assert f"you may not create {resource} in namespace shop" in str(error)
    assert f"kubectl create rolebinding {role}-ada --clusterrole={role} --user=ada -n shop" in str(error)


def test_the_way_to_the_daemons_has_a_role_of_its_own():
    error = explain(forbidden("ada"), verb="get", resource="pods/portforward", namespace="sidestep")
    assert "kubectl create rolebinding sidestep-ada --role=sidestep-tunnel --user=ada -n sidestep" in str(error)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ApiError(401, "Unauthorized", "Unauthorized"), "log in"),
        (ApiError(404, "", "404 page not found"), "not installed"),
        (ApiError(422, "Invalid", "spec.port is wrong"), "spec.port is wrong"),
    ],
)
def test_other_refusals(error, text):
    told = explain(error, verb="create", resource="intercepts.sidestep.dev", namespace="shop")
    assert isinstance(told, RefusedError)
    assert text in str(told)


def test_a_cluster_that_does_not_answer_stays_that():
    error = UnreachableClusterError("the API server does not answer")
    assert explain(error, verb="list", resource="pods", namespace="shop") is error
